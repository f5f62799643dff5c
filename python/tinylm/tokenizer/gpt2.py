"""GPT-2's two files: vocab.json has the tokens and their ids, merges.txt the merges in order."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tinylm import disk
from tinylm.tokenizer import beside
from tinylm.tokenizer.contents import (
    Contents,
    contents_of,
    late_tokens,
    merges_of,
    read_json,
    refuse_plain,
    refuse_stages,
    refuse_written_alike,
    to_chars,
)
from tinylm.tokenizer.models import Bpe


def read(folder: Path, pattern: str, special_tokens: dict[str, int] | None) -> Contents:
    """The vocabulary and merges in a folder; see `contents_of` for `special_tokens` None."""
    vocab_path, merges_path = _one_file(folder, "vocab.json"), _one_file(folder, "merges.txt")
    vocab = read_json(vocab_path)
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(merges_path.read_text(encoding="utf-8-sig").split("\n"), 1):
        # Only the first line: further down, a line that begins so is a merge.
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        match line.split(" "):
            case [left, right]:
                merges.append((left, right))
            case _:
                raise ValueError(f"{merges_path}, line {number}: expected two tokens, got {line!r}")
    added = beside.added_to_gpt2(folder)
    try:
        # A token may stand in both files.
        vocab = {
            token: id for token, id in vocab.items() if token not in {t.content for t in added}
        }
        contents = contents_of(vocab, merges, pattern, special_tokens)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    contents = replace(contents, added_tokens=(*contents.added_tokens, *added))
    return beside.read(folder, contents, source=vocab_path.name)


def _one_file(folder: Path, ending: str) -> Path:
    found = sorted(folder.glob(f"*{ending}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FileNotFoundError(f"{folder}: expected one file that ends in {ending}, found {names}")
    return found[0]


def write(contents: Contents, folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes the two files, and `files` beside them; ValueError for what they cannot say."""
    refuse_plain(contents, "GPT-2's files")
    refuse_stages(contents, "GPT-2's files")
    if contents.pattern != "gpt2":
        raise ValueError(
            f"GPT-2's files cannot say the pattern {contents.pattern!r}; save as tokenizer.json"
        )
    model = contents.model
    if not isinstance(model, Bpe) or model.merges is None or model.whole_pieces:
        raise ValueError("GPT-2's files can say merges of bytes alone; save as tokenizer.json")
    for token, id in contents.special_tokens.items():
        refuse_written_alike(token, contents.tokens, id)
    if late := late_tokens(contents.added_tokens):
        raise ValueError(
            f"GPT-2's files cannot say that {min(late)!r} is normalized; save as tokenizer.json"
        )
    vocab = {to_chars(token): id for token, id in contents.tokens.items()}
    text = json.dumps(vocab | contents.special_tokens, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    disk.replace(folder / "vocab.json", text.encode())
    lines = [f"{to_chars(left)} {to_chars(right)}\n" for left, right in merges_of(contents)]
    disk.replace(folder / "merges.txt", ("#version: 0.2\n" + "".join(lines)).encode())
    beside.write(folder, files)
