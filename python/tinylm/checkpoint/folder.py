"""A model, its tokenizer and its training state to a folder, and back.

The folder is one that transformers opens: config.json, model.safetensors, tokenizer.json,
tokenizer_config.json, generation_config.json; training adds optimizer.safetensors and
state.json, and MANIFEST.json closes it with sizes and hashes. Nothing is ever pickled.
"""

import errno
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from tinylm import convert
from tinylm.checkpoint import adapters, files, origin, quantised, state, steps
from tinylm.checkpoint.parts import OPTIMIZER, read_state
from tinylm.checkpoint.tensors import pieces
from tinylm.checkpoint.weights import (
    CONFIG,
    WEIGHTS,
    check_tensors,
    read_json,
    read_weights,
    widest,
)
from tinylm.config import best
from tinylm.layers import fake
from tinylm.model import Model

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

T = TypeVar("T")
STATE = "state.json"


@dataclass(frozen=True)
class Training:
    """What a run needs to resume: the optimizer's `state()`, and the rest as JSON."""

    step: int
    tokens: int
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Content:
    """What a checkpoint will hold, taken from a model at one moment.

    `weights` and the optimizer's state are the model's own tensors, or copies on the host
    (`tinylm.checkpoint.background`); `files` are the small files beside them.
    """

    model: Model
    tokenizer: "Tokenizer | None"
    weights: Mapping[str, Tensor]
    files: Mapping[str, Any]
    training: Training | None = None


def content(
    model: Model,
    tokenizer: "Tokenizer | None",
    *,
    training: Training | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Content:
    """Collect what `write` puts into a folder; `weights` replace the model's own tensors.

    The tensors are not copied: the model must not change before `write` has returned.
    """
    small = origin.contents(model, tokenizer)
    taken = model.state_dict() if weights is None else weights
    base, added = adapters.named(model, taken)
    exported = convert.export_tensors(small[CONFIG]["model_type"], base) | added
    if (settings := adapters.settings(model)) is not None:
        small[adapters.files_of(model)[1]] = settings
    return Content(model, tokenizer, exported, small, training)


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
    return write(folder, content(model, tokenizer, training=training))


def write(
    folder: str | Path, taken: Content, *, others: Callable[[files.Draft], None] | None = None
) -> Path:
    """`save` of what `content` returned; `others` adds files of its own before the manifest."""
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    _check_fit(taken.tokenizer, taken.model, folder)
    with files.whole(folder) as draft:
        # Some versions of transformers refuse a file that does not name its framework.
        added = {n: t for n, t in taken.weights.items() if n.startswith(adapters.PREFIX)}
        base = {name: t for name, t in taken.weights.items() if name not in added}
        draft.add(WEIGHTS, pieces(base, {"format": "pt"}))
        if added:
            draft.add(adapters.files_of(taken.model)[0], pieces(added, {"format": "pt"}))
        if taken.tokenizer is not None:
            draft.add_written(origin.TOKENIZER, taken.tokenizer.save)
        for name, small in taken.files.items():
            # A tokenizer may have written a tokenizer_config.json with less in it.
            (draft.folder / name).unlink(missing_ok=True)
            draft.add(name, [small] if isinstance(small, bytes) else _json(small))
        if taken.training is not None:
            training = taken.training
            whole = {"step": training.step, "tokens": training.tokens, "state": training.state}
            # In files of their own: a reader of the model alone need not load them.
            draft.add(OPTIMIZER, pieces(training.optimizer))
            draft.add(STATE, _json(whole))
        if others is not None:
            others(draft)
    return folder


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> "tuple[Model, Tokenizer | None]":
    """A run, a checkpoint or a transformers folder to its model, in eval mode, and its tokenizer.

    A run gives its newest checkpoint that verifies (see `latest`), `RUN/best` the one with the
    lowest validation loss. A checkpoint is verified first; `verify=False` reads it as it is, for
    files that were edited. Adapters in the folder are put on the model. The tokenizer is None if
    the folder holds none, or, with a warning, if it is one of another program that TinyLM cannot
    read. `dtype` None keeps that of the file, the widest of its tensors. Raises
    `FileNotFoundError`, or `ValueError` naming the file and what does not fit.
    """
    model, tokenizer = _reading(Path(path), _load, verify=verify)
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def _load(folder: Path) -> "tuple[Model, Tokenizer | None]":
    described = read_json(folder / CONFIG)
    try:
        settings = quantised.settings(described)
        plain = {k: v for k, v in described.items() if settings is None or k != quantised.KEY}
        config = convert.import_config(plain)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    tensors = read_weights(folder, packed=settings is not None)
    kind = described["model_type"]
    try:
        tensors = convert.tidy(kind, tensors, tied=config.tied)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    # Names and shapes without memory: the model itself is made only if the tensors fit.
    with torch.device("meta"):
        sized = Model(config)
        quantised.hollow(folder, sized, settings)
    expected = convert.export_tensors(kind, sized.state_dict())
    check_tensors(folder, expected, tensors)
    floats = {name: t for name, t in tensors.items() if not quantised.is_packed(name, settings)}
    # In the file's dtype before the copy: float64 weights would lose bits on the way.
    # A part that draws its weights when it is made must not move the caller's generator.
    with torch.random.fork_rng(devices=()):
        model = Model(config).to(widest(floats))
    found = convert.import_tensors(kind, tensors)
    quantised.fill(folder, model, settings, found)
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            parameter.copy_(found[name])
    if "qat" in described:
        try:
            fake.quantise(model, fake.read(described["qat"]))
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG}: {error}") from None
    if adapters.files_in(folder) is not None:
        adapters.read(folder, model)
    tokenizer = origin.read_tokenizer(folder)
    _check_fit(tokenizer, model, folder)
    model.origin = origin.read(folder, described, tokenizer, model.embedding.num_embeddings)
    return model, tokenizer


def load_training(
    path: str | Path, *, verify: bool = True, share: tuple[int, int] = (0, 1)
) -> Training:
    """The training state of a run's newest checkpoint that verifies, or of a checkpoint.

    `verify=False` reads the checkpoint as it is. `share` is (rank, world) of a process that wants
    only its rows of the optimizer's tensors (see `checkpoint.parts`). Raises `FileNotFoundError`
    if it was saved without one, and `ValueError` naming the key of state.json that is missing or
    wrong.
    """
    read = partial(_load_training, share=share)
    return _reading(Path(path), read, STATE, "optimizer*", verify=verify)


def _load_training(folder: Path, share: tuple[int, int]) -> Training:
    saved = read_json(folder / STATE)
    rules = {"step": state.WHOLE, "tokens": state.WHOLE, "state": state.OBJECT}
    state.check(folder / STATE, saved, rules)
    return Training(saved["step"], saved["tokens"], read_state(folder, share), saved["state"])


def _reading(path: Path, read: Callable[[Path], T], *names: str, verify: bool) -> T:
    """Return `read` of the folder that a path stands for (see `_find`).

    A trainer may purge a run's checkpoint while it is read here: then the newest one is read.
    """
    folder = _find(path, *names, verify=verify)
    try:
        return read(folder)
    except (ValueError, OSError):
        if folder == path or folder.exists():
            raise
    return read(_find(path, *names, verify=verify))


def _find(path: Path, *names: str, verify: bool) -> Path:
    """The folder that a path stands for; if it has a manifest, verified, or some files of it.

    Those match one of `names`, which are names or patterns such as optimizer*.

    A run's checkpoint without a manifest counts as unfinished wherever TinyLM chooses, but not
    for the model (no `names`) of one that is named: people edit config.json and then remove it.
    """
    path = best(path)
    # A writer that died between its two renames has left this folder under another name.
    files.restore(path)
    if (path / steps.FOLDER).is_dir() and not (path / CONFIG).exists():
        return steps.latest(path)
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such run, checkpoint or model", str(path))
    if not verify:
        return path
    if (path / files.MANIFEST).exists() or (names and steps.is_checkpoint(path)):
        listed = files.read_manifest(path)
        patterns = names or ("*",)
        wanted = [name for name in listed if any(fnmatch(name, pattern) for pattern in patterns)]
        files.check(path, {name: listed[name] for name in wanted})
    elif steps.is_checkpoint(path):
        message = f"{path / files.MANIFEST}: missing, so nothing shows that the checkpoint is whole"
        warnings.warn(message, stacklevel=4)
    return path


def _check_fit(tokenizer: "Tokenizer | None", model: Model, folder: Path) -> None:
    # Fewer tokens than rows are no error: published models round their tables up.
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


def _json(content: Any) -> list[bytes]:
    return [json.dumps(content, indent=2).encode() + b"\n"]
