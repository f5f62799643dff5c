"""Text to shards to batches: prepare a corpus once, then stream its rows to the training loop.

`prepare` writes a folder of shards, `Dataset` reads one, `Loader` serves batches of it. The
work is done by the Rust crate `tinylm-dataloader`; `python -m tinylm.data` is the command.
"""

from tinylm.data.arrays import ArrayDataset
from tinylm.data.batch import Batch
from tinylm.data.folders import default_folder, find, fits, given, is_shards, recorded
from tinylm.data.loader import Loader
from tinylm.data.manifest import Manifest
from tinylm.data.preparation import encode_file, prepare, prepare_share
from tinylm.data.shards import Dataset, ShardWriter

__all__ = [
    "ArrayDataset",
    "Batch",
    "Dataset",
    "Loader",
    "Manifest",
    "ShardWriter",
    "default_folder",
    "encode_file",
    "find",
    "fits",
    "given",
    "is_shards",
    "prepare",
    "prepare_share",
    "recorded",
]
