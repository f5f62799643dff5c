"""Where text comes from: a source string to documents to train on and documents to validate on.

A source is `stdlib` (the Python files of this interpreter's standard library, so that training
needs no network), the name of a dataset in `DATASETS`, a text file (one document), a `.jsonl`
file (a document a line, in the field `text`), or a folder (every text file in it a document).
Documents come one at a time, each held in memory whole, in an order that depends on nothing but
the names of the files.

What is validation is decided by content, never by chance: in folders by a hash of each file's
relative path, in jsonl by a hash of each document, in a single text it is the last part.
"""

import errno
import hashlib
import json
import os
import sysconfig
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAW = Path("data/raw")

# Seconds to a connection, and between two pieces of a download.
TIMEOUT = 4.0


@dataclass(frozen=True, slots=True)
class Named:
    """One row of the table of datasets: a file that never changes."""

    url: str
    sha256: str
    bytes: int
    licence: str


# Each is cut as its kind of file is: a text loses its last `val_fraction` to validation.
DATASETS = {
    "tinyshakespeare": Named(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        bytes=1_115_394,
        licence="public domain",
    ),
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of one source.

    `fingerprint` is a hash of their content: equal for equal text, wherever it lies.
    """

    name: str
    source: str
    files: int
    bytes: int
    fingerprint: str
    documents: Callable[[bool], Iterator[str]]

    def train(self) -> Iterator[str]:
        """The documents to train on, one at a time."""
        return self.documents(False)

    def validation(self) -> Iterator[str]:
        """The documents held out, one at a time."""
        return self.documents(True)

    def provenance(self) -> dict[str, Any]:
        """What a manifest says of where its text came from."""
        return {
            "name": self.name,
            "source": self.source,
            "files": self.files,
            "bytes": self.bytes,
            "fingerprint": self.fingerprint,
        }


def open(source: str, *, val_fraction: float, raw: Path = RAW) -> Corpus:
    """A source to its corpus; a named dataset is downloaded into `raw` the first time.

    Of `val_fraction=1` all is validation: such a text can be scored and not trained on.

    Raises ValueError for text that is empty, not UTF-8 or leaves a split without a document,
    and the OSError family for what cannot be read or fetched.
    """
    if not 0 < val_fraction <= 1:
        raise ValueError(f"data.val_fraction={val_fraction} must be above 0 and at most 1")
    if source == "stdlib":
        return _standard_library(val_fraction)
    if source in DATASETS:
        path = fetch(source, raw)
        return _file(path, source, source, val_fraction)
    path = Path(source)
    if path.is_dir():
        return _folder(path, val_fraction)
    if not path.exists():
        names = ", ".join(["stdlib", *sorted(DATASETS)])
        problem = f"data.source is neither a file, a folder nor a dataset ({names})"
        raise FileNotFoundError(errno.ENOENT, problem, source)
    return _file(path, path.stem, source, val_fraction)


def source_name(source: str) -> str:
    """The short name of a source: what its folder of shards is called after."""
    named = source == "stdlib" or source in DATASETS
    return source if named else Path(source).resolve().stem


def _in_validation(label: bytes, val_fraction: float) -> bool:
    """Whether the hash of `label`, its low 64 bits as a fraction, is below `val_fraction`.

    The high bits would serve as well, but among the files of the standard library that they hold
    out, one generated file of English prose is 70% of the text.
    """
    number = int.from_bytes(hashlib.sha256(label).digest()[-8:], "big")
    return number < val_fraction * 2**64


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise ValueError(
            f"{path}: byte {at} is not UTF-8: convert the file (iconv -t UTF-8) or leave it out"
        ) from None


# Folders


def _is_text(path: Path) -> bool:
    """Binary formats have a zero byte early on; text has none."""
    with path.open("rb") as file:
        return b"\0" not in file.read(8192)


def _texts(root: Path) -> list[Path]:
    """Every visible text file below `root`, by relative path."""
    return [path for path in _walk(root, skipped=()) if _is_text(path)]


def _walk(root: Path, skipped: Collection[str]) -> list[Path]:
    """Every visible file below `root` that is not empty, by relative path."""
    found = []
    for folder, folders, names in os.walk(root):
        # Pruned in place: an installed torch has more files than the rest of the tree.
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        found += [Path(folder, name) for name in names if name[0] != "."]
    found = [path for path in found if path.is_file() and path.stat().st_size]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _folder(root: Path, val_fraction: float) -> Corpus:
    files = _texts(root)
    if not files:
        raise ValueError(f"data.source={root} holds no text file")
    return _of_files(root.resolve().name, str(root), root, files, val_fraction)


def _standard_library(val_fraction: float) -> Corpus:
    """The `.py` files of the standard library, without tests, installed packages and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
    files = [path for path in _walk(root, skipped) if path.suffix == ".py"]
    if not files:
        raise FileNotFoundError(
            errno.ENOENT,
            "this Python has no library sources: name a text with data.source=FILE",
            str(root),
        )
    return _of_files("stdlib", "stdlib", root, files, val_fraction)


def _of_files(name: str, source: str, root: Path, files: list[Path], val_fraction: float) -> Corpus:
    """One document a file."""
    labels = {path: path.relative_to(root).as_posix().encode() for path in files}
    held_out = {path for path in files if _in_validation(labels[path], val_fraction)}
    rest = len(files) - len(held_out)
    for split, left in (("validation", len(held_out)), ("training", rest or val_fraction == 1)):
        if not left:
            raise ValueError(
                f"data.val_fraction={val_fraction} leaves no {split} text in the {len(files)} "
                f"files of data.source={source}: change the fraction or add files"
            )
    digest = hashlib.sha256()
    size = 0
    for path in files:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                content.update(piece)
                size += len(piece)
        digest.update(labels[path] + b"\0" + content.digest())

    def documents(validation: bool) -> Iterator[str]:
        for path in files:
            if (path in held_out) == validation:
                yield _decode(path.read_bytes(), path)

    return Corpus(name, source, len(files), size, digest.hexdigest(), documents)


# Single files


def _file(path: Path, name: str, source: str, val_fraction: float) -> Corpus:
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"data.source={source} is empty")
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix == ".jsonl":

        def documents(validation: bool) -> Iterator[str]:
            for text in _lines(path):
                if _in_validation(text.encode(), val_fraction) == validation:
                    yield text
    else:
        cut = _cut(path, int((1 - val_fraction) * size))
        if val_fraction < 1 and cut in (0, size):
            raise ValueError(
                f"data.source={source} of {size} bytes is too small for "
                f"data.val_fraction={val_fraction}"
            )

        def documents(validation: bool) -> Iterator[str]:
            if not validation and cut == 0:
                return
            with path.open("rb") as file:
                file.seek(cut if validation else 0)
                data = file.read() if validation else file.read(cut)
            yield _decode(data, path, cut if validation else 0)

    return Corpus(name, source, 1, size, fingerprint, documents)


def _cut(path: Path, at: int) -> int:
    """The start of the character that holds byte `at`."""
    with path.open("rb") as file:
        first = max(0, at - 3)
        file.seek(first)
        data = file.read(at - first + 1)
    while at > first and data[at - first] & 0xC0 == 0x80:
        at -= 1
    return at


def _lines(path: Path) -> Iterator[str]:
    """The texts of a jsonl file; blank lines and empty texts are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                text = record["text"]
                text.encode()
            except UnicodeError:
                raise ValueError(f"{path}: line {number} is not UTF-8 text") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
            except (KeyError, TypeError, AttributeError):
                raise ValueError(f'{path}: line {number} has no text in a field "text"') from None
            if text:
                yield text


# Downloads


def fetch(name: str, raw: Path = RAW) -> Path:
    """The file of a named dataset, downloaded and verified the first time.

    Fails within 5 seconds of a connection that does not come or does not go on.
    """
    dataset = DATASETS[name]
    path = raw / name / dataset.url.rpartition("/")[2]
    if path.exists():
        _check(path, dataset)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _download(dataset.url, part, dataset.bytes)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConnectionError(
            f"cannot download {name} ({error}): put the file of {dataset.url} "
            f"with sha256 {dataset.sha256} at {path}"
        ) from None
    try:
        _check(part, dataset)
    except ValueError:
        part.unlink()
        raise
    part.rename(path)
    return path


def _check(path: Path, dataset: Named) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != dataset.sha256:
        raise ValueError(
            f"{path}: expected {dataset.bytes} bytes with sha256 {dataset.sha256}, found "
            f"{path.stat().st_size} with {found}: remove it, or get it from {dataset.url}"
        )


def _download(url: str, path: Path, size: int) -> None:
    """Write at most `size` + 1 bytes of `url` to `path`, synced."""
    response = _connect(url)
    with response, path.open("wb") as file:
        # A byte too many is enough to see that it is another file.
        while file.tell() <= size and (piece := response.read(min(1 << 16, size + 1))):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _connect(url: str) -> Any:
    """The response of `url`. In a thread, because looking up a name has no time-out."""
    import http.client
    import urllib.error
    import urllib.request

    answer: list[Any] = []

    def connect() -> None:
        try:
            answer.append(urllib.request.urlopen(url, timeout=TIMEOUT))
        except (OSError, http.client.HTTPException) as error:
            answer.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT + 0.5)
    if not answer:
        raise TimeoutError(f"no answer in {TIMEOUT} s")
    if isinstance(answer[0], urllib.error.HTTPError):
        answer[0].close()
    if isinstance(answer[0], OSError):
        raise answer[0]
    if isinstance(answer[0], Exception):
        raise ConnectionError(str(answer[0]))
    return answer[0]
