"""Choosing a token of [32, 32000] logits, against transformers' processors, in one run.

    python benches/bench_choice.py                 every case
    python benches/bench_choice.py top_p --rounds 9

Logits are noise whose deviation is that of a trained model. Before anything is timed, both sides
must keep the same tokens, but for those where a sum of probabilities is p up to rounding. A draw
of ours is the inverse of the distribution function at a given number, one of theirs is
`torch.multinomial` of a softmax; that it follows the distribution is tested in
`tests/test_sample_logits.py`.
"""

import argparse
import math
import os
import platform
from collections.abc import Callable
from typing import Any

import torch
import transformers
from race import OURS, Race, check, measure, report
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.sample import logits

ROWS, VOCAB, DEVIATION = 32, 32_000, 3.0
LOGITS = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0)) * DEVIATION
NUMBERS = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IDS = torch.zeros(ROWS, 1, dtype=torch.int64)

Processors = list[Callable[[Tensor, Tensor], Tensor]]


def cases() -> dict[str, tuple[SampleConfig, Processors]]:
    """The settings of each case, and transformers' processors for them."""
    warm = transformers.TemperatureLogitsWarper(0.8)
    return {
        "temperature": (SampleConfig(temperature=0.8), [warm]),
        "top_k": (
            SampleConfig(temperature=0.8, top_k=50),
            [warm, transformers.TopKLogitsWarper(50)],
        ),
        "top_p": (
            SampleConfig(temperature=0.8, top_p=0.9),
            [warm, transformers.TopPLogitsWarper(0.9)],
        ),
        "min_p": (
            SampleConfig(temperature=0.8, min_p=0.05),
            [warm, transformers.MinPLogitsWarper(0.05)],
        ),
        "typical_p": (
            SampleConfig(temperature=0.8, typical_p=0.9),
            [warm, transformers.TypicalLogitsWarper(0.9)],
        ),
    }


def race(name: str, config: SampleConfig, processors: Processors) -> Race:
    """Processing and drawing of one case, after a look at what both sides keep."""

    def ours(_: Any) -> Tensor:
        return logits.draw(logits.process(LOGITS, None, None, config), NUMBERS)

    def peer(_: Any) -> Tensor:
        found = LOGITS
        for processor in processors:
            found = processor(IDS, found)
        return torch.multinomial(found.softmax(-1), 1)[:, 0]

    kept = logits.process(LOGITS, None, None, config) > -math.inf
    theirs = LOGITS
    for processor in processors:
        theirs = processor(IDS, theirs)
    different = (kept != (theirs > -math.inf)).sum(-1)
    # Their sum of the probabilities is in float32, and starts from the least likely.
    check(bool((different <= 2).all()), f"the tokens that transformers keeps for {name}")
    runs: dict[str, Callable[[Any], object]] = {OURS: ours, "transformers": peer}
    return Race(f"{name}, {ROWS} x {VOCAB}", ROWS, "tokens/s", runs, dict.fromkeys(runs, nothing))


def nothing() -> None:
    """There is nothing to make anew between rounds."""


def main() -> None:
    """Run the cases named, or all."""
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(known))
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in known]
    if unknown:
        parser.error(f"no case {unknown[0]!r}: {', '.join(known)}")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {cores}, {versions}")
    for name in options.cases or known:
        one = race(name, *known[name])
        report(one, measure(one, options.rounds))


if __name__ == "__main__":
    main()
