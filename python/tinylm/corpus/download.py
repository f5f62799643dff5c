"""The named datasets: files that never change, downloaded and verified the first time."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinylm import disk

RAW = Path("data/raw")

# Seconds to a connection, and between two pieces of a download.
# With the half second of `_connect` this stays below the 5 seconds that `fetch` promises.
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


def fetch(name: str, raw: Path = RAW) -> Path:
    """The file of a named dataset, downloaded and verified the first time.

    Fails within 5 seconds of a connection that does not come or does not go on.
    """
    dataset = DATASETS[name]
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
    with _connect(url) as response:
        # A byte too many is enough to see that it is another file.
        while file.tell() <= size and (piece := response.read(min(1 << 16, size + 1))):
            file.write(piece)


def _connect(url: str) -> Any:
    """The response of `url`. In a thread, because looking up a name has no time-out."""
    # Imported late: most runs download nothing.
    import http.client
    import urllib.error
    import urllib.request

    answer: list[Any] = []

    def connect() -> None:
        try:
            answer.append(urllib.request.urlopen(url, timeout=TIMEOUT))
        except (OSError, http.client.HTTPException) as error:
            answer.append(error)

    # A daemon, so that a lookup that hangs cannot keep the process alive.
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
