"""The names of a model's parts: presets of components, and the roles of parameters.

The classes behind the names are in `tinylm.layers`.
"""

from typing import Any, Literal

# The optimizer treats a parameter by its role; `tinylm.layers` has the table of roles.
Role = Literal["embedding", "head", "matrix", "gain", "scalar", "adapter"]

_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "position": "rope",
    "feedforward": "swiglu",
    "bias": False,
    "qk_norm": False,
    "embedding_norm": False,
    "parallel": False,
    "token_shift": False,
    "key_mix": False,
    "shortcut": False,
    "value_residual": False,
}

# The values of the model's settings that are null. `bias` alone is not a setting.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama3": _LLAMA,
    "gpt2": {
        **_LLAMA,
        "norm": "layernorm",
        "position": "learned",
        "feedforward": "mlp",
        "bias": True,
    },
    "qwen3": {**_LLAMA, "qk_norm": True},
    "speedrun": {
        **_LLAMA,
        "norm": "plain_rmsnorm",
        "feedforward": "relu2",
        "qk_norm": True,
        "embedding_norm": True,
        "parallel": True,
        "token_shift": True,
        "key_mix": True,
    },
}


def choose(registry: dict[str, Any], key: str, name: str) -> Any:
    """Return `registry[name]`; raise `ValueError` with the known names if it is missing."""
    if name not in registry:
        raise ValueError(f"{key}={name}: not in the registry, which has {', '.join(registry)}")
    return registry[name]
