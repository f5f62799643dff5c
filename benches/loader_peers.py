"""What people make batches of tokens with, as `bench_loader.py` races it: each an endless iterator.

All read one file of uint16 and give int64. Rows of the shuffled ones begin every LENGTH tokens.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

BATCH, LENGTH, SEED = 64, 1024, 1
LOOP = "a loop in NumPy"
Make = Callable[[], Iterator[Any]]


class Rows:
    """The windows of the file, to hold batches against."""

    def __init__(self, path: Path) -> None:
        self.ids = np.fromfile(path, np.uint16)
        self.starts: dict[bytes, list[int]] = {}
        for start in range(0, len(self.ids) - LENGTH, LENGTH):
            self.starts.setdefault(self.ids[start : start + 8].tobytes(), []).append(start)

    def check(self, name: str, batch: Any) -> None:
        """Stop unless the rows of the batch, tokens and the one after them, are windows."""
        rows = whole(batch)
        for row in rows[:: BATCH // 8]:
            starts = self.starts.get(row[:8].astype(np.uint16).tobytes(), ())
            windows = (self.ids[start : start + LENGTH + 1] for start in starts)
            found = any(np.array_equal(row, window) for window in windows)
            # nanoGPT's rows begin anywhere.
            found = found or (name.startswith("nanoGPT") and row.tobytes() in self.anywhere(row))
            if rows.shape != (BATCH, LENGTH + 1) or not found:
                raise SystemExit(f"error: {name} gives other rows: no speed is reported for it")

    def anywhere(self, row: np.ndarray) -> set[bytes]:
        """The windows that begin with the first two tokens of `row`."""
        first = np.flatnonzero((self.ids[:-1] == row[0]) & (self.ids[1:] == row[1]))
        return {self.ids[i : i + LENGTH + 1].astype(np.int64).tobytes() for i in first}


def whole(batch: Any) -> np.ndarray:
    """Rows [BATCH, LENGTH + 1] of any contender's batch."""
    if isinstance(batch, tuple | list):
        tokens, targets = (np.asarray(part) for part in batch)
    elif hasattr(batch, "tokens"):
        tokens, targets = np.asarray(batch.tokens), np.asarray(batch.targets)
    else:
        return np.asarray(batch).astype(np.int64)
    return np.concatenate([tokens, targets[:, -1:]], axis=1)


class Windows(torch.utils.data.Dataset):
    """Row i of the tokens, as a map-style dataset has it."""

    def __init__(self, path: Path) -> None:
        self.ids = np.memmap(path, np.uint16, "r")

    def __len__(self) -> int:
        return (len(self.ids) - 1) // LENGTH

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = torch.from_numpy(self.ids[i * LENGTH : (i + 1) * LENGTH + 1].astype(np.int64))
        return window[:-1], window[1:]


def shuffled(n: int) -> Iterator[list[int]]:
    """Where the rows of each batch begin, epoch after epoch."""
    random = np.random.default_rng(SEED)
    while True:
        starts = (random.permutation(n // BATCH * BATCH) * LENGTH).reshape(-1, BATCH)
        yield from map(np.ndarray.tolist, starts)


def mapped(path: Path) -> np.ndarray:
    """The file as an array, with its pages at hand."""
    # No memmap: cutting one is slow, as it is a class of its own.
    ids = np.asarray(np.memmap(path, np.uint16, "r"))
    # A first look at a page is a fault, which a warm reader has behind it.
    ids[::2048].sum()
    return ids


def loop(path: Path, faults: bool = False) -> Iterator[Any]:
    """Row by row into arrays that are used again: the best that NumPy alone gives."""
    ids = np.asarray(np.memmap(path, np.uint16, "r")) if faults else mapped(path)
    tokens, targets = np.empty((2, BATCH, LENGTH), np.int64)
    for starts in shuffled((len(ids) - 1) // LENGTH):
        for row, start in enumerate(starts):
            tokens[row] = ids[start : start + LENGTH]
            targets[row] = ids[start + 1 : start + 1 + LENGTH]
        yield torch.from_numpy(tokens), torch.from_numpy(targets)


def gathered(path: Path) -> Iterator[Any]:
    """By one gather over a view of all windows."""
    ids = mapped(path)
    windows = np.lib.stride_tricks.sliding_window_view(ids, LENGTH + 1)
    for starts in shuffled((len(ids) - 1) // LENGTH):
        both = torch.from_numpy(windows[starts].astype(np.int64))
        yield both[:, :-1], both[:, 1:]


def nanogpt(path: Path) -> Iterator[Any]:
    """As nanoGPT's train.py: the file opened for each batch, random windows, stacked one by one."""
    while True:
        ids = np.memmap(path, np.uint16, "r")
        starts = torch.randint(len(ids) - LENGTH, (BATCH,))
        x = [torch.from_numpy(ids[i : i + LENGTH].astype(np.int64)) for i in starts]
        y = [torch.from_numpy(ids[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in starts]
        yield torch.stack(x), torch.stack(y)


def again(batches: Any) -> Iterator[Any]:
    """One epoch after the other."""
    while True:
        yield from batches


def torch_loader(path: Path, workers: int, kind: Any = DataLoader) -> Any:
    """torch's own or one with its arguments, shuffled."""
    return kind(Windows(path), BATCH, shuffle=True, num_workers=workers, drop_last=True)


def stateful(path: Path) -> Any:
    """torchdata's, which can be saved."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return torch_loader(path, 0, StatefulDataLoader)


def grain(path: Path) -> Iterator[Any]:
    """Google's, in its own thread."""
    import grain.python as library

    class Source:
        """Rows by number."""

        def __init__(self) -> None:
            self.ids = np.asarray(np.memmap(path, np.uint16, "r"))

        def __len__(self) -> int:
            return (len(self.ids) - 1) // LENGTH

        def __getitem__(self, i: int) -> np.ndarray:
            return self.ids[i * LENGTH : i * LENGTH + LENGTH + 1].astype(np.int64)

    rows = library.MapDataset.source(Source()).seed(SEED).shuffle().repeat()
    options = library.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(rows.to_iter_dataset(options).batch(BATCH))


def litdata(path: Path, folder: Path) -> Iterator[Any]:
    """Lightning's, over chunks of its own format."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    out = folder / "litdata"
    if not (out / "index.json").exists():
        rows = 8000
        loader = TokensLoader(block_size=LENGTH + 1)
        cache = Cache(str(out), chunk_bytes=2 * rows * (LENGTH + 1), item_loader=loader)
        ids = np.fromfile(path, np.uint16)
        for i in range((len(ids) - 1) // LENGTH):
            cache[i] = torch.from_numpy(ids[i * LENGTH : i * LENGTH + LENGTH + 1].copy())
        cache.done()
        cache.merge()
    data = StreamingDataset(
        str(out), item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True, drop_last=True
    )
    for batch in again(StreamingDataLoader(data, batch_size=BATCH, drop_last=True)):
        yield batch.long()


def mosaic(path: Path, folder: Path) -> Any:
    """MosaicML's, over shards of its own format."""
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    out = folder / "mosaic"
    if not (out / "index.json").exists():
        ids = np.fromfile(path, np.uint16)
        with MDSWriter(columns={"tokens": "bytes"}, out=str(out)) as writer:
            for i in range((len(ids) - 1) // LENGTH):
                window = ids[i * LENGTH : i * LENGTH + LENGTH + 1]
                writer.write({"tokens": window.tobytes()})

    class Data(StreamingDataset):  # type: ignore[misc]
        """Bytes to ids."""

        def __getitem__(self, i: int) -> torch.Tensor:
            ids = np.frombuffer(super().__getitem__(i)["tokens"], np.uint16)
            return torch.from_numpy(ids.astype(np.int64))

    data = Data(local=str(out), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
    return again(StreamingDataLoader(data, batch_size=BATCH, num_workers=0, drop_last=True))


def all_of(path: Path, folder: Path) -> dict[str, Make]:
    """The contenders that can run here, by name; says which cannot."""
    makers: dict[str, Make] = {
        LOOP: lambda: loop(path),
        "a gather in NumPy": lambda: gathered(path),
        "nanoGPT's get_batch": lambda: nanogpt(path),
        "torch DataLoader": lambda: again(torch_loader(path, 0)),
        "torch DataLoader, 2 workers": lambda: again(torch_loader(path, 2)),
    }
    others: dict[str, tuple[str, str, Make]] = {
        "StatefulDataLoader": ("torchdata", "torchdata", lambda: again(stateful(path))),
        "Grain": ("grain", "grain", lambda: grain(path)),
        "litData": ("litdata", "litdata", lambda: litdata(path, folder)),
        "MosaicML streaming": ("streaming", "mosaicml-streaming", lambda: mosaic(path, folder)),
    }
    for name, (module, package, make) in others.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed: pip install {package}")
            continue
        try:
            next(iter(make()))
        except Exception as error:
            # An old or half installed peer must not end the run, and is not passed over in silence.
            print(f"{name} does not run here: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        makers[name] = make
    return makers


def resumed(path: Path, steps: int = 500) -> Iterator[tuple[str, int, float]]:
    """Bytes of state and ms from it to the next batch, of those that can be saved."""
    if importlib.util.find_spec("torchdata") is None:
        return
    loader = stateful(path)
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    state = loader.state_dict()
    other = stateful(path)
    begin = time.perf_counter()
    other.load_state_dict(state)
    next(iter(other))
    took = (time.perf_counter() - begin) * 1e3
    yield f"StatefulDataLoader, step {steps}", len(json.dumps(state, default=str)), took
