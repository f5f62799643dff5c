"""The table of one model_type of transformers, and how its keys are read with their types.

Every key of a config.json has one of three fates:

| fate    | keys                                          | on saving                       |
|---------|-----------------------------------------------|---------------------------------|
| applied | `sizes`, `rates`, and what `rest` reads       | written from the model          |
| refused | `supported`, if it has any other value        | written back                    |
| kept    | all others: transformers computes without them | written back                    |
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin

from tinylm.config import ModelConfig

REQUIRED = object()


class Key(NamedTuple):
    """A key that sets one field of `ModelConfig`: the field, its type, transformers' default."""

    field: str
    kind: Any
    default: Any = REQUIRED


def _nothing(content: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_check(content: Mapping[str, Any], config: ModelConfig) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A model_type of transformers: its keys and the names of its tensors."""

    # Our preset, and transformers' class with a head and the one without.
    architecture: str
    class_name: str
    bare_class_name: str
    # The start of every tensor's name but the head's, which the class without a head leaves off.
    prefix: str
    # Module names, ours to theirs. Those of a block are without the block's number.
    names: Mapping[str, str]
    # The keys of numbers and shapes.
    sizes: Mapping[str, Key]
    # Dropout rates with transformers' defaults; the first one is taken for all.
    rates: Mapping[str, float]
    # Keys that change the result, each with the values that TinyLM computes. The first is
    # transformers' default.
    supported: Mapping[str, tuple[Any, ...]]
    # Other names that transformers takes for a key, and lets win over it.
    aliases: Mapping[str, str]
    # Keys of transformers' own class for this model_type that change no logit, whatever others do.
    inert: frozenset[str]
    # transformers' default of eos_token_id.
    eos_id: int | None
    # Whether q, k and v are one matrix and the matrices of blocks are kept [inputs, outputs].
    joined: bool
    export_keys: Callable[[ModelConfig], dict[str, Any]]
    # Fields that several keys decide together, a check of keys that must agree with a size, and
    # the keys that the two read.
    rest_keys: frozenset[str] = frozenset()
    rest: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    check: Callable[[Mapping[str, Any], ModelConfig], None] = _no_check


# Keys that transformers' common code acts on, whatever the model_type. A value here that is
# neither null nor the first would give other logits there than here, or read other files.
COMMON: dict[str, tuple[Any, ...]] = {
    # Code of its own may compute anything. transformers runs it only with trust_remote_code.
    "auto_map": (None, {}),
    "quantization_config": (None,),
    # masking_utils: False gives a mask that looks ahead.
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    # cache_utils and masking_utils: any of these makes layers that see a part of the text.
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "layer_types": (None, []),
    "mlp_layer_types": (None, []),
    "kv_sharing_modes": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    # get_text_config: one of these would stand in place of the model's own keys.
    "text_config": (None,),
    "decoder": (None,),
    "generator": (None,),
    "text_encoder": (None,),
    # Other files in place of model.safetensors and config.json.
    "transformers_weights": (None, "model.safetensors"),
    "configuration_files": (None, []),
}

# Keys of transformers' common class that change no logit.
INERT = frozenset(
    {
        "transformers_version",
        "output_hidden_states",
        "return_dict",
        "dtype",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "use_cache",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
)


def typed(content: Mapping[str, Any], key: str, kind: Any, default: Any = REQUIRED) -> Any:
    """`content[key]` if it is of this kind; `ValueError` if it is not, or if it is missing."""
    value = content.get(key, default)
    if get_origin(kind) is tuple and isinstance(value, list):
        # JSON has no tuples; `ModelConfig` checks what is in them.
        return tuple(value)
    if value is REQUIRED:
        raise ValueError(f"config.json lacks {key}: add it, the model cannot be built without")
    if get_origin(kind) is Literal:
        # `ModelConfig` knows what is allowed.
        return value
    if type(value) is int and not isinstance(value, kind) and abs(value) < 2**53:
        value = float(value)
    takes_bool = kind is bool or bool in get_args(kind)
    # A bool is an int to Python, but "n_layer": true is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and not takes_bool):
        name = getattr(kind, "__name__", str(kind)).replace("None", "null")
        raise ValueError(f"{key}={value!r}: expected {name}")
    return value


def one_of(value: Any, allowed: Iterable[Any]) -> bool:
    """Whether a value of JSON is among those allowed; 1 is not true, and 1.0 is 1."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed
    )
