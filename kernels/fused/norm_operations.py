"""What the norms' operations share when they are registered: fakes, empty results, autograd."""

# torch's functions that register operations have no types.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from tinylm.kernels.library import LIBRARY


def or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    """`x`, or where it is None an empty tensor: an operation cannot return None."""
    return like.new_empty(0) if x is None else x


def fake_pair(x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of a sum and its norm."""
    common = torch.promote_types(x.dtype, branch.dtype)
    return x.new_empty(x.shape, dtype=common), x.new_empty(x.shape, dtype=common)


def fake_gradients(total: Tensor, x: torch.dtype, branch: torch.dtype) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the gradients of what was added, as the operations return them."""
    dx = total.new_empty(total.shape, dtype=x)
    return dx, total.new_empty(0) if x == branch else total.new_empty(total.shape, dtype=branch)


def fake_vectors(weight: Tensor, bias: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of dweight and dbias, as the operations return them."""
    dweight = weight.new_empty(weight.shape)
    return dweight, weight.new_empty(0 if bias is None else weight.shape, dtype=bias)


def passed_on(
    dtotal: Tensor | None, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of what was added, where only the sum was used."""
    if dtotal is None:
        return None, None
    return dtotal.to(dtypes[0]), dtotal.to(dtypes[1])


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError(
        "the kernels of the norms have no second derivative; "
        "write the norm in torch for create_graph=True"
    )


def differentiable(
    operation: str, gradients: Callable[..., Any], save: Callable[..., None]
) -> None:
    """Give an operation its gradients, and refuse those of `<operation>_backward`."""
    name = f"tinylm::{operation}"
    torch.library.register_autograd(name, gradients, setup_context=save, lib=LIBRARY)
    torch.library.register_autograd(f"{name}_backward", _no_second_derivative, lib=LIBRARY)
