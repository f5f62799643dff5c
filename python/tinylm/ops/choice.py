"""Which operations run as a fused kernel: the only place where that is decided.

Every operation of `tinylm.ops` that has a kernel begins with `kernel_for`.
"""

import functools
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

# Numbers from which on `by_hand` pays without a gradient: float32 and bfloat16, rows of 64 to 192.
LEAST_BY_HAND = 2**16


# Cached so that a missing kernel is looked for, and warned of, once per process.
@functools.cache
def _kernels() -> ModuleType | None:
    """`tinylm.kernels`; None, with one warning, if triton or the link to its folder is missing."""
    try:
        from tinylm import kernels
    except ImportError as error:
        warnings.warn(f"torch runs in place of the fused kernels: {error}", stacklevel=5)
        return None
    return kernels


def kernel_for(
    operation: str, size: int, *tensors: Tensor, compiled: bool = False
) -> Callable[..., Tensor] | None:
    """The kernel of an operation where one can run, else None: the torch form runs.

    A kernel runs on CUDA tensors of a dtype and a `size` (D, or a head's) that its table in
    `tinylm.kernels` covers. Under torch.compile a memory-bound operation takes the torch form,
    which the compiler fuses with its neighbours; a compute-bound one says `compiled=True` and
    stays a kernel, which the compiler calls without a graph break.
    """
    # On ROCm tensors are "cuda" too, and other kernels would be needed.
    if not all(tensor.is_cuda for tensor in tensors) or torch.version.hip or forward_mode():
        return None
    if torch.compiler.is_compiling() and not compiled:
        return None
    dtypes = tuple(tensor.dtype for tensor in tensors)
    if not _covered(operation, size, dtypes, tensors[0].device):
        return None
    # The registered operator and not the Python function behind it: the compiler can put only the
    # operator into a graph.
    kernel: Callable[..., Tensor] = getattr(torch.ops.tinylm, operation)
    return kernel


def _covered(
    operation: str, size: int, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> bool:
    """Whether a kernel covers these; a compiled graph asks once, when it is traced."""
    kernels = _kernels()
    return kernels is not None and bool(kernels.covers(operation, size, dtypes, device))


# The compiler takes the result for a constant; otherwise it would trace into the import and the
# tables of the kernels. This is all that `torch.compiler.assume_constant_result` does, which
# imports the compiler: 1.6 s of a process that never compiles.
_covered._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward_mode() -> bool:
    """Whether derivatives are being taken forward (`torch.func.jvp`), which no kernel can do.

    torch would take the derivative of a registered operation for zero, without a word.
    """
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def eager_cpu(*tensors: Tensor | None) -> bool:
    """Whether these are on a CPU, and only torch's reverse mode follows what is computed with them.

    A compiler fuses torch's form by itself, and other transforms (`torch.func`) need it.
    """
    if torch.compiler.is_compiling() or not all(x is None or x.is_cpu for x in tensors):
        return False
    return not forward_mode() and torch._C._functorch.peek_interpreter_stack() is None


def by_hand(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a form with a gradient by hand, of fewer passes over memory, is taken and is faster.

    Without a gradient and for few numbers it is not: a token that is decoded waits for the calls,
    which are more than those of torch's form.
    """
    if not eager_cpu(x, *others):
        return False
    recorded = torch.is_grad_enabled() and any(
        part is not None and part.requires_grad for part in (x, *others)
    )
    return recorded or x.numel() >= LEAST_BY_HAND


def refuse_second(operation: str, instead: str) -> None:
    """Raise `NotImplementedError` in a backward pass that is itself recorded (create_graph=True).

    What it would record of a gradient by hand is its share of dy alone: a second derivative would
    be wrong without a word.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{operation} has no second derivative; {instead} for create_graph=True"
        )
