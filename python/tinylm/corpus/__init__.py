"""Where text comes from: a source string to documents to train on and documents to validate on.

A source is `stdlib` (the Python files of this interpreter's standard library, so that training
needs no network), `tasks` (conversations about its names), the name of a dataset in `DATASETS`,
`hf://OWNER/NAME` (`corpus.hub`), a file, or a folder of files. A file is read by its kind wherever
it lies: `.jsonl` and its like have one document per line and `.parquet` one per row, a text in the
field `text` (`data.text_field`) or a conversation in `messages`; a text is one document, or several
if a mark ends them (`data.separator`). Each may be packed as `.gz`, `.bz2`, `.xz` or `.zst`.
Formats that are not read, such as `.pdf`, are refused, and in a folder left out and counted.
Documents come one at a time, each held in memory whole, in the order of the names of the files or
in one that a seed draws (`data.shuffle_documents`); filters choose which stay (`data.filters`).

The content decides which part is validation, never chance: a hash of each file's path in its
folder, or of each document in files of many. Of a single text, and where the hashes leave a split
empty, it is the last part.

`open` reads the text once, to hash it. Open it once per start and hand the `Corpus` on.
"""

from tinylm.corpus.documents import Corpus, Kind
from tinylm.corpus.download import DATASETS, Hosted, Named, fetch
from tinylm.corpus.reading import Reading, reading
from tinylm.corpus.sources import is_download, open, source_name

__all__ = [
    "DATASETS",
    "Corpus",
    "Hosted",
    "Kind",
    "Named",
    "Reading",
    "fetch",
    "is_download",
    "open",
    "reading",
    "source_name",
]
