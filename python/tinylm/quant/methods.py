"""A model of float weights to one of packed weights, by each method."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from tinylm import ops
from tinylm.checkpoint import quantised
from tinylm.layers import fake, packed
from tinylm.layers.lora import matrices
from tinylm.model import Model
from tinylm.quant.activations import measure
from tinylm.quant.awq import enlarge
from tinylm.quant.calibration import Walk
from tinylm.quant.gptq import gptq
from tinylm.quant.rounding import absmax, searched
from tinylm.quant.settings import USED, Settings


def quantise(model: Model, settings: Settings, calibration: Tensor | None = None) -> None:
    """Put packed weights in place of a model's matrices, in place.

    gptq and awq need a `calibration` [rows, T] int64 of ids. Norms, biases and other tables stay as
    they are. Raises `ValueError`, before anything is changed, for a model that is quantised or has
    adapters, for weights that are not finite, for a group that does not divide a width, and for
    too little calibration.
    """
    form, group = check(model, settings)
    METHODS[settings.method](model, settings, calibration)
    if settings.embedding == "int8":
        for name in packed.tables(model):
            weight = model.get_parameter(f"{name}.weight").detach()
            packed.pack(model, name, "int8", *ops.quantise_int8(weight))
    used = asdict(settings)
    kept = ("method", "clip", "rows", "seed", "activations")
    about: dict[str, Any] = {key: used[key] for key in kept
                             if key == "method" or key in USED[settings.method]}  # fmt: skip
    model.quantisation = quantised.described(form, group, settings.embedding, **about)
    model.requires_grad_(False)


def check(model: Model, settings: Settings) -> tuple[str, int | None]:
    """The format of `packed.FORMATS` and the group; `ValueError` unless the weights fit them."""
    form, group = _form(model, settings)
    if model.quantisation is not None:
        made = model.quantisation.get("method", "int8")
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
        return grid.bits, grid.group if grid.bits == "int4" else None
    if grid is not None:
        raise ValueError(
            f"method={method}: the model was trained for {grid.describe()}, and would be rounded "
            "twice: take method=trained"
        )
    if method in ("int8", "static"):
        return method, None
    return "int4", settings.group


def _int8(model: Model, settings: Settings, calibration: Tensor | None) -> None:
    for name, part in [*matrices(model)]:
        packed.pack(model, name, "int8", *ops.quantise_int8(part.weight.detach()))


def _static(model: Model, settings: Settings, calibration: Tensor | None) -> None:
    _int8(model, settings, calibration)
    for name, found in measure(model, _needed(calibration)).items():
        packed.make_static(model, name, found.scale(settings.activations))


def _trained(model: Model, settings: Settings, calibration: Tensor | None) -> None:
    """The numbers that a run of `train.qat` computed with, exactly."""
    grid = fake.grid_of(model)
    assert grid is not None, "checked"
    fake.plain(model)
    for name, part in [*matrices(model)]:
        weight = part.weight.detach().float()
        if grid.bits == "int4":
            _pack_int4(model, name, weight, absmax(weight, grid.group))
        else:
            pack = ops.quantise_int8 if grid.bits == "int8" else ops.quantise_ternary
            packed.pack(model, name, grid.bits, *pack(weight))


def _int4(model: Model, settings: Settings, calibration: Tensor | None) -> None:
    choose = searched if settings.clip else absmax
    for name, part in [*matrices(model)]:
        weight = part.weight.detach().float()
        _pack_int4(model, name, weight, choose(weight, settings.group))


def _gptq(model: Model, settings: Settings, calibration: Tensor | None) -> None:
    for block_name, block, moments in Walk(model, _needed(calibration)):
        for name, part in [*matrices(block)]:
            on_grid, scales = gptq(part.weight.detach(), moments[name], settings.group)
            _pack_int4(model, f"{block_name}.{name}", on_grid, scales)


def _awq(model: Model, settings: Settings, calibration: Tensor | None) -> None:
    for block_name, block, moments in Walk(model, _needed(calibration)):
        moments = enlarge(block, moments, settings.group)
        for name, part in [*matrices(block)]:
            weight = part.weight.detach().float()
            scales = searched(weight, settings.group, moments[name].diagonal())
            _pack_int4(model, f"{block_name}.{name}", weight, scales)


def _needed(calibration: Tensor | None) -> Tensor:
    if calibration is None:
        raise ValueError("this method needs calibration rows")
    return calibration


def _pack_int4(model: Model, name: str, weight: Tensor, scales: Tensor) -> None:
    group = weight.size(-1) // scales.size(-1)
    packed.pack(model, name, "int4", *ops.quantise_int4(weight, group, scales))


METHODS: dict[str, Callable[[Model, Settings, Tensor | None], None]] = {
    "int8": _int8,
    "static": _static,
    "trained": _trained,
    "int4": _int4,
    "gptq": _gptq,
    "awq": _awq,
}
