"""A source string to its corpus: `open`."""

import errno
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tinylm.corpus import hub, tasks
from tinylm.corpus.documents import Corpus
from tinylm.corpus.download import DATASETS, RAW, Named, fetch
from tinylm.corpus.files import file
from tinylm.corpus.filters import filtered
from tinylm.corpus.folders import files, folder, standard_library
from tinylm.corpus.reading import TEXT, Reading
from tinylm.corpus.shuffling import shuffled
from tinylm.corpus.texts import shown

# The sources that need neither a file of yours nor a download.
MADE = ("stdlib", tasks.SOURCE)


def open(
    source: str,
    *,
    val_fraction: float,
    separator: str = "auto",
    text_field: str = TEXT,
    filters: Iterable[str] = (),
    shuffle_documents: int | None = None,
    raw: Path = RAW,
) -> Corpus:
    """A source to its corpus; a named dataset is downloaded into `raw` the first time.

    Of `val_fraction=1` all is validation: such a text can be scored and not trained on. With 0
    nothing is held out.
    `separator` ends a document in text files: a string, `off`, or `auto` for `<|endoftext|>`
    where it begins or ends a line. `text_field` holds the text of a row, as `a.b` in an object.
    `filters` are names and limits of `corpus.filter_specs`, in their order. `shuffle_documents` is
    the seed of another order of the documents.

    Raises ValueError for text that is empty, not UTF-8 or leaves a split without a document,
    and the OSError family for what cannot be read or fetched.
    """
    how = Reading(
        val_fraction=val_fraction,
        separator=separator,
        text_field=text_field,
        filters=tuple(filters),
        shuffle_documents=shuffle_documents,
    )
    return shuffled(filtered(_whole(source, how, raw)))


def _whole(source: str, how: Reading, raw: Path) -> Corpus:
    """The corpus of a source with all its documents."""
    # Names come before paths: a folder of the same name is reached as ./stdlib.
    if source == "stdlib":
        return standard_library(how)
    if source == tasks.SOURCE:
        return tasks.corpus(how)
    row = DATASETS.get(source)
    if isinstance(row, Named):
        # `fetch` has read the file and found this hash.
        return file(fetch(source, raw), source, source, how, row.sha256)
    if row is not None or source.startswith(hub.SCHEME):
        found = hub.fetch(row.source if row else source, raw)
        text = files(found.folder, found.paths, source_name(source), source, how)
        return replace(text, notes=(*found.notes, *text.notes), origin={"hub": found.record})
    if not source:
        # As a path it would mean the current folder.
        raise ValueError("data.source='': name a text, a folder or a dataset")
    path = Path(source)
    try:
        source.encode()
    except UnicodeEncodeError:
        # The settings of a run, which name it, are saved in UTF-8.
        raise ValueError(f"data.source={shown(source)}: its name is not UTF-8: rename it") from None
    if path.is_dir():
        return folder(path, how)
    if not path.exists():
        names = ", ".join([*MADE, *sorted(DATASETS)])
        problem = f"data.source is neither a file, a folder, hf:// nor a dataset ({names})"
        raise FileNotFoundError(errno.ENOENT, problem, source)
    if not path.is_file():
        # Text is read several times: to hash it, to train a tokenizer, to make shards.
        raise ValueError(f"data.source={source}: is a pipe or a device: save its text to a file")
    return file(path, path.stem, source, how)


def is_download(source: str) -> bool:
    """Whether a source may have to be downloaded."""
    return source in DATASETS or source.startswith(hub.SCHEME)


def source_name(source: str) -> str:
    """The short name of a source: what its folder of shards is called after."""
    if source.startswith(hub.SCHEME):
        return hub.parse(source).name.rpartition("/")[2]
    named = source in MADE or source in DATASETS
    return source if named else Path(source).resolve().stem or "text"
