"""Where documents end in a text, and what is held out where hashes do not choose."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import Bytes
from tests.test_corpus import HALF, folder_of
from tests.test_corpus_kinds import documents, rows
from tinylm import config, corpus
from tinylm.corpus import separators
from tinylm.data import Dataset, prepare

MARK = "<|endoftext|>"
STORIES = [f"Once upon a time\nthere were {k} stories." for k in range(20)]


def opened(tmp_path, content, **options):
    path = folder_of(tmp_path, {"a.txt": content}) / "a.txt"
    return corpus.open(str(path), **{**HALF, **options})


# Marks

LAYOUTS = {
    "on lines": "\n<|endoftext|>\n",
    "ending lines": "<|endoftext|>\n",
    "beginning lines": "\n<|endoftext|>",
    "crlf": "\r\n<|endoftext|>\r\n",
}


@pytest.mark.parametrize("end", ["", "mark", "line"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_mark_is_recognised_and_said(tmp_path, layout, end):
    between = LAYOUTS[layout]
    content = between.join(STORIES) + {"": "", "mark": between, "line": "\n"}[end]
    text = opened(tmp_path, content)
    wanted = [*STORIES[:-1], STORIES[-1] + "\n" * (end == "line")]
    assert documents(text) == sorted(wanted)
    assert min(len(list(text.train())), len(list(text.validation()))) > 2
    number = 19 + (end == "mark")
    assert text.notes == (
        f"{tmp_path}/a.txt: {MARK} stands {number} times and ends documents; "
        f"data.separator=off reads it as text",
    )


def test_documents_between_marks_are_split_as_rows_are(tmp_path):
    marked = opened(tmp_path, f"\n{MARK}\n".join(STORIES))
    folder_of(tmp_path, {"a.jsonl": rows(*STORIES)})
    assert list(marked.train()) == list(corpus.open(f"{tmp_path}/a.jsonl", **HALF).train())


@pytest.mark.parametrize(
    ("content", "wanted", "blank"),
    [
        (f"{MARK}\na\n{MARK}\nb\n{MARK}\n", ["a", "b"], 0),
        (f"a\n{MARK}\n{MARK}\nb\n{MARK}\n \n{MARK}\nc", ["a", "b", "c"], 2),
        (f"a\n{MARK}{MARK}{MARK}b", ["a", "b"], 2),
        # One line break on each side belongs to the mark, the others to the document.
        (f"\na\n\n{MARK}\n\n  b\n", ["\na\n", "\n  b\n"], 0),
        (f"a {MARK} b{MARK}\nc", ["a ", " b", "c"], 0),
    ],
)
def test_blank_documents_are_left_out_and_counted(tmp_path, content, wanted, blank):
    text = opened(tmp_path, content, val_fraction=1)
    assert list(text.validation()) == wanted
    assert (f"; {blank} empty documents are left out" in text.notes[0]) == (blank > 0)


@pytest.mark.parametrize(
    "content", [f"the {MARK} of GPT-2\n" * 9, f"x = '{MARK}'\n", MARK * 0 + "a\n"]
)
def test_a_mark_inside_of_lines_is_text_and_said(tmp_path, content):
    text = opened(tmp_path, content)
    assert "".join([*text.train(), *text.validation()]) == content
    assert bool(text.notes) == (MARK in content)
    for note in text.notes:
        assert note.endswith(f"read as text; data.separator='{MARK}' ends documents there")


def test_a_mark_can_be_named_or_left_alone(tmp_path):
    content = f"one\n%%\ntwo {MARK}\nthree %% four\n%%\n" * 2
    split = opened(tmp_path, content, separator="%%", val_fraction=1)
    parts = ["one", f"two {MARK}\nthree ", " four", "one", f"two {MARK}\nthree ", " four"]
    assert list(split.validation()) == parts
    off = opened(tmp_path, content, separator="off")
    assert "".join([*off.train(), *off.validation()]) == content
    assert off.notes == ()
    paragraphs = opened(tmp_path, "a\nb\n\nc\n\n\n\nd", separator="\n\n", val_fraction=1)
    assert list(paragraphs.validation()) == ["a\nb", "c", "d"]
    assert "\n" not in paragraphs.notes[0]


@pytest.mark.parametrize("mark", ["\n\n", "\t", "%%"])
def test_the_note_shows_a_named_mark_as_it_can_be_read(tmp_path, mark):
    text = opened(tmp_path, mark.join(["a", "b", "c", "d"]), separator=mark, val_fraction=1)
    assert text.notes == (f"{tmp_path}/a.txt: {mark!r} stands 3 times and ends documents",)


@pytest.mark.parametrize("mark", ["###", "none", "AUTO", "<|END|>", "\\n\\n", " \t"])
def test_a_mark_that_stands_nowhere_is_said(tmp_path, mark):
    folder_of(tmp_path, {"a.txt": LINES, "b.txt": LINES, "c/d.txt": LINES + "%%" + LINES})
    for name, each in (("a.txt", "the text is"), ("", "each of 3 texts is")):
        note = corpus.open(str(tmp_path / name), separator=mark, **HALF).notes[bool(not name)]
        assert f"data.separator={mark!r} stands nowhere: {each} one document" in note
        assert "\n" not in note
        assert ("in a shell, $'\\n\\n' is" in note) == ("\\" in mark)
    # In one of the files is enough.
    notes = corpus.open(str(tmp_path), separator="%%", **HALF).notes
    assert "nowhere" not in str(notes)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jl", ""])
def test_a_mark_that_is_named_for_rows_is_said(tmp_path, name):
    folder_of(tmp_path, {name or "a.jsonl": rows("a###b", "c", "d", "e")})
    text = corpus.open(str(tmp_path / name), separator="###", **HALF)
    assert documents(text) == ["a###b", "c", "d", "e"]
    assert "data.separator='###' is read as text in rows: each row is a document" in str(text.notes)
    for other in ("auto", "off"):
        quiet = corpus.open(str(tmp_path / name), separator=other, **HALF)
        assert "separator" not in str(quiet.notes)


def test_marks_end_documents_in_the_files_of_a_folder_too(tmp_path):
    folder_of(
        tmp_path,
        {
            "a.txt": f"one\n{MARK}\ntwo\n",
            "b.txt": f"three\n{MARK}\nfour\n",
            "c.txt": f"of {MARK} alone",
            "d.jsonl": rows(f"a row\n{MARK}\nof one document"),
        },
    )
    text = corpus.open(str(tmp_path), **HALF)
    row = f"a row\n{MARK}\nof one document"
    assert documents(text) == sorted(["one", "two\n", "three", "four\n", f"of {MARK} alone", row])
    assert "a.txt: <|endoftext|> stands 1 times" in text.notes[1]
    assert text.notes[1].endswith("(2 more files have it)")


@given(
    st.lists(st.sampled_from(["aab", "ab", "\n", "\r\n", " ", "a", "x", "\u00e9"]), max_size=30),
    st.sampled_from(["aab", "aa", "a", "\n\n"]),
    st.integers(1, 7),
)
@settings(deadline=None)
def test_the_size_of_the_blocks_cannot_be_seen(words, mark, size):
    data, mark = "".join(words).encode(), mark.encode()
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    found = []
    for parts in ([data], blocks):
        marks = separators.Marks(mark)
        for part in parts:
            marks.add(part)
        marks.end()
        counts = marks.count, marks.blank, marks.at_a_border
        found.append((list(separators.separated(parts, mark)), counts))
    assert found[0] == found[1]
    assert found[0][1][0] == data.count(mark)


def test_a_big_file_of_many_documents_needs_the_memory_of_one(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for k in range(20_000):
            file.write(f"{k}" * 200 + f"\n{MARK}\n")
    size = path.stat().st_size
    assert size > 16 << 20
    tracemalloc.start()
    text = corpus.open(str(path), **HALF)
    assert sum(1 for _ in text.train()) + sum(1 for _ in text.validation()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2


def test_marked_documents_end_with_eos_in_the_shards(tmp_path):
    text = opened(tmp_path, f"\n{MARK}\n".join(STORIES))
    prepare(text, Bytes(), tmp_path / "shards")
    for split, wanted in (("train", text.train()), ("val", text.validation())):
        dataset = Dataset.open(tmp_path / "shards", split=split)
        found = [Bytes().decode_bytes(ids).decode() for ids in dataset.documents()]
        assert found == list(wanted)
        assert (dataset.read(0, dataset.n_tokens) == 256).sum() == len(found)


def test_off_in_a_settings_file_needs_no_quotes(tmp_path):
    path = tmp_path / "a.yaml"
    for written in ("off", "'off'", '"off"'):
        path.write_text(f"data: {{separator: {written}}}")
        assert config.load(path).data.separator == "off"
    with pytest.raises(ValueError, match=r"data\.separator=''"):
        config.load(None, ["data.separator="])


def test_a_tilde_in_a_setting_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    keys = ("out", "data.source", "data.folder", "tokenizer.path", "train.init", "train.resume")
    flat = config.flat(config.load(None, [f"{key}=~/x" for key in keys]))
    assert {flat[key] for key in keys} == {"/home/me/x"}
    assert config.load(None, ["data.source=a~b"]).data.source == "a~b"


# What is held out where the hashes leave a split empty

LINES = "".join(f"line {k:02}\n" for k in range(100))


def test_of_one_file_in_a_folder_the_last_lines_are_held_out(tmp_path):
    folder_of(tmp_path, {"only.txt": LINES})
    text = corpus.open(str(tmp_path), val_fraction=0.05)
    assert list(text.train()) == [LINES[: 95 * 8]]
    assert list(text.validation()) == [LINES[95 * 8 :]]
    assert text.notes[1].endswith(
        "the only document falls to one split by hash; the last 40 of 800 bytes are held out"
    )


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["files", "rows", "marks", "long lines", "characters"])
def test_a_few_documents_can_be_trained_on_and_scored(tmp_path, kind, n, fraction):
    texts = [f"{k} {LINES}" for k in range(n)]
    if kind == "long lines":
        texts = [text.replace("\n", " ") for text in texts]
    if kind == "characters":
        texts = ["\u4e16\U0001f600" * 50] * n
    files = {
        "rows": {"a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)},
        "marks": {"a.txt": f"\n{MARK}\n".join(texts) + f"\n{MARK}\n"},
    }.get(kind, {f"{k}.txt": text for k, text in enumerate(texts)})
    text = corpus.open(str(folder_of(tmp_path, files)), val_fraction=fraction)
    train, validation = "".join(text.train()), "".join(text.validation())
    assert train
    assert validation
    if any("by hash" in note for note in text.notes):
        assert train + validation == "".join(texts)
    else:
        assert n > 1
    again = corpus.open(str(tmp_path), val_fraction=fraction)
    assert list(again.validation()) == list(text.validation())


def test_of_several_documents_one_may_be_cut_at_a_line(tmp_path):
    # Both fall to training.
    folder_of(tmp_path, {"a.txt": LINES, "b.txt": LINES})
    text = corpus.open(str(tmp_path), val_fraction=0.01)
    assert list(text.train()) == [LINES, LINES[:-16]]
    assert list(text.validation()) == [LINES[-16:]]
    assert "all 2 documents fall to one split by hash; the last 16 of 1,600" in text.notes[1]


@pytest.mark.parametrize("content", [f"{MARK}\n", f"\n{MARK}\n \n{MARK}\n"])
def test_marks_alone_are_no_text(tmp_path, content):
    with pytest.raises(ValueError, match=r"data\.source=.* holds no document: add text"):
        opened(tmp_path, content)
    folder_of(tmp_path, {"empty.jsonl": rows("", "")})
    with pytest.raises(ValueError, match="holds no document"):
        corpus.open(str(tmp_path / "empty.jsonl"), **HALF)


@pytest.mark.parametrize("val_fraction", [0.01, 0.05, 0.99])
def test_large_files_are_cut_by_place_without_being_held(tmp_path, monkeypatch, val_fraction):
    monkeypatch.setattr("tinylm.corpus.texts.BLOCK", 100)
    lines = [f"{k} \u00e9\u4e16\U0001f600 words\n" * 60 for k in range(3)]
    for k, text in enumerate(lines):
        # Their names fall to one split.
        (tmp_path / f"{k + 10}.txt").write_text(text, encoding="utf-8", newline="")
    text = corpus.open(str(tmp_path), val_fraction=val_fraction)
    assert len(text.sections) == 1
    parts = {held_out: [[*parts] for parts in text.streams(held_out)] for held_out in (False, True)}
    assert max(len(part) for split in parts.values() for d in split for part in d) <= 100
    whole = b"".join(part for split in parts.values() for d in split for part in d)
    assert whole == "".join(lines).encode()
    # In one reading as in two, and the second half without the first.
    both = [(held_out, b"".join(d)) for held_out, d in text.sections[0].documents()]
    assert both == [(held_out, b"".join(d)) for held_out in parts for d in parts[held_out]]
