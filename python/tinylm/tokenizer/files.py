"""Tokenizer files to what they hold, and back: tokenizer.json, tiktoken ranks, GPT-2's two files.

`tokenizer.json` is the format of Hugging Face's `tokenizers` library. TinyLM reads and writes its
byte-level BPE, where each byte is written as one printable character (`BYTE_TO_CHAR`).
"""

import base64
import binascii
import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

Format = Literal["tokenizer.json", "tiktoken", "gpt2"]
FORMATS: tuple[Format, ...] = ("tokenizer.json", "tiktoken", "gpt2")


@dataclass(frozen=True)
class Contents:
    """All that makes a tokenizer; `merges` None means tiktoken's rule (`Tokenizer.from_ranks`)."""

    tokens: dict[bytes, int]
    merges: list[tuple[int, int]] | None
    whole_pieces: bool
    pattern: str
    special_tokens: dict[str, int]


class Known(NamedTuple):
    """What a rank file that is known by its content does not say itself."""

    pattern: str
    special_tokens: dict[str, int]


# By the SHA-256 of the uncompressed file, as tiktoken checks them.
KNOWN_RANKS = {
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": Known(
        "gpt4",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": Known(
        "o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    ),
}


def _byte_to_char() -> list[str]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the others follow U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


BYTE_TO_CHAR = _byte_to_char()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
# str.translate and Latin-1 do the work of a loop over bytes.
_TO_CHARS = dict(enumerate(BYTE_TO_CHAR))
_TO_BYTES = {ord(char): byte for char, byte in CHAR_TO_BYTE.items()}


def to_chars(token: bytes) -> str:
    """A token as `tokenizer.json` and vocab.json write it."""
    return token.decode("latin-1").translate(_TO_CHARS)


def to_bytes(token: str) -> bytes:
    """The bytes of a token as `to_chars` writes it; ValueError for other characters."""
    if any(char not in CHAR_TO_BYTE for char in token):
        raise ValueError(f"token {token!r} is not written in the alphabet of byte-level BPE")
    return token.translate(_TO_BYTES).encode("latin-1")


def pairs_of(merges: list[tuple[bytes, bytes]], tokens: dict[bytes, int]) -> list[tuple[int, int]]:
    """Merges as pairs of ids; ValueError for one of a token that there is not."""
    try:
        return [(tokens[left], tokens[right]) for left, right in merges]
    except KeyError as error:
        raise ValueError(
            f"a merge uses {error.args[0]!r}, which is not in the vocabulary"
        ) from None


def merges_of(contents: Contents) -> list[tuple[bytes, bytes]]:
    """The merges as pairs of bytes; from ranks, for each token the two that it is made of."""
    if contents.merges is not None:
        token_of = {id: token for token, id in contents.tokens.items()}
        return [(token_of[left], token_of[right]) for left, right in contents.merges]
    ranks = contents.tokens
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _merged_below(token, ranks, rank)
        # A token that no two others make is reached only as a whole piece.
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _merged_below(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """The parts of `token` after all merges of a rank below `limit`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def every_split(tokens: dict[bytes, int]) -> list[tuple[int, int]]:
    """All pairs of tokens that make a token, by its id, then theirs: ranks written as merges."""
    splits = []
    for token, id in tokens.items():
        for i in range(1, len(token)):
            left, right = tokens.get(token[:i]), tokens.get(token[i:])
            if left is not None and right is not None:
                splits.append((id, left, right))
    return [(left, right) for _, left, right in sorted(splits)]


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
        from tinylm.tokenizer import huggingface

        return huggingface.read(path / "tokenizer.json" if path.is_dir() else path)
    if format == "tiktoken":
        return _read_tiktoken(path, pattern, special_tokens)
    if format == "gpt2":
        return _read_gpt2(path, pattern or "gpt2", special_tokens)
    raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")


def save(
    contents: Contents,
    path: str | PathLike[str],
    format: Format | None,
    named: dict[str, int | None],
) -> None:
    """Writes a tokenizer file; see `Tokenizer.save`. `named` are the ids of eos, bos and pad."""
    path = Path(path)
    format = format or _format_of(path, reading=False)
    if format == "tokenizer.json":
        from tinylm.tokenizer import huggingface

        huggingface.write(contents, path, named)
    elif format == "tiktoken":
        _write_tiktoken(contents, path)
    elif format == "gpt2":
        _write_gpt2(contents, path)
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
        raise ValueError(f"{path}: cannot tell the format; pass one of {', '.join(FORMATS)}")
    return "tokenizer.json"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; folders that are missing are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read_tiktoken(
    path: Path, pattern: str | None, special_tokens: dict[str, int] | None
) -> Contents:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: the compressed file is damaged: {error}") from None
    known = KNOWN_RANKS.get(hashlib.sha256(data).hexdigest())
    if known is None and (pattern is None or special_tokens is None):
        raise ValueError(
            f"{path}: ranks name neither their pattern nor their special tokens, and these are not "
            "cl100k_base or o200k_base; pass pattern= and special_tokens="
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected a token in base64 and its rank, got {line[:60]!r}"
            ) from None
    if pattern is None and known:
        pattern = known.pattern
    if special_tokens is None and known:
        special_tokens = known.special_tokens
    return Contents(ranks, None, True, pattern or "", dict(special_tokens or {}))


def _write_tiktoken(contents: Contents, path: Path) -> None:
    if contents.merges is not None and not contents.merges and contents.whole_pieces:
        raise ValueError(
            "a vocabulary of whole characters or words has no merges, and tiktoken would make "
            "some up; save it as tokenizer.json"
        )
    by_rank = sorted(contents.tokens.items(), key=lambda item: item[1])
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank]
    data = b"".join(lines)
    # No time stamp: equal tokenizers give equal files.
    compress = partial(gzip.compress, mtime=0)
    write_atomically(path, compress(data) if path.name.endswith(".gz") else data)


def _one_file(folder: Path, ending: str) -> Path:
    found = sorted(folder.glob(f"*{ending}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FileNotFoundError(f"{folder}: expected one file that ends in {ending}, found {names}")
    return found[0]


def _read_gpt2(folder: Path, pattern: str, special_tokens: dict[str, int] | None) -> Contents:
    vocab_path, merges_path = _one_file(folder, "vocab.json"), _one_file(folder, "merges.txt")
    vocab = read_json(vocab_path)
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(merges_path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        match line.split(" "):
            case [left, right]:
                merges.append((left, right))
            case _:
                raise ValueError(f"{merges_path}, line {number}: expected two tokens, got {line!r}")
    try:
        return contents_of(vocab, merges, pattern, special_tokens)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def contents_of(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    pattern: str,
    special_tokens: dict[str, int] | None,
) -> Contents:
    """From tokens and merges as vocab.json and merges.txt write them.

    Without `special_tokens`, the tokens that are no byte and no merge makes are special.
    """
    if special_tokens is None:
        made = {left + right for left, right in merges}
        special_tokens = {
            token: id for token, id in vocab.items() if len(token) > 1 and token not in made
        }
    tokens = {to_bytes(token): id for token, id in vocab.items() if special_tokens.get(token) != id}
    pairs = pairs_of([(to_bytes(left), to_bytes(right)) for left, right in merges], tokens)
    return Contents(tokens, pairs, False, pattern, dict(special_tokens))


def _write_gpt2(contents: Contents, folder: Path) -> None:
    if contents.pattern != "gpt2":
        raise ValueError(
            f"GPT-2's files cannot say the pattern {contents.pattern!r}; save as tokenizer.json"
        )
    if contents.merges is None or contents.whole_pieces:
        raise ValueError("GPT-2's files have no rule for whole pieces; save as tokenizer.json")
    vocab = {to_chars(token): id for token, id in contents.tokens.items()}
    text = json.dumps(vocab | contents.special_tokens, ensure_ascii=False)
    write_atomically(folder / "vocab.json", text.encode())
    lines = [f"{to_chars(left)} {to_chars(right)}\n" for left, right in merges_of(contents)]
    write_atomically(folder / "merges.txt", ("#version: 0.2\n" + "".join(lines)).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError with the place where it is broken."""
    try:
        value = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
