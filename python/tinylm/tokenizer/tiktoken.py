"""Rank files of tiktoken: each token in base64 and its rank, which is its id."""

import base64
import binascii
import gzip
import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tinylm import _rust, disk
from tinylm.tokenizer.contents import Contents, refuse_plain, refuse_stages, special
from tinylm.tokenizer.errors import LoadError
from tinylm.tokenizer.models import Bpe
from tinylm.tokenizer.token_map import TokenMap


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
    # qwen.tiktoken of Qwen 1, with the pattern and the special tokens of QwenLM/Qwen,
    # tokenization_qwen.py, which normalises texts to NFC before: that is the caller's.
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": Known(
        "qwen2",
        {
            token: 151643 + number
            for number, token in enumerate(
                (
                    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                    *(f"<|extra_{number}|>" for number in range(205)),
                )
            )
        },
    ),
}


def read(path: Path, pattern: str | None, special_tokens: dict[str, int] | None) -> Contents:
    """The ranks in a file, plain or gzipped; `LoadError` without pattern or special tokens."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: the compressed file is damaged: {error}") from None
    if pattern is None or special_tokens is None:
        known = KNOWN_RANKS.get(hashlib.sha256(data).hexdigest())
        if known is None:
            raise LoadError(
                f"{path}: ranks name neither their pattern nor their special tokens, and these are "
                "not cl100k_base, o200k_base or qwen",
                remedy="pattern",
                advice="pass pattern= and special_tokens=",
            )
        pattern = known.pattern if pattern is None else pattern
        special_tokens = known.special_tokens if special_tokens is None else special_tokens
    # What tiktoken wrote is read in Rust; anything else slowly, to say what is wrong.
    read = _rust.read_ranks(data)
    ranks = ranks_in(data, path) if read is None else TokenMap(read)
    model = Bpe(merges=None, whole_pieces=True)
    return Contents(ranks, model, pattern, special(special_tokens))


def ranks_in(data: bytes, path: Path) -> dict[bytes, int]:
    """The tokens and ranks in a file; ValueError with the line that has none."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            # By default b64decode drops other characters in silence: a damaged line would be
            # another token.
            token, id = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected a token in base64 and its rank, got {line[:60]!r}"
            ) from None
        # tiktoken takes the last of two ranks: no file that it wrote has both.
        if token in ranks:
            raise ValueError(f"{path}, line {number}: the token {token!r} is listed twice")
        if not token or not 0 <= id < 2**32:
            what = f"the rank {id} is not an id" if token else "the token is empty"
            raise ValueError(f"{path}, line {number}: {what}")
        ranks[token] = id
    return ranks


def write(contents: Contents, path: Path) -> None:
    """Writes the ranks, gzipped if the name ends in .gz; ValueError for what ranks cannot say."""
    refuse_plain(contents, "ranks")
    refuse_stages(contents, "ranks")
    model = contents.model
    if not isinstance(model, Bpe):
        raise ValueError("ranks can say merges of bytes alone; save as tokenizer.json")
    if model.merges is not None and not model.merges and model.whole_pieces:
        raise ValueError(
            "a vocabulary of whole characters or words has no merges, and tiktoken would make "
            "some up; save it as tokenizer.json"
        )
    by_rank = sorted(contents.tokens.items(), key=lambda item: item[1])
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank]
    data = b"".join(lines)
    # No time stamp: equal tokenizers give equal files.
    compress = partial(gzip.compress, mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(path, compress(data) if path.name.endswith(".gz") else data)
