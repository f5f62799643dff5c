"""Logits to the next token of each text: penalties, filters, and the draw."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.sample.logits import draw, greedy, process, uniforms

# Random numbers made at once per text: one costs as much to make as a hundred.
BLOCK = 64


class Drawer:
    """Draws one token per text and step, and where there are penalties counts what each text has.

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
        self.positions = [0] * len(self.places)
        penalties = (config.frequency_penalty, config.presence_penalty)
        self.counting = config.repetition_penalty != 1 or any(penalties)
        self._numbers = np.empty((len(self.places), BLOCK))
        marks = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
        for row, text in enumerate(texts):
            marks[row, torch.tensor(text)] = True
        # Tokens of prompt and continuation; how often the continuation has each.
        self.seen = marks.to(device)
        self.counts = torch.zeros(marks.shape, dtype=torch.float64, device=device)

    def draw(self, logits: Tensor) -> Tensor:
        """logits [R, V] float64 to the next id [R] of each text."""
        logits = process(logits, self.seen, self.counts, self.config)
        if self.config.temperature == 0:
            ids = greedy(logits)
        else:
            numbers = [self._number(row) for row in range(len(self.places))]
            ids = draw(logits, torch.tensor(numbers, dtype=torch.float64, device=logits.device))
        self.positions = [position + 1 for position in self.positions]
        if self.counting:
            self.seen.scatter_(1, ids[:, None], True)
            self.counts.scatter_add_(1, ids[:, None], torch.ones_like(self.counts[:, :1]))
        return ids

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order."""
        index = torch.tensor(rows, device=self.seen.device)
        self.seen, self.counts = self.seen[index], self.counts[index]
        self.places = [self.places[row] for row in rows]
        self.positions = [self.positions[row] for row in rows]
        self._numbers = self._numbers[[*rows]]

    def _number(self, row: int) -> float:
        """The random number of a text's position."""
        position = self.positions[row]
        if position % BLOCK == 0:
            prompt, sample = self.places[row]
            self._numbers[row] = uniforms(self.config.seed, prompt, sample, position, BLOCK)
        return float(self._numbers[row, position % BLOCK])
