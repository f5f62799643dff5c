"""A cache in a file: it goes on as if it had never left memory, and only for the same model."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.support.models import build, configs, tokens
from tinylm import cache
from tinylm.config import ModelConfig
from tinylm.model import inference

SMALL = ModelConfig(vocab_size=11, d_model=16, n_layers=2, n_heads=2, context_length=24)
BOUNDED = ("window", "random", "h2o", "snapkv")


class Tokens:
    """A tokenizer, as far as a cache asks."""

    def __init__(self, sha256):
        self.sha256 = sha256


def held(model, kind, ids):
    """A cache of two rows of unequal length."""
    options = {"budget": 9} if kind in BOUNDED else {}
    made = cache.build(model, 2, model.context_length, kind, **options)
    with inference(model):
        model(ids[:, :7], cache=made)
        model(ids[:1, 7:], cache=made.rows([1]))
    return made


@pytest.mark.parametrize("kind", cache.KINDS)
@settings(max_examples=2, deadline=None)
@given(config=configs(context_length=16, n_layers=2), seed=st.integers(0, 2**31))
def test_a_cache_of_any_kind_goes_on_to_the_bit(tmp_path_factory, kind, config, seed):
    path = tmp_path_factory.getbasetemp() / "held.safetensors"
    model = build(config, seed, torch.float32)
    ids = tokens(config, 2, 11, seed)
    before = held(model, kind, ids)
    before.save(path)
    after = cache.load(path, model)
    assert (after.kind, after.ends, after.options) == (kind, [7, 11], before.options)
    with inference(model):
        for part in ids[:, :3].split([2, 1], 1):
            assert torch.equal(model(part, cache=before), model(part, cache=after))


def test_another_model_tokenizer_or_dtype_is_refused_in_one_line(tmp_path):
    path = tmp_path / "held.safetensors"
    model, ids = build(SMALL), tokens(SMALL, 2, 11)
    held(model, "contiguous", ids).save(path, Tokens("a" * 64))
    cases = {
        "of another model (hash": (build(SMALL, 1), Tokens("a" * 64)),
        "of another tokenizer (hash aaaaaaaaaaaa, not bbbbbbbbbbbb)": (model, Tokens("b" * 64)),
        "of another tokenizer (hash aaaaaaaaaaaa, not none)": (model, None),
    }
    for words, (other, tokenizer) in cases.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            cache.load(path, other, tokenizer)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"computed in torch.float64 and .* in torch.bfloat16"),
    ):
        cache.load(path, model, Tokens("a" * 64))


def test_the_header_says_what_the_file_is(tmp_path):
    path = tmp_path / "held.safetensors"
    held(build(SMALL), "paged", tokens(SMALL, 2, 11)).save(path, Tokens("a" * 64))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["positions"]) == [7, 11]
    assert json.loads(header["options"]) == {"page": 16, "tokens": None}
    assert json.loads(header["dtype"]) == "torch.float64"
    assert json.loads(header["tokenizer"]) == "a" * 64
    assert len(header["model"]) == 64


def test_a_weight_that_changed_is_another_model(tmp_path):
    path = tmp_path / "held.safetensors"
    model = build(SMALL)
    held(model, "contiguous", tokens(SMALL, 2, 11)).save(path)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-9
    with pytest.raises(ValueError, match="of another model"):
        cache.load(path, model)


def test_what_is_no_saved_cache_is_refused_and_a_failed_save_leaves_the_old_file(
    tmp_path, monkeypatch
):
    path = tmp_path / "held.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="not a cache that TinyLM saved"):
        cache.load(path, build(SMALL))
    made = held(build(SMALL), "contiguous", tokens(SMALL, 2, 11))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        made.save(path)
    assert path.read_bytes() == b"no safetensors"
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(ValueError, match=r"not made by cache\.build"):
        made._like(1).__class__(
            made.states, 1, 8, earlier=(), dtype=torch.float32, device=torch.device("cpu")
        ).save(path)
