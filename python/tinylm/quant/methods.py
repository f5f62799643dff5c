"""A model of float weights to one of packed weights, by each method."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from tinylm import ops
from tinylm.checkpoint import quantised
from tinylm.layers import Linear, fake, packed
from tinylm.layers.lora import matrices
from tinylm.model import Model
from tinylm.ops.rounding import absmax, searched
from tinylm.quant.activations import measure
from tinylm.quant.awq import enlarge
from tinylm.quant.calibration import Walk, check_enough
from tinylm.quant.gptq import gptq
from tinylm.quant.sensitivity import kept
from tinylm.quant.settings import Settings
from tinylm.quant.turning import turn_values

# Packs a matrix by its name: in int4 with the weights [N, K] and scales given, or, if it is among
# those that are kept, in int8.
Pack = Callable[[str, Callable[[], tuple[Tensor, Tensor]]], None]


def quantise(model: Model, settings: Settings, calibration: Tensor | None = None) -> None:
    """Put packed weights in place of a model's matrices, in place.

    `settings.calibrates` says whether a `calibration` [rows, T] int64 of ids is needed. Norms,
    biases and other tables stay as they are. Raises `ValueError`, before anything is changed, for
    a model that is quantised or has adapters, for weights that are not finite, for a group that
    does not divide a width, and for too little calibration.
    """
    form, group = check(model, settings)
    if settings.calibrates:
        if calibration is None:
            raise ValueError(f"method={settings.method} needs calibration: give rows of ids")
        check_enough(model, calibration)
    if settings.turn and settings.method != "trained":
        for block in model.blocks:
            turn_values(block)
    grid = fake.grid_of(model)
    chosen: list[str] = [] if grid is None else [*grid.kept]
    if settings.keep and settings.method in ("int4", "gptq", "awq"):
        assert calibration is not None
        chosen = kept(model, calibration, settings.group, settings.keep)

    def pack(name: str, narrow: Callable[[], tuple[Tensor, Tensor]]) -> None:
        if form != "int4" or name in chosen:
            weight = model.get_parameter(f"{name}.weight").detach()
            packed.pack(model, name, "int8", *ops.quantise_int8(weight))
        else:
            weight, scales = narrow()
            size = weight.size(-1) // scales.size(-1)
            packed.pack(model, name, "int4", *ops.quantise_int4(weight, size, scales))

    METHODS[settings.method](model, settings, calibration, pack)
    if settings.embedding == "int8":
        for name in packed.tables(model):
            weight = model.get_parameter(f"{name}.weight").detach()
            packed.pack(model, name, "int8", *ops.quantise_int8(weight))
    about: dict[str, Any] = {key: asdict(settings)[key] for key in sorted(settings.used)}
    about = {"method": settings.method, "kept": chosen, **about}
    about |= {"matrices": form, "group": group, "embedding": settings.embedding}
    model.quantisation = quantised.described(**about)
    model.requires_grad_(False)


def check(model: Model, settings: Settings) -> tuple[str, int | None]:
    """The format of `packed.FORMATS` and the group; `ValueError` unless the weights fit them."""
    form, group = _form(model, settings)
    if model.quantisation is not None:
        made = model.quantisation.get("method", model.quantisation["matrices"])
        raise ValueError(
            f"the model is quantised already (method={made}): take the folder of float weights "
            "that it was made from"
        )
    if not packed.is_float(model):
        raise ValueError("the model has adapters: merge them first, python -m tinylm.lora merge")
    packed.check_group(model, group)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite: take another checkpoint")
    return form, group


def _form(model: Model, settings: Settings) -> tuple[str, int | None]:
    grid, method = fake.grid_of(model), settings.method
    if method == "trained":
        if grid is None:
            raise ValueError("method=trained: packs a run of train.qat, which this model is not of")
        if grid.share < 1:
            raise ValueError(
                f"method=trained: {grid.share:.0%} of the weights' difference to {grid.describe()} "
                f"is trained so far: take a later checkpoint of the run"
            )
        return grid.bits, grid.group if grid.bits == "int4" else None
    if grid is not None:
        raise ValueError(
            f"method={method}: the model was trained for {grid.describe()}, and would be rounded "
            "twice: take method=trained"
        )
    if method in ("int8", "static"):
        return method, None
    return "int4", settings.group


def _rounding(model: Model, settings: Settings, calibration: Tensor | None, pack: Pack) -> None:
    choose = searched if settings.clip else absmax

    def narrow(part: Linear) -> tuple[Tensor, Tensor]:
        weight = part.weight.detach().float()
        return weight, choose(weight, settings.group)

    for name, part in [*matrices(model)]:
        pack(name, lambda part=part: narrow(part))  # type: ignore[misc]


def _static(model: Model, settings: Settings, calibration: Tensor | None, pack: Pack) -> None:
    assert calibration is not None
    _rounding(model, settings, calibration, pack)
    for name, found in measure(model, calibration).items():
        packed.make_static(model, name, found.scale(settings.activations))


def _trained(model: Model, settings: Settings, calibration: Tensor | None, pack: Pack) -> None:
    """The numbers that a run of `train.qat` computed with, exactly."""
    grid = fake.grid_of(model)
    assert grid is not None, "checked"
    fake.plain(model)
    for name, part in [*matrices(model)]:
        weight = part.weight.detach().float()
        if grid.bits_of(name) == "ternary":
            packed.pack(model, name, "ternary", *ops.quantise_ternary(weight))
        else:
            pack(name, lambda w=weight: (w, searched(w, grid.group)))  # type: ignore[misc]


def _gptq(model: Model, settings: Settings, calibration: Tensor | None, pack: Pack) -> None:
    assert calibration is not None
    for home, block, moments in Walk(model, calibration):
        for name, part in [*matrices(block)]:
            weight, own = part.weight.detach(), moments[name]
            pack(f"{home}.{name}", lambda w=weight, m=own: gptq(w, m, settings.group))  # type: ignore[misc]


def _awq(model: Model, settings: Settings, calibration: Tensor | None, pack: Pack) -> None:
    assert calibration is not None
    for home, block, moments in Walk(model, calibration):
        importance = enlarge(block, moments, settings.group)
        for name, part in [*matrices(block)]:
            weight = part.weight.detach().float()
            scales = searched(weight, settings.group, importance[name].diagonal())
            pack(f"{home}.{name}", lambda found=(weight, scales): found)  # type: ignore[misc]


METHODS: dict[str, Callable[[Model, Settings, Tensor | None, Pack], None]] = {
    "int8": _rounding,
    "static": _static,
    "trained": _trained,
    "int4": _rounding,
    "gptq": _gptq,
    "awq": _awq,
}
