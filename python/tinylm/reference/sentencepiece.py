"""How SentencePiece normalises a text before its model sees it.

A map of strings is applied from the left, the longest key first. Then blanks: those at both ends go
and others become one, a blank is put before the text, and each is written U+2581, a mark that no
text has. So a text is all words that begin with a mark, and the marks tell the blanks back.

Kudo and Richardson 2018, arXiv:1808.06226, section 3.
"""

MARK = "\u2581"


def normalise(
    text: str,
    chars: dict[str, str],
    kept: list[str],
    *,
    prefix: bool = True,
    suffix: bool = False,
    collapse: bool = True,
    escape: bool = True,
) -> str:
    """`text` as the model sees it.

    `chars` is the map; `kept` are strings that stay as they are. `prefix` puts a blank before the
    text, or with `suffix` after it; `collapse` joins blanks; `escape` writes them as marks. A text
    of nothing but blanks that `collapse` removes is empty, without a prefix too.
    """
    parts = replaced(text, chars, kept)
    if collapse:
        while parts and parts[0] == " ":
            del parts[0]
    if not parts:
        return ""
    if collapse:
        joined = ""
        for part in parts:
            # Only the blanks at the beginning of a part go, so that a replacement keeps its own.
            blank = not joined or joined.endswith(" ")
            joined += part.lstrip(" ") if blank else part
    else:
        joined = "".join(parts)
    if prefix and not suffix:
        joined = " " + joined
    if collapse:
        # A mark of the text itself is a blank by then.
        joined = joined.rstrip(" " + MARK if escape else " ")
    if prefix and suffix:
        joined += " "
    return joined.replace(" ", MARK) if escape else joined


def replaced(text: str, chars: dict[str, str], kept: list[str]) -> list[str]:
    """What the characters of `text` become, from the left: the longest key or kept string first."""
    parts, at = [], 0
    while at < len(text):
        found = max((k for k in kept if text.startswith(k, at)), key=len, default="")
        key = max((k for k in chars if text.startswith(k, at)), key=len, default="")
        if found:
            parts.append(found)
            at += len(found)
        elif key:
            parts.append(chars[key])
            at += len(key)
        else:
            parts.append(text[at])
            at += 1
    return parts
