"""RMSNorm and LayerNorm, forward and backward. A tensor that is read or written counts once."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import Backward, Case, Contest, Patient, Place
from benches.gpu.peers import liger

EPS = 1e-5
# Rows of the output that the gate looks at; the gradient of the weight needs all of them.
SEEN = 2048


def cases(place: Place) -> Iterator[Case]:
    """32,768 rows of four widths."""
    rows = place.sized(32768, 6)
    for width in place.sized((1024, 2048, 4096, 8192), (48,)):
        at = {"rows": rows, "width": width}
        for family, build in FAMILIES.items():
            yield Case(family, at, lambda build=build, width=width: build(place, rows, width))


def exact(x: Tensor, weight: Tensor) -> Tensor:
    """The formula in float64."""
    wide = x.double()
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return wide * r * weight.double()


def torch_form(x: Tensor, weight: Tensor) -> Tensor:
    """torch's own."""
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def seen(y: Tensor) -> Tensor:
    """The first rows of an output or of its gradient; a gradient of the weight as it is."""
    return y[:SEEN] if y.dim() > 1 else y


def rms_norm_forward(place: Place, rows: int, width: int) -> Contest:
    """Reads x, writes y."""
    x, weight = place.randn(rows, width), place.randn(width)
    compiled = place.compiled(torch_form)
    return Contest(
        {
            "tinylm": lambda: torch.ops.tinylm.rms_norm(x, weight, EPS),
            "F.rms_norm": lambda: torch_form(x, weight),
            "F.rms_norm compiled": Patient(lambda: compiled(x, weight)),
            "Liger": liger(
                place,
                "rms_norm",
                lambda m: lambda: m.LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False),
            ),
        },
        lambda: exact(seen(x), weight),
        1e-2,
        pick=seen,
        bytes=4 * rows * width,
    )


def gradients(function: Callable[..., Tensor], *inputs: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Gradients in float64."""
    wide = [x.double().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*wide), wide, dy.double())


def rms_norm_backward(place: Place, rows: int, width: int) -> Contest:
    """Reads x and dy, writes dx; the gradient of the weight is small."""
    x, weight, dy = place.randn(rows, width), place.randn(width), place.randn(rows, width)
    compiled = place.compiled(torch_form)

    def by_liger(module):
        def apply(x, weight):
            return module.LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)

        return Backward(apply, (x, weight), dy)

    return Contest(
        {
            "tinylm": Backward(
                lambda x, weight: torch.ops.tinylm.rms_norm(x, weight, EPS), (x, weight), dy
            ),
            "F.rms_norm": Backward(torch_form, (x, weight), dy),
            "F.rms_norm compiled": Patient(Backward(compiled, (x, weight), dy)),
            "Liger": liger(place, "rms_norm", by_liger),
        },
        lambda: tuple(map(seen, gradients(exact, x, weight, dy=dy))),
        1e-2,
        pick=lambda found: tuple(map(seen, found)),
        bytes=6 * rows * width,
    )


FAMILIES = {"rms_norm forward": rms_norm_forward, "rms_norm backward": rms_norm_backward}
