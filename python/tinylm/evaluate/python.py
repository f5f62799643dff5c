"""Which sampled texts are Python: the share that the parser of Python accepts."""

import ast
import warnings
from collections.abc import Sequence

# Bounds the cost of a long text; a sample of 128 tokens has about 15 lines.
LONGEST_END = 64


def parse_share(texts: Sequence[str]) -> float:
    """Share of Python texts, each cut off somewhere, that `ast.parse` accepts.

    A text may end in the middle of a statement: its last lines are left out, one at a time and
    at most `LONGEST_END` of them, until the rest parses. The text is accepted if that rest has
    statements on at least 3 lines, docstrings aside. `ValueError` for no texts.
    """
    if not texts:
        raise ValueError("no texts: the share of nothing is not defined")
    return sum(_code_lines(text) >= 3 for text in texts) / len(texts)


def _code_lines(text: str) -> int:
    """Number of lines on which a statement other than a bare string starts; 0 if none parses."""
    lines = text.splitlines(keepends=True)
    for end in range(len(lines), max(0, len(lines) - 1 - LONGEST_END), -1):
        try:
            with warnings.catch_warnings():
                # A text may hold "\d": valid, but a SyntaxWarning.
                warnings.simplefilter("ignore")
                tree = ast.parse("".join(lines[:end]))
        # The last two are for hostile nesting; a null byte is a ValueError in some versions.
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        statements = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
        return len({node.lineno for node in statements if not _is_string(node)})
    return 0


def _is_string(node: ast.stmt) -> bool:
    """Whether a statement is a string alone, such as a docstring."""
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)
