"""How much of the tokenizer's rate `prepare` keeps: a text to shards, beside encoding it alone.

    python benches/bench_prepare.py TEXT TOKENIZER [REPEATS]

Both encode the same batches of the same documents with all cores. The encoder alone has them in
memory and drops the ids; `prepare` reads them, chooses their splits, hashes and writes the shards.
Prints MB of text per second, by the clock and by the processor time of all threads, in turns, and
the ratio of the medians with its least and greatest pair.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tinylm import Tokenizer, corpus
from tinylm.data import encoding, prepare


def clocked(action):
    """Seconds by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def main(source, tokenizer, repeats=7):
    words = Tokenizer.load(tokenizer)
    text = corpus.open(source, val_fraction=0.005)
    batches = [batch.texts for batch in encoding._batches(text.sections, words) if batch.texts]
    size = sum(len(text) for batch in batches for text in batch)

    def alone():
        for batch in batches:
            words.encode_batch(batch, special="text")

    folder = Path(tempfile.mkdtemp())

    def whole():
        prepare(text, words, folder / "shards")

    alone()
    rates = {"encoder alone": [], "prepare": []}
    for _ in range(int(repeats)):
        for name, action in (("encoder alone", alone), ("prepare", whole)):
            rates[name].append([size / 1e6 / seconds for seconds in clocked(action)])
            shutil.rmtree(folder / "shards", ignore_errors=True)
    shutil.rmtree(folder)
    print(f"{source}: {size / 1e6:.1f} MB of text in {len(batches)} batches")
    for kind, place in (("clock", 0), ("processor", 1)):
        a, b = ([pair[place] for pair in rates[name]] for name in rates)
        pairs = [q / p for p, q in zip(a, b, strict=True)]
        print(
            f"  {kind}: alone {statistics.median(a):.0f} MB/s, prepare {statistics.median(b):.0f} "
            f"MB/s, ratio {statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
