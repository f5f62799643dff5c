"""Filters: what each rule measures, which documents stay, and the counts that say so."""

import json
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_corpus import HALF, folder_of
from tests.test_corpus_kinds import documents, rows
from tinylm import corpus
from tinylm.config import DataConfig
from tinylm.corpus import quality
from tinylm.corpus.duplicates import Exact, Near, Seen
from tinylm.corpus.filter_specs import canonical, listed
from tinylm.corpus.filters import Filtered
from tinylm.corpus.quality import RULES, Facts
from tinylm.data import Manifest, prepare
from tinylm.data.__main__ import main
from tinylm.data.preparation import prepare_share
from tinylm.reference import duplicates as slow
from tinylm.tokenizer import Tokenizer

# Rules


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ("min_chars", "caf\xe9\n", 5),
        ("min_words", "one  two\nthree", 3),
        ("max_mean_word", "one two four", 10 / 3),
        ("max_symbols", "# one ## two", 3 / 4),
        ("max_symbols", "one... two\u2026 three", 2 / 3),
        ("min_alphabetic", "a1 2 3 \u4e2d _", 2 / 5),
        ("max_bullets", "- one\n\n* two\n \u2022 three\nfour\n", 3 / 4),
        ("max_ellipses", "one...\ntwo\u2026\nthree.\nfour", 1 / 2),
        ("max_duplicate_lines", "a\n\nb\n a\na\n", 2 / 4),
        ("max_duplicate_line_chars", "aaa\nb\naaa\n", 3 / 7),
        ("max_duplicate_paragraphs", "a\nb\n\na\nb\n\n\nc", 1 / 3),
        ("max_duplicate_paragraph_chars", "a\nb\n\na\nb\n\nc", 3 / 7),
        ("max_top_2_words", "aa b aa b c aa b", 9 / 10),
        ("max_top_2_words", "a b c d", 0),
        ("max_top_3_words", "a b c x a b c y", 6 / 8),
        ("max_duplicate_5_words", "a b c d e x a b c d e", 5 / 11),
        # The second and the third of a word's runs overlap and count once.
        ("max_duplicate_5_words", "a " * 10, 5 / 10),
        ("max_duplicate_6_words", "a b c d e x a b c d e", 0),
        ("min_punctuated", "One.\nTwo\nThree!\nFour?\u201d", 3 / 4),
        ("max_short_lines", f"short\n{'long' * 9}", 1 / 2),
        ("max_lorem_ipsum", "Lorem ipsum, LOREM IPSUM", 2),
        ("max_braces", "f() { }", 1),
    ],
)
def test_a_rule_measures_what_it_says(rule, text, value):
    assert RULES[rule].measure(Facts(text)) == pytest.approx(value)


@given(st.text("ab \n.", max_size=60))
def test_every_rule_has_a_number_for_every_text(text):
    facts = Facts(text)
    for name, rule in RULES.items():
        # What rules share must not depend on which was asked first.
        assert rule.measure(facts) == rule.measure(Facts(text)), name
        assert 0 <= rule.measure(facts) <= 60


def repetition_slowly(text, n):
    """The two measures of n words in a row, by the words of their definitions."""
    words = text.split()
    runs = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
    letters, most = sum(map(len, words)), max(map(runs.count, runs), default=0)
    longest = max((len("".join(run)) for run in runs if runs.count(run) == most), default=0)
    seen, at, repeated = set(), 0, 0
    while at < len(runs):
        if runs[at] in seen:
            repeated += len("".join(runs[at]))
            at += n
        else:
            seen.add(runs[at])
            at += 1
    top = longest * most if most > 1 else 0
    return top / max(1, letters), repeated / max(1, letters)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), st.integers(2, 7))
def test_repeated_runs_are_those_of_the_definition(words, n):
    text = " ".join(words)
    facts = Facts(text)
    found = quality.top_run(n, facts), quality.duplicate_runs(n, facts)
    assert found == pytest.approx(repetition_slowly(text, n))


def test_names_are_spelled_out_and_the_last_value_holds():
    assert canonical([" min_chars:2e2 ", "exact_duplicates", "near_duplicates"]) == (
        "min_chars:200",
        "exact_duplicates",
        "near_duplicates:14x8",
    )
    both = canonical(["gopher_quality", "min_words:9"])
    assert both[0] == "min_words:9"
    assert len(both) == 8
    assert len(canonical(["gopher_quality", "gopher_repetition", "fineweb"])) == 8 + 13 + 2
    assert len([*listed()]) > len(RULES)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("min_char:3", "no such filter; there are min_chars, "),
        ("min_chars", "needs a number of characters: min_chars:200"),
        ("max_symbols:x", "x must be a number of at least 0"),
        ("min_chars:1e30", "1e30 must be a number of at least 0 and below 1e18"),
        ("max_symbols:-1", "-1 must be a number"),
        ("max_symbols:nan", "nan must be a number"),
        ("exact_duplicates:3", "takes no value"),
        ("gopher_quality:3", "takes no value"),
        ("near_duplicates:0.8", "must be BANDSxROWS"),
        ("near_duplicates:0x8", "must be BANDSxROWS"),
        ("near_duplicates:200x8", "must be BANDSxROWS"),
        ("", "no such filter"),
    ],
)
def test_a_filter_that_is_not_there_is_refused_in_one_line(tmp_path, name, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        corpus.open("stdlib", val_fraction=0.1, filters=[name])
    assert "\n" not in str(caught.value)


# Duplicates


@given(st.lists(st.binary(min_size=2, max_size=2).filter(any), max_size=60))
def test_a_table_of_keys_is_a_set(keys):
    table, known = Seen(2), set()
    for key in keys:
        assert (key in table) == (key in known)
        assert table.add(key) == (key not in known)
        known.add(key)
    assert len(table) == len(known)


def test_a_table_grows_and_takes_few_bytes_per_key():
    table, draw = Seen(16), random.Random(1)
    keys = [draw.randbytes(16) for _ in range(10_000)]
    assert all(map(table.add, keys))
    assert not any(map(table.add, keys))
    assert len(table._table) <= 16 * 3.1 * len(table)


def edited(words, share, draw):
    """The words with a share of them replaced."""
    return [f"new{draw.random()}" if draw.random() < share else word for word in words]


def test_signatures_estimate_the_similarity():
    draw = random.Random(3)
    for share in (0.01, 0.03, 0.1):
        words = [f"w{draw.randrange(5000)}" for _ in range(2000)]
        texts = [" ".join(words), " ".join(edited(words, share, draw))]
        first, second = (Near(64, 8).signature(text) for text in texts)
        # 512 hashes: a standard deviation of at most 0.022.
        assert (first == second).mean() == pytest.approx(slow.similarity(*texts), abs=0.08)


def test_signatures_estimate_as_those_of_datasketch_do():
    datasketch = pytest.importorskip("datasketch")
    draw = random.Random(5)
    words = [f"w{draw.randrange(5000)}" for _ in range(500)]
    texts = [" ".join(words), " ".join(edited(words, 0.03, draw))]
    theirs = []
    for text in texts:
        made = datasketch.MinHash(num_perm=512)
        made.update_batch([b"%d" % shingle for shingle in slow.shingles(text)])
        theirs.append(made)
    ours = [Near(64, 8).signature(text) for text in texts]
    assert (ours[0] == ours[1]).mean() == pytest.approx(theirs[0].jaccard(theirs[1]), abs=0.12)


def test_what_resembles_only_a_dropped_document_stays():
    words = [f"w{k}" for k in range(40)]
    # The second is like the first and the third like the second, but not like the first.
    chain = [" ".join(words[at : at + 20]) for at in (0, 8, 16)]
    first, second, third = (set(Near(20, 1)._keys(text)) for text in chain)
    assert first & second
    assert second & third
    assert not first & third
    assert slow.near(chain, 20, 1) == [False, True, False]
    near = Near(20, 1)
    assert [near(text) for text in chain] == [False, True, False]


def test_a_long_text_is_hashed_in_stretches(monkeypatch):
    text = " ".join(f"w{k % 700}" for k in range(2000))
    whole = Near().signature(text)
    monkeypatch.setattr("tinylm.corpus.duplicates._AT_ONCE", 7)
    monkeypatch.setattr("tinylm.corpus.duplicates._KNOWN", 5)
    assert Near().signature(text).tolist() == whole.tolist()


def test_what_is_dropped_has_one_like_it_that_stays():
    draw = random.Random(7)
    base = [[f"w{draw.randrange(900)}" for _ in range(200)] for _ in range(4)]
    texts = [" ".join(edited(draw.choice(base), 0.02, draw)) for _ in range(60)]
    near = Near(32, 4)
    drops = [near(text) for text in texts]
    stay = [text for text, drop in zip(texts, drops, strict=True) if not drop]
    assert 4 <= len(stay) < 20
    for text, drop in zip(texts, drops, strict=True):
        assert not drop or max(slow.similarity(text, other) for other in stay) > 0.3
    exact = Exact()
    assert [exact(text) for text in "aba"] == [False, False, True]


# Corpora

TEXTS = [f"document {k}" + " and so on" * (k % 5) for k in range(60)]


def test_a_corpus_has_what_its_filters_leave_in_the_order_of_before(tmp_path):
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS, *TEXTS)}) / "a.jsonl"
    plain = corpus.open(str(path), **HALF)
    text = corpus.open(str(path), filters=["min_chars:20", "exact_duplicates"], **HALF)
    for split in ("train", "validation"):
        whole = [*getattr(plain, split)()]
        first = list(dict.fromkeys(t for t in whole if len(t) >= 20))
        assert [*getattr(text, split)()] == first
    assert text.fingerprint != plain.fingerprint
    short = [t for t in TEXTS if len(t) < 20]
    record = text.provenance()
    assert record["filters"] == ["min_chars:20", "exact_duplicates"]
    size = sum(map(len, TEXTS))
    assert record["filtered"] == [
        {
            "filter": "min_chars:20",
            "seen_documents": 120,
            "seen_bytes": 2 * size,
            "dropped_documents": 2 * len(short),
            "dropped_bytes": 2 * sum(map(len, short)),
        },
        {
            "filter": "exact_duplicates",
            "seen_documents": 2 * (60 - len(short)),
            "seen_bytes": 2 * (size - sum(map(len, short))),
            "dropped_documents": 60 - len(short),
            "dropped_bytes": size - sum(map(len, short)),
        },
    ]


def test_a_duplicate_of_another_file_is_dropped_whichever_section_is_read_first(tmp_path):
    folder_of(tmp_path, {f"{k}.jsonl": rows(*TEXTS[k:]) for k in range(5)})
    settings = {"filters": ["min_chars:1", "exact_duplicates"], **HALF}
    text = corpus.open(str(tmp_path), **settings)
    last = [*corpus.open(str(tmp_path), **settings).sections[-1].documents()]
    assert last == []
    assert documents(text) == sorted(TEXTS)


def test_rules_filter_only_the_sections_that_are_read(tmp_path):
    folder_of(tmp_path, {"a.jsonl": rows("a", "b", "c", "d"), "b.jsonl": rows("e") + "bad"})
    text = corpus.open(str(tmp_path), filters=["min_chars:1"], **HALF)
    assert len([*text.sections[0].documents()]) == 4
    with pytest.raises(ValueError, match=r"b\.jsonl: line 2"):
        text.provenance()


def test_threads_that_read_at_once_filter_once(tmp_path, monkeypatch):
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS)}) / "a.jsonl"
    text = corpus.open(str(path), filters=["min_chars:20", "near_duplicates"], **HALF)
    passes, found, real = [], [], Filtered._stay

    def slowly(*given):
        passes.append(time.sleep(0.05))
        return real(*given)

    monkeypatch.setattr(Filtered, "_stay", slowly)
    threads = [threading.Thread(target=lambda: found.append(documents(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4
    assert text.provenance()["filtered"][0]["seen_documents"] == 60
    assert len(passes) == 1


def test_of_a_conversation_the_words_of_its_turns_are_filtered(tmp_path):
    turns = [
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x" * k}]
        for k in range(1, 20)
    ]
    lines = "".join(json.dumps({"messages": turn}) + "\n" for turn in turns)
    path = folder_of(tmp_path, {"a.jsonl": lines}) / "a.jsonl"
    # A question, a line break and the answer.
    assert len(documents(corpus.open(str(path), filters=["min_chars:12"], **HALF))) == 10


def test_a_manifest_and_the_end_of_prepare_say_what_was_dropped(tmp_path, capsys):
    texts = [*TEXTS, *(f"{text}, too" for text in TEXTS)]
    path = folder_of(tmp_path, {"a.jsonl": rows(*texts, *texts)}) / "a.jsonl"
    tokenizer = Tokenizer.train(["a"], vocab_size=257, kind="byte")
    tokenizer.save(tmp_path / "bytes.json")
    command = ["prepare", str(path), "--tokenizer", str(tmp_path / "bytes.json")]
    command += ["--out", str(tmp_path / "out"), "--filters", "min_chars:20,exact_duplicates"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "exact_duplicates" in printed
    assert "filters kept 96 of 240 documents" in printed
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.source["filtered"][1]["dropped_documents"] == 96
    assert main(["filters"]) == 0
    assert "gopher_quality" in capsys.readouterr().out
    # Found again by its settings, and refused where they are others.
    text = corpus.open(str(path), filters=("min_chars:20",), val_fraction=0.05)
    with pytest.raises(FileExistsError, match="shards of another text"):
        prepare(text, tokenizer, tmp_path / "out")


def test_shards_are_found_by_their_filters(tmp_path):
    settings = DataConfig(source="x", filters=("gopher_quality",))
    made = corpus.Reading(**corpus.reading(settings))
    assert made.agrees_with({"source": "x", **json.loads(json.dumps(made.recorded()))})
    assert not made.agrees_with({"source": "x", "val_fraction": 0.05, "separator": "auto"})
    # What TinyLM 0.1 recorded.
    assert corpus.Reading(val_fraction=0.05).agrees_with({"val_fraction": 0.05})


def test_processes_that_share_the_work_filter_their_own_files(tmp_path):
    folder_of(tmp_path / "x", {f"{k}.jsonl": rows(*TEXTS[k::4]) for k in range(4)})
    tokenizer = Tokenizer.train(["a"], vocab_size=257, kind="byte")
    texts = [
        corpus.open(str(tmp_path / "x"), filters=["min_chars:20"], val_fraction=0.2)
        for _ in range(3)
    ]
    share = {"world": 2, "job_bytes": 1}
    assert prepare_share(texts[0], tokenizer, tmp_path / "out", rank=0, **share) is None
    manifest = prepare_share(texts[1], tokenizer, tmp_path / "out", rank=1, **share)
    assert manifest.source == texts[2].provenance()
    for text, mine in ((texts[0], {0, 2}), (texts[1], {1, 3})):
        assert text.sections[0].documents.func.__self__._kept.keys() == mine
