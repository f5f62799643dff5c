"""What `python -m tinylm.quant` is told, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from tinylm.config import ConfigError

GROUPS = (32, 64, 128)
ACTIVATIONS = ("minmax", "percentile", "histogram")
# By method: the settings that have an effect.
USED: dict[str, frozenset[str]] = {
    "int8": frozenset(),
    "static": frozenset({"activations", "rows", "seed", "shards"}),
    "trained": frozenset(),
    "int4": frozenset({"group", "clip"}),
    "gptq": frozenset({"group", "rows", "seed", "shards"}),
    "awq": frozenset({"group", "rows", "seed", "shards"}),
}


@dataclass(frozen=True)
class Settings:
    """How weights are quantised."""

    method: str
    # Neighbours in a row that share a scale; of int8 the row.
    group: int = 32
    # Whether the scales of int4 are searched; the other methods always do.
    clip: bool = True
    # What the embedding and the head are kept in: int8 or float.
    embedding: str = "int8"
    # Rows of up to 512 tokens to calibrate on, and the number that draws them.
    rows: int = 64
    seed: int = 0
    # How the scales of the inputs are measured (`tinylm.quant.activations`).
    activations: str = "histogram"


def read(given: Mapping[str, str]) -> Settings:
    """Settings of words, without `out` and `shards`; `ConfigError` names what is wrong."""
    method = given.get("method", "")
    if method not in USED:
        raise ConfigError(f"method={method}: choose {', '.join(USED)}")
    for key in given.keys() - {"method", "out", "embedding"}:
        if key not in {"group", "clip", "rows", "seed", "shards", "activations"}:
            raise ConfigError(f"unknown key '{key}': see --help")
        if key not in USED[method]:
            users = " or ".join(name for name in USED if key in USED[name])
            raise ConfigError(f"{key}={given[key]}: has no effect with method={method}: {users}")
    embedding, clip = given.get("embedding", "int8"), given.get("clip", "true")
    if embedding not in ("int8", "float"):
        raise ConfigError(f"embedding={embedding}: choose int8 or float")
    if clip not in ("true", "false"):
        raise ConfigError(f"clip={clip}: choose true or false")
    activations = given.get("activations", "histogram")
    if activations not in ACTIVATIONS:
        raise ConfigError(f"activations={activations}: choose {', '.join(ACTIVATIONS)}")
    group = _number(given, "group", 32)
    if group not in GROUPS:
        raise ConfigError(f"group={group}: choose {', '.join(map(str, GROUPS))}")
    rows = _number(given, "rows", 64)
    if rows < 1:
        raise ConfigError(f"rows={rows}: must be at least 1")
    seed = _number(given, "seed", 0)
    return Settings(method, group, clip == "true", embedding, rows, seed, activations)


def _number(given: Mapping[str, str], key: str, default: int) -> int:
    word = given.get(key, str(default))
    if not (word.isascii() and word.isdecimal()):
        raise ConfigError(f"{key}={word}: expected a whole number")
    return int(word)
