"""The loss of the head, forward and backward, on the CPU: time and memory against torch.

    python benches/bench_loss.py                       time, then memory
    python benches/bench_loss.py time --rounds 9
    python benches/bench_loss.py --vocabulary 32000 --tokens 2048 --dtype bfloat16

`F.linear_cross_entropy` is torch's own loss in chunks, from 2.13 on. "Liger's chunks" is our loss
with the chunks of Liger-Kernel, D / V of the tokens each. Before anything is timed, every
contender must give the loss and the gradients of float64. Memory is the peak of a process that
takes one step, less that of a process that only makes the inputs.
"""

import argparse
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from race import OURS, Race, check, measure, report
from torch import Tensor

from tinylm import ops

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def whole(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(x, weight).float(), targets)


def ligers_chunks(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Our loss in chunks of next_power_of_2(N / ceil(V / D)) rows."""
    losses = ops.losses
    kept = losses.CHUNKS, losses.LEAST_ROWS
    parts = -(-weight.size(0) // weight.size(1))
    rows = 1 << (-(-len(x) // parts) - 1).bit_length()
    losses.CHUNKS, losses.LEAST_ROWS = -(-len(x) // rows), 1
    try:
        return ops.linear_cross_entropy(x, weight, targets)
    finally:
        losses.CHUNKS, losses.LEAST_ROWS = kept


CONTENDERS: dict[str, Loss] = {
    OURS: ops.linear_cross_entropy,
    "linear, cross_entropy": whole,
    "Liger's chunks": ligers_chunks,
}
if hasattr(F, "linear_cross_entropy"):
    CONTENDERS["F.linear_cross_entropy"] = partial(
        F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions()
    )


def drawn(options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, D], a weight [V, D] and targets [N]."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(options.tokens, options.width, generator=random)
    # In place: a copy that is freed again would count as the memory of the inputs.
    weight = torch.randn(options.vocabulary, options.width, generator=random).mul_(0.02)
    targets = torch.randint(options.vocabulary, (options.tokens,), generator=random)
    return x.requires_grad_(), weight.requires_grad_(), targets


def step(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The loss and its gradients by x and the weight."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result = loss(*inputs)
    return [result.detach(), *torch.autograd.grad(result, inputs[:2])]


def equal(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> bool:
    """Whether loss and gradients are right; torch's own chunks lose a digit of float32."""
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    return all((a - b).norm() <= limit * b.norm() for a, b in zip(found, exact, strict=True))


def time(options: Any, dtype: torch.dtype) -> None:
    """A race of one step."""
    inputs = drawn(options)
    x, weight, targets = inputs
    exact = step(
        lambda x, weight, targets: F.cross_entropy(F.linear(x, weight), targets),
        (x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets),
        torch.float32,
    )
    for name, loss in CONTENDERS.items():
        check(equal(step(loss, inputs, dtype), exact, dtype), f"loss or gradients of {name}")
    del exact
    runs = {
        name: lambda _, loss=loss: step(loss, inputs, dtype) for name, loss in CONTENDERS.items()
    }
    race = Race("time", options.tokens, "tokens/s", runs, dict.fromkeys(runs, nothing))
    report(race, measure(race, options.rounds))


def memory(options: Any, dtype: torch.dtype) -> None:
    """Peak memory of one step of each, in a process of its own."""

    def peak(name: str) -> float:
        arguments = [sys.executable, __file__, "memory", "--one", name]
        for option in ("vocabulary", "tokens", "width", "dtype"):
            arguments += [f"--{option}", str(getattr(options, option))]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        return float(done.stdout)

    nothing_run, ours = peak("none"), 0.0
    print("\npeak memory of a step")
    for name in CONTENDERS:
        used = peak(name) - nothing_run
        ours = ours or used
        print(f"  {name:<34} {used:9.0f} MiB   tinylm has {ours / used:5.2f} of it")


def nothing() -> None:
    """There is nothing to make anew between rounds."""


def main() -> None:
    """Run the parts named, or both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="time, memory")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    for name, default in (("vocabulary", 50_257), ("tokens", 1024), ("width", 192)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 by autocast")
    parser.add_argument("--one", metavar="NAME", help="print the peak memory of one contender")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.one is not None:
        inputs = drawn(options)
        if options.one in CONTENDERS:
            step(CONTENDERS[options.one], inputs, dtype)
        # In KiB on Linux.
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    print(
        f"V={options.vocabulary}, {options.tokens} tokens, D={options.width}, {options.dtype}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    parts = {"time": time, "memory": memory}
    for name in options.parts or parts:
        if name not in parts:
            raise SystemExit(f"error: no part {name}: time, memory")
        parts[name](options, dtype)


if __name__ == "__main__":
    main()
