"""A whole folder, model and tokenizer, from here to transformers and from there to here."""

import json
import pydoc_data.topics

import pytest
import torch

from tests.support import foreign
from tests.support.foreign import greedy, randomise
from tests.support.tokenizer_data import corpus
from tinylm import checkpoint
from tinylm.config import ModelConfig
from tinylm.model import build

pytest.importorskip("tinylm.tokenizer")
from tinylm import Tokenizer

TEXT = "".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
HOSTILE = "caf\u00e9 \u4e2d\u6587 \U0001f469\u200d\U0001f680 \t\r\n\n  'Ll 123456 \x00 a\u0301"


@pytest.fixture(scope="module")
def transformers():
    return foreign.transformers()


@pytest.fixture(scope="module")
def tokenizer():
    special = ("<|endoftext|>", "<|pad|>")
    return Tokenizer.train([TEXT], vocab_size=600, special_tokens=special)


def make_model(vocab_size, **changes):
    config = {"architecture": "llama3", "d_model": 24, "n_layers": 2, "context_length": 48}
    return randomise(build(ModelConfig(vocab_size=vocab_size, **config | changes)))


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_transformers_reads_generates_and_writes_the_same_text(
    architecture, transformers, tokenizer, tmp_path
):
    model = make_model(600, architecture=architecture)
    path = checkpoint.save(tmp_path / "model", model, tokenizer)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for text in (TEXT, HOSTILE, ""):
        ids = tokenizer.encode(text)
        assert their_tokenizer.encode(text) == ids
        assert their_tokenizer.decode(ids) == tokenizer.decode(ids)
    for part in ("eos", "bos", "pad"):
        assert getattr(their_tokenizer, f"{part}_token_id") == getattr(tokenizer, f"{part}_id")
    assert their_tokenizer.model_max_length == 48
    their_model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert their_model.generation_config.eos_token_id == tokenizer.eos_id
    assert their_model.generation_config.pad_token_id == tokenizer.pad_id
    batch = their_tokenizer("The statement", return_tensors="pt")
    made = their_model.generate(**batch, max_new_tokens=20, do_sample=False)[0].tolist()
    prompt = tokenizer.encode("The statement")
    mine = greedy(model, prompt, 20)
    if tokenizer.eos_id in mine:
        mine = mine[: mine.index(tokenizer.eos_id) + 1]
    assert made == prompt + mine


def test_ids_are_equal_on_many_languages(transformers, tokenizer, tmp_path):
    text = corpus("corpora/multilingual.txt", 300_000)
    path = checkpoint.save(tmp_path / "model", make_model(600), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    assert theirs.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("norm", [None, "layernorm"])
def test_a_tokenizer_comes_back_with_its_model(norm, tokenizer, tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(600, norm=norm), tokenizer)
    assert checkpoint.load(path)[1] == tokenizer


def test_a_tokenizer_larger_than_its_model_is_refused_before_anything_is_written(
    tokenizer, tmp_path
):
    with pytest.raises(ValueError, match="the tokenizer has 600 tokens, the model 599"):
        checkpoint.save(tmp_path / "model", make_model(599), tokenizer)
    assert not any(tmp_path.iterdir())
    checkpoint.save(tmp_path / "model", make_model(599), None)
    (tmp_path / "model" / "MANIFEST.json").unlink()
    tokenizer.save(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(ValueError, match="they do not belong together"):
        checkpoint.load(tmp_path / "model")


def test_a_foreign_tokenizer_that_cannot_be_read_warns_and_gives_none(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(300), None)
    (path / "MANIFEST.json").unlink()
    content = {"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": 0}}}
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"tokenizer.json: TinyLM cannot read this tokenizer"):
        model, tokenizer = checkpoint.load(path)
    assert tokenizer is None
    assert model.config.vocab_size == 300


def test_gpt2s_two_files_are_its_tokenizer(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(300), None)
    (path / "MANIFEST.json").unlink()
    tokenizer = Tokenizer.train([TEXT], vocab_size=300, pattern="gpt2")
    tokenizer.save(path, "gpt2")
    assert checkpoint.load(path)[1].encode(TEXT) == tokenizer.encode(TEXT)


def test_a_model_and_tokenizer_that_transformers_made_open_here(transformers, tokenizer, tmp_path):
    checkpoint.save(tmp_path / "ours", make_model(600), tokenizer)
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    auto.save_pretrained(tmp_path / "theirs")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    their_tokenizer.save_pretrained(tmp_path / "theirs")
    model, back = checkpoint.load(tmp_path / "theirs")
    assert back.encode(TEXT) == tokenizer.encode(TEXT)
    assert back.eos_id == tokenizer.eos_id
    tokens = torch.tensor([back.encode("The statement")])
    with torch.no_grad():
        assert (model(tokens) - auto(tokens).logits).abs().max() < 1e-5
