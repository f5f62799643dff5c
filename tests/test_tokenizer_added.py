"""Added tokens of a tokenizer.json: found as `tokenizers` finds them, whatever their flags."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.tokenizer_json import MAIN, added, by_theirs, document_of, with_added
from tinylm import Tokenizer
from tinylm.tokenizer.contents import to_chars

BLANKS = [" " * n for n in (3, 2)]


def test_added_tokens_that_are_not_special_always_match(tmp_path: Path) -> None:
    # As phi-2 has them: runs of blanks beside a special token, outside of the vocabulary.
    runs = [added(run, 367 + i, special=False) for i, run in enumerate(BLANKS)]
    path = with_added(tmp_path / "theirs.json", *runs, added("<|end|>", 369))
    loaded = Tokenizer.load(path)
    text = "if a:\n     b"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    ids = theirs.encode(text).ids
    assert {367, 368} <= set(ids)
    for special in ("raise", "allow", "text", {"<|end|>"}, set()):
        assert loaded.encode(text, special=special) == ids
    assert loaded.decode(ids) == text
    assert loaded.encode_array(text).tolist() == ids == list(loaded.encode_iterable([text]))
    assert loaded.special_tokens == {"<|end|>": 369}
    assert (loaded.vocab_size, loaded.vocab[367]) == (370, b"   ")
    with pytest.raises(ValueError, match="special token"):
        loaded.encode("a   <|end|>")
    marked = loaded.encode("a   <|end|>", special="text")
    assert 367 in marked
    assert 369 not in marked
    theirs.encode_special_tokens = True
    assert marked == theirs.encode("a   <|end|>").ids
    with pytest.raises(KeyError, match="not a special token"):
        loaded.encode(text, special={"   "})
    loaded.save(tmp_path / "ours.json")
    assert by_theirs(tmp_path / "ours.json") == by_theirs(path)
    assert Tokenizer.load(tmp_path / "ours.json") == loaded
    # Only a tokenizer.json can say it.
    for name in ("x.tiktoken", "folder"):
        with pytest.raises(ValueError, match="always matches; save as"):
            loaded.save(tmp_path / name, "gpt2" if name == "folder" else None)
    special = with_added(
        tmp_path / "special.json", *(run | {"special": True} for run in runs), added("<|end|>", 369)
    )
    assert Tokenizer.load(special) != loaded


BYTES = Tokenizer.train(["x"], vocab_size=256, special_tokens=(), kind="byte")
PIECES = ["ab", "bc", "abc", "cc", "ca", "abcabc"]
flags = st.fixed_dictionaries({"special": st.booleans(), "normalized": st.booleans()})


@given(
    chosen=st.lists(
        st.tuples(st.sampled_from(PIECES), flags), min_size=1, unique_by=lambda c: c[0]
    ),
    text=st.text("abc ", max_size=12),
)
def test_overlapping_added_tokens_are_found_as_by_hugging_face(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[str, dict[str, bool]]], text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "overlapping.json"
    document = document_of(
        Tokenizer.train(["x"], vocab_size=256, special_tokens=(), kind="byte"), path
    )
    document["added_tokens"] = [added(c, 256 + i, **f) for i, (c, f) in enumerate(chosen)]
    path.write_text(json.dumps(document), encoding="utf-8")
    loaded = Tokenizer.load(path)
    expected = tokenizers.Tokenizer.from_file(str(path)).encode(text).ids
    assert loaded.encode(text, special="allow") == expected
    ids, _ = loaded.encode_batch([text, text], special="allow")
    assert ids.tolist() == expected * 2
    # A cut is one in any text that goes on from there.
    for end in range(len(text) + 1):
        if at := loaded._core.cut(text[:end], "allow"):
            parts = [loaded.encode(part, special="allow") for part in (text[:at], text[at:])]
            assert [*parts[0], *parts[1]] == expected
    loaded.save(path)
    assert Tokenizer.load(path) == loaded


def test_normalized_tokens_come_after_the_others_and_count_in_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    found = {}
    for normalized in (False, True):
        tokens = added("abc", 367, normalized=normalized), added("bcd", 368)
        found[normalized] = Tokenizer.load(with_added(path, *tokens))
        theirs = tokenizers.Tokenizer.from_file(str(path))
        assert theirs.encode("abcd").ids == found[normalized].encode("abcd", special="allow")
        assert found[normalized].encode("abcd", special="allow")[-1] == (368 if normalized else 100)
        found[normalized].save(path)
        assert by_theirs(path)["added_tokens"] == [*tokens]
    assert found[False] != found[True]
    # Where no two of them can meet, the order of the two is no difference.
    apart = [added("<a>", 367, normalized=True), added("<b>", 368)]
    plain = Tokenizer.load(with_added(path, apart[0] | {"normalized": False}, apart[1]))
    assert Tokenizer.load(with_added(path, *apart)) == plain


def test_an_added_token_may_be_an_ordinary_one_too(tmp_path: Path) -> None:
    path = with_added(tmp_path / "tokenizer.json", added(to_chars(MAIN.vocab[300]), 300))
    loaded = Tokenizer.load(path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    text = MAIN.vocab[300].decode() + to_chars(MAIN.vocab[300]) + " the lazy dog"
    ids = theirs.encode(text).ids
    assert 300 in ids
    assert loaded.encode(text, special="allow") == ids
    assert loaded.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    document = json.loads(path.read_text(encoding="utf-8"))
    loaded.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == document


EDGES = st.fixed_dictionaries(
    {flag: st.booleans() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
)


BOTH = dict.fromkeys(("lstrip", "rstrip"), True) | dict.fromkeys(
    ("single_word", "normalized", "special"), False
)


@given(
    chosen=st.lists(
        st.tuples(st.sampled_from(["ab", " ", "  ", "bc", "<m>"]), EDGES),
        min_size=1,
        unique_by=lambda c: c[0],
    ),
    text=st.text("abc <m>\n\xe9", max_size=16),
)
# The first takes all white space, and the second finds nothing.
@example(chosen=[(" ", BOTH)], text="  ")
def test_the_edges_of_added_tokens_are_those_of_hugging_face(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[str, dict[str, bool]]], text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "edges.json"
    document = document_of(BYTES, path)
    document["added_tokens"] = [added(c, 256 + i, **f) for i, (c, f) in enumerate(chosen)]
    path.write_text(json.dumps(document), encoding="utf-8")
    loaded = Tokenizer.load(path)
    expected = tokenizers.Tokenizer.from_file(str(path)).encode(text).ids
    assert loaded.encode(text, special="allow") == expected
    ids, _ = loaded.encode_batch([text, text], special="allow")
    assert ids.tolist() == expected * 2
    loaded.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == document
    assert Tokenizer.load(path) == loaded
