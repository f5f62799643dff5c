"""The contents of a folder of shards, as recorded in `manifest.json`.

The manifest is written last: a folder without one is the remains of an interrupted run. It
holds a hash of every header and of every 1 MiB of every file, and a checksum of itself.
"""

import errno
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinylm import _rust, disk

NAME = "manifest.json"
# What `save` writes first.
BEGIN = b'{\n "version": '
HEADER_BYTES = _rust.HEADER_BYTES
# Raised when a reader of the old format would misread the new one: 2 has tokens in files of others,
# and is written only where there are some.
VERSIONS = (1, 2)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_]+-\d{5}\.bin")


@dataclass(frozen=True, slots=True)
class Shard:
    """One `.bin` file and the `.doc` beside it; hashes are xxh3 in 16 hexadecimal digits.

    `file` is the path of tokens that another program wrote, from byte `payload` of it on; the
    `.doc` is in the folder all the same. Its header is hashed only if it is llm.c's.
    """

    name: str
    tokens: int
    documents: int
    header: str | None
    blocks: list[str]
    lengths: list[str]
    file: str | None = None
    payload: int = HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Split:
    """The shards of one split; `bytes` of UTF-8 text, None where nobody counted them."""

    tokens: int
    documents: int
    bytes: int | None
    shards: list[Shard]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole folder: its vocabulary, its splits, and where they came from.

    `eos_id` is None, and `width` (bytes of a token) says more than the vocabulary, only for files
    that another program wrote. `tokenizer_sha256` is all zeros if the tokenizer is not known.
    """

    tokenizer_sha256: str
    vocab_size: int
    eos_id: int | None
    splits: dict[str, Split]
    source: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    width: int | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of a token on disk."""
        return self.width or (2 if self.vocab_size <= 1 << 16 else 4)

    def fingerprint(self, split: str) -> str:
        """16 digits that change with any token of the split or with its tokenizer."""
        part = self.splits[split]
        # Without the names of the shards: a dataset is its tokens, wherever they lie.
        hashes = [[shard.tokens, shard.header, shard.blocks] for shard in part.shards]
        return digest([self.tokenizer_sha256, self.vocab_size, hashes])[:16]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Manifest":
        """The manifest of `folder`; ValueError when it is damaged."""
        # Told apart from a damaged one: this folder may only need `prepare`.
        path = Path(folder) / NAME
        if not path.exists():
            problem = "not a folder of shards (no manifest.json): prepare it first"
            raise FileNotFoundError(errno.ENOENT, problem, str(folder))
        fields = load(path)
        try:
            return cls(splits=splits(fields.pop("splits")), **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: corrupt: {error}") from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it to `folder`, whole or not at all."""
        fields = asdict(self)
        shards = [shard for split in fields["splits"].values() for shard in split["shards"]]
        foreign = any(shard["file"] is not None for shard in shards)
        if not foreign:
            # As they were before there were files of others, so that an older TinyLM reads them.
            del fields["width"]
            for shard in shards:
                del shard["file"], shard["payload"]
        save(Path(folder) / NAME, fields, VERSIONS[foreign])


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote to `path`; `ValueError` when it is damaged or of another version."""
    try:
        fields = json.loads(path.read_bytes())
        checksum = fields.pop("checksum")
        version = fields.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: corrupt: expected a manifest in JSON") from None
    # Before the checksum: another version may compute it in another way.
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise ValueError(f"{path}: version {version}; this TinyLM reads version {known}")
    if checksum != digest(fields):
        raise ValueError(f"{path}: corrupt: its content does not match its checksum")
    return dict(fields)


def save(path: Path, fields: dict[str, Any], version: int = VERSIONS[0]) -> None:
    """Write `fields` as JSON with a version and a checksum of themselves, whole or not at all."""
    text = json.dumps({"version": version, **fields, "checksum": digest(fields)}, indent=1)
    disk.replace(path, f"{text}\n".encode())


def splits(fields: dict[str, Any]) -> dict[str, Split]:
    """The splits of a manifest, or those of one job, from their fields."""
    return {name: _split(split) for name, split in fields.items()}


def _split(fields: dict[str, Any]) -> Split:
    shards = [Shard(**shard) for shard in fields["shards"]]
    for shard in shards:
        # A name with a slash would read outside the folder.
        if not _SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"{shard.name!r} is not the name of a shard")
    return Split(fields["tokens"], fields["documents"], fields["bytes"], shards)


def digest(fields: Any) -> str:
    """The SHA-256 of `fields` as JSON, whatever the order of their names."""
    # Sorted and without blanks: the digest must not change with the order of the fields.
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
