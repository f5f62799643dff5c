"""TinyLM's names against transformers': configurations and weights, in both directions."""

import copy
import json
import re
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support import foreign
from tests.support.foreign import greedy, randomise
from tests.support.models import SWITCHES
from tinylm import checkpoint, convert
from tinylm.config import ARCHITECTURES, ModelConfig
from tinylm.config.fields import Attention, Norm
from tinylm.model import Model, build

# Largest difference of a logit, float32: both sides add the same numbers in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def transformers():
    return foreign.transformers()


def gpt2(**changes):
    sizes = {"vocab_size": 53, "n_positions": 24, "n_embd": 20, "n_layer": 2, "n_head": 4}
    ids = {"bos_token_id": None, "eos_token_id": None}
    return "GPT2", sizes | ids | changes


def llama(**changes):
    sizes = {
        "vocab_size": 53,
        "max_position_embeddings": 24,
        "hidden_size": 24,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ids = {"bos_token_id": None, "eos_token_id": None}
    return "Llama", sizes | ids | changes


FOREIGN = {
    "gpt2 tied": gpt2(),
    "gpt2 untied": gpt2(tie_word_embeddings=False),
    "gpt2 narrow feedforward": gpt2(n_inner=36, layer_norm_epsilon=1e-3),
    "gpt2 one layer, odd head": gpt2(n_embd=21, n_head=3, n_layer=1),
    "gpt2 tanh by torch": gpt2(activation_function="gelu_pytorch_tanh"),
    "llama multi-head": llama(),
    "llama grouped": llama(num_key_value_heads=2, rms_norm_eps=1e-3),
    "llama multi-query": llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama another base": llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "llama odd sizes": llama(hidden_size=30, num_attention_heads=3, intermediate_size=37),
}


def make_foreign(transformers, name):
    """A random model of transformers, biases and norm weights included."""
    family, keys = FOREIGN[name]
    config = getattr(transformers, f"{family}Config")(**keys)
    head = "GPT2LMHeadModel" if family == "GPT2" else "LlamaForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1))
    return model


def some_tokens(rows=3, length=17, vocab_size=53):
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_of_transformers_gives_the_same_logits_here(name, transformers, tmp_path):
    theirs = make_foreign(transformers, name)
    theirs.save_pretrained(tmp_path)
    # gpt2's defaults of dropout agree with each other, llama's is zero: no warning.
    model, tokenizer = checkpoint.load(tmp_path)
    tokens = some_tokens()
    with torch.no_grad():
        difference = (model(tokens) - theirs(tokens).logits).abs().max().item()
    assert tokenizer is None
    assert difference < TOLERANCE


OURS = {
    "llama3 grouped": {"n_heads": 4, "n_kv_heads": 2},
    "llama3 multi-query, untied": {"n_heads": 4, "n_kv_heads": 1, "tied": False},
    "llama3 other numbers": {"rope_theta": 5e5, "norm_eps": 1e-3, "d_ff": 37, "dropout": 0.1},
    "gpt2": {"architecture": "gpt2"},
    "gpt2 untied": {"architecture": "gpt2", "tied": False, "d_ff": 31, "dropout": 0.2},
    "gpt2 spelled out": {"architecture": "gpt2", "norm": "layernorm", "attention": "manual"},
}


def make_ours(name):
    return ModelConfig(vocab_size=53, d_model=24, n_layers=2, context_length=24, **OURS[name])


@pytest.mark.parametrize("name", OURS)
def test_a_checkpoint_opens_in_transformers_and_generates_the_same_tokens(
    name, transformers, tmp_path
):
    model = randomise(build(make_ours(name)))
    checkpoint.save(tmp_path / "model", model, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = some_tokens()
    with torch.no_grad():
        difference = (model(tokens) - theirs(tokens).logits).abs().max().item()
    assert difference < TOLERANCE
    prompt = tokens[0, :5].tolist()
    made = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        max_new_tokens=19,
        do_sample=False,
    )
    assert made[0, 5:].tolist() == greedy(model, prompt, 19)


@pytest.mark.parametrize("name", OURS)
def test_what_transformers_saves_again_is_still_the_same_model(name, transformers, tmp_path):
    model = randomise(build(make_ours(name)))
    checkpoint.save(tmp_path / "ours", model, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = checkpoint.load(tmp_path / "theirs")
    assert again.config == model.config
    same(again, model)


def test_a_vocabulary_resized_by_transformers_outweighs_our_own_record(transformers, tmp_path):
    model = randomise(build(make_ours("gpt2")))
    checkpoint.save(tmp_path / "ours", model, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.resize_token_embeddings(60, mean_resizing=False)
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = checkpoint.load(tmp_path / "theirs")
    assert again.config.vocab_size == 60


def test_shards_are_read_as_one_model(transformers, tmp_path):
    theirs = make_foreign(transformers, "llama grouped")
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, _ = checkpoint.load(tmp_path)
    tokens = some_tokens()
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < TOLERANCE


def test_a_bare_gpt2_with_stored_masks_opens(transformers, tmp_path):
    # As openai-community/gpt2 is stored: names without "transformer.", causal masks among them.
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = make_foreign(transformers, "gpt2 tied")
    theirs.save_pretrained(tmp_path)
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in safetensors.load_file(tmp_path / "model.safetensors").items()
    }
    mask = torch.ones(24, 24, dtype=torch.uint8).tril()[None, None]
    tensors |= {f"h.{i}.attn.bias": mask.clone() for i in range(2)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, _ = checkpoint.load(tmp_path)
    tokens = some_tokens()
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < TOLERANCE


def same(one, other):
    """Equal weights, bit for bit, and the same dtype."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


OWN = {
    "value_embeddings": st.integers(0, 1),
    "bigrams": st.integers(0, 2),
    "windows": st.sampled_from([(), (0,), (3, 0)]),
    "logit_softcap": st.sampled_from([None, 15.0]),
    **dict.fromkeys(SWITCHES, st.none() | st.booleans()),
}


@st.composite
def configs(draw, *, of_transformers=False):
    """Any legal model that is small enough to build; or mostly one that transformers has too."""
    own = not of_transformers and draw(st.booleans())
    kv_heads = draw(st.integers(1, 3))
    group = draw(st.integers(1, 3))
    head_size = 2 * draw(st.integers(1, 4))
    rate = st.floats(0, 1, exclude_max=True)
    positive = st.floats(1e-12, 1e12)
    return ModelConfig(
        architecture=draw(
            st.sampled_from(sorted(ARCHITECTURES) if own else ["llama3", "qwen3", "gpt2"])
        ),
        context_length=draw(st.integers(1, 9)),
        vocab_size=draw(st.integers(1, 9)),
        d_model=kv_heads * group * head_size,
        n_layers=draw(st.integers(1, 2)),
        n_heads=kv_heads * group,
        n_kv_heads=draw(st.sampled_from([kv_heads, None])),
        d_ff=draw(st.none() | st.integers(1, 20)),
        tied=draw(st.booleans()),
        dropout=draw(rate),
        norm=draw(st.sampled_from([None, *get_args(Norm)])),
        position=draw(st.sampled_from([None, "rope", "learned", "none"])),
        feedforward=draw(st.sampled_from([None, "swiglu", "mlp", "relu2"])),
        attention=draw(st.sampled_from(get_args(Attention))),
        rope_theta=draw(positive),
        norm_eps=draw(positive),
        head_size=draw(st.sampled_from([None, 2, 6])),
        **(draw(st.fixed_dictionaries({}, optional=OWN)) if own else {}),
    )


@settings(deadline=None)
@given(configs())
def test_every_configuration_comes_back_from_its_json(config):
    text = json.dumps(convert.export_config(config))
    assert convert.import_config(json.loads(text)) == config


@settings(deadline=None)
@given(configs())
def test_every_state_dict_comes_back_bit_for_bit(config):
    state = randomise(Model(config)).state_dict()
    kind = convert.model_type(config)
    theirs = convert.export_tensors(kind, state)
    back = convert.import_tensors(kind, convert.tidy(kind, theirs, tied=config.tied))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


# Most mixes have a part that transformers does not.
@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(configs(of_transformers=True))
def test_without_our_own_record_the_same_function_comes_back(config):
    content = convert.export_config(config)
    assume(content["model_type"] != "tinylm")
    # llama's file holds the dropout of attention only, and says so with a warning.
    assume(content["model_type"] == "gpt2" or config.dropout == 0)
    del content["tinylm"]
    back = convert.import_config(content)
    assert convert.export_config(back) | {"tinylm": None} == content | {"tinylm": None}
    assert back.dropout == config.dropout


@settings(deadline=None)
@given(configs())
def test_a_model_is_ours_alone_exactly_when_something_stands_in_the_way(config):
    assert (convert.model_type(config) == "tinylm") == bool(convert.obstacles(config))


def test_the_obstacle_names_the_part_and_what_it_would_have_to_be():
    config = ModelConfig(vocab_size=9, norm="layernorm")
    assert convert.obstacles(config) == ["model.norm=layernorm (llama has rmsnorm)"]
    config = ModelConfig(vocab_size=9, architecture="gpt2", n_heads=3, n_kv_heads=1)
    assert convert.obstacles(config) == ["model.n_kv_heads=1 (gpt2 has n_heads=3)"]


LLAMA = {"model_type": "llama", **llama()[1]}
GPT2 = {"model_type": "gpt2", **gpt2()[1]}


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        (GPT2, "activation_function", "relu"),
        (GPT2, "scale_attn_by_inverse_layer_idx", True),
        (GPT2, "scale_attn_weights", False),
        (GPT2, "add_cross_attention", True),
        (GPT2, "n_layer", "2"),
        (GPT2, "n_head", True),
        (GPT2, "n_embd", 21),
        (LLAMA, "hidden_act", "gelu"),
        (LLAMA, "attention_bias", True),
        (LLAMA, "mlp_bias", True),
        (LLAMA, "head_dim", 15),
        (LLAMA, "rope_parameters", {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}),
        (LLAMA, "rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        (LLAMA, "rope_scaling", {"type": "linear", "factor": 2.0}),
        (LLAMA, "rope_theta", "10000"),
        (LLAMA, "quantization_config", {"bits": 4}),
        (LLAMA, "model_type", "mistral"),
        (LLAMA, "tinylm", {"width": 3}),
    ],
)
def test_what_cannot_be_represented_is_refused_with_its_key_and_value(content, key, value):
    with pytest.raises(ValueError, match=re.escape(f"{key}=")) as error:
        convert.import_config(content | {key: value})
    assert "\n" not in str(error.value)
    if isinstance(value, str):
        assert value in str(error.value)


def test_our_own_record_is_checked_field_by_field():
    with pytest.raises(ValueError, match="d_model='24': expected int"):
        convert.import_config({"model_type": "tinylm", "tinylm": {"d_model": "24"}})


@pytest.mark.parametrize("key", ["n_layer", "vocab_size"])
def test_a_missing_size_is_named(key):
    content = copy.copy(GPT2)
    del content[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        convert.import_config(content)


def test_rates_of_dropout_that_differ_warn_and_give_the_residual_one():
    with pytest.warns(UserWarning, match="attn_pdrop=0.0: TinyLM has one rate"):
        config = convert.import_config(GPT2 | {"attn_pdrop": 0.0})
    assert config.dropout == 0.1
    with pytest.warns(UserWarning, match="attention_dropout=0.1"):
        config = convert.import_config(LLAMA | {"attention_dropout": 0.1})
    assert config.dropout == 0.1


def test_the_base_of_the_angles_is_found_where_each_transformers_wrote_it():
    assert convert.import_config(LLAMA | {"rope_theta": 5e5}).rope_theta == 5e5
    assert convert.import_config(LLAMA | {"rope_scaling": None}).rope_theta == 1e4
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert convert.import_config(LLAMA | newer | {"rope_theta": 5e5}).rope_theta == 5e5
    # An object without a base takes the one beside it.
    bare = {"rope_scaling": {"rope_type": "default"}, "rope_theta": 2e4}
    assert convert.import_config(LLAMA | bare).rope_theta == 2e4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 2e4},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_theta": 2e4}},
        # transformers takes the first object that is not empty, and its default with it.
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}, "rope_scaling": {}},
        {"rope_scaling": {"type": "linear", "rope_type": "default"}},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_rotations_that_contradict_each_other_or_are_scaled_are_refused(rope):
    with pytest.raises(
        ValueError, match=r"rope_theta=|rope_\w+=\{|partial_rotary_factor="
    ) as error:
        convert.import_config(LLAMA | rope)
    assert "\n" not in str(error.value)


def test_a_head_that_differs_from_its_tied_embedding_is_refused():
    config = make_ours("gpt2")
    tensors = convert.export_tensors("gpt2", build(config).state_dict())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    assert "lm_head.weight" not in convert.tidy("gpt2", tensors, tied=True)
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match="tie_word_embeddings=true: set it to false"):
        convert.tidy("gpt2", tensors, tied=True)
