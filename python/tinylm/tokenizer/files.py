"""Tokenizer files by their format: tokenizer.json, tiktoken ranks, GPT-2's two files."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Literal

from tinylm.tokenizer import gpt2, huggingface, sentencepiece, tekken, tiktoken
from tinylm.tokenizer.contents import Contents
from tinylm.tokenizer.errors import LoadError

Format = Literal["tokenizer.json", "tiktoken", "gpt2", "sentencepiece"]
FORMATS: tuple[Format, ...] = ("tokenizer.json", "tiktoken", "gpt2", "sentencepiece")
# What tells other kinds of file: the name in lower case, and the first bytes.
FOREIGN: tuple[tuple[Callable[[str, bytes], bool], str], ...] = (
    (lambda name, _: name.startswith("vocab") and name.endswith(".txt"), "a WordPiece vocab.txt"),
    (lambda _, start: start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5", "a pickled object"),
    (lambda _, start: start[:2] == b"PK", "a zip file, as torch saves them,"),
    (lambda _, start: start[:4] == b"GGUF", "a GGUF file"),
    (lambda name, _: name == "merges.txt", "a merges.txt without its folder"),
)


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
        return huggingface.read(_json_in(path) if path.is_dir() else path)
    if format == "tiktoken":
        return tiktoken.read(path, pattern, special_tokens)
    if format == "sentencepiece":
        if pattern is not None or special_tokens is not None:
            raise ValueError(f"{path}: a .model says its pieces and special tokens itself")
        return sentencepiece.read(_one_model(path) if path.is_dir() else path)
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
    elif format == "sentencepiece":
        sentencepiece.write(contents, path)
    elif format == "gpt2":
        gpt2.write(contents, path, beside if says_eos else {})
    else:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")


def _json_in(folder: Path) -> Path:
    """The tokenizer.json of a folder, or else Mistral's tekken.json."""
    path = folder / huggingface.NAME
    return path if path.exists() or not (folder / tekken.NAME).exists() else folder / tekken.NAME


def _format_of(path: Path, *, reading: bool) -> Format:
    if path.name.endswith((".tiktoken", ".tiktoken.gz")):
        return "tiktoken"
    if path.name.endswith(".json"):
        return "tokenizer.json"
    if path.name.endswith(".model"):
        return "sentencepiece"
    if path.is_dir() and reading:
        if _json_in(path).exists():
            return "tokenizer.json"
        others = [file for file in sorted(path.iterdir()) if file.is_file()]
        if not any(file.name.endswith("vocab.json") for file in others):
            if any(file.name.endswith(".model") for file in others):
                return "sentencepiece"
            for file in others:
                if file.name.endswith("vocab.txt"):
                    refuse_foreign(file)
            if not any(file.name.endswith("merges.txt") for file in others):
                raise FileNotFoundError(
                    f"{path} holds no tokenizer: neither tokenizer.json nor tekken.json, a .model, "
                    "or vocab.json with merges.txt"
                )
        return "gpt2"
    if reading and not path.exists():
        raise FileNotFoundError(f"no tokenizer file or folder at {path}")
    if reading:
        with open(path, "rb") as unnamed:
            # The first field of SentencePiece's file is a piece, which begins with its text.
            if unnamed.read(1) == b"\n":
                return "sentencepiece"
        refuse_foreign(path)
        raise LoadError(
            f"{path}: cannot tell the format",
            remedy="format",
            advice=f"pass one of {', '.join(FORMATS)}",
        )
    return "tokenizer.json"


def _one_model(folder: Path) -> Path:
    """The .model of a folder; ValueError if there are several."""
    found = sorted(folder.glob("*.model"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{folder}: expected one .model, found {names}; name one")
    return found[0]


def refuse_foreign(path: Path) -> None:
    """ValueError for a file of a known kind that TinyLM does not read, by its name or beginning."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start[:2] == b"\x1f\x8b":
        # Its first bytes tell nothing; a name for ranks was read as ranks.
        kind: str | None = "a gzip file that is not named .tiktoken.gz"
    else:
        kind = next((kind for fits, kind in FOREIGN if fits(path.name.lower(), start)), None)
    if kind is not None:
        raise ValueError(
            f"{path}: {kind} is not supported, only tokenizer.json, tiktoken's ranks, and "
            "vocab.json with merges.txt"
        )
