"""The device of a process: its dtype, peak, memory and threads, and whether results repeat."""

import ctypes
import importlib.util
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

# Dense bfloat16 peak in operations per second, from NVIDIA's data sheets (without sparsity). The
# words of a key must all be in the device's name; the first such key counts.
DATA_SHEET = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


# The numbers of malloc.h. Blocks below the first come from memory that is kept, up to the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def find(name: str) -> torch.device:
    """The device of a setting, such as cuda:1; auto takes cuda, then mps, then cpu.

    Raises `ValueError` if this machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in ("cuda", "mps") if present[kind]), "cpu")
    kind, _, number = name.partition(":")
    if not present.get(kind, True):
        raise ValueError(f"train.device={name}: torch finds none here; train.device=cpu works")
    if number and int(number) >= torch.cuda.device_count():
        raise ValueError(
            f"train.device={name}: GPUs count from 0, and there are {torch.cuda.device_count()}"
        )
    return torch.device(name)


def use_tf32(device: torch.device, allowed: bool) -> None:
    """On CUDA, let float32 products use TF32 or not; nothing changes elsewhere."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed


def find_or_best(name: str) -> torch.device:
    """The device of a setting, or the best of this machine if it has none of that kind."""
    try:
        return find(name)
    except ValueError:
        return find("auto")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `train.dtype`: bfloat16 for auto where the hardware multiplies in it."""
    if name == "auto":
        name = "bfloat16" if has_bfloat16(device) else "float32"
    return DTYPES[name]


def data_sheet_flops(name: str) -> float | None:
    """Dense bfloat16 operations per second of the GPU that CUDA calls `name`; None if unknown.

    A slice of a GPU ("MIG" in its name, or a vGPU's profile such as "40C") is unknown: the data
    sheet is of the whole.
    """
    words = set(re.split(r"[\s-]+", name))
    if "MIG" in words or any(re.fullmatch(r"\d+[ABCQ]", word) for word in words):
        return None
    return next((peak for key, peak in DATA_SHEET.items() if words.issuperset(key.split())), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that the device's matrix product reaches in `dtype`.

    A known GPU's data sheet in bfloat16; otherwise the best of a few products of 1,024 (CPU) or
    4,096 squared, measured now in about a tenth of a second.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = data_sheet_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    size = 1024 if device.type == "cpu" else 4096
    if device.type == "cpu" and dtype == torch.float16:
        # Which most of them multiply a thousand times slower.
        size = 128
    a = torch.ones(size, size, dtype=dtype, device=device)
    # Bounded, for it is a part of the wall time of every run; the first product is a warm-up.
    best, end, products = float("inf"), time.perf_counter() + 0.1, 0
    while time.perf_counter() < end or products < 4:
        products += 1
        start = time.perf_counter()
        # Reading one number waits for an asynchronous device.
        (a @ a)[0, 0].item()
        # The best and not the mean: other work on the machine can only make a product slower.
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_bytes(device: torch.device) -> int:
    """Peak so far: of the device's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In bytes on macOS, in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_memory() -> None:
    """Let the C library keep freed memory for the next step, instead of returning it to Linux.

    It returns blocks of 128 KiB and more at once, and Linux clears every page of a new one: 1,100
    pages a step of nanoGPT's CPU command (4 layers of width 128), 5% of its time, and 15,000 at 6
    layers of width 384. The process then holds the most that it ever needed. Environment
    variables `MALLOC_...` of the user and other systems are left as they are.
    """
    if sys.platform != "linux" or any(key.startswith("MALLOC_") for key in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Another C library (musl) has no such function.
    if mallopt is not None:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, KEPT_BYTES)


def utilisation(device: torch.device) -> float | None:
    """The share of the last moments in which a CUDA device worked; None if nobody can say.

    NVIDIA's management library says it, by the package nvidia-ml-py.
    """
    if device.type != "cuda" or not _has_nvml():
        return None
    try:
        return torch.cuda.utilization(device) / 100
    # A slice of a GPU has no such number, and a container may hide the library.
    except Exception:
        return None


@cache
def _has_nvml() -> bool:
    return importlib.util.find_spec("pynvml") is not None


def keep_threads(device: torch.device, count: int) -> None:
    """Compute with `count` threads if on the CPU, where sums are split by thread.

    A run that goes on with another number of threads would end in other weights.
    """
    if device.type == "cpu" and count != torch.get_num_threads():
        torch.set_num_threads(count)


def reserve_workspaces() -> None:
    """Let cuBLAS give equal results at every call: it must be said before its first product.

    A setting of yours is kept; torch refuses those that do not repeat.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def repeatable(
    device: torch.device, wanted: bool | None = None, *, compiled: bool = True
) -> Iterator[None]:
    """Inside, equal steps give equal results, bit for bit, compiled ones if `compiled`.

    `wanted` None means on the CPU, where it costs nothing. On a GPU it needs `reserve_workspaces`
    and takes the slower of two forms where there are two; an operation that has no repeatable form
    raises RuntimeError, which names it. If the caller has asked torch for it, that setting stays.
    """
    if wanted is None:
        wanted = device.type == "cpu"
    if torch.are_deterministic_algorithms_enabled() or not wanted:
        # To set it again would turn the caller's `warn_only=True` into errors.
        yield
        return
    _deterministic(True, compiled)
    # torch would also fill every tensor that it allocates with nan, so that a read of memory that
    # was never written repeats too: 3% of a step, and nothing here reads such memory.
    fill = torch._C._get_deterministic_fill_uninitialized_memory()
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    try:
        yield
    finally:
        torch._C._set_deterministic_fill_uninitialized_memory(fill)
        _deterministic(False, compiled)


def _deterministic(mode: bool, compiled: bool) -> None:
    if compiled:
        torch.use_deterministic_algorithms(mode)
    else:
        # torch's function sets this and imports the compiler, to tell it too: 1.6 s.
        torch._C._set_deterministic_algorithms(mode, warn_only=False)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 faster than in float32."""
    if device.type == "cuda":
        # Without this keyword torch also says yes for GPUs that only emulate bfloat16, slowly.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = (
            torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        )
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def not_finite(what: str, value: float, dtype: torch.dtype, model: nn.Module) -> str:
    """The error for a number of a model that is not finite: its cause, as far as known, and a fix.

    `what` names the number and its position, `dtype` is what the model computed it in.
    """
    name = str(dtype).removeprefix("torch.")
    problem = f"{what} is {value} in {name}"
    weights = model.named_parameters()
    # The weights first: if one is not finite, the dtype of the computation is not the cause.
    bad = next((key for key, weight in weights if not weight.isfinite().all()), None)
    if bad is not None:
        return f"{problem}: its weights are not finite ({bad}): take another checkpoint"
    if dtype == torch.float16:
        return (
            f"{problem}: float16 ends at 65504, and the weights are finite: load the model with "
            f"checkpoint.load(folder, dtype=torch.float32), or call model.float()"
        )
    return f"{problem}, though the weights are finite: they are too large for {name}"
