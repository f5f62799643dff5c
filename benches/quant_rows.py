"""The rows of `bench_quant.py`: every way to keep a run's model in fewer bits, and its peers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tinylm import checkpoint
from tinylm.layers.lora import matrices
from tinylm.model import Model
from tinylm.quant import Settings, quantise

# A float32 model that may be changed, calibration rows [N, T] and the folder of the trained runs to
# the model of a row.
Make = Callable[[Model, Tensor, Path], Model]


@dataclass(frozen=True)
class Row:
    """One way to make a model smaller, or its cache."""

    # What a colour of the picture stands for.
    family: str
    make: Make = lambda net, rows, runs: net
    # Bytes of a float that the bits leave as it is, once stored.
    width: int = 4
    # The kind of cache that decodes.
    cache: str = "contiguous"
    # Settings of a run that must be trained for the row, beside those of the run given.
    train: list[str] = field(default_factory=list)
    # A row whose tensors are not ours has no bytes.
    ours: bool = True


def by(family: str, method: str, **settings: object) -> Row:
    """A method of `tinylm.quant` with these settings."""

    def make(net: Model, rows: Tensor, runs: Path) -> Model:
        chosen = Settings(method, **settings)  # type: ignore[arg-type]
        quantise(net, chosen, rows if chosen.calibrates else None)
        return net

    return Row(family, make)


def trained(name: str, *train: str, embedding: str = "int8") -> Row:
    """The run `name`, trained for fewer bits and packed; a float embedding is a bfloat16."""

    def make(net: Model, rows: Tensor, runs: Path) -> Model:
        net, _ = checkpoint.load(runs / name, dtype=torch.float32)
        quantise(net, Settings("trained", embedding=embedding))
        return halved(net) if embedding == "float" else net

    return Row("trained", make, 4 if embedding == "int8" else 2, train=[name, *train])


def smaller(name: str, *train: str) -> Row:
    """A run of fewer weights, in bfloat16."""

    def make(net: Model, rows: Tensor, runs: Path) -> Model:
        return halved(checkpoint.load(runs / name, dtype=torch.float32)[0])

    return Row("float", make, 2, train=[name, *train])


def halved(net: Model) -> Model:
    """The model with its floats rounded to bfloat16, still in float32."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.bfloat16())
    return net


def torchao(config: Callable[[], object]) -> Row:
    """torchao: its own weights in plain `nn.Linear`s, the embedding in float."""

    def make(net: Model, rows: Tensor, runs: Path) -> Model:
        from torchao.quantization import quantize_

        for name, part in [*matrices(net)]:
            plain = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None)
            plain.weight, plain.bias = part.weight, part.bias
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, plain)
        quantize_(net, config())
        return net

    return Row("torchao", make, ours=False)


def ao_int8() -> object:
    """int8 per row."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def ao_int4() -> object:
    """int4 in groups of 32, by the largest magnitude."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


PLAIN = {"turn": False, "keep": 0.0}
# Stands for the names of the matrices that are most sensitive in the float model.
KEPT = "KEPT"
TERNARY = ("ternary", "train.qat=ternary", "train.qat_start=0.2")
# A new method is a new row. The first is what all others are compared with.
ROWS: dict[str, Row] = {
    "float32": Row("float"),
    "bfloat16": Row("float", lambda net, rows, runs: halved(net), width=2),
    "int8": by("int8", "int8"),
    "int8, not turned": by("int8", "int8", turn=False),
    "static int8, largest": by("int8", "static", activations="minmax"),
    "static int8, percentile": by("int8", "static", activations="percentile"),
    "static int8, histogram": by("int8", "static"),
    "int4 g32 absmax": by("int4", "int4", clip=False, **PLAIN),
    "int4 g64 absmax": by("int4", "int4", clip=False, group=64, **PLAIN),
    "int4 g128 absmax": by("int4", "int4", clip=False, group=128, **PLAIN),
    "int4 g32 clip": by("int4", "int4", **PLAIN),
    "int4 g64 clip": by("int4", "int4", group=64, **PLAIN),
    "int4 g128 clip": by("int4", "int4", group=128, **PLAIN),
    "int4 g32 clip, turned": by("int4", "int4", keep=0.0),
    "int4 g32 clip, turned, 12% int8": by("int4", "int4"),
    "int4 g64 clip, turned, 12% int8": by("int4", "int4", group=64),
    "gptq g32": by("gptq", "gptq", **PLAIN),
    "gptq g32, turned": by("gptq", "gptq", keep=0.0),
    "gptq g32, turned, 12% int8": by("gptq", "gptq"),
    "gptq g64, turned, 12% int8": by("gptq", "gptq", group=64),
    "awq g32, turned": by("awq", "awq", keep=0.0),
    "awq g32, turned, 12% int8": by("awq", "awq"),
    "qat int8": trained("qat-int8", "train.qat=int8"),
    "qat int4 g32, turned": trained("qat-int4", "train.qat=int4"),
    "qat int4 g32, turned, 12% int8": trained(
        "qat-int4-kept", "train.qat=int4", f"train.qat_keep=[{KEPT}]"
    ),
    "ternary": trained(*TERNARY),
    "ternary, embedding bfloat16": trained(*TERNARY, embedding="float"),
    "width 96, bfloat16": smaller("width-96", "model.d_model=96"),
    "cache int8": Row("cache", cache="int8"),
    "cache int4": Row("cache", cache="int4"),
    "torchao int8 (matrices)": torchao(ao_int8),
    "torchao int4 g32 (matrices)": torchao(ao_int4),
}
