"""`python -m tinylm.tokenizer`: train, use, look at, compare and convert tokenizers."""

import argparse
import functools
import operator
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, get_args

from tinylm import commands, disk, terminal
from tinylm.tokenizer import Tokenizer, files, page, report, shown, train_commands
from tinylm.tokenizer.segmentations import Special
from tinylm.tokenizer.train_commands import refuse_existing

Command = Callable[[argparse.Namespace], None]


def encode(args: argparse.Namespace) -> None:
    """Text to ids, on one line; with --colour the text with its tokens before them."""
    tokenizer = _load(args)
    # Bytes, because the input need not be UTF-8.
    texts = _blocks(sys.stdin.buffer) if args.text == "-" else iter([args.text.encode()])
    words = (
        "pass --special allow to encode it as one id, --special text to encode it as ordinary text"
    )
    between = ""
    with commands.remedies(special=words):
        if args.colour is not None:
            data = b"".join(texts)
            texts = iter([data])
            _show(tokenizer, data, args.colour, args.special)
        # In parts, so that a long input takes little memory.
        for chunk in tokenizer.chunks(texts, special=args.special):
            ids = " ".join(map(str, tokenizer.encode(chunk, special=args.special)))
            if ids:
                print(f"{between}{ids}", end="")
                between = " "
    print()


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


def view(args: argparse.Namespace) -> None:
    """A text with its tokens: in colour on a terminal, or as a page for a browser."""
    tokenizer = _load(args)
    named = [(args.tokenizer, tokenizer)]
    if args.other is not None:
        named.append((args.other, Tokenizer.load(args.other)))
        if args.html is None:
            raise ValueError("--with shows two tokenizers side by side: pass --html FILE too")
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit} must be at least 1")
    file, name = (sys.stdin.buffer, "standard input") if args.file == "-" else (None, args.file)
    with file or open(args.file, "rb") as source:
        data = source.read(args.limit + 1)
    note = ""
    if len(data) > args.limit:
        data = data[: args.limit]
        note = f"the first {args.limit:,} bytes; --limit takes more"
        terminal.draw(f"{name}: {note}\n")
    if args.html is None:
        _show(tokenizer, data, args.colour, "text")
        return
    refuse_existing(args.html, force=args.force)
    disk.replace(args.html, page.page(name, note, named, data).encode())
    print(args.html)


def _show(tokenizer: Tokenizer, data: bytes, colour: shown.Colour, special: Special) -> None:
    found = shown.pieces(tokenizer, data, special)
    sys.stdout.writelines(shown.lines(found, colour=shown.coloured(colour, sys.stdout)))


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
    """Measure a tokenizer on files: how long its tokens are, and how much of it is used."""
    tokenizer = _load(args)
    lengths = report.lengths_of(tokenizer)
    found = [report.measure(tokenizer, path) for path in args.files]
    rows = [report.row(path, one, lengths) for path, one in zip(args.files, found, strict=True)]
    whole = functools.reduce(operator.add, found)
    if len(found) > 1:
        rows.append(report.row("all", whole, lengths))
    print(*report.table(report.HEAD, rows), sep="\n")
    print(*report.longest(tokenizer, whole, args.longest), sep="\n")


def compare(args: argparse.Namespace) -> None:
    """Tokenizers on the same files: tokens, bytes per token, and where they cut differently."""
    paths = [args.first, args.second, *args.more]
    tokenizers = [Tokenizer.load(path) for path in paths]
    names = string.ascii_uppercase[: len(paths)]
    rows, apart = [], Counter[tuple[tuple[bytes, ...], ...]]()
    for path in args.files:
        found = report.compare(tokenizers, path)
        apart += found.apart
        first = max(1, found.tokens[0])
        # Equal ids say more than a ratio of 1.
        ratios = [
            "equal" if same else f"{tokens / first:.3f}x"
            for tokens, same in zip(found.tokens[1:], found.same[1:], strict=True)
        ]
        per_token = [f"{found.size / max(1, tokens):.3f}" for tokens in found.tokens]
        rows.append((path, *map(str, found.tokens), *per_token, *ratios))
    head = ["file", *(f"{name} tokens" for name in names)]
    head += [f"{name} bytes/token" for name in names] + [f"{name} / A" for name in names[1:]]
    print(*report.table(head, rows), sep="\n")
    if apart and args.examples:
        print(f"\n{apart.total()} stretches are cut differently; the most frequent:")
        examples = [
            (f"{count}x", *("|".join(map(report.inline, parts)) for parts in cuts))
            for cuts, count in apart.most_common(args.examples)
        ]
        print(*report.table(("times", *names), examples), sep="\n")


def import_(args: argparse.Namespace) -> None:
    """Read a tokenizer of another format, write it as tokenizer.json."""
    refuse_existing(args.out, force=args.force)
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
    refuse_existing(args.out, force=args.force)
    tokenizer = _load(args)
    tokenizer.save(args.out, args.format)
    print(f"{args.out}: {tokenizer.vocab_size} tokens as {args.format}")


def _load(args: argparse.Namespace) -> Tokenizer:
    return Tokenizer.load(args.tokenizer)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinylm.tokenizer",
        description="Train, use, look at, compare and convert tokenizers.",
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

    train_commands.add(command, out)

    sub = command("encode", encode)
    tokenizer(sub)
    sub.add_argument("text", nargs="?", default="-", help="the text; - for standard input")
    sub.add_argument(
        "--special",
        default="raise",
        choices=("raise", "allow", "text"),
        help="what to do with special tokens in the text",
    )
    sub.add_argument(
        "--colour",
        nargs="?",
        const="auto",
        choices=get_args(shown.Colour),
        help="show the text with its tokens first; auto: in colour on a terminal, else with bars",
    )

    sub = command("view", view)
    tokenizer(sub)
    sub.add_argument(
        "file", type=commands.path, nargs="?", default="-", help="a file; - for standard input"
    )
    sub.add_argument("--html", type=commands.path, metavar="FILE", help="write a page instead")
    sub.add_argument(
        "--with",
        dest="other",
        type=commands.path,
        metavar="TOKENIZER",
        help="a second tokenizer, beside the first on the page",
    )
    sub.add_argument(
        "--colour", default="auto", choices=get_args(shown.Colour), help="default: %(default)s"
    )
    sub.add_argument(
        "--limit",
        type=int,
        default=1_000_000,
        metavar="BYTES",
        help="of the file that are shown; default: %(default)s",
    )
    sub.add_argument("--force", action="store_true", help="replace the page that is there")

    sub = command("decode", decode)
    tokenizer(sub)
    sub.add_argument("ids", nargs="*", help="ids; - or none for standard input")

    sub = command("stats", stats)
    tokenizer(sub)
    sub.add_argument("files", type=commands.path, nargs="+", help="text files")
    sub.add_argument(
        "--longest", type=int, default=5, metavar="N", help="tokens to name; default: %(default)s"
    )

    sub = command("compare", compare)
    tokenizer(sub, "first")
    tokenizer(sub, "second")
    sub.add_argument("files", type=commands.path, nargs="+", help="text files")
    sub.add_argument(
        "--with",
        dest="more",
        action="append",
        default=[],
        type=commands.path,
        metavar="TOKENIZER",
        help="another tokenizer; repeat for more",
    )
    sub.add_argument(
        "--examples",
        type=int,
        default=5,
        metavar="N",
        help="differences to show; default: %(default)s",
    )

    sub = command("import", import_)
    sub.add_argument(
        "path",
        type=commands.path,
        help="tiktoken ranks, a .model, a tekken.json, or the folder of vocab.json and merges.txt",
    )
    sub.add_argument("--format", choices=files.FORMATS, help="told from the name if absent")
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
