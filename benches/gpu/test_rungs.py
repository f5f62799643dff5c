"""The rungs of the ladder that lead to a kernel, without the rest of the ladder.

`tests/test_ladder.py` runs them too, but needs everything that any rung needs.
"""

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.rungs.rung import Rung, check
from tests.support import interpreter

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "tests/rungs"
MODULES = [
    importlib.import_module(f"tests.rungs.{path.stem}")
    for path in sorted(FOLDER.glob("kernel_*.py"))
]
RUNGS = [rung for module in MODULES for rung in module.RUNGS if rung.media[1] == "kernels"]


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_the_kernel_equals_its_definition(rung: Rung) -> None:
    def equal(case: tuple) -> None:
        check(rung, case)

    number = max(1, settings.default.max_examples // rung.cost)
    settings(max_examples=number, deadline=None)(given(case=rung.inputs)(equal))()


# One after another where several processes share the card: in float64 they take gigabytes.
@pytest.mark.xdist_group("large")
@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_the_kernel_equals_its_definition_on_a_large_input(rung: Rung) -> None:
    check(rung, rung.example())
