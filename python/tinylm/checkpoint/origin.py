"""What a folder holds beside the model: read with it, and written back when it is saved."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm import convert
from tinylm.checkpoint import files, quantised
from tinylm.checkpoint.weights import read_json
from tinylm.layers import fake
from tinylm.model import Model, Origin

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"
GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
# Files of other programs that TinyLM keeps as they are.
KEPT = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# The files of tokenizers; kept where TinyLM cannot read the tokenizer.
TOKENIZERS = (TOKENIZER, "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")
ROLES = ("bos", "eos", "pad")


def read(
    folder: Path, content: Mapping[str, Any], tokenizer: "Tokenizer | None", vocab_size: int
) -> Origin:
    """What to keep of a folder whose config.json holds `content`.

    Warns of an end-of-text id that none of the model's `vocab_size` tokens has.
    """
    names = (GENERATION, TOKENIZER_CONFIG, *KEPT, *(TOKENIZERS if tokenizer is None else ()))
    kept = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    for name in (GENERATION, TOKENIZER_CONFIG):
        if name in kept:
            # Read only to refuse a broken file now, by its name, and not when the model is saved.
            read_json(folder / name)
    generation = json.loads(kept[GENERATION]) if GENERATION in kept else None
    source = GENERATION if (generation or {}).get("eos_token_id") is not None else "config.json"
    try:
        eos_ids = convert.eos_ids(content, generation)
    except ValueError as error:
        raise ValueError(f"{folder / source}: {error}") from None
    # No error: transformers' defaults are ids of large vocabularies, and a small one has them too.
    if strange := [id for id in eos_ids if not 0 <= id < vocab_size]:
        message = (
            f"{folder / source}: eos_token_id={', '.join(map(str, strange))}: the vocabulary has "
            f"the ids 0 to {vocab_size - 1}, so no text ends there: name the id of a token"
        )
        warnings.warn(message, stacklevel=5)
    return Origin(convert.kept(content), kept, eos_ids, _fingerprint(tokenizer))


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    """The tokenizer beside a model; one of ours must be readable, a foreign one should be."""
    source = _tokenizer_in(folder)
    if source is None:
        return None
    # Imported late: a folder without a tokenizer needs none of it.
    from tinylm.tokenizer import Tokenizer

    try:
        return Tokenizer.load(source)
    except ValueError as error:
        # A manifest shows that TinyLM wrote this tokenizer, so an error is damage and no warning.
        if (folder / files.MANIFEST).exists():
            raise
        message = f"{source}: TinyLM cannot read this tokenizer, you get None: {error}"
        warnings.warn(message, stacklevel=5)
        return None


def why_no_tokenizer(folder: Path, need: str) -> ValueError:
    """The error for a caller that needs the tokenizer which `read_tokenizer` did not give.

    It is what is wrong with the tokenizer, or, with `need`, that there is none.
    """
    from tinylm.tokenizer import Tokenizer

    if (source := _tokenizer_in(folder)) is not None:
        try:
            Tokenizer.load(source)
        except ValueError as error:
            return error
    return ValueError(f"{folder} holds no tokenizer.json: {need}")


def _tokenizer_in(folder: Path) -> Path | None:
    if (folder / TOKENIZER).exists():
        return folder / TOKENIZER
    both = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    return folder if both else None


def contents(model: Model, tokenizer: "Tokenizer | None") -> dict[str, Any]:
    """Every file beside weights and tokenizer.json: its name to its JSON, or to its bytes.

    Keys that were read stay as they were. Ids and names of tokens are those of `tokenizer`,
    unless it is the one that the model was loaded with.
    """
    origin = model.origin
    same = _fingerprint(tokenizer) == origin.tokenizer
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_id", None) for role in ROLES}
    dtype = str(model.weight.dtype).removeprefix("torch.")
    kind: convert.ModelType | None = None if model.quantisation is None else "tinylm"
    config = convert.export_config(model.config, kind=kind, dtype=dtype, **ids)
    if model.quantisation is not None:
        config[quantised.KEY] = dict(model.quantisation)
    id_keys = [f"{role}_token_id" for role in ROLES]
    kept_config = {k: v for k, v in origin.config.items() if same or k not in id_keys}
    if same and origin is not Model.origin:
        # A key that the folder leaves out has transformers' default, which is another than ours.
        config = {k: v for k, v in config.items() if k not in id_keys or k in kept_config}
    found: dict[str, Any] = {"config.json": config | kept_config}
    if (grid := fake.described(model)) is not None:
        found["config.json"]["qat"] = grid
    generation = {key: config[key] for key in id_keys if config.get(key) is not None}
    if (end := _end_of_turn(tokenizer)) is not None and "eos_token_id" in generation:
        # An answer ends where the turn of the assistant ends.
        generation["eos_token_id"] = [generation["eos_token_id"], end]
    found[GENERATION] = _merge(generation, origin.files.get(GENERATION), same, id_keys)
    templates: set[str] = set()
    if tokenizer is not None:
        beside = tokenizer.beside(model_max_length=model.config.context_length)
        ours = json.loads(beside.pop(TOKENIZER_CONFIG))
        # A list of the tokens of another tokenizer is no property of this one.
        names = [*(f"{role}_token" for role in ROLES), "added_tokens_decoder", "tokenizer_class"]
        found[TOKENIZER_CONFIG] = _merge(ours, origin.files.get(TOKENIZER_CONFIG), same, names)
        if "chat_template" in ours:
            # The tokenizer decides: training on conversations may have replaced the folder's own.
            found[TOKENIZER_CONFIG]["chat_template"] = ours["chat_template"]
            templates = {name for name in KEPT if name.startswith("chat_template.")} - beside.keys()
    lost = () if same else ("special_tokens_map.json", "added_tokens.json", *TOKENIZERS)
    lost = (*lost, *templates)
    for name, content in origin.files.items():
        if name not in found and name not in lost:
            found[name] = content
    if tokenizer is not None:
        found = {**beside, **found}
    return found


def _end_of_turn(tokenizer: "Tokenizer | None") -> int | None:
    """The id that ends a turn of a conversation; None for a tokenizer without marks."""
    if tokenizer is None:
        return None
    from tinylm.tokenizer import chat

    found = chat.marks(tokenizer)
    return None if found is None else found.end


def _merge(
    ours: dict[str, Any], kept: bytes | None, same: bool, token_keys: list[str]
) -> dict[str, Any]:
    """The content of a file that was read, if any; unless `same` with our own `token_keys`."""
    read: dict[str, Any] = {} if kept is None else json.loads(kept)
    if kept is not None and same:
        return read
    return ours | {key: value for key, value in read.items() if key not in token_keys}


def _fingerprint(tokenizer: "Tokenizer | None") -> str | None:
    return None if tokenizer is None else f"{tokenizer.sha256} {tokenizer.eos_id}"
