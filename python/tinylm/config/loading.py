"""A recipe, a file and `key=value` arguments to one checked `Run`, and back to YAML."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
    takes_text,
)
from tinylm.config.limits import show
from tinylm.config.sections import SECTIONS, Run

# What may differ between a run and its continuation: where it is, how long, whether it resumes.
NOT_COMPARED = ("name", "out", "train.resume", "train.steps")
# A run is saved with every section in the order of `Run`: this one, the last, shows it is whole.
CLOSING = "track"
# YAML's own errors, OmegaConf's, too many digits, not UTF-8, a folder, a thousand open brackets.
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError)

# A setting to be made: its key, its value, and " (file)" for an error to end in.
Assignment = tuple[str, Any, str]


def load(name_or_file: str | Path | None = None, overrides: Iterable[str] = ()) -> Run:
    """A recipe's name or a YAML file, then `section=preset` and `section.key=value`, to a `Run`.

    Later overrides win. Raises `ConfigError` for an unknown key, a bad value or a file that is
    not there; it writes nothing.
    """
    path = None if name_or_file is None else _find(str(name_or_file))
    assignments = [*_file(path), *_arguments(overrides)]
    for key, value, where in assignments:
        check_key(key, where)
        _check_plain(key, value, where)
    origin = {key: where for key, _, where in assignments}
    try:
        run = _build(assignments)
    except UNREADABLE as error:
        raise _explain(error, assignments, origin) from None
    _check_choices(run, origin)
    return run if run.name is not None else replace(run, name=_name(path, run))


def find(folder: str | Path, *, whole: bool = False) -> Path | None:
    """The config.yaml of a run's folder, or of that of one of its checkpoints, if it has one.

    Raises `ConfigError` for an empty one: as settings it would be the defaults. With `whole` also
    for one without its last section, as a crash may leave it; a few settings alone are no run.
    """
    path = Path(folder)
    # The resolved path: the name of `.` says nothing of what is above it.
    above = path.resolve().parent
    homes = [path, *([above.parent] if above.name == "checkpoints" else [])]
    saved = next((h / "config.yaml" for h in homes if (h / "config.yaml").is_file()), None)
    if saved is not None:
        content = _read(saved)
        if not isinstance(content, dict) or not content or (whole and not content.get(CLOSING)):
            raise ConfigError(f"{saved}: empty or torn: put back the settings of the run")
    return saved


def differences(one: Run, other: Run) -> list[str]:
    """The keys in which two runs differ, but for those that a continuation may change."""
    mine, theirs = flat(one), flat(other)
    return [key for key in mine if key not in NOT_COMPARED and mine[key] != theirs[key]]


def to_yaml(run: Run) -> str:
    """The whole run as YAML text that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def _name(path: Path | None, run: Run) -> str:
    """The name of a run that was given none: its recipe's, or else its source's."""
    return (path or Path(run.data.source)).stem.strip(".") or "run"


def _find(name: str) -> Path:
    """The file of a recipe's name or path."""
    for path in (CONFIGS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"{name}: no such file; the recipes are {', '.join(recipes())}")
    raise ConfigError(
        f"no recipe {show(name)!r}: {suggest(name, recipes())}, or the path of a .yaml file"
    )


def _file(path: Path | None) -> Iterator[Assignment]:
    """Each setting of a YAML file, in order."""
    if path is None:
        return
    content = _read(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections with keys, such as 'train: {{steps: 100}}'")
    # A file cut to nothing by a crash would otherwise be the default run, without a word.
    if not content:
        raise ConfigError(f"{path}: holds no setting; leave the file out for the defaults")
    yield from _leaves(content, f" ({path})")


def _read(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None


def _leaves(content: Mapping[Any, Any], where: str) -> Iterator[Assignment]:
    for key, value in content.items():
        if key not in SECTIONS:
            yield str(key), value, where
        elif isinstance(value, str):
            yield from _preset(key, value, where)
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", leaf, where) for name, leaf in value.items())
        elif value is not None:
            text = f"{key}={show(value)}: expected keys of the section or a preset"
            raise ConfigError(text + where)


def _preset(section: str, name: str, where: str) -> Iterator[Assignment]:
    """The settings of `configs/<section>/<name>.yaml`."""
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
    """A command-line value, by the type of its setting: texts stay as they were typed."""
    if takes_text(key, text):
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    except UNREADABLE:
        raise ConfigError(f"{key}={show(text)}: expected {allowed(key)}") from None


def _build(assignments: Iterable[Assignment]) -> Run:
    """The defaults, each setting that is made, and the limits of `sections`."""
    run: Run = OmegaConf.to_object(OmegaConf.merge(_defaults(), *map(_nested, assignments)))  # type: ignore[assignment]
    return run


@cache
def _defaults() -> Any:
    """The schema of a run, to merge into copies of; frozen, as the dataclasses are."""
    return OmegaConf.structured(Run)


def _nested(assignment: Assignment) -> dict[str, Any]:
    key, value, _ = assignment
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def _explain(error: Exception, made: list[Assignment], origin: dict[str, str]) -> ConfigError:
    """The one line for a setting of the wrong type, or for a limit that does not hold."""
    if isinstance(error, OmegaConfBaseException):
        # OmegaConf names neither the key nor the file: the setting that also fails alone is it.
        for key, value, where in made:
            try:
                OmegaConf.merge(_defaults(), _nested((key, value, where)))
            except OmegaConfBaseException:
                return ConfigError(f"{key}={show(value)}: expected {allowed(key)}{where}")
    key = str(error).partition("=")[0]
    section = key.rpartition(".")[0]
    # A limit between two keys may name the one that was not given: then its neighbour's file.
    near = [where for other, where in origin.items() if other.rpartition(".")[0] == section]
    return ConfigError(f"{error}{origin[key] if key in origin else max(near, default='')}")


def _check_plain(key: str, value: Any, where: str) -> None:
    """Refuse OmegaConf's two texts with a meaning: a saved run must read back as it was."""
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, str) and ("${" in item or item == "???"):
            text = "expected a text that is not '???' and has no '${' in it"
            raise ConfigError(f"{key}={show(value)}: {text}{where}")


def _check_choices(run: Run, origin: dict[str, str]) -> None:
    """Hold the open choices to what is built, or import what the user adds to the registries."""
    for module in run.imports:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"imports={show(module)}: {show(error)}") from None
    if run.imports:
        return
    values = flat(run)
    for key, setting in settings().items():
        choices = setting.metadata["choices"]
        for value in values[key] if isinstance(values[key], tuple) else (values[key],):
            if choices and value is not None and value not in choices:
                where = origin.get(key, "")
                raise ConfigError(f"{key}={show(value)}: {suggest(value, choices)}{where}")
