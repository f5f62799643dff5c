"""The named datasets: files that never change, downloaded and verified the first time.

One row has the SHA-256 of its file. The others name a repository of the Hugging Face hub, whose own
list of files has the hashes: they are checked at the download and recorded, with the commit, in the
manifest of the shards. These rows follow the branch `main`, and no copy of them was at hand when
they were written: a repository or a path that is not there (any more) is an error that says what
is. To stay with what was read, name the commit of the manifest: hf://OWNER/NAME@COMMIT/PATH.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tinylm import disk
from tinylm.corpus.requests import connect

RAW = Path("data/raw")


@dataclass(frozen=True, slots=True)
class Named:
    """One row of the table of datasets: a file that never changes."""

    url: str
    sha256: str
    bytes: int
    licence: str


@dataclass(frozen=True, slots=True)
class Hosted:
    """One row of the table: data files of a repository on the hub, as `data.source` names them."""

    source: str
    licence: str


# Each is cut as its kind of file is: a text loses its last `val_fraction` to validation, of files
# with many documents a hash of each chooses its split. What a repository holds out itself (the
# files *valid* of TinyStories) is not read. Licences as far as known: read the repository's card.
DATASETS: dict[str, Named | Hosted] = {
    "tinyshakespeare": Named(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        bytes=1_115_394,
        licence="public domain",
    ),
    # Stories that GPT-4 wrote for children, one text with <|endoftext|> (Eldan, Li 2023).
    "tinystories": Hosted(
        source="hf://roneneldan/TinyStories/TinyStoriesV2-GPT4-train.txt",
        licence="CDLA-Sharing-1.0",
    ),
    # 100,000 documents of the pages that links on Reddit lead to (Gokaslan, Cohen 2019).
    "openwebtext-sample": Hosted(
        source="hf://Elriggs/openwebtext-100k",
        licence="CC0-1.0 of the collection; the texts are their authors'",
    ),
    # About 10 billion tokens of educational pages (Penedo et al. 2024).
    "fineweb-edu-sample": Hosted(
        source="hf://HuggingFaceFW/fineweb-edu/sample/10BT",
        licence="ODC-By-1.0",
    ),
    # Python that a model rewrote in a clear style (Fujii et al. 2025).
    "swallow-code": Hosted(
        source="hf://tokyotech-llm/swallow-code/*exp11-scor*",
        licence="Llama 3.3 Community License",
    ),
}


def fetch(name: str, raw: Path = RAW) -> Path:
    """The file of a named dataset that has one, downloaded and verified the first time.

    Fails within 5 seconds of a connection that does not come or does not go on.
    """
    dataset = DATASETS[name]
    if not isinstance(dataset, Named):
        raise ValueError(f"{name} is {dataset.source}, whose files tinylm.corpus.open downloads")
    path = raw / name / dataset.url.rpartition("/")[2]
    # Hashed at every start: a file that was edited would give other shards under the same name.
    if path.exists():
        _check(path, dataset)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.Lock(path.parent, advice="release its lock first", wait=True):
        # Another process may have brought it in the meantime.
        if not path.exists():
            disk.remove_parts(path.parent)
            _bring(name, dataset, path)
    return path


def _bring(name: str, dataset: Named, path: Path) -> None:
    """Download a dataset to `path`, which gets its name when the content is right."""
    with disk.replacing(path) as file:
        try:
            _download(dataset.url, file, dataset.bytes)
        except OSError as error:
            raise ConnectionError(
                f"cannot download {name} ({error}): put the file of {dataset.url} "
                f"with sha256 {dataset.sha256} at {path}"
            ) from None
        file.flush()
        _check(Path(file.name), dataset)


def _check(path: Path, dataset: Named) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != dataset.sha256:
        raise ValueError(
            f"{path}: expected {dataset.bytes} bytes with sha256 {dataset.sha256}, found "
            f"{path.stat().st_size} with {found}: remove it, or get it from {dataset.url}"
        )


def _download(url: str, file: BinaryIO, size: int) -> None:
    """Write at most `size` + 1 bytes of `url` to `file`."""
    with connect(url) as response:
        # A byte too many is enough to see that it is another file.
        while file.tell() <= size and (piece := response.read(min(1 << 16, size + 1))):
            file.write(piece)
