"""Causal attention on the CPU, forward and backward: torch's own, and the form that auto takes.

    python benches/bench_attention.py                 float32 and bfloat16
    python benches/bench_attention.py bfloat16 --rounds 9

The rule of `ops.attention` on a CPU (`tinylm/ops/spelled.py`) follows from this bench: `auto` must
not be slower than `sdpa` in any row. Both must agree before anything is timed.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from race import OURS, Race, check, measure, report
from torch import Tensor

from tinylm import ops

# B, H, T, head: nanoGPT's CPU command, a head of 16, GPT-2's shape at width 384, the default run,
# and longer rows.
SHAPES = (
    (12, 4, 64, 32),
    (12, 4, 64, 16),
    (8, 6, 256, 64),
    (8, 3, 256, 64),
    (4, 4, 512, 64),
    (2, 4, 1024, 64),
)
# Relative 2-norm of the difference that rounding may make.
AGREE = {"float32": 1e-5, "bfloat16": 2e-2}


def races(name: str) -> Iterator[Race]:
    """One race per shape in the dtype `name`."""
    dtype = getattr(torch, name)
    for rows, heads, tokens, size in SHAPES:
        generator = torch.Generator().manual_seed(0)
        shape = (rows, tokens, heads, size)
        # As the projections give them: heads side by side in memory.
        *given, dy = (
            torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for _ in range(4)
        )
        leaves = [x.requires_grad_() for x in given]

        def step(
            backend: Literal["auto", "sdpa"], leaves: list[Tensor] = leaves, dy: Tensor = dy
        ) -> Any:
            y = ops.attention(*leaves, backend=backend)
            return torch.autograd.grad(y, leaves, dy)

        for ours, theirs in zip(step("auto"), step("sdpa"), strict=True):
            apart = (ours.double() - theirs.double()).norm() / theirs.double().norm()
            check(float(apart) < AGREE[name], f"gradients at {shape} in {name}")
        runs: dict[str, Callable[[Any], object]] = {
            OURS: lambda _, step=step: step("auto"),
            "torch's attention": lambda _, step=step: step("sdpa"),
        }
        title = f"B={rows} H={heads} T={tokens} head={size}, {name}"
        yield Race(title, rows * tokens / 1e3, "k tokens/s", runs, dict.fromkeys(runs, nothing))


def nothing() -> None:
    """There is nothing to make anew between rounds."""


def main() -> None:
    """Run the dtypes named, or both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dtypes", nargs="*", metavar="DTYPE", help=", ".join(AGREE))
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    options = parser.parse_args()
    unknown = [name for name in options.dtypes if name not in AGREE]
    if unknown:
        parser.error(f"no dtype {unknown[0]!r}: {', '.join(AGREE)}")
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} cores, {threads} threads"
    print(f"{platform.machine()}, {cores}, torch {torch.__version__}")
    for name in options.dtypes or AGREE:
        for race in races(name):
            report(race, measure(race, options.rounds))


if __name__ == "__main__":
    main()
