"""Adapters in the format of PEFT: adapter_config.json, and A and B in adapter_model.safetensors.

A checkpoint of a run with `lora.rank` holds the base as it was in model.safetensors, and these two
files beside it. Of a llama or qwen3 model PEFT opens them on the base, because the names are
transformers': `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` [rank, in]. Of a
gpt2 model, whose q, k and v transformers joins, and of TinyLM's own mixes PEFT cannot open any:
there they are our names, in files of our own, which neither PEFT nor transformers takes for its.
Source: https://huggingface.co/docs/peft, "PEFT checkpoint format".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm import convert
from tinylm.checkpoint.weights import read_json, read_tensors
from tinylm.layers import lora
from tinylm.model import Model

# The tensors and the settings: of PEFT, and where PEFT has no names for the matrices.
PEFTS = ("adapter_model.safetensors", "adapter_config.json")
OURS = ("tinylm_adapter.safetensors", "tinylm_adapter.json")
PREFIX = "base_model.model."
_LEAVES = (".lora_A", ".lora_B")
# Keys that TinyLM applies; every other key must be inert or empty.
_APPLIED = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias")
# Keys that change no number of a loaded adapter.
_INERT = frozenset(
    {
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "init_lora_weights",
        "auto_mapping",
        "peft_version",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "qalora_group_size",
        # They choose among modules, whose names are in the tensors.
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
    }
)


def named(model: Model, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict to the base's tensors and the adapters', these by the names of the file."""
    kind = kind_of(model)
    base = {name: t for name, t in state.items() if not name.endswith(_LEAVES)}
    found = {}
    for name, tensor in state.items():
        if name.endswith(_LEAVES):
            module, _, leaf = name.rpartition(".")
            found[f"{PREFIX}{convert.module_name(kind, module)}.{leaf}.weight"] = (
                tensor.contiguous()
            )
    return base, found


def files_of(model: Model) -> tuple[str, str]:
    """The names of the files of a model's adapters: the tensors and the settings."""
    return PEFTS if convert.has_modules(kind_of(model)) else OURS


def files_in(folder: Path) -> tuple[Path, Path] | None:
    """The files of the adapters in a folder, the tensors and the settings; None without any."""
    for tensors, settings in (OURS, PEFTS):
        if (folder / settings).is_file():
            return folder / tensors, folder / settings
    return None


def settings(model: Model) -> dict[str, Any] | None:
    """The content of adapter_config.json; None for a model without adapters."""
    parts = lora.adapters(model)
    if not parts:
        return None
    one, kind = next(iter(parts.values())), kind_of(model)
    names = {convert.module_name(kind, name).rpartition(".")[2] for name in parts}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": one.rank,
        "lora_alpha": one.alpha,
        "lora_dropout": one.dropout.p,
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def read(folder: Path, model: Model) -> None:
    """Put the adapters of a folder on a model, in place.

    `ValueError` names the file and the key that TinyLM does not know, or the tensor that does
    not fit.
    """
    file, path = files_in(folder) or (folder / PEFTS[0], folder / PEFTS[1])
    if lora.adapters(model):
        raise ValueError(f"{path}: the model has adapters already: merge them first")
    given = read_json(path)
    _check_settings(path, given)
    kind, tensors = kind_of(model), read_tensors(file)
    names = {f"{PREFIX}{convert.module_name(kind, n)}": n for n, _ in lora.matrices(model)}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.removesuffix(".weight").rpartition(".")
        if f".{leaf}" not in _LEAVES or module not in names:
            raise ValueError(f"{file}: {name} is no adapter of a matrix of this model")
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} has numbers that are not finite")
        found[f"{names[module]}.{leaf}"] = tensor
    if not found:
        raise ValueError(f"{file}: holds no adapter: take the file that PEFT saved")
    targets = dict.fromkeys(name.rpartition(".")[0] for name in found)
    rank = int(given["r"])
    lora.adapt(
        model,
        rank=rank,
        alpha=float(given["lora_alpha"]),
        dropout=float(given.get("lora_dropout", 0.0)),
        targets=[*targets],
    )
    parts = lora.adapters(model)
    with torch.no_grad():
        for name in targets:
            for leaf in ("lora_A", "lora_B"):
                part, own = found.get(f"{name}.{leaf}"), getattr(parts[name], leaf)
                if part is None or part.shape != own.shape:
                    shape = "missing" if part is None else f"of shape {list(part.shape)}"
                    raise ValueError(
                        f"{file}: {name}.{leaf} is {shape}, expected {list(own.shape)}"
                    )
                own.copy_(part)


def kind_of(model: Model) -> str:
    """The model_type under which transformers would know the model, or tinylm."""
    kind: str = convert.model_type(model.config)
    return kind


def _check_settings(path: Path, given: Mapping[str, Any]) -> None:
    rules = {
        "peft_type": given.get("peft_type") == "LORA",
        "r": _is_number(given.get("r"), int) and given["r"] >= 1,
        "lora_alpha": _is_number(given.get("lora_alpha"), int | float),
        "lora_dropout": _is_number(given.get("lora_dropout", 0.0), int | float),
        "bias": given.get("bias", "none") == "none",
    }
    for key, right in rules.items():
        if not right:
            raise ValueError(
                f"{path}: {key}={given.get(key)!r}: TinyLM reads adapters of peft_type LORA, with "
                f"numbers for r, lora_alpha and lora_dropout, and bias none"
            )
    for key, value in given.items():
        # Whatever a newer PEFT adds is off where it is null, false or empty.
        if key not in _APPLIED and key not in _INERT and value not in (None, False, {}, [], ""):
            raise ValueError(f"{path}: {key}={value!r}: this TinyLM does not know it")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
