"""What describes one format of transformers, and how its keys are read with their types."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinylm.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Format:
    """A model_type of transformers: its keys and the names of its tensors."""

    architecture: str  # ours, which the format holds
    class_name: str  # transformers' class with a head
    prefix: str  # what the class without a head leaves off before every name but the head's
    names: Mapping[str, str]  # ours to theirs by module; a block's modules without its number
    supported: Mapping[str, tuple[Any, ...]]  # what a key may be; first transformers' default
    dropout: tuple[str, ...]  # the keys of its dropout rates
    # Whether q, k and v are one matrix and the matrices of blocks are kept [inputs, outputs].
    joined: bool
    export_keys: Callable[[ModelConfig], dict[str, Any]]
    import_keys: Callable[[Mapping[str, Any]], ModelConfig]


_REQUIRED = object()


def typed(content: Mapping[str, Any], key: str, kind: Any, default: Any = _REQUIRED) -> Any:
    """`content[key]` if it is of this kind; `ValueError` where it is not, or is not there."""
    value = content.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f"config.json lacks {key}: add it, the model cannot be built without")
    if type(value) is int and not isinstance(value, kind) and abs(value) < 2**53:
        value = float(value)
    # A bool is an int to Python, but "n_layer": true is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = getattr(kind, "__name__", str(kind)).replace("None", "null")
        raise ValueError(f"{key}={value!r}: expected {name}")
    return value
