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
from tinylm.sample.logits import DRAFT, RowError, draw, greedy
from tinylm.sample.reader import Reader

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# The longest end of a text that is looked up in it.
LONGEST = 3


@dataclass(frozen=True)
class Proposal:
    """The guesses for each text, and the distribution that each was drawn from.

    `distributions[t]` [R, V] are those of guess t. None: the guesses are sure (copied, or the
    likeliest), so that the model keeps what it would have taken itself.
    """

    tokens: list[list[int]]
    distributions: list[Tensor] | None = None


class Guesses(Protocol):
    """The guesses over some growing texts, one row each."""

    def propose(self, wanted: Sequence[int]) -> Proposal:
        """At most wanted[r] next tokens of text r, as a function of that text alone."""

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """Each text has grown by these tokens, one at least, whatever was proposed."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order."""


class Draft(Protocol):
    """A way to guess; `tokens` is a good number of guesses at once for it."""

    tokens: int

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> Guesses:
        """Guesses over the texts of `reader`, each of which grows by at most `room` tokens."""


def find(
    config: SampleConfig, model: Model, tokenizer: "Tokenizer | None" = None
) -> "Draft | None":
    """What `config.draft` names, for this model and tokenizer; a run's model is loaded.

    Raises `ConfigError` for a draft that has other tokens, and for exits that the model lacks.
    """
    name = config.draft
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


def _refused(name: str, problem: str) -> ConfigError:
    return ConfigError(f"sample.draft={show(name)}: {problem}")


@dataclass(frozen=True)
class LookupDraft:
    """Guesses that the text goes on as it did where its last words stood before."""

    tokens = 10

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> "Copies":
        """See `Draft`."""
        return Copies(reader.texts)


class Copies:
    """The tokens that followed the newest earlier place where a text was as at its end.

    The same as `tinylm.reference.speculation.lookup`, with a table of places per text in place of a
    search. Source: Saxena 2023 (prompt lookup decoding).
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts: list[list[int]] = [[] for _ in texts]
        # By the last tokens of a place, where the newest such place ends.
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in texts]
        self.take(texts)

    def propose(self, wanted: Sequence[int]) -> Proposal:
        """See `Guesses`."""
        rows = zip(self._texts, self._places, wanted, strict=True)
        return Proposal([_copied(text, places, most) for text, places, most in rows])

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """See `Guesses`."""
        for text, places, new in zip(self._texts, self._places, tokens, strict=True):
            for token in new:
                # Before the token joins: the end of a text is no earlier place.
                for size in range(1, min(LONGEST, len(text)) + 1):
                    places[tuple(text[-size:])] = len(text)
                text.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        """See `Guesses`."""
        self._texts = [[*self._texts[row]] for row in rows]
        self._places = [{**self._places[row]} for row in rows]


def _copied(text: list[int], places: dict[tuple[int, ...], int], most: int) -> list[int]:
    for size in range(min(LONGEST, len(text)), 0, -1):
        place = places.get(tuple(text[-size:]))
        if place is not None:
            # What follows the place may reach the end of the text: then it goes round again.
            round_ = text[place:]
            return [round_[i % len(round_)] for i in range(most)]
    return []


@dataclass(frozen=True)
class ModelDraft:
    """Guesses of another model with the same tokens."""

    model: Model
    tokens = 4

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
    tokens = 4

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> "Drawn":
        """See `Draft`."""
        return Drawn(Exit(reader, self.layers), drawer)


class Source(Protocol):
    """A model that reads guesses one by one."""

    def begin(self, unread: Sequence[Sequence[int]]) -> Tensor:
        """Read tokens that the texts have, to the logits [R, V] of the first guesses."""

    def room(self) -> list[int]:
        """How many guesses of each text can be read."""

    def read(self, guesses: Sequence[int]) -> Tensor:
        """One guess per text to the logits [R, V] of the next."""

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
        logits = self.source.begin(self.unread)
        self.unread = [[] for _ in self.unread]
        # The last guess of a text is not read. A text whose window would move guesses no further.
        counts = [min(w, r + 1) for w, r in zip(wanted, self.source.room(), strict=True)]
        tokens: list[list[int]] = [[] for _ in counts]
        distributions: list[Tensor] = []
        going = [row for row, count in enumerate(counts) if count]
        while True:
            ids, going = self._draw(logits, going, distributions)
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
            logits = self.source.read(ids)
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
        # The guesses of each text that were read.
        self._guesses: list[list[int]] = [[] for _ in reader.texts]

    def begin(self, unread: Sequence[Sequence[int]]) -> Tensor:
        """See `Source`."""
        reader, longest = self.reader, max(map(len, unread))
        lengths = [len(text) + len(new) for text, new in zip(reader.texts, unread, strict=True)]
        logits = reader.read([[*new, *[0] * (longest - len(new))] for new in unread])
        if any(len(new) < longest for new in unread):
            reader.truncate(lengths)
        last = torch.tensor([len(new) - 1 for new in unread], device=logits.device)
        return logits[torch.arange(len(unread), device=logits.device), last]

    def room(self) -> list[int]:
        """See `Source`."""
        return self.reader.room()

    def read(self, guesses: Sequence[int]) -> Tensor:
        """See `Source`."""
        for held, guess in zip(self._guesses, guesses, strict=True):
            held.append(guess)
        return self.reader.read([[guess] for guess in guesses])[:, -1]

    def end(self) -> None:
        """See `Source`."""

    def take(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """See `Source`."""
        # One token at least is read at `begin`, whose logits are wanted.
        right = [_alike(read, new[:-1]) for read, new in zip(self._guesses, tokens, strict=True)]
        if any(n < len(read) for n, read in zip(right, self._guesses, strict=True)):
            rows = zip(self.reader.texts, self._guesses, right, strict=True)
            self.reader.truncate([len(text) - len(read) + n for text, read, n in rows])
        self._guesses = [[] for _ in self._guesses]
        return [[*new[n:]] for new, n in zip(tokens, right, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """See `Source`."""
        self.reader.keep(rows)
        self._guesses = [[*self._guesses[row]] for row in rows]


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

    def begin(self, unread: Sequence[Sequence[int]]) -> Tensor:
        """See `Source`."""
        self._lengths = [len(text) for text in self.reader.texts]
        # The reader follows the texts by itself: it lacks their last token alone.
        newest = [new[-1:] for new in unread]
        return self.reader.read(newest, layers=self.layers)[:, -1]

    def room(self) -> list[int]:
        """See `Source`."""
        return self.reader.room()

    def read(self, guesses: Sequence[int]) -> Tensor:
        """See `Source`."""
        return self.reader.read([[guess] for guess in guesses], layers=self.layers)[:, -1]

    def end(self) -> None:
        """See `Source`."""
        self.reader.truncate(self._lengths)

    def take(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """See `Source`."""
        return [[*new] for new in tokens]

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing: the reader is kept by its owner."""
