"""Where the guesses of speculation come from: another model, the text itself, or the first blocks.

    draft = find(config, model, tokenizer)           # what `sample.draft` names, or None
    guesses = draft.begin(reader, drawer, room)      # over the texts of a reader
    proposal = guesses.propose([4, 4])               # at most that many tokens for each text
    guesses.take([[5, 9], [7]])                      # the tokens that the texts grew by instead

`tinylm.sample.speculation` reads the guesses with the model and keeps what the model agrees to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tinylm import commands
from tinylm.config import ConfigError, SampleConfig
from tinylm.config.limits import show
from tinylm.model import Model
from tinylm.sample.drawer import Drawer
from tinylm.sample.exits import EarlyExit
from tinylm.sample.guesses import Ahead, Proposal
from tinylm.sample.logits import DRAFT, RowError, draw, greedy
from tinylm.sample.lookup import LookupDraft
from tinylm.sample.reader import Reader

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def find(config: SampleConfig, model: Model, tokenizer: "Tokenizer | None" = None) -> Ahead | None:
    """What `config.draft` names, for this model and tokenizer; a run's model is loaded.

    Or the early exit of `config.exit_confidence`. Raises `ConfigError` for a draft that has other
    tokens, and for exits that the model lacks.
    """
    name = config.draft
    if config.exit_confidence is not None:
        return _early(config, config.exit_confidence, model)
    if name is None:
        return None
    if name == "lookup":
        return LookupDraft()
    if config.draft_layers is not None:
        most = model.config.n_layers - 1
        if not model.config.exits:
            raise _refused(name, "the model has no exits; train one with model.exits=true")
        if config.draft_layers > most:
            raise _refused(name, f"the model has {most + 1} blocks; N is 1 to {most}")
        return ExitDraft(config.draft_layers)
    from tinylm import checkpoint

    with commands.finding(Path(name), "sample"):
        drafter, its_tokenizer = checkpoint.load(name, device=model.weight.device)
    if not (tokenizer is None or its_tokenizer is None or tokenizer == its_tokenizer):
        raise _refused(name, "has another tokenizer; a draft needs the model's own")
    rows, mine = drafter.embedding.num_embeddings, model.embedding.num_embeddings
    if rows != mine and (tokenizer is None or rows < min(mine, tokenizer.vocab_size)):
        raise _refused(name, f"has a vocabulary of {rows}, and the model one of {mine}")
    # The range of float16 ends at 65504, which logits of a model trained in bfloat16 may pass.
    half = drafter.weight.dtype == torch.float16
    return ModelDraft(drafter.float() if half else drafter)


def _early(config: SampleConfig, confidence: float, model: Model) -> EarlyExit:
    """The exit of these settings; `ConfigError` where the model has none."""
    blocks = model.config.n_layers
    if not model.config.exits:
        raise ConfigError(
            f"sample.exit_confidence={confidence}: the model has no exits; train one with "
            "model.exits=true"
        )
    # The second block is the first one that can copy (`layers/copying.py`).
    layers = config.exit_layer or min(blocks - 1, max(2, blocks // 4))
    if layers >= blocks:
        raise ConfigError(
            f"sample.exit_layer={layers}: the model has {blocks} blocks; it is 1 to {blocks - 1}"
        )
    return EarlyExit(layers, confidence)


def _refused(name: str, problem: str) -> ConfigError:
    return ConfigError(f"sample.draft={show(name)}: {problem}")


@dataclass(frozen=True)
class ModelDraft:
    """Guesses of another model with the same tokens."""

    model: Model
    tokens = 3

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> "Drawn":
        """See `Draft`."""
        unique = list(dict.fromkeys(tuple(text) for text in reader.texts))
        own = Reader(
            self.model,
            unique,
            room,
            vocab_size=reader.vocab_size,
            missing=reader.forward.missing.tolist(),
        )
        own.keep([unique.index(tuple(text)) for text in reader.texts])
        return Drawn(Follower(own), drawer)


@dataclass(frozen=True)
class ExitDraft:
    """Guesses of the model's own first blocks, if it was trained with exits.

    Source: Elhoushi et al. 2024 (LayerSkip), section 4.3.
    """

    layers: int
    tokens = 3

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> "Drawn":
        """See `Draft`."""
        return Drawn(Exit(reader, self.layers), drawer)


class Source(Protocol):
    """A model that reads guesses one by one."""

    def begin(self, unread: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Of tokens that the texts have, those to be read for the first guesses."""

    def room(self) -> list[int]:
        """How many tokens of each text can be read."""

    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Some tokens of each text, one at least, to the logits [R, V] of the next guesses."""

    def likeliest(self, tokens: Sequence[Sequence[int]]) -> list[int] | None:
        """As `read`, but the likeliest ids, where the native step chooses them."""

    def end(self) -> None:
        """The guesses are made."""

    def take(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """The texts have grown by `tokens`; returns those that must be read at `begin`."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order."""


class Drawn:
    """The guesses that a model draws, from its distributions as the settings change them.

    They are drawn by the drawer of the texts, with random numbers of their own, and taken back: so
    penalties and filters apply to a guess as to any token. The guesses of a text end at one that
    would end it, and where no token may follow: the model may never come there.
    """

    def __init__(self, source: Source, drawer: Drawer) -> None:
        self.source, self.drawer = source, drawer
        self.unread: list[list[int]] = [[] for _ in drawer.drawn]

    def propose(self, wanted: Sequence[int]) -> Proposal:
        """See `Guesses`."""
        if not any(wanted):
            return Proposal([[] for _ in wanted])
        positions = [len(drawn) for drawn in self.drawer.drawn]
        # Whether the likeliest token is all that is wanted of a guess.
        cold = self.drawer.config.temperature == 0 and self.drawer.chances() is not None
        new = self.source.begin(self.unread)
        self.unread = [[] for _ in self.unread]
        # The last guess of a text is not read. A text whose window would move guesses no further.
        rooms = [room - len(some) for room, some in zip(self.source.room(), new, strict=True)]
        counts = [max(0, min(w, r + 1)) for w, r in zip(wanted, rooms, strict=True)]
        tokens: list[list[int]] = [[] for _ in counts]
        distributions: list[Tensor] = []
        going = [row for row, count in enumerate(counts) if count]
        while True:
            ids = self.source.likeliest(new) if cold else None
            if ids is None:
                ids, going = self._draw(self.source.read(new), going, distributions)
            for row in going:
                tokens[row].append(ids[row])
            # A text gets no more guesses than it may have, whatever its neighbours may.
            going = [
                row
                for row in going
                if len(tokens[row]) < counts[row] and ids[row] not in self.drawer.rows[row].ends
            ]
            if not going:
                break
            new = [[id] for id in ids]
        self.source.end()
        self.drawer.truncate(positions)
        return Proposal(tokens, distributions or None)

    def _draw(
        self, logits: Tensor, going: list[int], distributions: list[Tensor]
    ) -> tuple[list[int], list[int]]:
        """A guess per text, and those of `going` that have one: others can have no token."""
        while going:
            try:
                return self.drawer.draw(logits, partial(self._choose, distributions), going), going
            except RowError as error:
                going = [row for row in going if row != error.row]
        return [], going

    def _choose(self, distributions: list[Tensor], logits: Tensor) -> Tensor:
        """Draw a guess, and keep what it was drawn from unless it is sure."""
        if self.drawer.config.temperature == 0:
            return greedy(logits)
        distributions.append(logits.double().softmax(-1))
        return draw(logits, self.drawer.numbers(DRAFT))

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """See `Guesses`."""
        new = self.source.take(tokens)
        self.unread = [[*a, *b] for a, b in zip(self.unread, new, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """See `Guesses`."""
        self.source.keep(rows)
        self.unread = [[*self.unread[row]] for row in rows]


class Follower:
    """A model with a reader of its own, which follows the texts."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        # How long each text was before its guesses.
        self._lengths = [len(text) for text in reader.texts]

    def begin(self, unread: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """See `Source`."""
        pairs = zip(self._lengths, unread, strict=True)
        self._lengths = [length + len(new) for length, new in pairs]
        return unread

    def room(self) -> list[int]:
        """See `Source`."""
        return self.reader.room()

    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """See `Source`."""
        return self.reader.extend(tokens)

    def likeliest(self, tokens: Sequence[Sequence[int]]) -> list[int] | None:
        """See `Source`."""
        return _likeliest(self.reader, tokens)

    def end(self) -> None:
        """See `Source`."""

    def take(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """See `Source`."""
        texts = zip(self.reader.texts, self._lengths, tokens, strict=True)
        # One token at least is read at `begin`, whose logits are wanted.
        right = [_alike(text[length:], new[:-1]) for text, length, new in texts]
        self._lengths = [length + n for length, n in zip(self._lengths, right, strict=True)]
        if self._lengths != [len(text) for text in self.reader.texts]:
            self.reader.truncate(self._lengths)
        return [[*new[n:]] for new, n in zip(tokens, right, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """See `Source`."""
        self.reader.keep(rows)
        self._lengths = [self._lengths[row] for row in rows]


def _likeliest(
    reader: Reader, tokens: Sequence[Sequence[int]], layers: int | None = None
) -> list[int] | None:
    zeros = [0.0] * sum(map(len, tokens))
    found = reader.draw(tokens, (zeros, zeros), layers=layers)
    return None if found is None else [ids[-1] for ids in found]


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens the beginnings of both share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


class Exit:
    """The first blocks of the model, over the cache of the model itself.

    What they store there is taken back before the model reads the guesses: all blocks then fill the
    same places. So no layer is left without keys, and nothing is stored twice.
    """

    def __init__(self, reader: Reader, layers: int) -> None:
        self.reader, self.layers = reader, layers
        self._lengths: list[int] = []

    def begin(self, unread: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """See `Source`."""
        self._lengths = [len(text) for text in self.reader.texts]
        # The reader follows the texts by itself: it lacks their last token alone.
        return [new[-1:] for new in unread]

    def room(self) -> list[int]:
        """See `Source`."""
        return self.reader.room()

    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """See `Source`."""
        return self.reader.extend(tokens, layers=self.layers)

    def likeliest(self, tokens: Sequence[Sequence[int]]) -> list[int] | None:
        """See `Source`."""
        return _likeliest(self.reader, tokens, self.layers)

    def end(self) -> None:
        """See `Source`."""
        self.reader.truncate(self._lengths)

    def take(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """See `Source`."""
        return [[*new] for new in tokens]

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing: the reader is kept by its owner."""
