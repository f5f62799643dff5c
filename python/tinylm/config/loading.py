"""A recipe, a file and `key=value` arguments to one checked `Run`, and back to YAML."""

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinylm.config.sections import SECTIONS, Run

CONFIGS = Path(__file__).parents[1] / "configs"
# What may differ between a run and its continuation: where it is, how long, whether it resumes.
NOT_COMPARED = ("name", "out", "train.resume", "train.steps")


class ConfigError(ValueError):
    """A setting that cannot be: one line with the key, the value, what is allowed and the file."""


def settings() -> dict[str, Field[Any]]:
    """Every setting as `section.key` (or a bare key of `Run`) and its dataclass field."""
    found = {f.name: f for f in fields(Run) if f.name not in SECTIONS}
    for section, kind in SECTIONS.items():
        found |= {f"{section}.{f.name}": f for f in fields(kind)}
    return found


def type_of(key: str) -> Any:
    """The type of a setting, its annotation resolved."""
    section, _, name = key.rpartition(".")
    return get_type_hints(SECTIONS[section] if section else Run)[name]


def recipes() -> list[str]:
    """Names of the recipes that ship with TinyLM."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def presets(section: str) -> list[str]:
    """Names of the presets of one section, for `section=preset`."""
    return sorted(path.stem for path in (CONFIGS / section).glob("*.yaml"))


def load(name_or_file: str | Path | None = None, overrides: Iterable[str] = ()) -> Run:
    """A recipe's name or a YAML file, then `section=preset` and `section.key=value`, to a `Run`.

    Later overrides win. Raises `ConfigError` for an unknown key or a bad value, and
    `FileNotFoundError` for a file that is not there.
    """
    config = OmegaConf.structured(Run)
    origin: dict[str, str] = {}
    path = None if name_or_file is None else _find(str(name_or_file))
    for key, value, where in (*_file(path), *_arguments(overrides)):
        _check_key(key, where)
        try:
            config = OmegaConf.merge(config, _nested(key, value))
        except OmegaConfBaseException:
            raise ConfigError(f"{key}={value}: expected {allowed(key)}{where}") from None
        origin[key] = where
    try:
        run: Run = OmegaConf.to_object(config)  # type: ignore[assignment]
    except ValueError as error:
        message = str(error).splitlines()[0]
        raise ConfigError(message + origin.get(message.partition("=")[0], "")) from None
    _check_choices(run, origin)
    if run.name is None:
        run = replace(run, name=(path.stem if path else Path(run.data.source).stem) or "run")
    return run


def find(folder: str | Path) -> Path | None:
    """The config.yaml of a run's folder, or of that of one of its checkpoints, if it has one."""
    path = Path(folder)
    # The resolved path: the name of `.` says nothing of what is above it.
    above = path.resolve().parent
    homes = [path, *([above.parent] if above.name == "checkpoints" else [])]
    return next((h / "config.yaml" for h in homes if (h / "config.yaml").is_file()), None)


def flat(run: Run) -> dict[str, Any]:
    """Every setting of `run` by its full key."""
    found = {}
    for key in settings():
        section, _, name = key.rpartition(".")
        found[key] = getattr(getattr(run, section) if section else run, name)
    return found


def differences(one: Run, other: Run) -> list[str]:
    """The keys in which two runs differ, but for those that a continuation may change."""
    mine, theirs = flat(one), flat(other)
    return [key for key in mine if key not in NOT_COMPARED and mine[key] != theirs[key]]


def to_yaml(run: Run) -> str:
    """The whole run as YAML text that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def allowed(key: str) -> str:
    """What a setting takes, in words."""
    choices = settings()[key].metadata["choices"]
    if choices and get_origin(type_of(key)) is tuple:
        return f"a list of {', '.join(choices)}, such as [{','.join(choices[:2])}]"
    return " or ".join(choices) if choices else _describe(type_of(key))


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(value).lower() for value in get_args(kind))
    if get_origin(kind) is tuple:
        length = "" if get_args(kind)[-1] is Ellipsis else f" of {len(get_args(kind))}"
        return f"a list{length}, such as [{'0.9,0.95' if get_args(kind)[0] is float else 'a,b'}]"
    if isinstance(kind, UnionType):
        return " or ".join(
            "null" if part is type(None) else _describe(part) for part in get_args(kind)
        )
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _find(name: str) -> Path:
    """The file of a recipe's name or path."""
    shipped = CONFIGS / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise FileNotFoundError(2, "no such configuration file", name)
    raise ConfigError(
        f"no recipe {name!r}: {_suggest(name, recipes())}, or the path of a .yaml file"
    )


def _file(path: Path | None) -> Iterator[tuple[str, Any, str]]:
    """Each setting of a YAML file, in order: key, value, where it stands."""
    if path is None:
        return
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections with keys, such as 'train: {{steps: 100}}'")
    yield from _leaves(content, f" ({path})")


def _leaves(content: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any, str]]:
    for key, value in content.items():
        if key not in SECTIONS:
            yield str(key), value, where
        elif isinstance(value, str):
            yield from _preset(key, value)
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", leaf, where) for name, leaf in value.items())
        elif value is not None:
            raise ConfigError(f"{key}={value}: expected keys of the section or a preset{where}")


def _preset(section: str, name: str) -> Iterator[tuple[str, Any, str]]:
    """The settings of `configs/<section>/<name>.yaml`."""
    if name not in presets(section):
        known = presets(section)
        hint = _suggest(name, known) if known else f"set {section}.key=value instead"
        raise ConfigError(f"{section}={name}: no such preset: {hint}")
    path = CONFIGS / section / f"{name}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(path))
    yield from _leaves({section: content}, f" ({path})")


def _arguments(overrides: Iterable[str]) -> Iterator[tuple[str, Any, str]]:
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"{override!r}: expected section.key=value")
        if key in SECTIONS:
            yield from _preset(key, text)
        else:
            _check_key(key, "")
            yield key, _parse(key, text), ""


def _parse(key: str, text: str) -> Any:
    """A command-line value, by the type of its setting: texts stay as they were typed."""
    kind = type_of(key)
    optional = isinstance(kind, UnionType) and str in get_args(kind)
    if kind is str or (optional and text != "null"):
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    except (yaml.YAMLError, OmegaConfBaseException):
        raise ConfigError(f"{key}={text}: expected {allowed(key)}") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def _check_key(key: str, where: str) -> None:
    known = settings()
    if key in known:
        return
    section, _, name = key.rpartition(".")
    # The right name in the wrong section, then a near name in this one, then a near key anywhere.
    near = [full for full in known if full.rpartition(".")[2] == name]
    beside = [full for full in known if full.rpartition(".")[0] == section]
    names = difflib.get_close_matches(name, [full.rpartition(".")[2] for full in beside], n=1)
    near += [full for full in beside if full.rpartition(".")[2] in names]
    near += difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near and (names or section not in SECTIONS or near[0] not in beside):
        hint = f"did you mean '{near[0]}'?"
    elif section in SECTIONS:
        hint = f"{section} has {', '.join(f.name for f in fields(SECTIONS[section]))}"
    else:
        hint = f"the sections are {', '.join(SECTIONS)}"
    raise ConfigError(f"unknown key '{key}'{where}: {hint}")


def _check_choices(run: Run, origin: dict[str, str]) -> None:
    """Hold the open choices to what is built, or import what the user adds to the registries."""
    for module in run.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"imports={module}: {error}") from None
    if run.imports:
        return
    values = flat(run)
    for key, setting in settings().items():
        choices = setting.metadata["choices"]
        for value in values[key] if isinstance(values[key], tuple) else (values[key],):
            if choices and value is not None and value not in choices:
                hint = _suggest(value, choices)
                raise ConfigError(f"{key}={value}: {hint}{origin.get(key, '')}")


def _suggest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    question = f"did you mean '{near[0]}'? " if near else ""
    return f"{question}allowed: {', '.join(known)}"
