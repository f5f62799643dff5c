"""Tokenizer files by their format: tokenizer.json, tiktoken ranks, GPT-2's two files."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Literal

from tinylm.tokenizer import gpt2, huggingface, tiktoken
from tinylm.tokenizer.contents import Contents
from tinylm.tokenizer.errors import LoadError

Format = Literal["tokenizer.json", "tiktoken", "gpt2"]
FORMATS: tuple[Format, ...] = ("tokenizer.json", "tiktoken", "gpt2")


def load(
    path: str | PathLike[str],
    format: Format | None,
    pattern: str | None,
    special_tokens: dict[str, int] | None,
) -> Contents:
    """The contents of a tokenizer file; see `Tokenizer.load`."""
    path = Path(path)
    format = format or _format_of(path, reading=True)
    if format == "tokenizer.json":
        if pattern is not None or special_tokens is not None:
            raise ValueError(f"{path}: a tokenizer.json says its pattern and special tokens itself")
        return huggingface.read(path / "tokenizer.json" if path.is_dir() else path)
    if format == "tiktoken":
        return tiktoken.read(path, pattern, special_tokens)
    if format == "gpt2":
        return gpt2.read(path, pattern or "gpt2", special_tokens)
    raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")


def save(
    contents: Contents,
    path: str | PathLike[str],
    format: Format | None,
    beside: Mapping[str, bytes],
    *,
    says_eos: bool,
) -> None:
    """Writes a tokenizer file; see `Tokenizer.save`.

    `beside` are the files of a folder; `says_eos`: they alone say which token ends a text.
    """
    path = Path(path)
    format = format or _format_of(path, reading=False)
    if format == "tokenizer.json":
        huggingface.write(contents, path, beside, says_eos=says_eos)
    elif format == "tiktoken":
        tiktoken.write(contents, path)
    elif format == "gpt2":
        gpt2.write(contents, path, beside if says_eos else {})
    else:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")


def _format_of(path: Path, *, reading: bool) -> Format:
    if path.name.endswith((".tiktoken", ".tiktoken.gz")):
        return "tiktoken"
    if path.name.endswith(".json"):
        return "tokenizer.json"
    if path.is_dir() and reading:
        return "tokenizer.json" if (path / "tokenizer.json").exists() else "gpt2"
    if reading and not path.exists():
        raise FileNotFoundError(f"no tokenizer file or folder at {path}")
    if reading:
        raise LoadError(
            f"{path}: cannot tell the format",
            remedy="format",
            advice=f"pass one of {', '.join(FORMATS)}",
        )
    return "tokenizer.json"
