"""Where text comes from: a source string to documents to train on and documents to validate on.

A source is `stdlib` (the Python files of this interpreter's standard library, so that training
needs no network), the name of a dataset in `DATASETS`, a text file (one document), a `.jsonl`
file (one document per line, in the field `text`), or a folder (one document per text file).
Documents come one at a time, each held in memory whole, in an order that depends on nothing but
the names of the files.

The content decides which part is validation, never chance: in folders a hash of each file's
relative path, in jsonl a hash of each document; of a single text it is the last part.

`open` reads the text once, to hash it. Open it once per start and hand the `Corpus` on.
"""

from tinylm.corpus.documents import Corpus
from tinylm.corpus.download import DATASETS, Named, fetch
from tinylm.corpus.sources import open, source_name

__all__ = ["DATASETS", "Corpus", "Named", "fetch", "open", "source_name"]
