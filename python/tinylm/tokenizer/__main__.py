"""`python -m tinylm.tokenizer`: train, use, compare and convert tokenizers."""

import argparse
import errno
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from tinylm import commands, terminal
from tinylm.config import Kind
from tinylm.tokenizer import Tokenizer, files
from tinylm.tokenizer.training import Ties

Command = Callable[[argparse.Namespace], None]


def train(args: argparse.Namespace) -> None:
    """Learn a tokenizer from text files."""
    _refuse_existing(args)
    start = time.perf_counter()
    tokenizer = Tokenizer.train_files(
        args.files,
        vocab_size=args.vocab_size,
        kind=args.kind,
        pattern=args.pattern,
        # No default in the parser: the action `append` would add to it instead of replacing it.
        special_tokens=args.special or ["<|endoftext|>"],
        min_frequency=args.min_frequency,
        max_token_length=args.max_token_length,
        ties=args.ties,
        threads=args.threads,
        progress=True if terminal.watched() else None,
    )
    tokenizer.save(args.out)
    seconds = time.perf_counter() - start
    print(f"{args.out}: {tokenizer.vocab_size} tokens in {seconds:.1f} s")


def encode(args: argparse.Namespace) -> None:
    """Text to ids, on one line."""
    tokenizer = _load(args)
    # Bytes, because the input need not be UTF-8.
    text = sys.stdin.buffer.read() if args.text == "-" else args.text
    words = (
        "pass --special allow to encode it as one id, --special text to encode it as ordinary text"
    )
    with commands.remedies(special=words):
        ids = tokenizer.encode(text, special=args.special)
    print(*ids)


def decode(args: argparse.Namespace) -> None:
    """Ids to text; on a terminal the line is ended, elsewhere nothing is added."""
    tokenizer = _load(args)
    ids = sys.stdin.read().split() if args.ids in ([], ["-"]) else args.ids
    text = tokenizer.decode_bytes([_id(word) for word in ids])
    # Bytes, because ids may end inside a character.
    sys.stdout.buffer.write(text + b"\n" * sys.stdout.isatty())


def _id(word: str) -> int:
    try:
        # Commas are allowed, so that the ids of a printed list can be pasted.
        return int(word.strip(","))
    except ValueError:
        raise ValueError(f"{word!r} is not a token id; write ids as numbers") from None


def stats(args: argparse.Namespace) -> None:
    """Measure a tokenizer on files: bytes per token, tokens per word, vocabulary in use."""
    tokenizer = _load(args)
    rows = [_measure(tokenizer, path) for path in args.files]
    _table(("file", "bytes", "tokens", "bytes/token", "tokens/word", "tokens used"), rows)


def _measure(tokenizer: Tokenizer, path: str) -> tuple[str, ...]:
    data = Path(path).read_bytes()
    # Any file can be measured: a special token in it counts as text.
    ids = tokenizer.encode_array(data, special="text")
    words = len(data.split())
    return (
        path,
        str(len(data)),
        str(len(ids)),
        f"{len(data) / max(1, len(ids)):.3f}",
        f"{len(ids) / max(1, words):.3f}",
        f"{len(set(ids.tolist())) / tokenizer.vocab_size:.1%}",
    )


def compare(args: argparse.Namespace) -> None:
    """Two tokenizers on the same files: tokens, bytes per token, and whether the ids are equal."""
    first, second = Tokenizer.load(args.first), Tokenizer.load(args.second)
    rows = []
    for path in args.files:
        data = Path(path).read_bytes()
        a = first.encode_array(data, special="text")
        b = second.encode_array(data, special="text")
        ratios = [f"{len(data) / max(1, len(ids)):.3f}" for ids in (a, b)]
        # Both arrays are uint32, so equal bytes are equal ids.
        equal = "equal" if a.tobytes() == b.tobytes() else f"{len(b) / max(1, len(a)):.3f}x"
        rows.append((path, str(len(a)), str(len(b)), *ratios, equal))
    _table(("file", "A tokens", "B tokens", "A bytes/token", "B bytes/token", "B / A"), rows)


def import_(args: argparse.Namespace) -> None:
    """Read a tokenizer of another format, write it as tokenizer.json."""
    _refuse_existing(args)
    special = dict(_named_id(word) for word in args.special) if args.special else None
    with commands.remedies(
        format="pass --format tiktoken or --format gpt2",
        pattern="pass --pattern NAME and --special TOKEN=ID",
    ):
        tokenizer = Tokenizer.load(
            args.path, args.format, pattern=args.pattern, special_tokens=special
        )
    tokenizer.save(args.out, "tokenizer.json")
    print(f"{args.out}: {tokenizer.vocab_size} tokens, pattern {tokenizer.pattern}")


def _named_id(word: str) -> tuple[str, int]:
    token, equals, id = word.rpartition("=")
    if not equals or not id.isdigit():
        raise ValueError(f"--special {word!r}: write TOKEN=ID, such as '<|endoftext|>=100257'")
    return token, int(id)


def export(args: argparse.Namespace) -> None:
    """Write a tokenizer in another format."""
    _refuse_existing(args)
    tokenizer = _load(args)
    tokenizer.save(args.out, args.format)
    print(f"{args.out}: {tokenizer.vocab_size} tokens as {args.format}")


def _refuse_existing(args: argparse.Namespace) -> None:
    """FileExistsError if the output is there already; a folder may be there if it is empty."""
    out = Path(args.out)
    if args.force or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    raise FileExistsError(errno.EEXIST, "exists already; name another, or pass --force", str(out))


def _load(args: argparse.Namespace) -> Tokenizer:
    return Tokenizer.load(args.tokenizer)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinylm.tokenizer", description="Train, use, compare and convert tokenizers."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        sub = subparsers.add_parser(name, help=text.partition("\n")[0], description=text)
        sub.set_defaults(run=run)
        return sub

    def tokenizer(sub: argparse.ArgumentParser, name: str = "tokenizer") -> None:
        sub.add_argument(
            name,
            type=commands.path,
            help="a tokenizer.json, a .model, cl100k_base or o200k_base ranks, or a folder",
        )

    def out(sub: argparse.ArgumentParser, text: str) -> None:
        sub.add_argument("--out", type=commands.path, required=True, help=text)
        sub.add_argument("--force", action="store_true", help="replace what is there")

    sub = command("train", train)
    sub.add_argument("files", type=commands.path, nargs="+", help="text files, each one document")
    sub.add_argument("--vocab-size", type=int, required=True, help="tokens, special ones included")
    out(sub, "where to write the tokenizer.json")
    sub.add_argument("--kind", default="bpe", choices=get_args(Kind))
    sub.add_argument(
        "--pattern", default="gpt4", help="gpt2, gpt4, o200k, llama3, qwen2 or a regular expression"
    )
    sub.add_argument(
        "--special",
        action="append",
        metavar="TOKEN",
        help="a special token; repeat for more (default: <|endoftext|>)",
    )
    sub.add_argument("--min-frequency", type=int, default=1, help="rarer pairs do not merge")
    sub.add_argument("--max-token-length", type=int, metavar="BYTES", help="of the longest token")
    sub.add_argument("--ties", default="ids", choices=get_args(Ties), help="between equal pairs")
    sub.add_argument("--threads", type=int, default=0, help="0 for all cores")

    sub = command("encode", encode)
    tokenizer(sub)
    sub.add_argument("text", nargs="?", default="-", help="the text; - for standard input")
    sub.add_argument(
        "--special",
        default="raise",
        choices=("raise", "allow", "text"),
        help="what to do with special tokens in the text",
    )

    sub = command("decode", decode)
    tokenizer(sub)
    sub.add_argument("ids", nargs="*", help="ids; - or none for standard input")

    sub = command("stats", stats)
    tokenizer(sub)
    sub.add_argument("files", type=commands.path, nargs="+", help="text files")

    sub = command("compare", compare)
    tokenizer(sub, "first")
    tokenizer(sub, "second")
    sub.add_argument("files", type=commands.path, nargs="+", help="text files")

    sub = command("import", import_)
    sub.add_argument(
        "path",
        type=commands.path,
        help="tiktoken ranks, or the folder of vocab.json and merges.txt",
    )
    sub.add_argument("--format", choices=("gpt2", "tiktoken"), help="told from the name if absent")
    sub.add_argument("--pattern", help="for ranks that are not cl100k_base or o200k_base")
    sub.add_argument(
        "--special", action="append", metavar="TOKEN=ID", help="a special token; repeat for more"
    )
    out(sub, "where to write the tokenizer.json")

    sub = command("export", export)
    tokenizer(sub)
    sub.add_argument("--format", required=True, choices=files.FORMATS)
    out(sub, "a file, or for gpt2 a folder")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command; the exit status is 0, 1 for an error, 2 for a wrong call."""
    args = _parser().parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    commands.run(main)
