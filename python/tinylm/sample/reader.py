"""What a model makes of texts that grow: tokens in, the logits that follow them out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm import cache
from tinylm.model import Model

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
    return half + (length - context_length - 1) % (context_length - half + 1)


class Reader:
    """A model and a cache over R texts, which may differ in length.

    `last` [R, V] float64 are the logits that follow what was read so far. `room` is how many
    tokens each text may yet grow by. Made and used inside `model.inference`.
    """

    def __init__(
        self, model: Model, texts: Sequence[Sequence[int]], room: int, *, vocab_size: int
    ) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.limit = model.context_length
        self.lengths = [len(text) for text in texts]
        self.windows = [[*text[-visible(len(text), self.limit) :]] for text in texts]
        self.cache = cache.build(model, len(texts), min(self.limit, max(self.lengths) + room))
        self.last = self._read_windows()

    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """T more tokens of each text to the logits [R, T, V] that follow each of them.

        Raises `ValueError` where the model's logits are not numbers.
        """
        new = len(tokens[0])
        if new > 1 and not self._fits(new):
            # The window moves on in the middle: where, shows only token by token.
            steps = [self.read([[row[t]] for row in tokens]) for t in range(new)]
            return torch.cat(steps, 1)
        fits = self._fits(new)
        for row, ids in enumerate(tokens):
            self.lengths[row] += new
            self.windows[row] += ids
        if fits:
            x = self._hidden(torch.tensor(tokens, device=self.model.weight.device))
            logits = self._logits(x)
            self.last = logits[:, -1]
            return logits
        for row, length in enumerate(self.lengths):
            self.windows[row] = self.windows[row][-visible(length, self.limit) :]
        self.last = self._read_windows()
        return self.last[:, None]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Take back the newest tokens: text b keeps its first lengths[b]. `last` does not follow.

        Raises `ValueError` for tokens that have left the model's window.
        """
        for row, length in enumerate(lengths):
            gone = self.lengths[row] - length
            if not 0 <= gone < len(self.windows[row]):
                raise ValueError(
                    f"text {row} has {self.lengths[row]} tokens, the model sees the last "
                    f"{len(self.windows[row])}: it cannot be cut to {length}"
                )
            self.lengths[row] = length
            self.windows[row] = self.windows[row][: len(self.windows[row]) - gone]
        self.cache.truncate(torch.tensor([len(window) for window in self.windows]))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order; one may come several times."""
        index = torch.tensor(rows, device=self.model.weight.device)
        self.cache = self.cache.select(index)
        self.last = self.last[index.to(self.last.device)]
        self.lengths = [self.lengths[row] for row in rows]
        self.windows = [[*self.windows[row]] for row in rows]

    def _fits(self, new: int) -> bool:
        """Whether every window takes `new` tokens more without losing its older half."""
        return all(
            visible(length + new, self.limit) == len(window) + new
            for length, window in zip(self.lengths, self.windows, strict=True)
        )

    def _read_windows(self) -> Tensor:
        """All windows from their beginning; the logits [R, V] after the last token of each."""
        self.cache.clear()
        counts = [len(window) for window in self.windows]
        longest = max(counts)
        # Shorter rows are filled up, and the filling is forgotten again.
        rows = [window + [0] * (longest - len(window)) for window in self.windows]
        device = self.model.weight.device
        tokens, ends = torch.tensor(rows, device=device), torch.tensor(counts, device=device)
        last: Tensor | None = None
        start = 0
        for part in torch.split(tokens, max(1, AT_ONCE // len(rows)), 1):
            x = self._hidden(part)
            place = (ends - 1 - start).clamp(0, part.size(1) - 1)
            here = x[torch.arange(len(rows), device=device), place]
            started = (ends > start)[:, None]
            last = here if last is None else torch.where(started, here, last)
            start += part.size(1)
        if min(counts) < longest:
            self.cache.truncate(ends)
        assert last is not None, "a text has at least one token"
        return self._logits(last)

    def _hidden(self, tokens: Tensor) -> Tensor:
        """tokens [R, T] into the cache, to what the head reads [R, T, D]."""
        context = self.model.context(tokens.size(1), cache=self.cache)
        x = self.model.hidden(self.model.embed(tokens), context)
        self.cache.advance(tokens.size(1))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        """x [..., D] to the logits [..., V] of the vocabulary, in float64."""
        found = self.model.head(x)[..., : self.vocab_size]
        # MPS has no float64: there the choice of a token is made on the CPU.
        logits: Tensor = (found.cpu() if found.device.type == "mps" else found).double()
        if logits.isnan().any():
            raise ValueError("the model's logits are not numbers (nan): its weights are not finite")
        return logits
