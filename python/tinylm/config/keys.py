"""The keys of a run, read from the dataclasses: their types, their values, the nearest match."""

from collections.abc import Iterable
from dataclasses import Field, fields
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from tinylm.config.checks import expectation, hints
from tinylm.config.limits import show
from tinylm.config.sections import SECTIONS, Run

CONFIGS = Path(__file__).parents[1] / "configs"
# The last part of an unknown key is a typing error of a known one if the two are at least this
# similar, from 0 to 1. A key of another section must be nearer than one of the same section:
# dropout is no suggestion for sample.prompt (0.62).
ALIKE, ALIKE_ELSEWHERE = 0.6, 0.8


class ConfigError(ValueError):
    """An invalid setting: one line with the key, the value, what is allowed and the file."""


@cache
def settings() -> dict[str, Field[Any]]:
    """Return the dataclass field of every setting by `section.key`, or by `key` in `Run` itself."""
    found = {f.name: f for f in fields(Run) if f.name not in SECTIONS}
    for section, kind in SECTIONS.items():
        found |= {f"{section}.{f.name}": f for f in fields(kind)}
    return found


def flat(run: Run) -> dict[str, Any]:
    """Return the value of every setting of `run` by its full key."""
    found = {}
    for key in settings():
        section, _, name = key.rpartition(".")
        found[key] = getattr(getattr(run, section) if section else run, name)
    return found


def recipes() -> list[str]:
    """Return the names of the recipes that ship with TinyLM."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def presets(section: str) -> list[str]:
    """Return the names of the presets of one section, for `section=preset`."""
    return sorted(path.stem for path in (CONFIGS / section).glob("*.yaml"))


def allowed(key: str) -> str:
    """Describe the allowed values of a setting in words, for example "a number, above 0"."""
    return expectation(settings()[key], type_of(key))


def takes_text(key: str, text: str) -> bool:
    """Return whether `text`, typed for this setting, is a plain string and must not be parsed."""
    kind = type_of(key)
    optional = isinstance(kind, UnionType) and str in get_args(kind)
    return kind is str or (optional and text != "null")


def takes_list(key: str) -> bool:
    """Return whether a setting is a list of any length."""
    kind = type_of(key)
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def takes_lists(key: str) -> bool:
    """Return whether a setting is a list of lists."""
    return takes_list(key) and get_origin(get_args(type_of(key))[0]) is tuple


def takes_mapping(key: str) -> bool:
    """Return whether a setting is a mapping."""
    return any(get_origin(part) is dict for part in get_args(type_of(key)))


def type_of(key: str) -> Any:
    """Return the type of a setting, with its annotation resolved."""
    section, _, name = key.rpartition(".")
    return hints(SECTIONS[section] if section else Run)[name]


def check_key(key: str, where: str) -> None:
    """Raise `ConfigError` with the nearest known key if `key` is no setting."""
    if key in settings():
        return
    section = key.rpartition(".")[0]
    if near := nearest(key):
        hint = f"did you mean '{near}'? It takes {allowed(near)}"
    elif section in SECTIONS:
        hint = f"{section} has {', '.join(f.name for f in fields(SECTIONS[section]))}"
    else:
        hint = f"the sections are {', '.join(SECTIONS)}"
    raise ConfigError(f"unknown key '{show(key)}'{where}: {hint}")


def nearest(key: str) -> str | None:
    """Return the known setting nearest to `key`, or None if no name is similar enough.

    The name counts twice, the section once.
    """
    section, _, name = key.rpartition(".")
    best, score = None, 0.0
    for known in settings():
        home, _, own = known.rpartition(".")
        likeness = _alike(name, own)
        least = ALIKE_ELSEWHERE if section in SECTIONS and section != home else ALIKE
        if likeness >= least and 2 * likeness + _alike(section, home) > score:
            best, score = known, 2 * likeness + _alike(section, home)
    return best


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint: the known name nearest to `name`, if any, and all known names."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    question = f"did you mean '{near[0]}'? " if near else ""
    return f"{question}allowed: {', '.join(known)}"


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
