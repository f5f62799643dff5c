"""The names of a model's parts: presets of components, and the roles of parameters.

The classes behind the names are in `tinylm.layers`.
"""

from typing import Any, Literal

# The optimizer treats a parameter by its role; `tinylm.layers` has the table of roles.
Role = Literal["embedding", "head", "matrix", "gain", "scalar"]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama3": {"norm": "rmsnorm", "position": "rope", "feedforward": "swiglu", "bias": False},
    "gpt2": {"norm": "layernorm", "position": "learned", "feedforward": "mlp", "bias": True},
}


def choose(registry: dict[str, Any], key: str, name: str) -> Any:
    """Return `registry[name]`; raise `ValueError` with the known names if it is missing."""
    if name not in registry:
        raise ValueError(f"{key}={name}: not in the registry, which has {', '.join(registry)}")
    return registry[name]
