"""What the cases of attention share: inputs, the definition in float64, torch's own forms."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benches.gpu.case import Missing, Place

# Rows of scores that the definition has in memory at once.
BLOCK = 1024


@dataclass(frozen=True)
class Problem:
    """Causal attention of `rows` rows of `length` tokens, in which `documents` may lie.

    q [B, H, T, D], k and v [B, K, T, D] and the gradient dy are views of [B, T, H, D], as they come
    out of a product.
    """

    place: Place
    rows: int
    length: int
    heads: int
    kv_heads: int
    size: int
    documents: tuple[int, ...] = ()
    window: int | None = None

    @property
    def scale(self) -> float:
        """The usual scale."""
        return 1 / math.sqrt(self.size)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, in one head of one row."""
        if self.window is not None:
            full = min(self.window, self.length)
            return full * (full + 1) // 2 + (self.length - full) * full
        return sum(n * (n + 1) // 2 for n in self.documents or (self.length,))

    def flops(self, backward: bool) -> float:
        """Two products forward and five backward, of the pairs that are seen."""
        products = 5 if backward else 2
        return 2 * products * self.rows * self.heads * self.size * self.pairs

    @functools.cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v."""
        heads = (self.heads, self.kv_heads, self.kv_heads)
        drawn = [self.place.randn(self.rows, self.length, n, self.size) for n in heads]
        q, k, v = (x.transpose(1, 2) for x in drawn)
        return q, k, v

    @functools.cached_property
    def dy(self) -> Tensor:
        """The gradient of y."""
        return self.place.randn(self.rows, self.length, self.heads, self.size).transpose(1, 2)

    @functools.cached_property
    def numbers(self) -> Tensor:
        """The number of each token's document [T], int32."""
        counts = torch.tensor(self.documents or (self.length,))
        return torch.arange(len(counts)).repeat_interleave(counts).int().to(self.place.device)

    def seen(self, first: int, end: int) -> Tensor:
        """Which keys the queries first to end - 1 see: bool [end - first, T]."""
        key = torch.arange(self.length, device=self.place.device)
        query = key[first:end, None]
        seen = (key <= query) & (self.numbers[first:end, None] == self.numbers)
        return seen if self.window is None else seen & (query - key < self.window)

    def group(self, results: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The part of y or (dq, dk, dv) that the definition computes: the first group of heads."""
        share = self.heads // self.kv_heads
        return tuple(x[0, :share] if i == 0 else x[0, 0] for i, x in enumerate(results))

    def exact(self, backward: bool) -> tuple[Tensor, ...]:
        """y, or dq, dk and dv, of the first group of heads of the first row, in float64."""
        q, k, v = (x.double() for x in self.group(self.inputs))
        (dy,) = (x.double() for x in self.group((self.dy,))) if backward else (q,)
        y, dq = torch.empty_like(q), torch.empty_like(q)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for first in range(0, self.length, BLOCK):
            rows = slice(first, min(first + BLOCK, self.length))
            scores = q[:, rows] @ k.T * self.scale
            weights = scores.masked_fill(~self.seen(rows.start, rows.stop), -math.inf).softmax(-1)
            y[:, rows] = weights @ v
            if backward:
                dv += (weights.mT @ dy[:, rows]).sum(0)
                dweights = dy[:, rows] @ v.T
                shared = (dweights * weights).sum(-1, keepdim=True)
                dscores = weights * (dweights - shared) * self.scale
                dq[:, rows] = dscores @ k
                dk += (dscores.mT @ q[:, rows]).sum(0)
        return (dq, dk, dv) if backward else (y,)


class Sdpa:
    """F.scaled_dot_product_attention by one backend, causal.

    Where the backend cannot group heads, keys and values are expanded: `expanded` says so. The
    forward pass is then timed without the expansion; the gradients contain the sum over a group.
    """

    def __init__(self, backend: SDPBackend) -> None:
        self.backend, self.expanded = backend, False
        self.copies: tuple[Tensor, Tensor] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(self.backend):
            if not self.expanded:
                try:
                    return F.scaled_dot_product_attention(
                        q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
                    )
                except RuntimeError:
                    self.expanded = True
            group = q.size(1) // k.size(1)
            if q.requires_grad or self.copies is None:
                self.copies = (k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
            return F.scaled_dot_product_attention(q, *self.copies, is_causal=True)


def sdpa(place: Place) -> dict[str, Sdpa | Missing]:
    """A contender per backend; the CPU has only one of them."""
    names = ("FLASH", "CUDNN", "EFFICIENT")
    return {
        f"SDPA {name}": Missing("SDPA has this backend on a GPU only")
        if place.dry and name != "FLASH"
        else Sdpa(SDPBackend.__members__[f"{name}_ATTENTION"])
        for name in names
    }


def flex(problem: Problem, backward: bool) -> Callable[..., Tensor] | Missing:
    """FlexAttention, compiled, with a block mask that is made once."""
    if backward and problem.place.dry:
        return Missing("FlexAttention has gradients on a GPU only")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    numbers, window = problem.numbers, problem.window

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = (key <= query) & (numbers[query] == numbers[key])
        return allowed if window is None else allowed & (query - key < window)

    def causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed: Tensor = key <= query
        return allowed

    general = problem.documents or window is not None
    length = problem.length
    mask = create_block_mask(
        seen if general else causal, None, None, length, length, device=problem.place.device
    )
    compiled = problem.place.compiled(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def varlen(problem: Problem) -> Callable[..., Tensor] | Missing:
    """torch's varlen_attn over the documents, which takes tokens [T, H, D] of all of them."""
    if problem.place.dry:
        return Missing("varlen_attn needs a GPU")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return Missing(f"not there: {error}")
    lengths = torch.tensor((0, *(problem.documents or (problem.length,))))
    starts = lengths.cumsum(0).int().to(problem.place.device)
    longest = int(lengths.max())
    # Earlier versions of torch have a flag for causal, later ones a window of (-1, 0).
    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in parameters else {}
    if problem.window is not None:
        options["window_size"] = (problem.window - 1, 0)
    elif "is_causal" in parameters:
        options["is_causal"] = True
    else:
        options["window_size"] = (-1, 0)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = [x[0].transpose(0, 1) for x in (q, k, v)]
        y: Tensor = varlen_attn(*tokens, starts, starts, longest, longest, **options)
        return y.transpose(0, 1)[None]

    return run


def tinylm(problem: Problem) -> Callable[..., Tensor]:
    """Our portable kernel, as the registered operation."""
    first = end = None
    if problem.documents:
        from tinylm.mask import Mask

        bounds = Mask(documents=problem.numbers[None]).bounds()
        first, end = (x.int().contiguous() for x in bounds)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = torch.ops.tinylm.attention(
            *(q, k, v, first, end, None, None, True, problem.window, problem.scale, None)
        )[0]
        return y

    return run


def hopper(problem: Problem) -> Callable[..., Tensor] | Missing:
    """Our kernel for Hopper GPUs."""
    if problem.place.dry:
        return Missing("the interpreter has no Gluon")
    if problem.place.capability != (9, 0):
        return Missing("needs a Hopper GPU")

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = torch.ops.tinylm.attention_hopper(q, k, v, True, problem.scale)[0]
        return y

    return run
