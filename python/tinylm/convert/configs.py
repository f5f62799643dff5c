"""A ModelConfig to the content of a config.json and back."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, get_type_hints

from tinylm.config import ARCHITECTURES, ModelConfig
from tinylm.convert.format import Format, typed
from tinylm.convert.gpt2 import GPT2
from tinylm.convert.llama import LLAMA

ModelType = Literal["gpt2", "llama", "tinylm"]

# By model_type; `tinylm` is what no format holds, under our own names.
FORMATS: dict[str, Format] = {"llama": LLAMA, "gpt2": GPT2}


def obstacles(config: ModelConfig) -> list[str]:
    """A model to the settings that keep it from opening in transformers; none for most models."""
    return min((_differences(config, kind) for kind in FORMATS), key=len)


def model_type(config: ModelConfig) -> ModelType:
    """The format that a model is written in: gpt2, llama, or else tinylm."""
    for kind in FORMATS:
        if not _differences(config, kind):
            return kind  # type: ignore[return-value]
    return "tinylm"


def export_config(
    config: ModelConfig,
    *,
    dtype: str = "float32",
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> dict[str, Any]:
    """A model to the content of its config.json; `import_config` gives back an equal one.

    The key "tinylm" holds every field of ours, which transformers carries along unread.
    """
    kind = model_type(config)
    return {
        "model_type": kind,
        "architectures": ["TinyLM" if kind == "tinylm" else FORMATS[kind].class_name],
        "dtype": dtype,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        **({} if kind == "tinylm" else FORMATS[kind].export_keys(config)),
        "tinylm": asdict(config),
    }


def import_config(content: Mapping[str, Any]) -> ModelConfig:
    """The content of a config.json to a model; `ValueError` names what TinyLM does not have.

    transformers' keys count: the key "tinylm" only adds what they cannot say, and is left
    aside where they contradict it, as after a resize of the vocabulary. One dropout rate
    stands for gpt2's three and for llama's of attention alone; where that changes training,
    a warning says so.
    """
    kind: Any = content.get("model_type")
    if kind != "tinylm" and kind not in FORMATS:
        raise ValueError(f"model_type={kind!r}: supported are gpt2, llama and tinylm")
    own = _own(content["tinylm"]) if "tinylm" in content else None
    if kind == "tinylm":
        if own is None:
            raise ValueError("model_type='tinylm' without the key tinylm: not a TinyLM config.json")
        return own
    theirs = _foreign(kind, content)
    same_type = own is not None and model_type(own) == kind
    if own is not None and same_type and _foreign(kind, export_config(own)) == theirs:
        return own
    _warn_of_dropout(kind, content, theirs)
    return theirs


def _differences(config: ModelConfig, kind: str) -> list[str]:
    """The settings of a model that `kind` cannot hold, each with what it would need."""
    mine = config.components()
    wanted = ARCHITECTURES[FORMATS[kind].architecture]
    found = [
        f"model.{key}={str(mine[key]).lower()} ({kind} has {str(wanted[key]).lower()})"
        for key in mine
        if mine[key] != wanted.get(key)
    ]
    if config.attention not in ("sdpa", "manual"):
        found.append(f"model.attention={config.attention} ({kind} has sdpa)")
    if kind == "gpt2" and config.kv_heads != config.n_heads:
        found.append(f"model.n_kv_heads={config.n_kv_heads} (gpt2 has n_heads={config.n_heads})")
    return found


def _own(content: Any) -> ModelConfig:
    """The key "tinylm" of a config.json to a model, every field checked."""
    known = {field.name for field in fields(ModelConfig)}
    if not isinstance(content, dict) or content.keys() - known:
        raise ValueError(f"tinylm={content}: expected the settings {', '.join(sorted(known))}")
    hints = get_type_hints(ModelConfig)
    return ModelConfig(**{key: typed(content, key, hints[key]) for key in content})


def _foreign(kind: str, content: Mapping[str, Any]) -> ModelConfig:
    """transformers' keys, with its defaults where one is missing, to a model."""
    for key, values in FORMATS[kind].supported.items():
        value = content.get(key, values[0])
        if value not in values:
            allowed = " or ".join(str(value) for value in values)
            raise ValueError(f"{key}={value!r}: TinyLM's {kind} supports {allowed}")
    return FORMATS[kind].import_keys(content)


def _warn_of_dropout(kind: str, content: Mapping[str, Any], config: ModelConfig) -> None:
    """Say so where training here would drop other numbers than training there."""
    keys = FORMATS[kind].dropout
    found = ", ".join(f"{key}={content[key]}" for key in keys if key in content)
    if any(content.get(key, config.dropout) != config.dropout for key in keys):
        reason = "has one rate for the three"
    elif kind == "llama" and config.dropout:
        reason = "drops embeddings and residual branches as well"
    else:
        return
    message = f"{found}: TinyLM {reason} and takes dropout={config.dropout}"
    warnings.warn(message, stacklevel=3)
