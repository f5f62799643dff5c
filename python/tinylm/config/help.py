"""The text of `--help`: every setting of a command, from the dataclasses themselves."""

import json
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from tinylm.config.keys import allowed, flat, presets, settings
from tinylm.config.sections import Run


def describe(sections: Iterable[str] | None = None) -> str:
    """Return one paragraph per setting: its key, its default, its effect and its values.

    If `sections` is given, only these sections are described; "" stands for the settings that
    belong to no section.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    defaults = flat(Run())
    lines: list[str] = []
    shown = None
    for key, field in settings().items():
        section = key.rpartition(".")[0]
        if sections is not None and section not in sections:
            continue
        if section != shown:
            shown = section
            known = "|".join(presets(section)) if section else ""
            lines += ["", f"{section}  (presets: {section}={known})" if known else section or "run"]
        lines.append(f"  {key}={_show(defaults[key])}")
        text = f"{field.metadata['help']} Takes {allowed(key)}."
        lines += textwrap.wrap(text, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def _show(value: Any) -> str:
    """Return a default as a user would type it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
