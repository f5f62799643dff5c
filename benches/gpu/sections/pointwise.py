"""Rotations and activations: one pass over memory. A tensor that is read or written counts once."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import Backward, Case, Contest, Patient, Place
from benches.gpu.peers import liger
from tinylm.ops import rotary_angles
from tinylm.reference import tensors

EPS = 1e-6


def cases(place: Place) -> Iterator[Case]:
    """16,384 tokens: queries and keys of 32 and 8 heads of 128; 8,192 gates."""
    tokens = place.sized(16384, 24)
    at = {"tokens": tokens, "heads": place.sized(32, 4), "head": place.sized(128, 16)}
    yield Case("rope", at, lambda: rope(place, tokens))
    yield Case("norm_rope forward", at, lambda: norm_rope(place, tokens, backward=False))
    yield Case("norm_rope backward", at, lambda: norm_rope(place, tokens, backward=True))
    at = {"tokens": tokens, "width": place.sized(8192, 48)}
    yield Case("swiglu forward", at, lambda: swiglu(place, tokens, backward=False))
    yield Case("swiglu backward", at, lambda: swiglu(place, tokens, backward=True))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation in torch, in the dtype of the angles."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def heads(place: Place, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys, views of [1, T, H, D], with cosine and sine."""
    counts, size = place.sized((32, 8), (4, 2)), place.sized(128, 16)
    q, k = (place.randn(1, tokens, n, size).transpose(1, 2) for n in counts)
    cos, sin = (x.to(place.device) for x in rotary_angles(tokens, size, 10000.0))
    return q, k, cos, sin


def rope(place: Place, tokens: int) -> Contest:
    """Reads and writes queries and keys. The gradient is the same operation by -angle."""
    q, k, cos, sin = heads(place, tokens)

    def by_torch(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (turned(x.float(), cos, sin).to(x.dtype) for x in (q, k))
        return a, b

    def by_liger(module: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        # Turned in place: its own inputs, and angles for a whole head.
        own = q.clone(), k.clone()
        whole = [torch.cat((x, x), -1)[None].to(q.dtype) for x in (cos, sin)]
        first = module.LigerRopeFunction.apply(*own, *whole)
        kept = [tuple(x.clone() for x in first)]

        def call() -> tuple[Tensor, Tensor]:
            if kept:
                return kept.pop()
            return module.LigerRopeFunction.apply(*own, *whole)

        return call

    compiled = place.compiled(by_torch)
    op = torch.ops.tinylm.rope
    return Contest(
        {
            "tinylm": lambda: (op(q, cos, sin), op(k, cos, sin)),
            "torch": lambda: by_torch(q, k),
            "torch compiled": Patient(lambda: compiled(q, k)),
            "Liger": liger(place, "rope", by_liger),
        },
        lambda: tuple(turned(x.double(), cos.double(), sin.double()) for x in (q, k)),
        1e-2,
        bytes=2 * 2 * (q.numel() + k.numel()),
    )


def norm_rope(place: Place, tokens: int, backward: bool) -> Contest:
    """QK-norm and rotation of the queries; backward reads x and dy and writes dx."""
    x, _, cos, sin = heads(place, tokens)
    weight, dy = place.randn(x.size(-1)), torch.randn_like(x)

    def by_torch(x: Tensor, weight: Tensor) -> Tensor:
        normed = F.rms_norm(x, weight.shape, weight, EPS)
        return turned(normed.float(), cos, sin).to(x.dtype)

    def exact(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.double()
        r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        return turned(wide * r * weight.double(), cos.double(), sin.double())

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = torch.ops.tinylm.norm_rope(x, weight, cos, sin, EPS)
        return y

    named = {"tinylm": ours, "torch": by_torch, "torch compiled": place.compiled(by_torch)}
    return contest(named, exact, (x, weight), dy, backward, (6 if backward else 4) * x.numel())


def swiglu(place: Place, tokens: int, backward: bool) -> Contest:
    """Both halves of one packed product; backward reads three tensors and writes two."""
    width = place.sized(8192, 48)
    gate, up = place.randn(tokens, 2 * width).chunk(2, -1)
    dy = place.randn(tokens, width)

    def by_torch(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def by_liger(module: Any) -> Callable[[], Any]:
        # Copies, because its gradients are written over what the forward pass kept.
        own = gate.contiguous(), up.contiguous()
        if backward:
            return Backward(module.LigerSiLUMulFunction.apply, own, dy)
        return lambda: module.LigerSiLUMulFunction.apply(*own)

    named = {
        "tinylm": torch.ops.tinylm.swiglu,
        "torch": by_torch,
        "torch compiled": place.compiled(by_torch),
    }
    moved = (10 if backward else 6) * tokens * width
    found = contest(named, tensors.swiglu, (gate, up), dy, backward, moved)
    found.contenders["Liger"] = liger(place, "swiglu", by_liger)
    return found


def contest(
    named: dict[str, Callable[..., Tensor]],
    exact: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    dy: Tensor,
    backward: bool,
    moved: int,
) -> Contest:
    """The forms of one function, forward or backward, against `exact` in float64."""

    def bound(name: str, f: Callable[..., Tensor]) -> Callable[[], Any]:
        run = Backward(f, inputs, dy) if backward else lambda: f(*inputs)
        return Patient(run) if "compiled" in name else run

    wide = [x.double() for x in inputs]
    return Contest(
        {name: bound(name, f) for name, f in named.items()},
        lambda: Backward(exact, wide, dy.double())() if backward else exact(*wide),
        2e-2 if backward else 1e-2,
        bytes=moved,
    )
