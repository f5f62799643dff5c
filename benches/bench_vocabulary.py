"""Training, decoding and loading of tokenizers against those that people use, on this machine.

    python benches/bench_vocabulary.py train english.txt    processor time and memory of a training
    python benches/bench_vocabulary.py decode english.txt   ids to str and to bytes
    python benches/bench_vocabulary.py load                 files of 100,000 and of 32,000 tokens
    python benches/bench_vocabulary.py train FILE --json rows.json   the figures too

`decode` and `load` need cl100k_base.tiktoken.gz in the folder `fixtures` of `TINYLM_DATA`. Peers
that are not installed are left out and named: gigatoken, ffbpe, rustbpe, splintr-rs, rs_bpe.

A training runs in a process of its own, on one thread unless `--threads` says otherwise. Reported
are its processor time and how far its peak memory rises above what the imports took, as medians of
the rounds. All split as GPT-2 does, which is all that two of the peers know. Ties are decided
differently, so the gate is the number of tokens that each vocabulary needs for the whole corpus:
within 0.2% of ours. Peers that take documents get them from a generator, 64 KiB of whole lines
each, so that nobody pays for a list of them. Decoders must give the text back before they are
timed, and loaded tokenizers the same ids.
"""

import argparse
import gzip
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from race import OURS, Race, check, measure, report

from tinylm import Tokenizer

PATTERN, THREADS = "gpt2", "THREADS"
DOCUMENT = 1 << 16
# How far a peer's compression may be from ours: the rules for ties differ.
APART = 0.002


def installed(*names: str) -> list[str]:
    """Those of these modules that are here; the others are named once."""
    found = [name for name in names if importlib.util.find_spec(name)]
    for name in sorted({*names} - {*found}):
        print(f"{name} is not installed: pip install {name}")
    return found


def documents(path: Path) -> Iterator[str]:
    """The text of a file in documents of whole lines."""
    with open(path, encoding="utf-8") as file:
        while lines := file.readlines(DOCUMENT):
            yield "".join(lines)


# Each trainer: (path of the corpus, size of the vocabulary) to the tokens with their ranks.


def ours(path: Path, size: int) -> dict[bytes, int]:
    threads = int(os.environ[THREADS])
    trained = Tokenizer.train_files(
        [path], vocab_size=size, pattern=PATTERN, special_tokens=(), threads=threads
    )
    return {token: id for id, token in trained.vocab.items()}


def with_gigatoken(path: Path, size: int) -> dict[bytes, int]:
    import gigatoken

    # It prints its progress, which belongs to no figure.
    vocab, _ = gigatoken.train_bpe(path, size, [])
    return {token: id for id, token in vocab.items()}


def with_ffbpe(path: Path, size: int) -> dict[bytes, int]:
    import ffbpe

    vocab = ffbpe.train_bpe(documents(path), vocab_size=size).vocab
    return {
        token if isinstance(token, bytes) else token.encode(): id for token, id in vocab.items()
    }


def with_rustbpe(path: Path, size: int) -> dict[bytes, int]:
    import rustbpe

    from tinylm.reference import patterns

    trained = rustbpe.Tokenizer()
    trained.train_from_iterator(documents(path), size, pattern=patterns.PATTERNS[PATTERN])
    return {bytes(token): rank for token, rank in trained.get_mergeable_ranks()}


def with_tokenizers(path: Path, size: int) -> dict[bytes, int]:
    import tokenizers

    from tinylm.tokenizer.contents import to_bytes

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained.pre_tokenizer = split
    alphabet = split.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(documents(path), trainer)
    return {to_bytes(token): id for token, id in trained.get_vocab().items()}


TRAINERS: dict[str, Callable[[Path, int], dict[bytes, int]]] = {
    OURS: ours,
    "gigatoken": with_gigatoken,
    "ffbpe": with_ffbpe,
    "rustbpe": with_rustbpe,
    "tokenizers": with_tokenizers,
}


def trained_here(name: str, path: Path, size: int, out: Path) -> None:
    """Train in this process; write the figures and the vocabulary to `out`."""
    if name != OURS:
        importlib.import_module(name)
    before = resident("VmRSS")
    # From here on the kernel's mark of the highest memory begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    began, start = time.perf_counter(), time.process_time()
    ranks = TRAINERS[name](path, size)
    figures = {
        "cpu": time.process_time() - start,
        "wall": time.perf_counter() - began,
        "megabytes": (resident("VmHWM") - before) / 1e3,
    }
    tokens = [token.hex() for token, _ in sorted(ranks.items(), key=lambda entry: entry[1])]
    out.write_text(json.dumps({"figures": figures, "tokens": tokens}), encoding="utf-8")


def resident(key: str) -> int:
    """Kilobytes of this process that are in memory now ("VmRSS") or were at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Each trainer in turn, round after round."""
    path, size = options.corpus, options.size
    names = [OURS, *installed(*(name for name in TRAINERS if name != OURS))]
    text = path.read_bytes()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    needed: dict[str, int] = {}
    for _ in range(options.rounds):
        for name in names:
            answer = in_a_process(name, path, size, options.threads)
            found[name].append(answer["figures"])
            if name not in needed:
                needed[name] = tokens_of(text, answer["tokens"], size, name)
    for name in names:
        apart = needed[name] / needed[OURS] - 1
        check(abs(apart) < APART, f"{name} needs {apart:+.2%} tokens")
    print(f"\ntrain {size:,} tokens on {path.name}, {len(text) / 1e6:.1f} MB")
    middle = {name: median(rows) for name, rows in found.items()}
    base = middle[OURS]
    for name, row in middle.items():
        against = "" if name == OURS else f"   ours {base['cpu'] / row['cpu']:.2f} of its time, "
        against += (
            "" if name == OURS else f"{base['megabytes'] / row['megabytes']:.2f} of its memory"
        )
        print(
            f"  {name:<12} {row['cpu']:6.2f} s cpu {row['wall']:6.2f} s wall "
            f"{row['megabytes']:7.1f} MB{against}"
        )
    return {"corpus": path.name, "size": size, "rounds": found, "tokens": needed}


def in_a_process(name: str, path: Path, size: int, threads: int) -> dict[str, Any]:
    """What `trained_here` gives in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, "--one", name, str(out), "train", str(path)]
        limits = {THREADS: str(threads), "RAYON_NUM_THREADS": str(threads)}
        limits |= {"TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": str(threads)}
        subprocess.run(
            [*command, "--size", str(size)],
            env={**os.environ, **limits},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return json.loads(out.read_text(encoding="utf-8"))


def tokens_of(text: bytes, tokens: list[str], size: int, name: str) -> int:
    """How many tokens the text is in this vocabulary, by tiktoken's rule."""
    check(len(tokens) == size, f"{name} has made {len(tokens)} tokens, not {size}")
    ranks = {bytes.fromhex(token): rank for rank, token in enumerate(tokens)}
    return len(Tokenizer.from_ranks(ranks, pattern=PATTERN, special_tokens={}).encode_array(text))


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def fixture(name: str) -> Path:
    """A published file."""
    return Path(os.environ.get("TINYLM_DATA", ".")) / "fixtures" / name


def ranks_in(path: Path) -> Any:
    """tiktoken's encoding of a file of ranks, compressed or not, with cl100k's pattern."""
    import base64

    import tiktoken

    from tinylm.reference import patterns

    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    pairs = (line.split() for line in data.splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    return tiktoken.Encoding(
        "peer", pat_str=patterns.PATTERNS["gpt4"], mergeable_ranks=ranks, special_tokens={}
    )


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """The ids of cl100k_base, as a list and as arrays, to str and to bytes."""
    path = options.corpus
    tokenizer = Tokenizer.load(fixture("cl100k_base.tiktoken.gz"))
    text = path.read_text(encoding="utf-8")
    data = text.encode()
    ids = tokenizer.encode_array(text, special="text")
    row = ids.tolist()
    here = installed("gigatoken", "splintr", "rs_bpe")
    openai = ranks_in(fixture("cl100k_base.tiktoken.gz"))
    to_str: dict[str, Callable[[Any], object]] = {OURS: lambda _: tokenizer.decode(row)}
    to_bytes: dict[str, Callable[[Any], object]] = {OURS: lambda _: tokenizer.decode_bytes(row)}
    str_of_array: dict[str, Callable[[Any], object]] = {OURS: lambda _: tokenizer.decode(ids)}
    of_array: dict[str, Callable[[Any], object]] = {OURS: lambda _: tokenizer.decode_bytes(ids)}
    to_str["tiktoken"] = lambda _: openai.decode(row)
    to_bytes["tiktoken"] = lambda _: openai.decode_bytes(row)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "ranks.tiktoken"
        plain.write_bytes(gzip.decompress(fixture("cl100k_base.tiktoken.gz").read_bytes()))
        if "gigatoken" in here:
            import gigatoken

            giga = gigatoken.Tokenizer.from_tiktoken(plain, pretokenizer="gpt4")
            to_str["gigatoken"] = lambda _: giga.decode(row).decode()
            to_bytes["gigatoken"] = lambda _: giga.decode(row)
            str_of_array["gigatoken"] = lambda _: giga.decode(ids).decode()
            of_array["gigatoken"] = lambda _: giga.decode(ids)
        if "splintr" in here:
            import splintr

            other = splintr.Tokenizer(str(plain), splintr.CL100K_BASE_PATTERN, {})
            to_str["splintr"] = lambda _: other.decode(row)
            to_bytes["splintr"] = lambda _: other.decode_bytes(row)
        if "rs_bpe" in here:
            import rs_bpe

            bpe = rs_bpe.openai.cl100k_base()
            to_str["rs_bpe"] = lambda _: bpe.decode(row)
    figures = {}
    for name, runs, expected in (
        ("a list to str", to_str, text),
        ("a list to bytes", to_bytes, data),
        ("an array to str", str_of_array, text),
        ("an array to bytes", of_array, data),
    ):
        for who, run in runs.items():
            check(run(None) == expected, f"{who} does not give the text back")
        fresh: dict[str, Callable[[], Any]] = dict.fromkeys(runs, lambda: None)
        race = Race(f"decode {name}, {path.name}", len(data) / 1e6, "MB/s", runs, fresh)
        figures[race.name] = measure(race, options.rounds)
        report(race, figures[race.name])
    return figures


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Files to tokenizers: tiktoken's ranks and a tokenizer.json."""
    import tokenizers

    here = installed("gigatoken", "splintr")
    whole = Tokenizer.load(fixture("cl100k_base.tiktoken.gz"))
    figures = {}
    for size in (100_256, 32_000):
        ranks = {token: id for id, token in whole.vocab.items() if id < size}
        cut = Tokenizer.from_ranks(ranks, pattern="gpt4", special_tokens={})
        with tempfile.TemporaryDirectory() as folder:
            plain, document = Path(folder) / "ranks.tiktoken", Path(folder) / "tokenizer.json"
            cut.save(plain, format="tiktoken")
            cut.save(document)
            from_ranks: dict[str, Callable[[Any], Any]] = {
                OURS: lambda _, plain=plain: Tokenizer.load(
                    plain, pattern="gpt4", special_tokens={}
                ),
                "tiktoken": lambda _, plain=plain: ranks_in(plain),
            }
            if "gigatoken" in here:
                import gigatoken

                from_ranks["gigatoken"] = lambda _, plain=plain: gigatoken.Tokenizer.from_tiktoken(
                    plain, pretokenizer="gpt4"
                )
            if "splintr" in here:
                import splintr

                from_ranks["splintr"] = lambda _, plain=plain: splintr.Tokenizer(
                    str(plain), splintr.CL100K_BASE_PATTERN, {}
                )
            from_json: dict[str, Callable[[Any], Any]] = {
                OURS: lambda _, document=document: Tokenizer.load(document),
                "tokenizers": lambda _, document=document: tokenizers.Tokenizer.from_file(
                    str(document)
                ),
            }
            for what, runs in (("ranks", from_ranks), ("a tokenizer.json", from_json)):
                for who, run in runs.items():
                    found = run(None).encode("lower lowest \u4e2d")
                    ids = list(getattr(found, "ids", found))
                    check(ids == cut.encode("lower lowest \u4e2d"), f"{who} gives other ids")
                fresh: dict[str, Callable[[], Any]] = dict.fromkeys(runs, lambda: None)
                race = Race(f"load {what} of {size:,} tokens", 1.0, "per second", runs, fresh)
                figures[race.name] = measure(race, options.rounds)
                report(race, figures[race.name])
                for who, result in figures[race.name].items():
                    print(f"    {who:<12} {1e3 / statistics.median(result['speed']):7.1f} ms")
    return figures


PARTS = {part.__name__: part for part in (train, decode, load)}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("corpus", nargs="?", type=Path, help="a file of text")
    parser.add_argument("--size", type=int, default=32_000, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures of every round")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.corpus is None and options.part != "load":
        parser.error(f"{options.part} needs a CORPUS")
    if options.one:
        name, out = options.one
        trained_here(name, options.corpus, options.size, Path(out))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    figures = PARTS[options.part](options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
