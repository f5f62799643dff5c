"""Encoding against the fastest peers: cl100k, one thread, in processor time of a fresh process.

    python benches/bench_encode.py                       all texts, to NumPy and to lists
    python benches/bench_encode.py english --to list     one text, one output
    python benches/bench_encode.py --json encode.json    the figures too
    python benches/bench_encode.py runs --sizes 1 8      hostile texts of 1 and 8 MB, ours alone
    python benches/bench_encode.py line                  one line to a list, all peers

Each measurement is a process of its own: it loads the vocabulary, encodes the first half of the
text (cold) and then the second half, which shares no byte with it (warm). The ids of all must have
one hash, or no speed is told. Rounds go in turn over the contenders; reported are medians, and the
median of the ratios inside a round. The folder `TINYLM_DATA` has the texts and the vocabulary.
Lines are encoded in one process, thousands of times each, by one contender after the other.
Peers take part where they are installed: `pip install gigatoken fastokens tiktoken splintr-rs
toktok-rs`.
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ("english", "multilingual", "stdlib")
PEERS = {"numpy": ("tinylm", "gigatoken"), "list": ("tinylm", "gigatoken", "fastokens", "tiktoken")}
LINE = "The tokenizer reads a line of sixty characters, like 1 of it."
CALLS = 20_000
RUNS: dict[str, Callable[[random.Random, int], str]] = {
    "one letter": lambda _, n: "a" * n,
    "spaces": lambda _, n: " " * n,
    "newlines": lambda _, n: "\n" * n,
    "digits": lambda _, n: "1" * n,
    "punctuation": lambda r, n: "".join(r.choices('!?.,;:-_()[]{}<>/\\|@#$%^&*+=~`"', k=n)),
    "letters": lambda r, n: "".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=n)),
    "CJK": lambda r, n: "".join(map(chr, r.choices(range(0x4E00, 0x9FA0), k=n // 3))),
}


def data() -> Path:
    """The folder of texts and vocabularies."""
    return Path(os.environ.get("TINYLM_DATA", "shared"))


def text_of(name: str) -> str:
    """A text by its name; of the standard library the first 16 MB."""
    if name != "stdlib":
        return (data() / "corpora" / f"{name}.txt").read_text(encoding="utf-8")
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    found = (p.read_text(encoding="utf-8", errors="ignore") for p in paths if "site-" not in str(p))
    return "\n".join(found)[:16_000_000]


def encoder(name: str, to: str, folder: Path) -> Callable[[str], Any]:
    """What encodes a text with cl100k, in the library `name`."""
    ranks = folder / "cl100k_base.tiktoken"
    if name == "tinylm":
        from tinylm import Tokenizer

        special = {"<|endoftext|>": 100257}
        ours = Tokenizer.load(ranks, pattern="gpt4", special_tokens=special)
        run = ours.encode_array if to == "numpy" else ours.encode
        return lambda text: run(text, special="text")
    if name == "gigatoken":
        import gigatoken

        giga = gigatoken.Tokenizer.from_tiktoken(str(ranks), pretokenizer="gpt4")
        return giga.encode if to == "numpy" else lambda text: giga.encode(text).tolist()
    if name == "fastokens":
        import fastokens

        fast = fastokens.Tokenizer.from_file(str(folder / "cl100k_base.json"))
        return lambda text: fast.encode(text, add_special_tokens=False).ids
    if name == "splintr":
        import splintr

        return splintr.Tokenizer(str(ranks), splintr.CL100K_BASE_PATTERN, {}).encode
    if name == "toktok":
        import toktok

        # Its public functions count only.
        return toktok._encoding("cl100k_base").encode_ordinary
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from tinylm.reference.patterns import PATTERNS

    open_ai = tiktoken.Encoding(
        "peer",
        pat_str=PATTERNS["gpt4"],
        mergeable_ranks=load_tiktoken_bpe(str(ranks)),
        special_tokens={},
    )
    return open_ai.encode_ordinary


def child(name: str, to: str, text_name: str, folder: Path) -> dict[str, Any]:
    """One measurement: megabytes a second of both halves, and the hash of the ids."""
    text = text_of(text_name)
    middle = text.index("\n", len(text) // 2)
    halves = text[:middle], text[middle:]
    run = encoder(name, to, folder)
    digest, speeds = hashlib.sha256(), []
    for half in halves:
        size = len(half.encode())
        start = time.process_time()
        ids = run(half)
        speeds.append(size / (time.process_time() - start) / 1e6)
        digest.update(np.asarray(ids, dtype=np.uint32).tobytes())
    return {"cold": speeds[0], "warm": speeds[1], "ids": digest.hexdigest()}


def prepare(folder: Path) -> None:
    """The vocabulary in the formats that the contenders read."""
    ranks = folder / "cl100k_base.tiktoken"
    ranks.write_bytes(gzip.decompress((data() / "fixtures/cl100k_base.tiktoken.gz").read_bytes()))
    if importlib.util.find_spec("fastokens"):
        from tinylm import Tokenizer

        # It refuses ids that no token has. Of this pattern it has a fast form, and of GPT-4's own,
        # which differs in white space that ends a text, it has none (4x slower).
        loaded = Tokenizer.load(ranks, pattern="llama3", special_tokens={})
        loaded.save(folder / "cl100k_base.json")


def race(text_name: str, to: str, rounds: int, folder: Path) -> dict[str, Any]:
    """All contenders in turn; prints and returns the medians and the ratios to ours."""
    names = [name for name in PEERS[to] if importlib.util.find_spec(name)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, __file__, "--child", name, to, text_name, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"  {name} fails: {done.stderr.strip().splitlines()[-1]}")
                names.remove(name)
                break
            found[name].append(json.loads(done.stdout))
    if len({run["ids"] for runs in found.values() for run in runs}) != 1:
        raise SystemExit(f"{text_name}: the contenders give different ids")
    print(f"\n{text_name} to {to}, MB/s (ours over theirs)")
    for name in names:
        row = f"  {name:10}"
        for state in ("cold", "warm"):
            speed = statistics.median(run[state] for run in found[name])
            pairs = zip(found["tinylm"], found[name], strict=True)
            ratio = statistics.median(ours[state] / theirs[state] for ours, theirs in pairs)
            row += f"  {state} {speed:6.1f} ({ratio:.2f}x)"
        print(row)
    return {name: found[name] for name in names}


def hostile(sizes: list[int], folder: Path) -> dict[str, list[float]]:
    """Our speed on texts that are one long piece, for each size in megabytes."""
    run = encoder("tinylm", "numpy", folder)
    speeds: dict[str, list[float]] = {}
    for name, make in RUNS.items():
        for size in sizes:
            text = make(random.Random(1), size * 1_000_000)
            start = time.process_time()
            run(text)
            taken = time.process_time() - start
            speeds.setdefault(name, []).append(len(text.encode()) / taken / 1e6)
        print(f"  {name:12}" + "".join(f" {speed:8.1f}" for speed in speeds[name]) + " MB/s")
    return speeds


def line(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Microseconds for a line to a list, of each contender in each round."""
    names = ("tinylm", "toktok", "splintr", "fastokens", "tiktoken", "gigatoken")
    names = tuple(name for name in names if importlib.util.find_spec(name))
    runs = {name: encoder(name, "list", folder) for name in names}
    if len({tuple(run(LINE)) for run in runs.values()}) != 1:
        raise SystemExit("the contenders give different ids for the line")
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            for _ in range(CALLS):
                run(LINE)
            # The first round only warms up.
            if number:
                taken[name].append((time.process_time() - start) / CALLS * 1e6)
    print(f"\na line of {len(LINE)} characters to a list, us")
    for name, times in taken.items():
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"  {name:10} {statistics.median(times):6.2f} ({spread})")
    return taken


def main() -> None:
    """Run the texts named, or all."""
    if sys.argv[1:2] == ["--child"]:
        name, to, text_name, place = sys.argv[2:]
        print(json.dumps(child(name, to, text_name, Path(place))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help=f"{', '.join(TEXTS)}, runs or line"
    )
    parser.add_argument("--to", choices=PEERS, help="default: both")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], help="of runs, in MB")
    parser.add_argument("--json", type=Path, help="write the figures of every round")
    options = parser.parse_args()
    unknown = [text for text in options.texts if text not in (*TEXTS, "runs", "line")]
    if unknown:
        parser.error(f"no text {unknown[0]!r}: {', '.join(TEXTS)}, runs or line")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for text in options.texts or TEXTS:
            if text == "runs":
                figures[text] = hostile(options.sizes, Path(place))
                continue
            if text == "line":
                figures[text] = line(options.rounds, Path(place))
                continue
            for to in (options.to,) if options.to else PEERS:
                figures[f"{text} to {to}"] = race(text, to, options.rounds, Path(place))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
