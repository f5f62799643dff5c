"""A model that reads growing texts: tokens in, the logits that follow them out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from tinylm.cache import Native
from tinylm.context import Cache
from tinylm.model import Model
from tinylm.sample.forward import Forward, make_cache

# Tokens that go through the model at once: a prompt of more is read in pieces, so that what the
# blocks keep while they compute (a few dozen numbers of width D per token) stays small.
AT_ONCE = 2**14


def visible(length: int, context_length: int) -> int:
    """How many of a text's newest tokens the model sees, at `length` tokens: all, while they fit.

    A text that passes the context length loses its older half and grows again: the model reads
    half a context anew every C / 2 tokens, where sliding by one would do so for every token.
    """
    if length <= context_length:
        return length
    half = max(1, context_length // 2)
    # A function of the length alone, so that a text read at once and one read in steps agree.
    return half + (length - context_length - 1) % (context_length - half + 1)


class Reader:
    """A model and a cache over R texts, which may differ in length.

    `last` [R, V] are the logits that follow what was read so far, of the ids below
    `vocab_size`; those of the ids in `missing` are -inf. `room` is how many tokens each text may
    yet grow by; `build(model, R, length)` makes the cache. Made and used inside
    `model.inference`.
    """

    def __init__(
        self,
        model: Model,
        texts: Sequence[Sequence[int]],
        room: int,
        *,
        vocab_size: int,
        missing: Sequence[int] = (),
        build: Callable[[Model, int, int], Cache] = make_cache,
    ) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.forward = Forward(model, vocab_size=vocab_size, missing=missing)
        self.texts = [[*text] for text in texts]
        longest = max(len(text) for text in texts)
        self.cache = build(model, len(texts), min(model.context_length, longest + room))
        # A cache that forgets the oldest tokens by itself need not be filled anew.
        self.limit = sys.maxsize if self.cache.streams else model.context_length
        # How many of its newest tokens the cache holds of each text.
        self.held = self._visible()
        self.last = self._read_windows()

    def read(self, tokens: Sequence[Sequence[int]], *, layers: int | None = None) -> Tensor:
        """T more tokens of each text to the logits [R, T, V] that follow each of them.

        With `layers` only the first so many blocks read. The others lack these tokens then: take
        them back before you read with all. Raises `ValueError` for rows of unequal length, and
        where the model's logits are not numbers.
        """
        new = len(tokens[0]) if tokens else 0
        if len(tokens) != len(self.texts) or not new or any(len(row) != new for row in tokens):
            raise ValueError(
                f"rows of {[len(row) for row in tokens]} tokens: must be one row for each of "
                f"{len(self.texts)} texts, all of one length"
            )
        grown = [visible(len(text) + new, self.limit) for text in self.texts]
        fits = grown == [held + new for held in self.held]
        if new > 1 and not (fits and new <= self.cache.at_once):
            # The window moves on in the middle: where, shows only token by token.
            steps = [self.read([[row[t]] for row in tokens], layers=layers) for t in range(new)]
            return torch.cat(steps, 1)
        for text, ids in zip(self.texts, tokens, strict=True):
            text += ids
        self.held = grown
        if fits:
            logits = self._checked(self.forward.every(tokens, self.cache, layers=layers))
            self.last = logits[:, -1]
            return logits
        self.last = self._read_windows(layers)
        return self.last[:, None]

    def extend(self, tokens: Sequence[Sequence[int]], *, layers: int | None = None) -> Tensor:
        """As `read`, but the numbers of new tokens may differ: the logits [R, V] after the last."""
        sizes = [len(new) for new in tokens]
        longest = max(sizes)
        lengths = [len(text) + size for text, size in zip(self.texts, sizes, strict=True)]
        # Shorter rows are filled up, and the filling is forgotten again.
        logits = self.read([[*new, *[0] * (longest - len(new))] for new in tokens], layers=layers)
        if min(sizes) == longest:
            return logits[:, -1]
        self.truncate(lengths)
        last = torch.tensor(sizes, device=logits.device) - 1
        return logits[torch.arange(len(sizes), device=logits.device), last]

    def draw(
        self,
        tokens: Sequence[Sequence[int]],
        chances: tuple[list[float], list[float]],
        *,
        layers: int | None = None,
    ) -> list[list[int]] | None:
        """More tokens of each text, whose numbers may differ, to the id drawn after each of them.

        As `Forward.draw`, on a native cache; `last` does not follow. None, and nothing is
        read, where that cannot be, or where a window would move.
        """
        grown = [held + len(new) for held, new in zip(self.held, tokens, strict=True)]
        if max(grown) > self.limit:
            return None
        flat = self.forward.draw(tokens, self.cache, chances, every=True, layers=layers)
        if flat is None:
            return None
        for text, new in zip(self.texts, tokens, strict=True):
            text += new
        self.held = grown
        ids = iter(flat)
        return [[*islice(ids, len(new))] for new in tokens]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Take the newest tokens back: text b keeps its first lengths[b], one at least.

        `last` does not follow: `read` comes next. Where the model then sees what had left its
        window, the windows are read anew. Raises `ValueError` for a length that a text has not.
        """
        sizes = [len(text) for text in self.texts]
        if len(lengths) != len(sizes) or any(
            not 1 <= length <= size for length, size in zip(lengths, sizes, strict=True)
        ):
            raise ValueError(f"lengths={[*lengths]}: the texts have 1 to {sizes} tokens")
        held = [
            held - size + length
            for held, size, length in zip(self.held, sizes, lengths, strict=True)
        ]
        self.texts = [text[:length] for text, length in zip(self.texts, lengths, strict=True)]
        self.held = self._visible()
        if held == self.held:
            # Of a cache that forgets, the lengths are not those of the texts.
            ends = [
                end - size + length
                for end, size, length in zip(self.cache.ends, sizes, lengths, strict=True)
            ]
            self.cache.truncate(torch.tensor(ends))
        else:
            self.last = self._read_windows()

    def room(self) -> list[int]:
        """How many tokens of each text can be read before the model loses sight of older ones."""
        return [self.limit - held for held in self.held]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order; one may come several times."""
        index = torch.tensor(rows, device=self.model.weight.device)
        self.cache = self.cache.select(index)
        self.last = self.last[index.to(self.last.device)]
        self.texts = [[*self.texts[row]] for row in rows]
        self.held = [self.held[row] for row in rows]

    def _visible(self) -> list[int]:
        return [visible(len(text), self.limit) for text in self.texts]

    def _read_windows(self, layers: int | None = None) -> Tensor:
        """What the model sees of all texts, from its beginning; the logits [R, V] after it."""
        self.cache.clear()
        windows = [text[-held:] for text, held in zip(self.texts, self.held, strict=True)]
        if isinstance(self.cache, Native):
            # It reads rows of any lengths together.
            logits = self.cache.read(windows, vocab_size=self.vocab_size, layers=layers)
            return self._checked(logits)
        last: dict[int, Tensor] = {}
        for start, rows in self._groups(windows, layers):
            held = self.cache if len(rows) == len(windows) else self.cache.rows(rows)
            found = self._read_all([windows[row][start:] for row in rows], held, layers)
            last |= zip(rows, found, strict=True)
            if layers is None:
                for row in rows:
                    self.cache.note(row, windows[row])
        x = torch.stack([last[row] for row in range(len(windows))])
        return self._checked(self.forward.logits(x))

    def _groups(
        self, windows: Sequence[Sequence[int]], layers: int | None
    ) -> Iterator[tuple[int, list[int]]]:
        """Rows that are read together, and how many of their first tokens the cache has already."""
        if self.cache.pads:
            yield 0, [*range(len(windows))]
            return
        for length in dict.fromkeys(len(window) for window in windows):
            alike = [row for row, window in enumerate(windows) if len(window) == length]
            # What a pass through some of the layers leaves is no beginning for others.
            found = [0 if layers else self.cache.match(row, windows[row]) for row in alike]
            for start in dict.fromkeys(found):
                yield start, [row for row, n in zip(alike, found, strict=True) if n == start]

    def _read_all(
        self, windows: Sequence[Sequence[int]], held: Cache, layers: int | None
    ) -> Tensor:
        """Read texts into the rows of `held`; what the head reads [R, D] after each of them."""
        sizes = [len(window) for window in windows]
        longest, home = max(sizes), self.model.weight.device
        # Shorter rows are filled up, and the filling is forgotten again.
        rows = [[*window, *[0] * (longest - len(window))] for window in windows]
        tokens, ends = torch.tensor(rows, device=home), torch.tensor(sizes, device=home)
        before = held.lengths
        last: Tensor | None = None
        start = 0
        for part in torch.split(tokens, max(1, min(AT_ONCE // len(rows), held.at_once)), 1):
            x = self.forward.hidden(part, held, layers=layers)
            place = (ends - 1 - start).clamp(0, part.size(1) - 1)
            here = x[torch.arange(len(rows), device=home), place]
            started = (ends > start)[:, None]
            last = here if last is None else torch.where(started, here, last)
            start += part.size(1)
        if min(sizes) < longest:
            held.truncate(before + ends)
        assert last is not None, "a text has at least one token"
        return last

    def _checked(self, logits: Tensor) -> Tensor:
        """Logits [..., V] without those of missing ids; `ValueError` where they are not numbers."""
        lengths = [len(text) for text in self.texts]
        for _, problem in self.forward.problems(logits, lengths):
            raise ValueError(problem)
        return self.forward.hide(logits)
