"""A source string to its corpus: `open`."""

import errno
from pathlib import Path

from tinylm.corpus.documents import Corpus
from tinylm.corpus.download import DATASETS, RAW, fetch
from tinylm.corpus.files import file
from tinylm.corpus.folders import folder, standard_library


def open(source: str, *, val_fraction: float, raw: Path = RAW) -> Corpus:
    """A source to its corpus; a named dataset is downloaded into `raw` the first time.

    Of `val_fraction=1` all is validation: such a text can be scored and not trained on.

    Raises ValueError for text that is empty, not UTF-8 or leaves a split without a document,
    and the OSError family for what cannot be read or fetched.
    """
    if not 0 < val_fraction <= 1:
        raise ValueError(f"data.val_fraction={val_fraction} must be above 0 and at most 1")
    if source == "stdlib":
        return standard_library(val_fraction)
    if source in DATASETS:
        path = fetch(source, raw)
        # `fetch` has read the file and found this hash.
        return file(path, source, source, val_fraction, DATASETS[source].sha256)
    path = Path(source)
    if path.is_dir():
        return folder(path, val_fraction)
    if not path.exists():
        names = ", ".join(["stdlib", *sorted(DATASETS)])
        problem = f"data.source is neither a file, a folder nor a dataset ({names})"
        raise FileNotFoundError(errno.ENOENT, problem, source)
    return file(path, path.stem, source, val_fraction)


def source_name(source: str) -> str:
    """The short name of a source: what its folder of shards is called after."""
    named = source == "stdlib" or source in DATASETS
    return source if named else Path(source).resolve().stem
