"""A ModelConfig to the content of a config.json and back."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from tinylm.config import ARCHITECTURES, ModelConfig
from tinylm.config.fields import Attention
from tinylm.convert.format import COMMON, Format, one_of, typed
from tinylm.convert.gpt2 import GPT2
from tinylm.convert.llama import LLAMA, QWEN3

ModelType = Literal["gpt2", "llama", "qwen3", "tinylm"]

# By model_type; `tinylm` is what no format holds, under our own names.
FORMATS: dict[str, Format] = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2}

# The keys that say the same of every model, whatever its format; written from the model.
DERIVED = {"model_type", "architectures", "dtype", "torch_dtype", "vocab_size"}
DERIVED |= {"tie_word_embeddings", "tinylm", "quantization_config", "qat"}


def obstacles(config: ModelConfig) -> list[str]:
    """A model to the settings that keep it from opening in transformers; none for most models."""
    return min((_differences(config, kind) for kind in FORMATS), key=len)


def model_type(config: ModelConfig) -> ModelType:
    """The format that a model is written in: llama, qwen3, gpt2, or else tinylm."""
    for kind in FORMATS:
        if not _differences(config, kind):
            return kind  # type: ignore[return-value]
    return "tinylm"


def export_config(
    config: ModelConfig,
    *,
    kind: ModelType | None = None,
    dtype: str = "float32",
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> dict[str, Any]:
    """A model to the content of its config.json; `import_config` gives back an equal one.

    `kind` None is the format that `model_type` finds. The key "tinylm" holds every field of ours,
    which transformers carries along unread.
    """
    kind = kind or model_type(config)
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

    If the key "tinylm" contradicts transformers' keys, as after an edit by hand, transformers'
    keys count, and a warning names the difference; after `resize_token_embeddings` there is
    none. One dropout rate stands for gpt2's three and for llama's of attention alone; if that
    changes training, a warning says so.
    """
    kind: Any = content.get("model_type")
    if not isinstance(kind, str) or (kind != "tinylm" and kind not in FORMATS):
        raise ValueError(f"model_type={kind!r}: supported are llama, qwen3, gpt2 and tinylm")
    own = _own(content["tinylm"]) if "tinylm" in content else None
    if kind == "tinylm":
        if own is None:
            raise ValueError("model_type='tinylm' without the key tinylm: not a TinyLM config.json")
        _check_supported(kind, content)
        for key, mine in (("vocab_size", own.vocab_size), ("tie_word_embeddings", own.tied)):
            if content.get(key, mine) != mine:
                raise ValueError(f"{key}={content[key]!r} contradicts tinylm, which has {mine}")
        return own
    theirs = _foreign(kind, content)
    if own is None:
        _warn_of_dropout(kind, content, theirs)
        return theirs
    if model_type(own) != kind:
        warnings.warn(f"tinylm={content['tinylm']}: not a {kind}, so left aside", stacklevel=3)
        return theirs
    before = _foreign(kind, export_config(own))
    changes = {
        field.name: getattr(theirs, field.name)
        for field in fields(ModelConfig)
        if getattr(before, field.name) != getattr(theirs, field.name)
    }
    if changes.keys() - {"vocab_size"}:
        found = ", ".join(
            f"{name}={value}, tinylm.{name}={getattr(own, name)}" for name, value in changes.items()
        )
        message = f"{found}: the keys of {kind} count, edit those"
        warnings.warn(message, stacklevel=3)
    return replace(own, **changes)


def eos_ids(config: Mapping[str, Any], generation: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The ids that end a text, by the content of config.json and generation_config.json.

    The latter counts if it names any, as in transformers, and transformers' default of the
    model_type if neither file does. `ValueError` for a value that is no id.
    """
    form = FORMATS.get(config["model_type"])
    default = None if form is None or "tinylm" in config or generation is not None else form.eos_id
    found = (generation or {}).get("eos_token_id")
    if found is None:
        found = config.get("eos_token_id", default)
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise ValueError(f"eos_token_id={found!r}: expected an id or a list of ids")
    return tuple(dict.fromkeys(ids))


def kept(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that a model does not hold: to be written back as they are."""
    form = FORMATS.get(content["model_type"])
    derived = {*DERIVED}
    if form is not None:
        derived |= {*form.sizes, *form.rates, *form.aliases, *form.rest_keys}
    return {key: value for key, value in content.items() if key not in derived}


def _differences(config: ModelConfig, kind: str) -> list[str]:
    """The settings of a model that `kind` cannot hold, each with what it would need."""
    mine = config.components()
    wanted = ARCHITECTURES[FORMATS[kind].architecture]
    found = [
        f"model.{key}={str(mine[key]).lower()} ({kind} has {str(wanted[key]).lower()})"
        for key in mine
        if mine[key] != wanted.get(key)
    ]
    # They are ways to compute one function; a name that is registered elsewhere may be another.
    if config.attention not in get_args(Attention):
        found.append(f"model.attention={config.attention} ({kind} has sdpa)")
    if kind == "gpt2" and config.kv_heads != config.n_heads:
        found.append(f"model.n_kv_heads={config.n_kv_heads} (gpt2 has n_heads={config.n_heads})")
    if kind == "gpt2" and config.head_width * config.n_heads != config.d_model:
        found.append(f"model.head_size={config.head_size} (gpt2 has d_model / n_heads)")
    extra = {
        name: getattr(config, name) for name in ("logit_softcap", "value_embeddings", "bigrams")
    }
    # A window of 0 is none.
    extra["windows"] = any(config.windows) and list(config.windows)
    return found + [
        f"model.{name}={extra[name]} ({kind} has none)" for name in extra if extra[name]
    ]


def _own(content: Any) -> ModelConfig:
    """The key "tinylm" of a config.json to a model, every field checked."""
    known = {field.name for field in fields(ModelConfig)}
    if not isinstance(content, dict) or content.keys() - known:
        raise ValueError(f"tinylm={content}: expected the settings {', '.join(sorted(known))}")
    hints = get_type_hints(ModelConfig)
    return ModelConfig(**{key: typed(content, key, hints[key]) for key in content})


def _foreign(kind: str, content: Mapping[str, Any]) -> ModelConfig:
    """transformers' keys, with its defaults if one is missing, to a model."""
    form = FORMATS[kind]
    content = _without_aliases(form, content)
    _check_supported(kind, content)
    _check_class(form, content.get("architectures"))
    rates = [typed(content, key, float | None, form.rates[key]) or 0.0 for key in form.rates]
    sizes = {
        key.field: typed(content, name, key.kind, key.default) for name, key in form.sizes.items()
    }
    given = sizes | form.rest(content)
    try:
        config = ModelConfig(architecture=form.architecture, dropout=rates[0], **given)
    except ValueError as error:
        raise ValueError(_in_their_words(form, str(error))) from None
    form.check(content, config)
    return config


def _without_aliases(form: Format, content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with each key under its first name; `ValueError` if two names contradict."""
    plain = {key: value for key, value in content.items() if key not in form.aliases}
    for alias in form.aliases.keys() & content.keys():
        key = form.aliases[alias]
        if key in content and not one_of(content[alias], [content[key]]):
            raise ValueError(
                f"{alias}={content[alias]!r} and {key}={content[key]!r}: two names of one number, "
                f"keep one of them"
            )
        plain[key] = content[alias]
    return plain


def _check_supported(kind: str, content: Mapping[str, Any]) -> None:
    supported = FORMATS[kind].supported if kind in FORMATS else {}
    inert = FORMATS[kind].inert if kind in FORMATS else frozenset()
    for key, values in {**COMMON, **supported}.items():
        value = content.get(key, values[0])
        if key == "layer_types" and isinstance(value, list) and set(value) <= {"full_attention"}:
            # One word per layer, all of them the default.
            continue
        if key not in inert and not one_of(value, values):
            allowed = " or ".join("null" if other is None else str(other) for other in values)
            raise ValueError(f"{key}={value!r}: TinyLM's {kind} supports {allowed}")


def _check_class(form: Format, names: Any) -> None:
    """Refuse a class with another head: its tensors may fit, and what it computes is not this."""
    known = (form.class_name, form.bare_class_name)
    # The first files of Llama in transformers' form spell it so.
    spelled = (*known, "LLaMAForCausalLM")
    if names is not None and not (
        isinstance(names, list) and all(one_of(name, spelled) for name in names)
    ):
        raise ValueError(f"architectures={names!r}: TinyLM supports {' and '.join(known)}")


def _in_their_words(form: Format, message: str) -> str:
    """A complaint of `ModelConfig` with the names of its fields as the file has them."""
    names = {key.field: name for name, key in form.sizes.items()}
    names |= {"dropout": next(iter(form.rates)), "n_heads": names["n_heads"]}
    return re.sub(r"\b(?:model\.)?([a-z_]+)=", lambda m: f"{names.get(m[1], m[1])}=", message)


def _warn_of_dropout(kind: str, content: Mapping[str, Any], config: ModelConfig) -> None:
    """Say so if training here would drop other numbers than training there."""
    rates = FORMATS[kind].rates
    found = ", ".join(f"{key}={content.get(key, rates[key])}" for key in rates)
    if any((content.get(key, rates[key]) or 0.0) != config.dropout for key in rates):
        reason = "has one rate for the three"
    elif kind == "llama" and config.dropout:
        reason = "drops embeddings and residual branches as well"
    else:
        return
    message = f"{found}: TinyLM {reason} and takes dropout={config.dropout}"
    warnings.warn(message, stacklevel=4)
