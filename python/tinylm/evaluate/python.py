"""Which sampled texts are Python: the share that the parser of Python accepts."""

import ast
import math
import re
import warnings
from collections.abc import Sequence


def parse_share(texts: Sequence[str]) -> float:
    """Python texts, each cut off somewhere, to the share of them that `ast.parse` accepts.

    A text that does not parse whole is tried once more without its unfinished end (see
    `without_end`). Accepted are texts with statements on at least 3 lines, docstrings aside.
    """
    if not texts:
        raise ValueError("no texts: the share of nothing is not defined")
    return sum(max(map(_code_lines, (text, without_end(text)))) >= 3 for text in texts) / len(texts)


def _code_lines(text: str) -> int:
    """Number of lines on which a statement other than a bare string starts; 0 if invalid."""
    try:
        with warnings.catch_warnings():
            # A text may hold "\d": valid, but a SyntaxWarning.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    # The last two are for hostile nesting; a null byte is a ValueError in some versions.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
    return len({node.lineno for node in statements if not _is_string(node)})


def _is_string(node: ast.stmt) -> bool:
    """Whether a statement is a string alone, such as a docstring."""
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


# What a logical line is made of, as far as finding its end goes.
_LEXEME = re.compile(
    r'''(?P<triple>"""|\'\'\')(?:\\.|.)*?(?:(?P=triple)|\Z)'''
    r"""|(?P<quote>["'])(?:\\.|(?!(?P=quote))[^\\\n])*(?P=quote)?"""
    r"""|\#[^\n]*|\\\n|[()\[\]{}\n]""",
    re.DOTALL,
)
# No line inside brackets can begin with these: where one does, the bracket was never closed.
_OUTSIDE = re.compile(
    r"[ \t]*(?:assert|break|class|continue|def|del|elif|except|finally|global|import|nonlocal|"
    r"pass|raise|return|try|while|with)\b"
)


def logical_lines(text: str) -> list[str]:
    """A Python text to its logical lines, without blank lines and comments; joined by brackets,
    triple quotes and backslashes as Python does, but never failing on a broken text.
    """
    lines, start, depth = [], 0, 0
    for found in _LEXEME.finditer(text):
        lexeme = found[0]
        if lexeme in "([{":
            depth += 1
        elif lexeme in ")]}":
            depth = max(0, depth - 1)
        elif lexeme == "\n" and (not depth or _OUTSIDE.match(text, found.end())):
            lines.append(text[start : found.end()])
            start, depth = found.end(), 0
    lines.append(text[start:])
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def without_end(text: str) -> str:
    """A Python text without its last, unfinished statement.

    The last logical line goes, and then, as long as there are any, what its loss or the cut
    leaves unfinished: a header without a body (`if x:`), a decorator without a definition, a
    `try` that neither `except` nor `finally` follows. Nothing before is touched: an error there
    stays an error.
    """
    lines = logical_lines(text)[:-1]
    while lines:
        last = lines[-1].strip()
        if not (_is_header(last) or last.startswith("@")):
            open_try = _open_try(lines)
            if open_try is None:
                break
            lines = lines[: open_try + 1]
        lines.pop()
    return "".join(lines)


def _is_header(line: str) -> bool:
    code = _LEXEME.sub(lambda found: "" if found[0].startswith("#") else found[0], line)
    return code.rstrip().endswith(":")


def _open_try(lines: Sequence[str]) -> int | None:
    """Index of the outermost `try:` whose body the last of `lines` is in."""
    found, indent = None, math.inf
    for number in reversed(range(len(lines))):
        width = len(lines[number]) - len(lines[number].lstrip())
        # Less indented than all that follow: the header of a block that the end is in.
        if width < indent:
            indent = width
            if re.match(r"\s*try\s*:", lines[number]):
                found = number
    return found
