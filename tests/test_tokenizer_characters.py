"""Training over characters, and what SentencePiece makes of the file; what is blocked."""

import warnings
from pathlib import Path

import pytest
import tokenizers

from tests.support.tokenizer_data import standard_library
from tinylm import Tokenizer
from tinylm.reference import char_bpe
from tinylm.tokenizer import Characters
from tinylm.tokenizer.models import CharBpe, Unigram

TEXT = standard_library(2)[:60_000] + "na\xefve \u4e2d\u6587\u3002 \xe9t\xe9 \U0001f642\n" * 20
HARD = (
    *("", " ", "a", "  a  b ", "a\n\n b\t", "\x00\x07", "\u4e2d\u6587 \u5b57", "x" * 200),
    *("<|endoftext|> <unk> <0x41>", "\xe9\u0301", "\U0001f600\U0001f642", "3.14 == 10**9"),
)
KINDS = ["bpe", "unigram"]


@pytest.fixture(scope="module", params=KINDS)
def learned(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=600, kind=request.param, alphabet=Characters())


def test_every_text_comes_back(learned: Tokenizer) -> None:
    assert learned.vocab_size == 600
    for text in (*HARD, TEXT[:3000]):
        assert learned.decode(learned.encode(text, special="text")) == text
    assert learned.eos_id == learned.special_tokens["<|endoftext|>"] == 1
    assert learned.encode("a<|endoftext|>", special="allow")[-1] == 1


def test_it_loads_as_it_was_saved(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path / "a.model")
    assert Tokenizer.load(tmp_path / "a.model") == learned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fallback", [True, False])
def test_sentencepiece_opens_the_file_with_equal_ids(
    kind: str, fallback: bool, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    alphabet = Characters(coverage=0.999, byte_fallback=fallback)
    special = ("<|endoftext|>", "<s>")
    learned = Tokenizer.train(
        [TEXT],
        vocab_size=640 if fallback else 390,
        kind=kind,
        alphabet=alphabet,
        special_tokens=special,
    )
    learned.save(tmp_path / "a.model")
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    assert (peer.eos_id(), peer.bos_id(), peer.unk_id(), peer.pad_id()) == (1, 2, 0, -1)
    for text in (*HARD, *TEXT.split("\n")):
        ids = learned.encode(text, special="text")
        assert ids == peer.encode(text)
        assert peer.decode(ids) == learned.decode(ids)


def test_the_merges_are_those_of_hugging_face() -> None:
    # Words alone, so that both cut alike; a word's blank is its first character.
    words = [word for word in TEXT.split() if word.isalpha()][:3000]
    text = " ".join(words)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, show_progress=False)
    theirs.train_from_iterator([text], trainer)
    expected = sorted(theirs.get_vocab(), key=theirs.token_to_id)
    ours = Tokenizer.train(
        [text],
        vocab_size=401,
        alphabet=Characters(byte_fallback=False),
        ties="huggingface",
        special_tokens=(),
    )
    learned = [token.decode() for token in ours._contents.tokens][: 400 - len({*text})]
    assert learned == expected[len({*text}) :]
    assert isinstance(ours._contents.model, CharBpe)


def test_an_alphabet_is_covered_and_limited(tmp_path: Path) -> None:
    text = "aaaa bbb cc d"
    spaced = char_bpe.alphabet({"\u2581" + text.replace(" ", "\u2581"): 1}, "x\u2581", 0.8, 4)
    settings = {"vocab_size": 400, "special_tokens": ()}
    with pytest.warns(UserWarning, match="not the 400 asked for"):
        small = Tokenizer.train(
            [text], alphabet=Characters(initial="x", coverage=0.8, limit=4), **settings
        )
    single = {token.decode() for token in small._contents.tokens if len(token.decode()) == 1}
    assert single == {char for char, _ in spaced} == {"\u2581", "x", "a", "b"}
    assert small.decode(small.encode("abcd\u4e2d")) == "abcd\u4e2d"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without = Tokenizer.train([text], alphabet=Characters(byte_fallback=False), **settings)
    assert without.encode("\u4e2d") == [without._contents.tokens["\u2581".encode()], 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alphabet", [None, Characters()])
def test_what_is_blocked_is_never_made(kind: str, alphabet: Characters | None) -> None:
    settings = {"vocab_size": 600, "kind": kind, "alphabet": alphabet}
    plain = Tokenizer.train([TEXT], **settings)
    spelled = (lambda token: token) if alphabet is None else lambda t: t.replace(b" ", MARK)
    blocked = [b" self", "in", " the"]
    without = Tokenizer.train([TEXT], blocked=blocked, **settings)
    names = {spelled(token if isinstance(token, bytes) else token.encode()) for token in blocked}
    assert names & plain._contents.tokens.keys()
    assert not names & without._contents.tokens.keys()
    assert without.vocab_size == 600
    assert without.decode(without.encode(" self in")) == " self in"
    assert isinstance(without._contents.model, Unigram) == (kind == "unigram")


MARK = "\u2581".encode()


def test_a_pair_that_is_blocked_never_merges() -> None:
    text = ["abab ab"] * 3
    with pytest.warns(UserWarning, match="not the 300"):
        assert Tokenizer.train(text, vocab_size=300).merges[0] == (b"a", b"b")
    with pytest.warns(UserWarning, match="not the 300"):
        other = Tokenizer.train(text, vocab_size=300, blocked=[("a", "b")])
    assert (b"a", b"b") not in other.merges
    assert (b"b", b"a") in other.merges


def test_options_that_do_not_fit_are_refused() -> None:
    bare = Characters()
    for settings, message in (
        ({"alphabet": bare, "pattern": "gpt2"}, "an alphabet has its own"),
        ({"alphabet": bare, "kind": "char"}, "alphabet is for bpe and unigram"),
        ({"alphabet": bare, "vocab_size": 260}, r"260 is too small: 258 special .* need 3\d\d;"),
        ({"blocked": ["a"]}, "a single byte, which always is a token"),
        ({"blocked": ["\xe9"], "alphabet": bare}, "a single character, which always is"),
        ({"blocked": [("a", "b")], "kind": "unigram"}, "a Unigram has no merges"),
        ({"alphabet": bare, "special_tokens": ["<unk>"]}, "listed twice"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokenizer.train([TEXT], **{"vocab_size": 400, **settings})
    with pytest.raises(TypeError, match="for one pass"):
        Tokenizer.train([TEXT], vocab_size=400, blocked="ab")
    with pytest.raises(ValueError, match="coverage 0 must be"):
        Characters(coverage=0)
    with pytest.raises(ValueError, match="limit 1 is below the 3"):
        Characters(initial="ab", limit=1)
