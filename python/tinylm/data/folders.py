"""The folder of shards that belongs to a text: its name comes from a hash of the content."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.corpus import Corpus, Reading, source_name
from tinylm.corpus.download import DATASETS
from tinylm.corpus.sources import MADE
from tinylm.data.manifest import BEGIN, NAME, Manifest

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

PROCESSED = Path("data/processed")


def default_folder(corpus: Corpus, tokenizer_sha256: str) -> Path:
    """The folder of shards of this text, cut and tokenized in this way.

    Its name ends in a hash of all three, so that another text, fraction or tokenizer gets another
    folder, and the same ones find theirs. TinyLM 0.1 named it after source and tokenizer; such a
    folder is used where it holds just these shards.
    """
    name = source_name(corpus.source)
    old = PROCESSED / f"{name}-{tokenizer_sha256[:8]}"
    if _holds(old, corpus, tokenizer_sha256):
        return old
    content = [corpus.fingerprint, corpus.val_fraction, tokenizer_sha256]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    # Eight digits keep the name short. Two contents with the same digits share no shards: `prepare`
    # compares the full hashes.
    return PROCESSED / f"{name}-{digest[:8]}"


def load_tokenizer(path: str, manifest: Manifest | None = None) -> "Tokenizer":
    """The tokenizer of a file, which must be the one that made the shards of `manifest`."""
    # Imported here: most that is done with a folder of shards needs no tokenizer.
    from tinylm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    if manifest is not None and tokenizer.sha256 != manifest.tokenizer_sha256:
        raise ValueError(f"{path} is not the tokenizer that made these shards")
    return tokenizer


def is_shards(source: str) -> bool:
    """Whether a source is a folder of shards, which has no text."""
    path = Path(source) / NAME
    if source in MADE or source in DATASETS or not path.is_file():
        return False
    # A folder of texts may have a manifest.json that means something else.
    with path.open("rb") as file:
        return file.read(len(BEGIN)) == BEGIN


def given(source: str, tokenizer: "Tokenizer") -> Path | None:
    """The folder of shards that `source` is, None if it is a text.

    Raises `ValueError` if the shards are of another tokenizer, or have no train or no val.
    """
    if not is_shards(source):
        return None
    manifest = Manifest.load(source)
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise ValueError(
            f"data.source={source}: its tokens are those of another tokenizer "
            f"({manifest.tokenizer_sha256[:8]}, not {tokenizer.sha256[:8]}): name the one that "
            "made them with tokenizer.path, or when they are imported"
        )
    for split in ("train", "val"):
        if split not in manifest.splits:
            raise ValueError(
                f"data.source={source}: has no split {split}: import it with a file of that name, "
                "or with --val-fraction"
            )
    return Path(source)


def _holds(folder: Path, corpus: Corpus, tokenizer_sha256: str) -> bool:
    manifest = _manifest(folder)
    if manifest is None or manifest.tokenizer_sha256 != tokenizer_sha256:
        return False
    names = ("fingerprint", "val_fraction")
    return all(manifest.source.get(name) == getattr(corpus, name) for name in names)


def find(
    source: str, *, tokenizer_sha256: str, fingerprint: str | None = None, **reading: Any
) -> Path | None:
    """The newest default folder of shards that were made of `source` with these settings.

    `reading` are those of `corpus.Reading`. Looks at manifests alone: the text may have changed
    since, or be gone. A run that goes on passes the `fingerprint` of the shards that it was trained
    on, and gets those or None.
    """
    found = []
    for folder in _folders(source):
        manifest = _manifest(folder)
        # A folder made for scoring alone may have no such split.
        if manifest is None or "train" not in manifest.splits:
            continue
        fits = _fits(manifest, source, Reading(**reading), tokenizer_sha256)
        if fits if fingerprint is None else manifest.fingerprint("train") == fingerprint:
            found.append(((folder / NAME).stat().st_mtime_ns, folder))
    # The name breaks ties of time, so that the answer does not depend on the disk's order.
    return max(found)[1] if found else None


def _folders(source: str) -> Iterator[Path]:
    """The default folders whose names begin as those of `source` do."""
    begin = f"{source_name(source)}-"
    if PROCESSED.is_dir():
        yield from (path for path in PROCESSED.iterdir() if path.name.startswith(begin))


def _manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none that can be read."""
    try:
        # A damaged folder is passed over here: it is only one of several that might fit.
        return Manifest.load(folder)
    except (ValueError, OSError):
        return None


def fits(folder: Path, *, source: str, tokenizer_sha256: str, **reading: Any) -> bool:
    """Whether `folder` holds finished shards that were made of `source` with these settings.

    `reading` as of `find`. Reads the manifest alone: the text of that source may have changed
    since, or be gone. Raises `ValueError` for a manifest that is damaged.
    """
    if not (folder / NAME).exists():
        return False
    return _fits(Manifest.load(folder), source, Reading(**reading), tokenizer_sha256)


def _fits(manifest: Manifest, source: str, reading: Reading, tokenizer_sha256: str) -> bool:
    made_of = (manifest.source.get("source"), manifest.tokenizer_sha256)
    return made_of == (source, tokenizer_sha256) and reading.agrees_with(manifest.source)


def recorded(run: Path) -> tuple[Path, ...]:
    """The shards that a run was trained on, a folder per text, as its run.json says.

    Empty if any of them is not there any more.

    `run` may also be one of its checkpoints. Of a text that was edited there may be several
    folders, and only these held out what this run did.
    """
    for home in (run, run.resolve().parent.parent):
        if (home / "run.json").is_file():
            content = json.loads((home / "run.json").read_text(encoding="utf-8"))
            named = content.get("shards", "")
            shards = tuple(map(Path, [named] if isinstance(named, str) else named))
            return shards if all((folder / NAME).is_file() for folder in shards) else ()
    return ()
