"""Every rung of the ladder holds, every public name has one, all media use the same names."""

import inspect
import re
import sys
from collections import Counter
from functools import partial
from itertools import count

import pytest
import torch
from hypothesis import given, settings

from tests.ladder import CHAPTERS, RUNGS, check
from tests.rungs.operations import OPERATIONS
from tests.support import interpreter
from tests.support.tokenizer_data import TOKENIZERS
from tinylm import _rust, layers, ops, optim
from tinylm.reference import arrays, scalars, smallest, tensors

FUZZING = settings.get_current_profile_name() == "fuzz"
# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.timeout(0 if FUZZING else 120),
]


def examples(rung):
    """The profile's number, fewer where one takes over 10 ms; the rung's own when fuzzing."""
    return rung.fuzz if FUZZING else max(1, settings.default.max_examples // rung.cost)


def holds(rung, drawn):
    """The property of a rung, under a name of its own in hypothesis's database.

    The iterator `drawn` moves on at each example.
    """

    def equal(case):
        check(rung, case)
        next(drawn)

    equal.__name__ = re.sub(r"\W", "_", str(rung))
    return settings(max_examples=examples(rung), deadline=None)(given(case=rung.inputs)(equal))


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_the_fast_medium_equals_the_slow_one(rung, record_property):
    if rung.media[1] == "kernels" and interpreter.missing():
        pytest.skip(interpreter.missing())
    drawn = count()
    holds(rung, drawn)()
    record_property("examples", next(drawn))


def public_names():
    """Functions, classes and their methods of `_rust`; operations of `kernels`."""
    names = set()
    for name in _rust.__all__:
        value = getattr(_rust, name)
        if callable(value):
            names.add(name)
        if inspect.isclass(value):
            names |= {f"{name}.{part}" for part in vars(value) if not part.startswith("_")}
    if not interpreter.missing():
        from tinylm import kernels

        names |= {name for name in kernels.__all__ if name not in ("config", "covers")}
        every = torch._C._dispatch_get_all_op_names()
        names |= {name.removeprefix("tinylm::") for name in every if name.startswith("tinylm::")}
    return names


def without_rung(rungs):
    """The public names that no rung answers for."""
    return public_names() - {name for rung in rungs for name in rung.covers}


def test_every_public_name_of_rust_and_kernels_has_a_rung():
    assert not without_rung(RUNGS)


def test_a_rung_that_is_taken_away_is_missed():
    for rung in RUNGS:
        if rung.media[1] == "kernels" and interpreter.missing():
            continue
        others = [other for other in RUNGS if other is not rung]
        assert without_rung(others) == set(rung.covers), rung
    assert any(rung.covers for rung in RUNGS)


def test_a_rung_has_a_name_of_its_own_and_every_chapter_has_rungs():
    assert [name for name, n in Counter(map(str, RUNGS)).items() if n > 1] == []
    assert {rung.chapter for rung in RUNGS} == set(CHAPTERS)


def functions(module):
    """The public functions that a module defines, by name; of `scalars` those of `smallest` too.

    Of a package, those that it exports from its own files.
    """
    homes = {module.__name__, smallest.__name__} if module is scalars else {module.__name__}
    if hasattr(module, "__path__"):
        homes |= {name for name in sys.modules if name.startswith(f"{module.__name__}.")}
    return {
        name: value
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ in homes and not name.startswith("_")
    }


def climbed(*media):
    """The operations with a rung between these media, masks aside."""
    return {rung.name.split()[0] for rung in RUNGS if rung.media == media}


# Operations without a form in basic torch, by the rung that holds them to NumPy.
HELD_BY_ARRAYS = {
    "linear with fake bits": {"fake_weight", "fake_rows"},
    "ternary packing": {"quantise_ternary", "unpack_ternary"},
    "linear of ternary weights": {"linear_ternary", "dequantise_ternary"},
    "linear of 8 bits with 8 bits": {"linear_static"},
}


def test_every_operation_climbs_from_one_medium_to_the_next():
    with_gradient = {
        name.removesuffix("_backward") for name in vars(arrays) if name.endswith("_backward")
    }
    assert with_gradient == {name.split()[0] for name in OPERATIONS}
    assert climbed("differences", "arrays") == climbed("scalars", "arrays") == with_gradient
    assert climbed("arrays", "tensors") >= with_gradient
    # What prepares or chooses the operations has tests of its own: test_ops, test_reference,
    # test_cache_paged.
    prepare = {"rotary_angles", "kernel_for_blocks"}
    by_arrays = set().union(*HELD_BY_ARRAYS.values())
    assert HELD_BY_ARRAYS.keys() <= {rung.name for rung in RUNGS}
    assert climbed("tensors", "ops") - {"ranges"} | by_arrays == functions(ops).keys() - prepare
    assert climbed("tensors", "layers") == {"embedding"}
    assert climbed("arrays", "optim") >= set(optim.OPTIMIZERS)
    assert {f"split {name}" for name in TOKENIZERS} <= {rung.name for rung in RUNGS}


SAME = [(scalars, arrays), (arrays, tensors), (tensors, ops)]


@pytest.mark.parametrize(("slow", "fast"), SAME, ids=lambda module: module.__name__)
def test_an_operation_has_one_name_and_one_order_of_inputs_in_all_media(slow, fast):
    shared = functions(slow).keys() & functions(fast).keys()
    assert len(shared) >= 9
    for name in shared:
        here, there = (inspect.signature(functions(m)[name]).parameters for m in (slow, fast))
        extra = [p for p in list(there.values())[len(here) :] if p.default is p.empty]
        if slow is not scalars:
            assert extra == [], name
            assert list(there)[: len(here)] == list(here), name
    known = {
        scalars: {
            *(functions(smallest).keys() - functions(arrays).keys()),
            *("gpt2_logits", "wrap", "gradients", "loss_and_gradients"),
        },
        arrays: {n for n in functions(arrays) if n.endswith("_backward")}
        | {"total", "mean", "over_rows", "sigmoid"},
        tensors: {
            "embedding",
            "softmax",
            "silu",
            "causal_mask",
            "wide",
            "logits",
            "loss_and_gradients",
        },
    }[slow]
    assert functions(slow).keys() - shared <= known


def test_the_registries_of_the_model_are_made_of_operations():
    chosen = [*layers.FEEDFORWARDS.values(), *layers.ATTENTIONS.values()]
    parts = [part for part in chosen if isinstance(part, partial)]
    chosen = [operation for part in parts for operation in part.keywords.values()]
    names = {getattr(operation, "func", operation).__name__ for operation in chosen}
    assert len(names) >= 2
    assert names <= climbed("tensors", "ops")
