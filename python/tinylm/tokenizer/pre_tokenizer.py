"""The pre_tokenizer of a `tokenizer.json`: the pattern that splits a text into pieces."""

from typing import Any

from tinylm.tokenizer import dialect
from tinylm.tokenizer.checks import steps_of

# Oniguruma reads `$` as the end of a line and `{1,3}+` as a repetition, so GPT-4's pattern is
# written in its first form, with `\z` for the end of the text.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGEX_OF_PATTERN = {
    "gpt4": _LLAMA3.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+"),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama3": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
    # Oniguruma's dialect takes (?m:.) for a dot that matches line ends.
    "character": r"(?m:.)",
    "word": r" ?\S+|\s",
}
PATTERN_OF_REGEX = {regex: name for name, regex in REGEX_OF_PATTERN.items()}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def written(pattern: str) -> dict[str, Any]:
    """What a `tokenizer.json` says for a pattern; ValueError if it cannot say it."""
    if pattern in ("gpt2", "whole"):
        return {**BYTE_LEVEL, "use_regex": pattern == "gpt2"}
    split = {
        "type": "Split",
        "pattern": {"Regex": REGEX_OF_PATTERN.get(pattern) or dialect.write(pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    bytes_only = {**BYTE_LEVEL, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, bytes_only]}


def pattern_of(found: object) -> str | None:
    """The pattern that a checked pre_tokenizer stands for, None if it is more than one.

    ByteLevel, and Split before it, are a pattern.
    """
    match steps_of(found, "pre_tokenizer", "pretokenizers"):
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}]:
            return "gpt2" if rest.get("use_regex", True) else "whole"
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": how, "invert": inverse},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            known = PATTERN_OF_REGEX.get(regex)
            if (how, inverse) == ("Isolated", False):
                return known or dialect.read(regex)
            # What matches is kept, what is between is dropped; our patterns leave nothing between.
            if (how, inverse) == ("Removed", True):
                return known
    return None
