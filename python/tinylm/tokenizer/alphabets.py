"""Vocabularies over characters: which of them are tokens, and how a text is cut to learn others.

The text is written as SentencePiece sees it: a blank is U+2581, and one comes before the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MARK = "\u2581"
# Words with the blank before them, single digits, other signs, blanks, line ends. Tokens are
# learned inside these, so none goes on after a blank.
COUNTED = (
    r"\x{2581}?[\p{L}\p{M}]+|\x{2581}?\p{N}|\x{2581}?[^\s\x{2581}\p{L}\p{M}\p{N}]+"
    r"|\x{2581}+(?=\x{2581})|\x{2581}+|\n+|\s"
)
Blocked = Iterable[str | bytes | tuple[str | bytes, str | bytes]]


@dataclass(frozen=True, kw_only=True)
class Characters:
    """An alphabet of characters: pass it as `alphabet` of `Tokenizer.train`.

    The most frequent characters are tokens until they are `coverage` of the text (SentencePiece's
    character_coverage; 0.9995 is usual for Chinese and Japanese). Those of `initial` always are,
    and with `limit` there are no more than that, the initial ones included (initial_alphabet and
    limit_alphabet of Hugging Face). Any other character is encoded as the tokens of its bytes with
    `byte_fallback`, else as `<unk>`.
    """

    initial: str = ""
    coverage: float = 1.0
    limit: int | None = None
    byte_fallback: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage {self.coverage} must be above 0 and at most 1")
        always = len({*self.initial, MARK})
        if self.limit is not None and self.limit < always:
            raise ValueError(
                f"limit {self.limit} is below the {always} characters that are always tokens "
                "(U+2581 and those of initial); raise it"
            )


def marked(text: str | bytes, *, first: bool) -> str | bytes:
    """A text as SentencePiece sees it; `first` says whether it begins there."""
    if isinstance(text, str):
        return MARK * first + text.replace(" ", MARK)
    return MARK.encode() * first + text.replace(b" ", MARK.encode())


def blocked_of(
    blocked: Blocked, *, over_characters: bool
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Tokens and pairs that must not be made, in bytes; ValueError for what always is a token."""
    if isinstance(blocked, str | bytes):
        raise TypeError("blocked must be an iterable of tokens and pairs; for one pass (token,)")

    def spelled(token: str | bytes) -> bytes:
        data = token.encode() if isinstance(token, str) else token
        return data.replace(b" ", MARK.encode()) if over_characters else data

    tokens, pairs = [], []
    for item in blocked:
        if isinstance(item, tuple):
            left, right = item
            pairs.append((spelled(left), spelled(right)))
            continue
        token = spelled(item)
        if len(token) < 2 or (over_characters and len(token.decode(errors="replace")) < 2):
            what = "character" if over_characters else "byte"
            raise ValueError(f"blocked {item!r} is a single {what}, which always is a token")
        tokens.append(token)
    return tokens, pairs
