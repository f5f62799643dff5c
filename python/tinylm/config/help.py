"""The text of `--help`: every setting of a command, from the dataclasses themselves."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from tinylm.config.loading import allowed, flat, presets, settings
from tinylm.config.sections import Run


def describe(sections: Iterable[str] | None = None) -> str:
    """One paragraph a setting: its key, default, what it takes and what it does.

    `sections` limits the text to those sections ("" names the settings outside any section).
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
            known = (
                f"  (presets: {section}={'|'.join(presets(section))})" if presets(section) else ""
            )
            lines += ["", f"{section or 'run'}{known}"]
        lines.append(f"  {key}={_show(defaults[key])}")
        text = f"{field.metadata['help']} Takes {allowed(key)}."
        lines += textwrap.wrap(text, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, tuple):
        return f"[{','.join(str(item) for item in value)}]"
    return str(value)
