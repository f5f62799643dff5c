"""What `python -m tinylm.quant` is told, checked before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from tinylm.config import ConfigError

GROUPS = (32, 64, 128)
ACTIVATIONS = ("minmax", "percentile", "histogram")
_FOUR_BITS = {"embedding", "turn", "group", "keep", "rows", "seed"}
# By method: the settings that have an effect.
USED: dict[str, frozenset[str]] = {
    "int8": frozenset({"embedding", "turn"}),
    "static": frozenset({"embedding", "turn", "activations", "rows", "seed"}),
    "trained": frozenset({"embedding"}),
    "int4": frozenset({*_FOUR_BITS, "clip"}),
    "gptq": frozenset(_FOUR_BITS),
    "awq": frozenset(_FOUR_BITS),
}


@dataclass(frozen=True)
class Settings:
    """How weights are quantised."""

    method: str
    # Neighbours in a row that share a scale, in int4.
    group: int = 32
    # Whether the scales of int4 are searched; gptq and awq always do.
    clip: bool = True
    # The most sensitive matrices, up to this share of all their numbers, stay in int8.
    keep: float = 0.12
    # Whether values are turned inside each head.
    turn: bool = True
    # What the embedding and the head are kept in: int8 or float.
    embedding: str = "int8"
    # Rows of up to 512 tokens to calibrate on, and the number that draws them.
    rows: int = 64
    seed: int = 0
    # How the scales of the inputs are measured (`tinylm.quant.activations`).
    activations: str = "histogram"

    @property
    def calibrates(self) -> bool:
        """Whether the method looks at text."""
        return "rows" in USED[self.method] and (self.method != "int4" or self.keep > 0)

    @property
    def used(self) -> frozenset[str]:
        """The settings that have an effect."""
        return USED[self.method] - (frozenset() if self.calibrates else {"rows", "seed"})


def read(given: Mapping[str, str]) -> Settings:
    """Settings of words, without `out` and `shards`; `ConfigError` names what is wrong."""
    method = given.get("method", "")
    if method not in USED:
        raise ConfigError(f"method={method}: choose {', '.join(USED)}")
    known = {field.name for field in fields(Settings)} | {"out", "shards"}
    for key in given.keys() - known:
        raise ConfigError(f"unknown key '{key}': see --help")
    settings = Settings(
        method,
        group=_number(given, "group", 32),
        clip=_switch(given, "clip"),
        keep=_share(given, "keep", 0.12),
        turn=_switch(given, "turn"),
        embedding=given.get("embedding", "int8"),
        rows=_number(given, "rows", 64),
        seed=_number(given, "seed", 0),
        activations=given.get("activations", "histogram"),
    )
    wanted = settings.used | {"method", "out"} | ({"shards"} if settings.calibrates else set())
    for key in given.keys() - wanted:
        raise ConfigError(f"{key}={given[key]}: has no effect with method={method}: leave it out")
    if settings.embedding not in ("int8", "float"):
        raise ConfigError(f"embedding={settings.embedding}: choose int8 or float")
    if settings.activations not in ACTIVATIONS:
        raise ConfigError(f"activations={settings.activations}: choose {', '.join(ACTIVATIONS)}")
    if settings.group not in GROUPS:
        raise ConfigError(f"group={settings.group}: choose {', '.join(map(str, GROUPS))}")
    if settings.rows < 1:
        raise ConfigError(f"rows={settings.rows}: must be at least 1")
    if settings.seed >= 2**63:
        raise ConfigError(f"seed={settings.seed}: must be below 2^63")
    return settings


def _number(given: Mapping[str, str], key: str, default: int) -> int:
    word = given.get(key, str(default))
    if not (word.isascii() and word.isdecimal()):
        raise ConfigError(f"{key}={word}: expected a whole number")
    return int(word)


def _switch(given: Mapping[str, str], key: str) -> bool:
    word = given.get(key, "true")
    if word not in ("true", "false"):
        raise ConfigError(f"{key}={word}: choose true or false")
    return word == "true"


def _share(given: Mapping[str, str], key: str, default: float) -> float:
    word = given.get(key, str(default))
    try:
        share = float(word)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise ConfigError(f"{key}={word}: expected a share, at least 0 and below 1")
    return share
