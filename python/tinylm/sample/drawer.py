"""Logits to the next token of each text: penalties, filters, and the draw."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.sample.logits import STREAM, draw, greedy, process, uniforms

# Random numbers made at once per text: one costs as much to make as a hundred.
BLOCK = 64

# Processed logits [R, V] to an id per text [R].
Choose = Callable[[Tensor], Tensor]


class Drawer:
    """Draws one token per text and step; where there are penalties, counts what each text has.

    `places` names each text: (number of its prompt, number of its sample). What a text draws is
    a function of its logits, the seed, its place and its position, the number of tokens drawn
    before: not of its company.
    """

    def __init__(
        self,
        config: SampleConfig,
        texts: Sequence[Sequence[int]],
        places: Sequence[tuple[int, int]],
        *,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.config, self.places = config, [*places]
        self.prompts = [[*text] for text in texts]
        self.drawn: list[list[int]] = [[] for _ in self.places]
        # By stream, and text by text: the number of a block of random numbers, and the block.
        self._numbers: dict[int, list[tuple[int, NDArray[np.float64]]]] = {}
        penalties = (config.frequency_penalty, config.presence_penalty)
        self._counting = config.repetition_penalty != 1 or any(penalties)
        shape = (len(self.places), vocab_size)
        # Tokens of prompt and continuation; how often the continuation has each.
        self.seen = torch.zeros(shape, dtype=torch.bool, device=device)
        self.counts = torch.zeros(shape, dtype=torch.float64, device=device)
        self._count(range(len(self.places)))

    def draw(self, logits: Tensor, choose: Choose | None = None) -> list[int]:
        """logits [R, V] float64 to the next id of each text.

        They are penalised and filtered first; `choose` takes the ids in another way then.
        """
        logits = process(logits, self.seen, self.counts, self.config)
        if choose is not None:
            ids = choose(logits)
        elif self.config.temperature == 0:
            ids = greedy(logits)
        else:
            ids = draw(logits, self.numbers())
        if self._counting:
            self.seen.scatter_(1, ids[:, None], True)
            self.counts.scatter_add_(1, ids[:, None], torch.ones_like(self.counts[:, :1]))
        # One transfer from the device for all rows, not one per row.
        found: list[int] = ids.tolist()
        for drawn, token in zip(self.drawn, found, strict=True):
            drawn.append(token)
        return found

    def numbers(self, stream: int = STREAM) -> Tensor:
        """The random number [R] float64 of each text's position, of one stream."""
        held = self._numbers.setdefault(stream, [(-1, np.empty(0))] * len(self.places))
        found = []
        for row, (prompt, sample) in enumerate(self.places):
            block, place = divmod(len(self.drawn[row]), BLOCK)
            if held[row][0] != block:
                first, seed = block * BLOCK, self.config.seed
                numbers = uniforms(seed, prompt, sample, first, BLOCK, stream=stream)
                held[row] = (block, numbers)
            found.append(float(held[row][1][place]))
        return torch.tensor(found, dtype=torch.float64, device=self.seen.device)

    def push(self, tokens: Sequence[int]) -> None:
        """Count one token per text as drawn, which was chosen elsewhere; its number is unused."""
        for drawn, token in zip(self.drawn, tokens, strict=True):
            drawn.append(token)
        self._count(range(len(self.drawn)))

    def truncate(self, positions: Sequence[int]) -> None:
        """Take draws back: text b goes on at positions[b], with the number that belongs there.

        Raises `ValueError` for a position that a text has not reached.
        """
        reached = [len(drawn) for drawn in self.drawn]
        if len(positions) != len(reached) or any(
            not 0 <= position <= most for position, most in zip(positions, reached, strict=True)
        ):
            raise ValueError(f"positions={[*positions]}: the texts have drawn {reached} tokens")
        self.drawn = [
            drawn[:position] for drawn, position in zip(self.drawn, positions, strict=True)
        ]
        # Counted anew, not subtracted: a token that is taken back may also be in the prompt.
        self._count(row for row, most in enumerate(reached) if positions[row] < most)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order."""
        index = torch.tensor(rows, device=self.seen.device)
        self.seen, self.counts = self.seen[index], self.counts[index]
        self.places = [self.places[row] for row in rows]
        self.prompts = [self.prompts[row] for row in rows]
        # Copies: a row may come several times, and each then grows by itself.
        self.drawn = [[*self.drawn[row]] for row in rows]
        self._numbers = {
            stream: [held[row] for row in rows] for stream, held in self._numbers.items()
        }

    def _count(self, rows: Iterable[int]) -> None:
        """Count the tokens of some texts anew."""
        for row in rows if self._counting else ():
            drawn = torch.tensor(self.drawn[row], dtype=torch.int64, device=self.seen.device)
            prompt = torch.tensor(self.prompts[row], device=self.seen.device)
            self.counts[row] = torch.bincount(drawn, minlength=self.counts.size(1)).double()
            self.seen[row] = self.counts[row] > 0
            self.seen[row, prompt] = True
