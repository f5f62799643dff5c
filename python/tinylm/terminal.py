"""Words on standard error that may not reach anybody, and end no work if they do not.

A terminal that is gone answers each write with an error (EIO), and so does a full disk behind
`2>FILE`. What is computed meanwhile matters more than its display.
"""

import sys
from contextlib import suppress


def watched() -> bool:
    """Whether standard error is a terminal, so that a live line makes sense."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):
        return False


def draw(text: str) -> None:
    """Write `text` as it is, or nothing if that is not possible."""
    # Where it is None, `print` would take standard output.
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, end="", file=sys.stderr, flush=True)
