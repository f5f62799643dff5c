"""Settings that would do nothing because of another one: refused by name where they are given.

A recipe may give Muon's rate and the command line then choose AdamW: the recipe's author could not
know of it. So a key is refused only on the command line, or in a file that does not leave the other
setting to a later place. The file of a saved run gives all settings, also those that do nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinylm.config.limits import require
from tinylm.config.sample import BOUNDED, RESTRICTIONS
from tinylm.config.sections import Run

# The key of a setting, its value, and where it was given: "" on the command line.
Given = tuple[str, Any, str]
# Beams take the likeliest tokens by the logits as they are.
DRAWING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed"),
    *("draft", "draft_tokens", "exit_confidence", "exit_layer"),
)
MUONS = ("matrix_lr", "momentum", "orthogonal", "orthogonal_steps")


@dataclass(frozen=True)
class Rule:
    """The setting `key` does nothing in a run where `off` is true, which `causes` decide."""

    key: str
    causes: tuple[str, ...]
    off: Callable[[Run], bool]
    # With the values of the run by their keys, without their sections.
    problem: str


def _without_muon(run: Run) -> bool:
    # An optimizer that a module adds may read whatever it likes.
    return run.optim.name in ("adamw", "sgd")


def _without_scalars(run: Run) -> bool:
    # Weights to start from, and parts of a user's module, may have scalars of their own.
    if run.train.init is not None or run.imports:
        return False
    parts = run.model.components()
    return not (parts["shortcut"] or parts["value_residual"])


RULES = (
    *(
        Rule(
            f"optim.{name}",
            ("optim.name",),
            _without_muon,
            "is Muon's and has no effect with optim.name={name}: leave it out, or set "
            "optim.name=muon",
        )
        for name in MUONS
    ),
    *(
        Rule(
            f"optim.{name}",
            ("lora.rank",),
            lambda run: run.lora.rank is not None,
            "has no effect with lora.rank={rank}, because AdamW moves the adapters, without decay: "
            "leave it out; their rate is optim.lr",
        )
        for name in (*MUONS, "weight_decay")
    ),
    Rule(
        "optim.eps",
        ("optim.name",),
        lambda run: run.optim.name == "sgd",
        "has no effect with optim.name=sgd, which divides by nothing: leave it out",
    ),
    Rule(
        "optim.scalar_lr",
        ("model.architecture", "model.shortcut", "model.value_residual"),
        _without_scalars,
        "has no effect on a model without scalars: set model.shortcut=true or "
        "model.value_residual=true, or leave it out",
    ),
    Rule(
        "optim.decay",
        ("optim.schedule",),
        lambda run: run.optim.schedule in ("cosine", "linear", "constant"),
        "is the last phase of wsd and has no effect with optim.schedule={schedule}: leave it out, "
        "or set optim.schedule=wsd",
    ),
    Rule(
        "optim.min_lr",
        ("optim.schedule",),
        lambda run: run.optim.schedule == "constant",
        "has no effect with optim.schedule={schedule}, whose rate does not fall: leave it out",
    ),
    *(
        Rule(
            f"data.{name}",
            ("data.pack",),
            lambda run: run.data.pack,
            f"has no effect with data.pack=true, {reason}: leave it out",
        )
        for name, reason in (
            ("stride", "whose rows follow from the documents"),
            ("document_mask", "which always keeps documents apart"),
            ("mask_after_eos", "whose pieces end with their document"),
        )
    ),
    *(
        Rule(
            f"data.{name}",
            ("data.sources",),
            lambda run: bool(run.data.sources),
            f"has no effect with data.sources, {reason}: leave one of them out",
        )
        for name, reason in (
            ("source", "which name the texts"),
            ("folder", "whose texts have a folder of shards each"),
        )
    ),
    *(
        Rule(
            f"train.{name}",
            ("train.qat",),
            lambda run: run.train.qat == "none",
            "has no effect with train.qat=none: leave it out, or set train.qat=int4",
        )
        for name in ("qat_start", "qat_ramp", "qat_group", "qat_keep")
    ),
    Rule(
        "train.qat_keep",
        ("train.qat",),
        lambda run: run.train.qat == "int8",
        "has no effect with train.qat=int8, which all matrices have: leave it out",
    ),
    Rule(
        "train.qat_group",
        ("train.qat",),
        lambda run: run.train.qat != "int4",
        "has no effect with train.qat={qat}, whose scales are per row or matrix: leave it out",
    ),
    Rule(
        "evaluate.patience",
        ("evaluate.every",),
        lambda run: run.evaluate.every == 0,
        "counts evaluations during the run and has no effect with evaluate.every=0: set "
        "evaluate.every",
    ),
    *(
        Rule(
            f"sample.{name}",
            ("sample.num_beams",),
            lambda run: run.sample.num_beams > 1,
            "is for drawing and has no effect with sample.num_beams={num_beams}, which looks for "
            "the likeliest text: leave it out, or set sample.num_beams=1",
        )
        for name in DRAWING
    ),
    Rule(
        "sample.heal",
        tuple(f"sample.{name}" for name in RESTRICTIONS),
        lambda run: run.sample.restricted and run.sample.heal,
        "has no effect where tokens are restricted by sample.{restriction}: leave it out",
    ),
    Rule(
        "sample.length_penalty",
        ("sample.num_beams",),
        lambda run: run.sample.num_beams == 1,
        "compares beams and has no effect with sample.num_beams=1: set sample.num_beams",
    ),
    Rule(
        "sample.cache_tokens",
        ("sample.cache",),
        lambda run: run.sample.cache not in BOUNDED,
        "has no effect with sample.cache={cache}, which keeps all tokens: leave it out, or set "
        "sample.cache to {bounded}",
    ),
    Rule(
        "sample.exit_layer",
        ("sample.exit_confidence",),
        lambda run: run.sample.exit_confidence is None,
        "has no effect without a confidence: set sample.exit_confidence",
    ),
    Rule(
        "sample.draft_tokens",
        ("sample.draft",),
        lambda run: run.sample.draft is None,
        "has no effect without a draft: set sample.draft",
    ),
    Rule(
        "profile.start",
        ("profile.steps",),
        lambda run: run.profile.steps == 0,
        "has no effect with profile.steps=0: set profile.steps to the number of steps to profile",
    ),
)


def refuse(run: Run, given: Sequence[Given], offs: Callable[[str], Any]) -> None:
    """Raise `ValueError` for a setting in `given` that does nothing in `run`.

    `given` are the assignments that led to `run`, in order. `offs` returns what null means for a
    key: a setting that is given so, or as null, asks for nothing.
    """
    values = {key: value for key, value, _ in given}
    places = {key: where for key, _, where in given}
    words = {
        "name": run.optim.name,
        "schedule": run.optim.schedule,
        "rank": run.lora.rank,
        "num_beams": run.sample.num_beams,
        "restriction": next(iter(run.sample.restrictions), ""),
        "qat": run.train.qat,
        "cache": run.sample.cache,
        "bounded": " or ".join(BOUNDED),
    }
    for rule in RULES:
        section, _, name = rule.key.partition(".")
        # The value of the run is typed: a 0 of the command line is text.
        nothing = getattr(getattr(run, section), name) in (None, offs(rule.key))
        if rule.key not in places or nothing or not rule.off(run):
            continue
        where = places[rule.key]
        later = any(places.get(cause, where) != where for cause in rule.causes)
        require(where != "" and later, rule.key, values[rule.key], rule.problem.format(**words))
