"""What a model is made of, by name: the presets of components and the roles of parameters.

Both are data. The classes that the names stand for are in `tinylm.layers`.
"""

from typing import Any, Literal

# What a parameter is to the optimizer; `tinylm.layers` has the table.
Role = Literal["embedding", "head", "matrix", "gain", "scalar"]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama3": {"norm": "rmsnorm", "position": "rope", "feedforward": "swiglu", "bias": False},
    "gpt2": {"norm": "layernorm", "position": "learned", "feedforward": "mlp", "bias": True},
}


def choose(registry: dict[str, Any], key: str, name: str) -> Any:
    """The entry `name` of a registry; `ValueError` with the known names where there is none."""
    if name not in registry:
        raise ValueError(f"{key}={name}: not in the registry, which has {', '.join(registry)}")
    return registry[name]
