"""The word-level BPE against its law and against merges worked out by hand."""

import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinylm.reference.word_bpe import (
    bigram_pair_freq,
    build_vocab,
    char_spaced_word_freq,
    decode,
    encode,
    isolate,
    load_merge_rules,
    load_vocab,
    merge,
    save_merge_rules,
    save_vocab,
    train,
)

# The words and counts of the listing in Sennrich et al. 2016.
SENNRICH = "low " * 5 + "lower " * 2 + "newest " * 6 + "widest " * 3

texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aab. \n\t'</w>[]_")))


def base(text):
    """Size of the vocabulary of `text` without any merge."""
    return len(build_vocab(char_spaced_word_freq(text)))


@given(st.text("abc. \n"), st.text("abc. \n"))
@settings(deadline=None)
def test_the_law_holds_for_another_text_of_the_same_characters(seen, text):
    assume(set(text) <= set(seen))
    vocab, merges = train(seen, base(seen) + 20)
    assert decode(encode(text, vocab, merges), vocab) == " ".join(isolate(text).split())


@given(texts)
@settings(deadline=None, max_examples=30)
def test_files_give_merges_and_vocabulary_back(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("files")
    vocab, merges = train(text, base(text) + 20)
    save_merge_rules(merges, folder / "merges.txt")
    save_vocab(vocab, folder / "vocab.json")
    assert load_merge_rules(folder / "merges.txt") == merges
    assert load_vocab(folder / "vocab.json") == vocab
    assert (folder / "merges.txt").read_bytes().count(b"\n") == len(merges)


def test_the_merges_of_the_paper_come_in_its_order():
    merges = train(SENNRICH, base(SENNRICH) + 10)[1]
    # Counts 9, 9, 9, 7, 7, 6, 6, 6, 6, 6; ties by code points.
    assert merges == [
        ("e", "s"),
        ("es", "t"),
        ("est", "</w>"),
        ("l", "o"),
        ("lo", "w"),
        ("e", "w"),
        ("ew", "est</w>"),
        ("n", "ewest</w>"),
        ("low", "</w>"),
        ("d", "est</w>"),
    ]


def test_words_are_counted_across_tabs_lines_and_punctuation():
    counted = char_spaced_word_freq("ab\tab\nab,cd")
    assert counted == {"a b </w>": 3, ", </w>": 1, "c d </w>": 1}
    assert bigram_pair_freq(counted)["b", "</w>"] == 3


def test_a_merge_joins_whole_symbols_only():
    assert merge(("a", "b"), {"xa b </w>": 1, "a by </w>": 2, "a b a b </w>": 3}) == {
        "xa b </w>": 1,
        "a by </w>": 2,
        "ab ab </w>": 3,
    }


def test_overlapping_pairs_are_joined_from_the_left():
    assert merge(("a", "a"), {"a a a </w>": 1}) == {"aa a </w>": 1}


def test_special_tokens_are_the_first_four_ids():
    vocab, _ = train("ba", 7)
    assert list(vocab) == ["[UNK]", "[PAD]", "[BOS]", "[EOS]", "</w>", "a", "b"]
    assert list(vocab.values()) == list(range(7))


def test_an_unseen_character_becomes_unk_and_the_rest_survives():
    vocab, merges = train("cafe bar", 40)
    ids = encode("caz bar", vocab, merges)
    assert ids.count(0) == 1
    assert decode([2, *ids, 3, 1, 1], vocab) == "ca[UNK] bar"


def test_encoding_cuts_and_merges_as_training_did():
    vocab, merges = train("hello, hello, world", 60)
    ids = encode("world,hello", vocab, merges)
    assert ids == [vocab["world</w>"], vocab[",</w>"], vocab["hello</w>"]]


def test_every_ascii_punctuation_mark_and_no_accent_is_isolated():
    assert isolate(string.punctuation).split() == list(string.punctuation)
    assert isolate("e\u0301a") == "e\u0301a"


def test_a_vocabulary_smaller_than_the_characters_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size=6: .* are 8"):
        train("abc", 6)


def test_an_unknown_id_is_refused():
    with pytest.raises(KeyError, match="id 99"):
        decode([99], {"[UNK]": 0})


@pytest.mark.parametrize("line", ["ab", "a b c", " b", "a "])
def test_a_damaged_merge_rule_is_named_by_file_and_line(tmp_path, line):
    path = tmp_path / "merges.txt"
    path.write_text(f"a b\n{line}\n")
    with pytest.raises(ValueError, match=r"merges\.txt, line 2"):
        load_merge_rules(path)


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', "{"])
def test_a_damaged_vocabulary_is_refused(tmp_path, text):
    path = tmp_path / "vocab.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"vocab\.json|Expecting"):
        load_vocab(path)
