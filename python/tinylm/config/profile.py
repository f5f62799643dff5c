"""The settings of a profile of a few steps."""

from dataclasses import dataclass

from tinylm.config.checks import check
from tinylm.config.fields import setting
from tinylm.config.limits import COUNT_OR_ZERO


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace of a few steps and a table of where their time and memory went."""

    steps: int = setting(
        0,
        "Number of steps that are profiled; 0 profiles none. Writes profile/trace.json, which "
        "chrome://tracing and ui.perfetto.dev show, and profile/table.txt.",
        COUNT_OR_ZERO,
        off=0,
    )
    start: int = setting(
        10, "Number of steps before the first one that is profiled.", COUNT_OR_ZERO, off=0
    )

    def __post_init__(self) -> None:
        check("profile", self)
