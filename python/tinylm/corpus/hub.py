"""Data files of a dataset repository on the Hugging Face hub: listed, downloaded, verified.

    hf://roneneldan/TinyStories@main/TinyStories-train.txt
    hf://OWNER/NAME[@REVISION][/FILE, FOLDER or PATTERN]

Files lie at `data/raw/hub/OWNER/NAME/COMMIT/`, and beside it `COMMIT.json` is the hub's list of the
repository at that commit: size and hash of each file, by which it is verified when it is downloaded
(SHA-256, of small files the SHA-1 of git). Later starts compare sizes; the corpus' fingerprint is
of the text in any case. A commit of 40 digits needs no network once its files are there. Of a
branch or tag the hub is asked at each start; if it does not answer, the commit of before is taken.

The standard library is enough: three addresses of the hub are read. HF_ENDPOINT names another hub
and HF_TOKEN a key for repositories that want one, as with the hub's own client.
"""

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from tinylm import disk, terminal
from tinylm.corpus import requests
from tinylm.corpus.archives import inner
from tinylm.corpus.kinds import has_rows

SCHEME = "hf://"
# A revision may have slashes only where the hub itself makes such names.
_SOURCE = re.compile(
    r"hf://(?:datasets/)?(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/@]+))?(?:/(?P<path>.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Repository:
    """What a source of the hub names: `path` is a file, a folder, a pattern, or empty for all."""

    name: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """Its page for people."""
        return f"{endpoint()}/datasets/{self.name}/tree/{quote(self.revision, safe='')}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a repository; `hash` is "sha256:..." of its bytes or "git:..." of git's blob."""

    path: str
    bytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files that are there. `record` is for the manifest, `notes` for the user."""

    folder: Path
    paths: list[Path]
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


def endpoint() -> str:
    """The address of the hub; `ValueError` if HF_ENDPOINT is none."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not re.match(r"https?://[^/\s]", address):
        raise ValueError(f"HF_ENDPOINT={address} must be an address: https://huggingface.co")
    return address


def parse(source: str) -> Repository:
    """`hf://...` to what it names; `ValueError` if it is written in another way."""
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise ValueError(
            f"data.source={source}: a repository of the hub is {SCHEME}OWNER/NAME, with "
            f"@REVISION and /FILE behind it if need be"
        )
    path = (found["path"] or "").strip("/")
    return Repository(found["name"], unquote(found["revision"] or "main"), path)


def fetch(source: str, raw: Path) -> Snapshot:
    """The data files that a source names, downloaded below `raw` where they are not there yet.

    Without a path these are all texts, rows and tables. Raises `ConnectionError` within 5 seconds
    where the hub does not answer, with the place for the files, and `ValueError` for a repository,
    revision or path that is not there and for a file whose hash is not the hub's.
    """
    repository = parse(source)
    home = raw / "hub" / repository.name
    home.mkdir(parents=True, exist_ok=True)
    with disk.Lock(home, advice="release its lock first", wait=True):
        disk.remove_parts(home)
        try:
            commit, notes = _commit(repository, home)
            entries = _listing(repository, commit, home)
        except ConnectionError as error:
            return _by_hand(repository, home, error)
        folder = home / commit
        chosen = _choose(repository, [entry.path for entry in entries])
        wanted = [entry for entry in entries if entry.path in chosen]
        for number, entry in enumerate(wanted, 1):
            _bring(repository, commit, folder, entry, f"{number} of {len(wanted)}")
    record = {
        "repository": repository.name,
        "revision": repository.revision,
        "commit": commit,
        "files": [{"path": e.path, "bytes": e.bytes, "hash": e.hash} for e in wanted],
    }
    return Snapshot(folder, [folder / entry.path for entry in wanted], record, notes)


def _commit(repository: Repository, home: Path) -> tuple[str, tuple[str, ...]]:
    """The commit of a revision, and a note where it is only the one of before."""
    if _COMMIT.fullmatch(repository.revision):
        return repository.revision, ()
    known = home / f"{quote(repository.revision, safe='')}.commit"
    try:
        found = _ask(repository, f"revision/{quote(repository.revision, safe='')}")
    except ConnectionError:
        if not known.exists():
            raise
        commit = known.read_text().strip()
        note = f"{repository.url} does not answer: commit {commit[:8]} of before is taken"
        return commit, (note,)
    commit = str(found[0].get("sha", "") if isinstance(found[0], dict) else "")
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"{repository.url}: the hub's answer names no commit")
    disk.replace(known, commit.encode())
    return commit, ()


def _listing(repository: Repository, commit: str, home: Path) -> list[Entry]:
    """The hub's list of a commit's files, kept beside them."""
    kept = home / f"{commit}.json"
    if not kept.exists():
        pages = _ask(repository, f"tree/{commit}?recursive=true&expand=false")
        rows = [_entry(row) for page in pages for row in page if row.get("type") == "file"]
        disk.replace(kept, json.dumps(rows, indent=1).encode())
    return [Entry(*row) for row in json.loads(kept.read_bytes())]


def _entry(row: dict[str, Any]) -> tuple[str, int, str]:
    """A row of the hub's list; what is stored apart (LFS) has its SHA-256, the rest git's hash."""
    path, lfs = str(row["path"]), row.get("lfs")
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"the hub lists {path!r}, which would lie outside of its folder")
    found = f"sha256:{lfs['oid']}" if lfs else f"git:{row['oid']}"
    return path, int((lfs or row)["size"]), found


def _ask(repository: Repository, what: str) -> list[Any]:
    """The answers of the hub's interface, page by page."""
    url: str | None = f"{endpoint()}/api/datasets/{repository.name}/{what}"
    pages = []
    while url is not None:
        with _opened(repository, url) as response:
            try:
                pages.append(json.loads(response.read()))
            except ValueError:
                raise ValueError(f"{url}: the answer is no JSON: is HF_ENDPOINT a hub?") from None
            # As GitHub pages: <address>; rel="next".
            following = re.search(r'<([^>]*)>;\s*rel="next"', response.headers.get("Link") or "")
            url = following[1] if following else None
    return pages


def _opened(repository: Repository, url: str, begin: int = 0) -> Any:
    """The response of the hub; `ValueError` for what is not there, `ConnectionError` for none."""
    import urllib.error

    token = os.environ.get("HF_TOKEN")
    secret = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return requests.connect(url, begin=begin, secret=secret)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise ValueError(
                f"{repository.url}: the hub has no such repository or revision, or wants a key "
                f"({error.code}): mend data.source, or set HF_TOKEN"
            ) from None
        raise ConnectionError(f"{url}: {error}") from None
    except OSError as error:
        raise ConnectionError(f"{url}: {error}") from None


def _choose(repository: Repository, paths: Sequence[str]) -> set[str]:
    """Those of the paths that the source names; `*` in a pattern stands for slashes too."""
    path = repository.path
    if not path:
        chosen = {name for name in paths if _is_data(name)}
    elif path in paths:
        chosen = {path}
    else:
        within = {n for n in paths if fnmatch.fnmatchcase(n, path) or n.startswith(f"{path}/")}
        chosen = {name for name in within if _is_data(name)} or within
    if not chosen:
        some = ", ".join(sorted(paths)[:5]) or "nothing"
        raise ValueError(
            f"{repository.url}: {path or 'no file of texts'} is not in it; it has {some}"
            f"{', ...' if len(paths) > 5 else ''}"
        )
    return chosen


def _is_data(name: str) -> bool:
    """Whether a file of this name is for training and not about the repository."""
    return has_rows(Path(name)) or inner(Path(name)).suffix.lower() == ".txt"


def _bring(repository: Repository, commit: str, folder: Path, entry: Entry, number: str) -> None:
    """Download a file, unless one of its size is there."""
    path = folder / entry.path
    if path.exists():
        if path.stat().st_size != entry.bytes:
            raise ValueError(
                f"{path}: expected {entry.bytes:,} bytes, found {path.stat().st_size:,}: remove it"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.remove_parts(path.parent)
    url = f"{endpoint()}/datasets/{repository.name}/resolve/{commit}/{quote(entry.path)}"
    live = terminal.watched()
    with disk.replacing(path) as file:
        try:
            for done in _pieces(repository, url, file, entry.bytes):
                if live:
                    terminal.draw(
                        f"\r\x1b[Kdownload {entry.path} ({number}): {done / 1e6:,.1f} of "
                        f"{entry.bytes / 1e6:,.1f} MB"
                    )
        except ConnectionError as error:
            raise ConnectionError(
                f"cannot download {entry.path} of {repository.name} ({error}): try again, or put "
                f"the file of {url} at {path}"
            ) from None
        if live:
            terminal.draw("\n")
        file.flush()
        _check(Path(file.name), entry, url)


def _pieces(repository: Repository, url: str, file: BinaryIO, size: int) -> Iterator[int]:
    """Write `url` to `file`, from where it broke off as long as each try brings more."""
    import http.client

    problem, before = "the connection ended", -1
    while before < file.tell() < size or before < 0:
        before = file.tell()
        with _opened(repository, url, begin=before) as response:
            if before and response.status != 206:
                # Everything is sent again.
                file.seek(0)
                file.truncate()
            # A byte too many is enough to see that it is another file.
            while file.tell() <= size:
                try:
                    piece = response.read(1 << 16)
                except (OSError, http.client.HTTPException) as error:
                    problem = str(error)
                    break
                if not piece:
                    break
                file.write(piece)
                yield file.tell()
    if file.tell() < size:
        raise ConnectionError(f"{problem} after {file.tell():,} of {size:,} bytes")


def _check(path: Path, entry: Entry, url: str) -> None:
    """Raise `ValueError` unless a file has the hub's hash."""
    kind, _, wanted = entry.hash.partition(":")
    digest = hashlib.sha256()
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise ValueError(
            f"{url}: expected {entry.bytes:,} bytes with {entry.hash}, found "
            f"{path.stat().st_size:,} with {digest.hexdigest()}: try again later"
        )


def _by_hand(repository: Repository, home: Path, error: ConnectionError) -> Snapshot:
    """What somebody has put where the files belong, since the hub does not answer."""
    folder = home / quote(repository.revision, safe="")
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    if not there:
        raise ConnectionError(
            f"cannot reach the hub ({error}): put the files of {repository.url} into {folder}"
        )
    chosen = _choose(repository, [path.relative_to(folder).as_posix() for path in there])
    record = {"repository": repository.name, "revision": repository.revision, "commit": None}
    note = f"{repository.url} does not answer: the files in {folder} are taken without a check"
    return Snapshot(folder, [folder / name for name in sorted(chosen)], record, (note,))
