"""A command in this process, as the shell would have it: errors told, an exit code."""

import sys
import warnings
from collections.abc import Callable, Sequence
from unittest import mock

from tinylm import commands


def call(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Run `main` through `commands.run`; the exit code."""
    with warnings.catch_warnings(), mock.patch.object(sys, "argv", ["command", *arguments]):
        warnings.simplefilter("always", UserWarning)
        try:
            commands.run(main)
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 0
