"""Load a `Run` from a recipe or file and `key=value` arguments, check it, and write it as YAML."""

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinylm.config import idle
from tinylm.config.keys import (
    CONFIGS,
    ConfigError,
    allowed,
    check_key,
    flat,
    presets,
    recipes,
    settings,
    suggest,
    takes_list,
    takes_text,
)
from tinylm.config.limits import show
from tinylm.config.reading import NULL, Plain, read, typed
from tinylm.config.sections import SECTIONS, Run, is_folder_name

# A run that resumes may change these settings; all others must be the same.
NOT_COMPARED = (
    *("name", "out", "train.resume", "train.steps", "distributed.mode"),
    *("track.norms", "profile.steps", "profile.start"),
)
# The recipe of `python -m tinylm.train` without one.
GENERAL = "stdlib"
# A run is saved with all sections in the order of `Run`, so a file with the last one is whole.
CLOSING = "track"
# ValueError: too many digits, or text that is not UTF-8. OSError: a folder. RecursionError: a
# thousand open brackets.
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError)

# The registry of each setting whose names users may extend, as module.NAME in `tinylm`.
REGISTRIES = {
    "model.architecture": "config.ARCHITECTURES",
    "model.norm": "layers.NORMS",
    "model.position": "layers.POSITIONS",
    "model.feedforward": "layers.FEEDFORWARDS",
    "model.attention": "layers.ATTENTIONS",
    "optim.name": "optim.OPTIMIZERS",
    "optim.orthogonal": "optim.ORTHOGONAL",
    "optim.schedule": "optim.SCHEDULES",
    "track.names": "track.TRACKERS",
}
HALF = re.compile("[\ud800-\udfff]")
# The endings of files with settings; "" stands for a file without an ending.
SETTINGS_FILES = (".yaml", ".yml", ".json", "")

# The key of a setting, its value, and the " (file)" that ends an error about it.
Assignment = tuple[str, Any, str]


def load(name_or_file: str | Path | None = None, overrides: Iterable[str] = ()) -> Run:
    """Load a `Run` from a recipe's name or a YAML file, then apply the overrides in order.

    An override is `section=preset` or `section.key=value`; a later one replaces an earlier one.
    Raises `ConfigError` for an unknown key, an invalid value or a missing file. Writes nothing.
    """
    path = None if name_or_file is None else _find(str(name_or_file))
    assignments = []
    of_file = [*_file(path)]
    # Nobody writes so many settings by hand.
    saved = len(of_file) > len(settings()) / 2
    for key, value, where in (*of_file, *_arguments(overrides)):
        check_key(key, where)
        null = isinstance(value, Plain) and value in NULL
        if takes_list(key) and isinstance(value, str | int) and not null:
            # Users may write a list of one without brackets.
            value = [value]
        if null or value is None:
            value = _off(key)
        try:
            value = typed(key, value)
        except ValueError:
            raise ConfigError(f"{key}={show(value)}: expected {allowed(key)}{where}") from None
        _check_plain(key, value, where)
        assignments.append((key, value, where))
    origin = {key: where for key, _, where in assignments}
    try:
        run = _build(assignments)
        idle.refuse(run, assignments[len(of_file) if saved else 0 :], _off)
    except UNREADABLE as error:
        raise _explain(error, assignments, origin) from None
    _check_choices(run, origin)
    return run if run.name is not None else replace(run, name=_name(path, run))


def general_recipe(overrides: Iterable[str]) -> str | None:
    """Return the recipe that a command without one takes: stdlib, or None for the plain defaults.

    None if a preset, a setting of the model or train.init is given: the recipe's other settings,
    such as rows that grow to 2,048 tokens, are for its own model.
    """
    keys = [override.partition("=")[0] for override in overrides]
    own = any(key in SECTIONS or key == "train.init" or key.startswith("model.") for key in keys)
    return None if own else GENERAL


def find(folder: str | Path, *, whole: bool = False) -> Path | None:
    """Return the config.yaml of a run's folder, or None; `folder` may also be a checkpoint.

    Raises `ConfigError` if the file is empty, because it would then mean the default settings. If
    `whole` is true, also raises if the last section is missing: a crash can cut the file, and a
    run cannot resume from a few of its settings.
    """
    path = Path(folder)
    # Resolved, because the path `.` does not name the folders above it.
    above = path.resolve().parent
    homes = [path, *([above.parent] if above.name == "checkpoints" else [])]
    saved = next((h / "config.yaml" for h in homes if (h / "config.yaml").is_file()), None)
    if saved is not None:
        content = _read(saved)
        if not isinstance(content, dict) or not content or (whole and not content.get(CLOSING)):
            raise ConfigError(f"{saved}: empty or torn: restore the settings of the run")
    return saved


def differences(one: Run, other: Run) -> list[str]:
    """Return the keys in which two runs differ, except those that a resumed run may change."""
    mine, theirs = flat(one), flat(other)
    return [key for key in mine if key not in NOT_COMPARED and mine[key] != theirs[key]]


def to_yaml(run: Run) -> str:
    """Return the whole run as YAML text that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def _name(path: Path | None, run: Run) -> str:
    """Return the default name of a run: that of its recipe, or of its source without a recipe."""
    # The recipe of a command without one, which serves any text.
    general = path is None or path == CONFIGS / f"{GENERAL}.yaml"
    if general or path is None:
        stem = "-".join(Path(text).stem.strip(".") for text in run.data.texts)
        # A folder's name has its limits, and a list of many texts says little.
        stem = stem if len(stem) <= 60 else "mixture"
    else:
        stem = path.stem.strip(".")
    return stem if is_folder_name(stem) else "run"


def _find(name: str) -> Path:
    """Return the path of a recipe given by name or by path."""
    # Otherwise the error would be about the first line of the text.
    name = os.path.expanduser(name)
    if Path(name).is_dir() or (Path(name).is_file() and Path(name).suffix not in SETTINGS_FILES):
        problem = "not a .yaml file with settings"
        raise ConfigError(f"{show(name)}: {problem}; to train on it, write data.source={name}")
    for path in (CONFIGS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"{name}: no such file; the recipes are {', '.join(recipes())}")
    raise ConfigError(
        f"no recipe {show(name)!r}: {suggest(name, recipes())}, or the path of a .yaml file"
    )


def _file(path: Path | None) -> Iterator[Assignment]:
    """Yield each setting of a YAML file, in order."""
    if path is None:
        return
    content = _read(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections with keys, such as 'train: {{steps: 100}}'")
    # If a crash emptied the file, it would otherwise silently mean the default run.
    if not content:
        raise ConfigError(f"{path}: holds no setting; if you want the defaults, name no file")
    seen = set()
    for key, value, where in _leaves(content, f" ({path})"):
        # For YAML, `train.steps: 1` and `train: {steps: 2}` are two different keys.
        if key in seen:
            raise ConfigError(f"{key}: given twice, the second time as {show(value)}{where}")
        seen.add(key)
        yield key, value, where


def _read(path: Path) -> Any:
    try:
        return read(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None


def _leaves(content: Mapping[Any, Any], where: str) -> Iterator[Assignment]:
    for key, value in content.items():
        if key not in SECTIONS:
            yield str(key), value, where
        elif isinstance(value, Plain) and value in NULL:
            continue
        elif isinstance(value, str):
            yield from _preset(key, value, where)
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", leaf, where) for name, leaf in value.items())
        elif value is not None:
            text = f"{key}={show(value)}: expected keys of the section or a preset"
            raise ConfigError(text + where)


def _preset(section: str, name: str, where: str) -> Iterator[Assignment]:
    """Yield the settings of `configs/<section>/<name>.yaml`."""
    known = presets(section)
    if name not in known:
        hint = suggest(name, known) if known else f"set {section}.key=value instead"
        raise ConfigError(f"{section}={show(name)}: no such preset: {hint}{where}")
    path = CONFIGS / section / f"{name}.yaml"
    yield from _leaves({section: _read(path)}, f" ({path})")


def _arguments(overrides: Iterable[str]) -> Iterator[Assignment]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{show(override)!r}: expected section.key=value")
        if key in SECTIONS:
            yield from _preset(key, text, "")
        else:
            check_key(key, "")
            yield key, _parse(key, text), ""


def _parse(key: str, text: str) -> Any:
    """Return a command-line value by the type of its setting. Strings stay as they were typed."""
    if takes_text(key, text):
        return text
    if takes_list(key) and "," in text and not text.startswith("["):
        # Without brackets, the comma would become part of one string.
        raise ConfigError(f"{key}={show(text)}: expected {allowed(key)}")
    try:
        return read(text) if text else Plain("")
    except UNREADABLE:
        raise ConfigError(f"{key}={show(text)}: expected {allowed(key)}") from None


def _off(key: str) -> Any:
    """What null means for a setting: the number for "off", if it has one, or else null."""
    return settings()[key].metadata.get("off")


def _build(assignments: Sequence[Assignment]) -> Run:
    """Return the defaults with the assignments applied; the dataclasses check their limits."""
    # OmegaConf would merge two mappings of one key.
    last = {key: place for place, (key, *_) in enumerate(assignments)}
    used = [
        given
        for place, given in enumerate(assignments)
        if not isinstance(given[1], dict) or last[given[0]] == place
    ]
    run: Run = OmegaConf.to_object(OmegaConf.merge(_defaults(), *map(_nested, used)))  # type: ignore[assignment]
    return run


@cache
def _defaults() -> Any:
    """Return OmegaConf's schema of a run. It is frozen; merge into copies of it."""
    return OmegaConf.structured(Run)


def _nested(assignment: Assignment) -> dict[str, Any]:
    key, value, _ = assignment
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def _explain(error: Exception, made: list[Assignment], origin: dict[str, str]) -> ConfigError:
    """Return a one-line error for a setting of the wrong type or outside a limit."""
    if isinstance(error, OmegaConfBaseException):
        # OmegaConf's error names neither key nor file, so each setting is tried alone.
        for key, value, where in made:
            try:
                OmegaConf.merge(_defaults(), _nested((key, value, where)))
            except OmegaConfBaseException:
                return ConfigError(f"{key}={show(value)}: expected {allowed(key)}{where}")
    key = str(error).partition("=")[0]
    section = key.rpartition(".")[0]
    # A limit between two keys may name the key that was not given. The error then names the file
    # of another key of the same section.
    near = [where for other, where in origin.items() if other.rpartition(".")[0] == section]
    return ConfigError(f"{error}{origin[key] if key in origin else max(near, default='')}")


def _check_plain(key: str, value: Any, where: str) -> None:
    """Refuse what a saved run cannot hold: half a character, and '???' and '${', which OmegaConf
    interprets when it reads them.
    """
    for item in value if isinstance(value, list) else (value,):
        # YAML and JSON can write one half of a UTF-16 pair, and a file name that is not UTF-8 has
        # them too. No encoding takes it.
        if isinstance(item, str) and (half := HALF.search(item)):
            text = f"{half[0]!a} is half a character, which UTF-8 cannot hold: remove it"
            raise ConfigError(f"{key}={show(ascii(value))}: {text}{where}")
        if isinstance(item, str) and ("${" in item or item == "???"):
            text = "expected a string that is not '???' and has no '${' in it"
            raise ConfigError(f"{key}={show(value)}: {text}{where}")


def _registered(key: str) -> Iterable[str]:
    """Return the names in the registry of a setting, if a user's module has imported it."""
    module, _, registry = REGISTRIES[key].partition(".")
    # Looked up, not imported, because settings are checked before torch is imported.
    return getattr(sys.modules.get(f"tinylm.{module}"), registry, ())


def _check_choices(run: Run, origin: dict[str, str]) -> None:
    """Check the settings that name a registry entry; import the user's modules first, if any."""
    for module in run.imports:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"imports={show(module)}: {show(error)}") from None
    values = flat(run)
    for key, setting in settings().items():
        choices = setting.metadata["choices"]
        if choices and run.imports:
            choices = sorted({*choices, *_registered(key)})
        for value in values[key] if isinstance(values[key], tuple) else (values[key],):
            if choices and value is not None and value not in choices:
                where = origin.get(key, "")
                raise ConfigError(f"{key}={show(value)}: {suggest(value, choices)}{where}")
