"""Published tokenizer.json files: they open, save again without loss, and agree with `tokenizers`.

The files come from the folder that TINYLM_DATA names. The quick test reads one of them and a few
hard texts, the slow ones all files over corpora, adversarial families and drawn texts.
"""

import gzip
import json
import pickle
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.rungs import stages
from tests.support.tokenizer_data import corpus, data, standard_library, tiktoken_of
from tinylm import Tokenizer

FILES = (
    "bert_base_cased",
    "clip_base",
    "deepseek",
    "falcon",
    "gpt_neox",
    "llama2",
    "mistral01",
    "modernbert",
    "phi-2",
    "roberta-base",
    "smollm",
    "t5-small",
    "whisper-tiny",
    "xlnet_base_cased",
)
HARD = (
    *("", " ", "  a", " hello  world ", "\n\n x\n", "'s it's don't do not can't", "``x'' y``"),
    *("a" * 300, " " * 50, "1234567 89 \xb2\xbd x", ".,!?-_", "e\u0301 \u212b \xc5 \u1e9b\u0323"),
    *("\u4e2d\u6587\uff0c\u5b57\u3002\u30ab\u30bf\u30ab\u30ca \uff76\uff85", "\uac00\u1100\u1161"),
    *(
        "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\ufb01 \u2167 \u2460",
        "\x00\x03\x7f",
    ),
    *("\xa0x\u3000y", "a\u200bb\ufeff", "\u0130\u0131 \u017f \xdf \u1e9e \u03a3\u03c2", "\r\n\r\n"),
    *("\t\tdef f(x):\n\t\treturn 1", "<|endoftext|> <unk> <s>x</s>", f"{chr(0x2581)}a"),
    *(
        "<0x41> <0xFF>",
        "##ing hello</w>",
        "\u0627\u0651 \u0928\u093c",
        "<mask> x  <mask>",
        "[MASK]",
    ),
)
FAMILIES = ("a", " ", "\n", ".", "\u4e2d", "ab ", "1", "\xe9", "\U0001f600", "e\u0301", "x\u2581")
ALPHABET = (
    *(" ", "  ", "\n", "\t", "a", "B", "the", "\xe9", "e\u0301", "\u0301", "\u4e2d", "1", "\xb2"),
    *("'", "'s", ".", "!", "_", "-", "\u2581", "\xa0", "\u200d", "\U0001f642", "\uac00", "\u1100"),
    *("\u1161", "\ufb01", "\xc5", "\x03", "\u0627\u0651", "\u0928\u093c", "\ufeff", "\u1e9b\u0323"),
)


@cache
def pair(name: str) -> tuple[dict[str, Any], Path, tokenizers.Tokenizer]:
    """The document of a file, its path and what `tokenizers` makes of it."""
    path = data(f"fixtures/tokenizers/{name}.json.gz")
    text = gzip.decompress(path.read_bytes()).decode()
    theirs = tokenizers.Tokenizer.from_str(text)
    theirs.no_truncation()
    theirs.no_padding()
    return json.loads(text), path, theirs


def opened(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a file, after it was saved again without loss."""
    document, _, _ = pair(name)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    ours = Tokenizer.from_pretrained(folder)
    ours.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == document
    assert pickle.loads(pickle.dumps(ours)) == ours == Tokenizer.load(path)
    return ours


def check(name: str, ours: Tokenizer, texts: list[str]) -> None:
    """Equal ids, with and without the template, and equal text of them."""
    _, _, theirs = pair(name)
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False).ids
        ids = ours.encode(text, special="allow")
        assert ids == expected, f"{name}: {text[:80]!r}"
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text[:80]
        framed = ours.encode(text, special="allow", template=True)
        assert framed == theirs.encode(text).ids
        both = ours.encode(text, special="allow", template=True, pair="a b")
        assert both == theirs.encode(text, "a b").ids


def drawn(rng: random.Random, pieces: tuple[str, ...], count: int) -> list[str]:
    """Texts of pieces, of added tokens and of any characters."""
    ranges = ((0x20, 0x250), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x30000))
    found = []
    for number in range(count):
        length = rng.randrange(1, 24)
        if number % 2:
            found.append("".join(rng.choice(pieces) for _ in range(length)))
        else:
            spans = (rng.choice(ranges) for _ in range(length // 2))
            found.append("".join(chr(rng.randrange(*span)) for span in spans))
    return found


@pytest.mark.parametrize("token", ["a\u2581", "\u2581a\u2581b", "\u2596\u2581"])
def test_a_token_over_a_mark_is_found(tmp_path: Path, token: str) -> None:
    # Characters between blanks are cut apart only if no token reaches over one.
    characters = sorted({*"ab\u2581\u2596", *token})
    vocab = {char: id for id, char in enumerate(characters)}
    merges = []
    for end in range(2, len(token) + 1):
        merges.append([token[: end - 1], token[end - 1]])
        vocab[token[:end]] = len(vocab)
    for merged in (merges, []):
        model = {"type": "BPE", "vocab": vocab, "merges": merged}
        replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        text = json.dumps({"normalizer": replaced, "model": model})
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        theirs = tokenizers.Tokenizer.from_str(text)
        ours = Tokenizer.load(tmp_path)
        for text in ("a b", " a b a", "\u2596 \u2596  a  "):
            assert ours.encode(text) == theirs.encode(text).ids


def test_a_published_file_opens_and_agrees(tmp_path: Path) -> None:
    check("gpt_neox", opened("gpt_neox", tmp_path), [*HARD, *drawn(random.Random(0), ALPHABET, 60)])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_published_file_agrees_over_corpora_families_and_drawn_texts(
    name: str, tmp_path: Path
) -> None:
    ours = opened(name, tmp_path)
    document, _, theirs = pair(name)
    check(name, ours, [*HARD, *(family * (2000 // len(family)) for family in FAMILIES)])
    rng = random.Random(name)
    special = tuple(token["content"] for token in document["added_tokens"])
    pieces = (*ALPHABET, *rng.sample(special, min(12, len(special))))
    check(name, ours, drawn(rng, pieces, 4000))
    sources = [
        *(corpus(f"corpora/{part}.txt", 2_000_000) for part in ("english", "multilingual")),
        standard_library(20),
    ]
    for source in sources:
        starts = [rng.randrange(len(source)) for _ in range(150)]
        check(name, ours, [source[at : at + rng.randrange(2000)] for at in starts])
        # Long texts at once, and over threads.
        part = source[:150_000]
        expected = theirs.encode(part, add_special_tokens=False).ids
        ids, offsets = ours.encode_batch([part, "", part], special="allow")
        assert ids.tolist() == expected * 2
        assert offsets.tolist() == [0, len(expected), len(expected), 2 * len(expected)]


@pytest.mark.slow
def test_qwen_s_ranks_open_save_again_and_agree_with_tiktoken(tmp_path: Path) -> None:
    published = data("fixtures/tokenizers/qwen.tiktoken.gz")
    ours = Tokenizer.load(published)
    assert (ours.pattern, ours.vocab_size, ours.eos_id) == ("qwen2", 151851, 151643)
    ours.save(tmp_path / "qwen.tiktoken")
    assert (tmp_path / "qwen.tiktoken").read_bytes() == gzip.decompress(published.read_bytes())
    ours.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == ours == Tokenizer.load(published)
    theirs = tiktoken_of(ours)
    rng = random.Random("qwen")
    texts = [*HARD, *(family * (2000 // len(family)) for family in FAMILIES)]
    texts += drawn(rng, (*ALPHABET, "<|im_start|>", "<|extra_7|>"), 4000)
    for source in (*(corpus(f"corpora/{p}.txt") for p in ("english", "multilingual")),):
        starts = [rng.randrange(len(source)) for _ in range(150)]
        texts += [source[at : at + rng.randrange(2000)] for at in starts]
    texts.append(standard_library(20)[:1_000_000])
    for text in texts:
        ids = ours.encode(text, special="allow")
        assert ids == theirs.encode(text, allowed_special="all"), text[:80]
        assert ours.decode(ids) == text


BERT = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
EVERY_CHARACTER: list[tuple[str, dict[str, Any]]] = [
    *(
        ("normalise", {"type": kind})
        for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")
    ),
    *(("normalise", {"type": "BertNormalizer", **BERT, step: True}) for step in BERT),
    *(("cut", {"type": kind}) for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
    ("cut", {"type": "UnicodeScripts"}),
    ("cut", {"type": "Digits", "individual_digits": True}),
    ("cut", {"type": "Punctuation", "behavior": "Isolated"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), EVERY_CHARACTER, ids=lambda part: str(part)[:80])
def test_every_character_is_that_of_hugging_face(kind: str, step: dict[str, Any]) -> None:
    ours, theirs = (getattr(stages, f"{kind}_{side}") for side in ("quickly", "theirs"))
    # Without the half characters, and the one that marks the ends of pieces.
    codes = [*range(0xD800), *range(0xE001, 0x110000)]
    for start in range(0, len(codes), 2048):
        text = "".join(f"x{chr(code)}\u0301y" for code in codes[start : start + 2048])
        assert ours(text, [step]) == theirs(text, [step]), f"from U+{codes[start]:04X} on"
