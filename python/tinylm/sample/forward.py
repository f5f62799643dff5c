"""One pass of the model while decoding: new tokens and a cache in, the logits that follow out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tinylm import device, native
from tinylm.cache import Native
from tinylm.context import Cache
from tinylm.model import Model
from tinylm.sample import packing


def make_cache(
    model: Model, rows: int, max_length: int, kind: str = "contiguous", **options: Any
) -> Cache:
    """An empty cache for a `Forward` of the model: native where it fits, else `cache.build`'s."""
    return native.build(model, rows, max_length, kind, **options)


class Forward:
    """A model as decoding sees it; `Reader` and `Engine` run it through nothing else.

    The logits are those of the ids below `vocab_size`, in float32 at least; an id in `missing` has
    -inf. Used inside `model.inference`.
    """

    def __init__(self, model: Model, *, vocab_size: int, missing: Sequence[int] = ()) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.missing = torch.tensor([*missing], dtype=torch.int64)
        self._missing = [*missing]
        # What the head computed in, which under autocast is not the dtype of the weights.
        self.dtype = model.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the logits are. MPS has no float64: there a token is chosen on the CPU."""
        home: torch.device = self.model.weight.device
        return torch.device("cpu") if home.type == "mps" else home

    def last(self, tokens: Sequence[Sequence[int]], held: Cache) -> Tensor:
        """Read tokens [R][T] into the rows of `held` and return the logits [R, V] after them.

        They are neither checked nor hidden: see `problems` and `hide`.
        """
        if isinstance(held, Native):
            return held.read(tokens, vocab_size=self.vocab_size)
        x = self.hidden(torch.tensor(tokens, device=self.model.weight.device), held)
        return self.logits(x[:, -1])

    def step(self, parts: Sequence[tuple[Cache, Sequence[Sequence[int]]]]) -> Tensor:
        """Read tokens [R][T] into the rows of each view of a cache, all in one pass.

        Returns the logits [N, V] after each row, in the order of the parts, as `last` does.
        """
        if len(parts) == 1:
            ((held, tokens),) = parts
            return self.last(tokens, held)
        first = parts[0][0]
        if isinstance(first, Native):
            rows = [row for _, tokens in parts for row in tokens]
            return self.last(rows, first.joined([view for view, _ in parts]))
        return self.logits(packing.read(self.model, parts))

    def every(
        self, tokens: Sequence[Sequence[int]], held: Cache, *, layers: int | None = None
    ) -> Tensor:
        """As `last`, but the logits [R, T, V] after each token; `layers` is as in `hidden`."""
        if isinstance(held, Native):
            found = held.read(tokens, every=True, vocab_size=self.vocab_size, layers=layers)
            return found.view(len(tokens), -1, self.vocab_size)
        new = torch.tensor(tokens, device=self.model.weight.device)
        return self.logits(self.hidden(new, held, layers=layers))

    def draw(
        self,
        tokens: Sequence[Sequence[int]],
        held: Cache,
        chances: tuple[list[float], list[float]],
        *,
        every: bool = False,
        layers: int | None = None,
    ) -> list[int] | None:
        """Read tokens of each row, and draw an id after its last one inside the native step.

        With `every`, an id after every token, row by row. `chances` are temperatures and numbers,
        as `Drawer.chances` has them, one for each id. None, and nothing is read, where the cache
        cannot do that, or where logits are not finite: the way over `last` says what is wrong.
        """
        if not isinstance(held, Native):
            return None
        ends, size = held.ends, self.vocab_size
        found = held.draw(
            tokens, *chances, every=every, vocab_size=size, missing=self._missing, layers=layers
        )
        ids = [id for id in found if id is not None]
        if len(ids) < len(found):
            held.truncate(torch.tensor(ends))
            return None
        return ids

    def hidden(self, tokens: Tensor, held: Cache, *, layers: int | None = None) -> Tensor:
        """Read tokens [R, T] into `held` and return what the head reads [R, T, D].

        With `layers` the pass ends after so many blocks.
        """
        context = self.model.context(tokens.size(1), cache=held, tokens=tokens, layers=layers)
        x = self.model.hidden(self.model.embed(tokens), context)
        held.advance(tokens.size(1))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """x [..., D] to the logits [..., V], neither checked nor hidden."""
        found: Tensor = self.model.head(x)[..., : self.vocab_size]
        self.dtype = found.dtype
        found = found.to(self.device)
        return found.float() if found.dtype.itemsize < 4 else found

    def hide(self, logits: Tensor) -> Tensor:
        """Give the missing ids -inf, in place: after the check, which would take them for wrong."""
        if len(self.missing):
            logits.index_fill_(-1, self.missing.to(logits.device), -math.inf)
        return logits

    def problems(self, logits: Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Each row of logits [R, V] or [R, T, V] that is not finite, and what is wrong with it.

        Row b has lengths[b] tokens, after the last of which its last logits stand.
        """
        # Both ends are NaN if any logit is. One pass over [32, 32000] takes 0.1 ms, `isfinite` 10.
        if all(math.isfinite(float(end)) for end in logits.aminmax()):
            return
        wrong = ~logits.isfinite()
        for row in wrong.flatten(1).any(1).nonzero().flatten().tolist():
            *after, token = wrong[row].nonzero()[0].tolist()
            # [R, V] follow the newest token of each text; of [R, T, V] those of the last T.
            back = logits.size(1) - 1 - after[0] if after else 0
            what = f"the logit of id {token} after {lengths[row] - back} tokens"
            value = float(logits[(row, *after, token)])
            yield row, device.not_finite(what, value, self.dtype, self.model)
