"""A model, its tokenizer and its training state to a folder, and back.

The folder is one that transformers opens: config.json, model.safetensors, tokenizer.json,
tokenizer_config.json, generation_config.json; training adds optimizer.safetensors and
state.json, and MANIFEST.json closes it with sizes and hashes. Nothing is ever pickled.
"""

import errno
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinylm import convert
from tinylm.checkpoint import files, steps
from tinylm.checkpoint.tensors import pieces
from tinylm.model import Model

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
INDEX = f"{WEIGHTS}.index.json"
# How many of the tensors that do not fit an error names.
NAMED = 3


@dataclass(frozen=True)
class Training:
    """What it takes to go on training: the optimizer's `state()`, and what else JSON can hold."""

    step: int
    tokens: int
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: str | Path,
    model: Model,
    tokenizer: "Tokenizer | None",
    *,
    training: Training | None = None,
) -> Path:
    """Write a model to `folder`, whole or not at all, in place of an older one; returns its path.

    The weights keep their dtype, bit for bit. When this returns they are on the disk; when
    it raises (`OSError` with the file's name), what was there before still is.
    """
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    _check_fit(tokenizer, model, folder)
    config = model.config
    ids = {} if tokenizer is None else _special_ids(tokenizer)
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    content = convert.export_config(config, dtype=dtype, **ids)
    tensors = convert.export_tensors(content["model_type"], model.state_dict())
    with files.whole(folder) as draft:
        draft.add(CONFIG, _json(content))
        draft.add(WEIGHTS, pieces(tensors, {"format": "pt"}))
        if tokenizer is not None:
            draft.add_written(TOKENIZER, tokenizer.save)
            draft.add(
                "tokenizer_config.json", _json(_tokenizer_config(tokenizer, config.context_length))
            )
        draft.add("generation_config.json", _json(_generation_config(content)))
        if training is not None:
            state = {"step": training.step, "tokens": training.tokens, "state": training.state}
            draft.add(OPTIMIZER, pieces(training.optimizer))
            draft.add(STATE, _json(state))
    return folder


def load(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> "tuple[Model, Tokenizer | None]":
    """A run, a checkpoint or a transformers folder to its model, in eval mode, and its tokenizer.

    A run gives its newest checkpoint that verifies (see `latest`); a checkpoint is verified
    first. The tokenizer is None where the folder holds none, or, with a warning, one of
    another program that TinyLM cannot read. `dtype` None keeps that of the file. Raises
    `FileNotFoundError`, or `ValueError` naming the file and what does not fit.
    """
    folder = _find(Path(path))
    content = _read_json(folder / CONFIG)
    try:
        config = convert.import_config(content)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    tensors = _read_weights(folder)
    kind = content["model_type"]
    try:
        tensors = convert.tidy(kind, tensors, tied=config.tied)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    with torch.device("meta"):
        expected = convert.export_tensors(kind, Model(config).state_dict())
    _check_tensors(folder, expected, tensors)
    model = Model(config)
    with torch.no_grad():
        found = convert.import_tensors(kind, tensors)
        for name, parameter in model.state_dict().items():
            parameter.copy_(found[name])
    tokenizer = _read_tokenizer(folder)
    _check_fit(tokenizer, model, folder)
    return model.to(device=device, dtype=dtype or _widest(tensors)).eval(), tokenizer


def load_training(path: str | Path) -> Training:
    """The training state of a run's newest checkpoint that verifies, or of a checkpoint.

    Raises `FileNotFoundError` where the checkpoint was saved without one.
    """
    folder = _find(Path(path), STATE, OPTIMIZER)
    content = _read_json(folder / STATE)
    # A copy in memory: the file may be purged, and the optimizer writes into its state.
    optimizer = {name: t.clone() for name, t in _read_tensors(folder / OPTIMIZER).items()}
    return Training(content["step"], content["tokens"], optimizer, content["state"])


def _find(path: Path, *names: str) -> Path:
    """The folder that a path stands for, verified (or these files of it) if it has a manifest."""
    files.restore(path)
    if (path / steps.FOLDER).is_dir() and not (path / CONFIG).exists():
        return steps.latest(path)
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such run, checkpoint or model", str(path))
    if (path / files.MANIFEST).exists() or steps.is_checkpoint(path):
        listed = files.read_manifest(path)
        files.check(path, {name: listed[name] for name in names or listed if name in listed})
    return path


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of its shards."""
    if (folder / WEIGHTS).exists():
        tensors = _read_tensors(folder / WEIGHTS)
    elif (folder / INDEX).exists():
        shards = _read_json(folder / INDEX).get("weight_map", {})
        names = sorted({str(name) for name in shards.values()})
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{folder / INDEX}: a shard is a file of the same folder: {names}")
        tensors = {}
        for name in names:
            tensors |= _read_tensors(folder / name)
    elif (folder / "pytorch_model.bin").exists():
        raise ValueError(
            f"{folder / 'pytorch_model.bin'}: a pickle can run any code, so it is not read: "
            f"convert it with transformers' save_pretrained, which writes {WEIGHTS}"
        )
    else:
        raise FileNotFoundError(errno.ENOENT, "no weights", str(folder / WEIGHTS))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith(convert.CONSTANTS):
            raise ValueError(f"{folder}: {name} has dtype {tensor.dtype}: expected floating point")
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_tokenizer(folder: Path) -> "Tokenizer | None":
    """The tokenizer beside a model; one of ours must be readable, a foreign one should be."""
    if (folder / TOKENIZER).exists():
        source = folder / TOKENIZER
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        source = folder
    else:
        return None
    from tinylm.tokenizer import Tokenizer

    try:
        return Tokenizer.load(source)
    except ValueError as error:
        if (folder / files.MANIFEST).exists():
            raise
        message = f"{source}: TinyLM cannot read this tokenizer, you get None: {error}"
        warnings.warn(message, stacklevel=3)
        return None


def _check_tensors(
    folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise `ValueError`, on one line, unless names and shapes are those of the model."""
    shapes = [
        f"{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems = [
        f"{kind} {', '.join(names[:NAMED])}"
        + (f" and {n} more" if (n := len(names) - NAMED) > 0 else "")
        for kind, names in (
            ("lacks", [name for name in expected if name not in found]),
            ("has an unexpected", [name for name in found if name not in expected]),
            ("tensor", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{folder}: the weights do not fit {CONFIG}: {'; '.join(problems)}")


def _check_fit(tokenizer: "Tokenizer | None", model: Model, folder: Path) -> None:
    rows = model.embedding.num_embeddings
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {rows}: "
            f"they do not belong together"
        )


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not a model's folder: a slip must not delete your files."""
    known = (files.MANIFEST, CONFIG, WEIGHTS, STATE)
    if folder.is_dir() and (
        not any(folder.iterdir()) or any((folder / name).exists() for name in known)
    ):
        return
    if folder.exists() and not steps.is_checkpoint(folder):
        raise FileExistsError(
            errno.EEXIST, "holds other things than a checkpoint: name another folder", str(folder)
        )


def _widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds the values of all tensors."""
    dtypes = iter({tensor.dtype for tensor in tensors.values()})
    widest = next(dtypes)
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest


def _special_ids(tokenizer: "Tokenizer") -> dict[str, int | None]:
    return {f"{part}_id": getattr(tokenizer, f"{part}_id") for part in ("bos", "eos", "pad")}


def _tokenizer_config(tokenizer: "Tokenizer", context_length: int) -> dict[str, Any]:
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    roles = {
        f"{key[:-3]}_token": names[number]
        for key, number in _special_ids(tokenizer).items()
        if number is not None
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **roles,
    }


def _generation_config(content: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: content[key] for key in keys if content[key] is not None}


def _json(content: Any) -> list[bytes]:
    return [json.dumps(content, indent=2).encode() + b"\n"]
