"""What quantisation-aware training costs: a step's two passes, plain and on each grid.

    python benches/bench_qat.py                        the default recipe's model, rows of 256
    python benches/bench_qat.py --rounds 20 --threads 2

The model is that of the recipe `stdlib` and a step has its 2,048 tokens in bfloat16. Every grid is
fully on (a share of 1), as in the last steps of a run; before the start a step costs as much as a
plain one, for it is one. Before anything is timed, a fake weight must equal what its packed form
gives back. Alternating rounds in one process; the ratio is taken inside a round.
"""

import argparse
import platform
from collections.abc import Callable
from typing import Any

import torch
from race import OURS, Race, check, measure, report

from tinylm import config, model, ops
from tinylm.layers import fake
from tinylm.layers.lora import matrices
from tinylm.model import Model
from tinylm.ops.rounding import searched

GRIDS = (fake.Grid("int8"), fake.Grid("int4", 32), fake.Grid("int4", 64), fake.Grid("ternary"))
TOKENS, ROW = 2048, 256


def agrees(net: Model, grid: fake.Grid) -> bool:
    """Whether the weights on the grid are those of the packed form."""
    one = torch.tensor(1.0)
    for _, part in matrices(net):
        weight = part.weight.detach()
        if grid.bits == "int8":
            wide = ops.dequantise_int8(*ops.quantise_int8(weight))
        elif grid.bits == "ternary":
            wide = ops.dequantise_ternary(*ops.quantise_ternary(weight))
        else:
            scales = searched(weight, grid.group)
            packed, scales = ops.quantise_int4(weight, grid.group, scales)
            wide = ops.dequantise_int4(packed, scales.float())
        if not torch.equal(ops.fake_weight(weight, one, grid.bits, grid.group), wide):
            return False
    return True


def built() -> Model:
    """The model of the default recipe, with the starting weights of a plain one."""
    settings = config.load("stdlib", ["model.vocab_size=2048", "model.start=plain"]).model
    return model.build(settings).train()


def main() -> None:
    """Run the race and print a line for each contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ids = torch.randint(2048, (TOKENS // ROW, ROW), generator=torch.Generator().manual_seed(0))
    models = {OURS: built()}
    for grid in GRIDS:
        net = built()
        # Branches start at zero: a grid of nothing would be no test.
        for number, (_, part) in enumerate(matrices(net)):
            torch.nn.init.normal_(
                part.weight, std=0.05, generator=torch.Generator().manual_seed(number)
            )
        check(agrees(net, grid), f"{grid.describe()} and its packed form")
        fake.quantise(net, grid)
        models[grid.describe()] = net

    def step(net: Model) -> Callable[[Any], object]:
        def run(_: Any) -> None:
            torch.autograd.backward(net.loss(ids, ids, dtype=torch.bfloat16))
            for parameter in net.parameters():
                parameter.grad = None

        return run

    runs = {name: step(net) for name, net in models.items()}
    race = Race("two passes over 2,048 tokens", 1, "/s", runs, dict.fromkeys(runs, lambda: None))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{given.threads} threads; tinylm: without a grid")
    report(race, measure(race, given.rounds))


if __name__ == "__main__":
    main()
