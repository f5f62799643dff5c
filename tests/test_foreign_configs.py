"""config.json files of every kind: the logits of transformers, or a refusal that names a key."""

import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import foreign
from tinylm import checkpoint, convert
from tinylm.convert.configs import DERIVED, FORMATS
from tinylm.convert.format import COMMON

TOLERANCE = 1e-4
BASE = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 31,
        "n_positions": 24,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": None,
        "eos_token_id": 3,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 31,
        "max_position_embeddings": 24,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": None,
        "eos_token_id": 3,
    },
}
BASE["qwen3"] = BASE["llama"] | {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 4}
ODD = [None, True, False, 0, 1, 1.0, -1, 2.5, "1", "", [], {}, [1], {"a": 1}]
SCALED = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 50000.0},
    {"rope_theta": 50000.0},
    {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "default", "rope_theta": None},
    {"rope_type": None},
    {"type": "default"},
    {"type": "linear", "factor": 2.0},
    {"type": "linear", "rope_type": "default", "factor": 2.0},
    {"rope_type": "linear", "factor": 1.0, "rope_theta": 10000.0},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 8, "rope_theta": 10000.0},
    {"rope_type": "longrope", "short_factor": [1.5, 1.0], "long_factor": [2.0, 3.0]}
    | {"original_max_position_embeddings": 8},
    {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    {"full_attention": {"rope_type": "default", "rope_theta": 50000.0}},
]
ACTIVATIONS = ["gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "silu"]
ACTIVATIONS += ["swish", "relu", "relu2", "quick_gelu", "nonsense", None]
SIZES = [1, 2, 3, 4, 8, 16, 20, None]
RATES = [0.0, 0.1, 0, 1, 0.5, None, "0.1", True]
EVERYWHERE = {
    "tie_word_embeddings": [True, False, None],
    "architectures": [
        ["GPT2LMHeadModel"],
        ["LlamaForCausalLM"],
        ["GPT2ForSequenceClassification"],
        ["LlamaModel"],
        [],
        None,
        "LlamaForCausalLM",
    ],
    "auto_map": [None, {"AutoModelForCausalLM": "modeling_mine.Mine"}, {}],
    "quantization_config": [None, {"quant_method": "gptq", "bits": 4}, {}],
    "dtype": ["float32", "bfloat16", "float16", None],
    "torch_dtype": ["float32", "bfloat16", "float16", None],
    "is_decoder": [True, False, None],
    "is_causal": [True, False, None],
    "is_encoder_decoder": [True, False],
    "sliding_window": [None, 4, 100],
    "use_sliding_window": [True, False],
    "attention_chunk_size": [None, 4],
    "layer_types": [None, [], ["full_attention"] * 2, ["sliding_attention", "full_attention"]],
    "per_layer_config": [None, {}, {"0": {"hidden_act": "gelu"}}],
    "pruned_heads": [None, {}, {"0": [1]}],
    "text_config": [None, {}, {"hidden_size": 8}],
    "transformers_weights": [None, "model.safetensors", "other.safetensors"],
    "configuration_files": [[], ["config.json"], ["config.4.0.0.json"]],
    "chunk_size_feed_forward": [0, 2],
    "initializer_range": [0.02, 0.5],
    "use_cache": [True, False],
    "return_dict": [True, None],
    "output_hidden_states": [True, False],
    "id2label": [None, {"0": "a"}],
    "num_labels": [1, 3],
    "pad_token_id": [None, 0, 30],
    "eos_token_id": [None, 3, [3, 4]],
    "temperature": [0.5],
    "rope_theta": [10000.0, 50000.0, 10000, None, "10000"],
    "my_own_key": [*ODD],
}
KEYS = {
    "gpt2": {
        "vocab_size": [31, 30, None],
        "n_positions": [24, 17, None],
        "n_ctx": [24, 8],
        "n_embd": SIZES,
        "hidden_size": SIZES,
        "n_layer": SIZES,
        "num_hidden_layers": SIZES,
        "n_head": SIZES,
        "num_attention_heads": SIZES,
        "num_key_value_heads": SIZES,
        "head_dim": SIZES,
        "max_position_embeddings": [24, 17, None],
        "n_inner": [None, 20, 64, 0],
        "activation_function": ACTIVATIONS,
        "layer_norm_epsilon": [1e-5, 1e-2, 1, 0, None, "1e-5"],
        "resid_pdrop": RATES,
        "embd_pdrop": RATES,
        "attn_pdrop": RATES,
        "scale_attn_weights": [True, False, None, 1],
        "scale_attn_by_inverse_layer_idx": [True, False, None, 0],
        "reorder_and_upcast_attn": [True, False],
        "add_cross_attention": [True, False],
        "summary_type": ["mean"],
        "attn_implementation": ["eager", "sdpa"],
    },
    "llama": {
        "vocab_size": [31, 30, None],
        "max_position_embeddings": [24, 17, None],
        "hidden_size": SIZES,
        "intermediate_size": [24, 20, 1, None],
        "num_hidden_layers": SIZES,
        "num_attention_heads": SIZES,
        "num_key_value_heads": SIZES,
        "head_dim": [*SIZES, 0, False],
        "hidden_act": ACTIVATIONS,
        "rms_norm_eps": [1e-6, 1e-2, 1, 0, None, "1e-5"],
        "attention_dropout": RATES,
        "attention_bias": [True, False, None, 0],
        "mlp_bias": [True, False, None, 0],
        "rope_scaling": [*SCALED, None, {}, [], "linear", 2],
        "rope_parameters": [*SCALED, None, {}, [], "linear", 2],
        "partial_rotary_factor": [None, 1.0, 1, 0.5, "1"],
        "pretraining_tp": [1, 2, None],
        "original_max_position_embeddings": [8, None],
        "attn_implementation": ["eager", "sdpa"],
    },
}

KEYS["qwen3"] = KEYS["llama"] | {"max_window_layers": [28, 0], "sliding_window": [None, 4]}


def changes(kind):
    """A few keys with a value each, of the table above."""
    table = EVERYWHERE | KEYS[kind]
    pairs = st.sampled_from(sorted(table)).flatmap(
        lambda key: st.tuples(st.just(key), st.sampled_from(table[key]))
    )
    return st.lists(pairs, max_size=4).map(dict)


@pytest.fixture(scope="module")
def transformers():
    return foreign.transformers()


def make(transformers, content, folder):
    """Logits of a random model that transformers makes of `content`, its folder on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = json.dumps(content)
    (folder / "config.json").write_text(text)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.4
            parameter.copy_(noise + (parameter.dim() == 1))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(tokens())[0] if content.get("return_dict") is None else model(tokens()).logits


def tokens():
    return torch.randint(30, (2, 17), generator=torch.Generator().manual_seed(2))


def check(transformers, kind, given, folder):
    """Equal logits or a refusal that names a key; where transformers fails, only the latter two."""
    content = BASE[kind] | given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = make(transformers, content, folder)
        except Exception:
            # The folder holds what was written until then: that must not crash TinyLM either.
            theirs = None
        try:
            model, _ = checkpoint.load(folder)
        except (ValueError, OSError) as error:
            message = str(error)
            assert "\n" not in message
            weights = ("lacks ", "has shape", "unexpected", "no weights")
            named = [*(f"{key}=" for key in given), *(f"lacks {key}" for key in given)]
            named += [f"{key}.rope_theta=" for key in given]
            named += [f"{FORMATS[kind].aliases.get(key, key)}=" for key in given]
            assert any(name in message for name in (*named, *weights)), message
            return "refused"
    if theirs is None:
        return "unknown"
    with torch.no_grad():
        assert (model(tokens()) - theirs).abs().max() < TOLERANCE
    return "equal"


@pytest.mark.parametrize("kind", KEYS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_config_gives_the_logits_of_transformers_or_a_refusal(kind, data, transformers, tmp_path):
    check(transformers, kind, data.draw(changes(kind)), tmp_path / "model")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KEYS)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_many_configs_give_the_logits_of_transformers_or_a_refusal(
    kind, data, transformers, tmp_path
):
    check(transformers, kind, data.draw(changes(kind)), tmp_path / "model")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KEYS)
def test_each_value_alone_gives_the_logits_or_a_refusal(kind, transformers, tmp_path):
    for key, values in (EVERYWHERE | KEYS[kind]).items():
        for value in values:
            check(transformers, kind, {key: value}, tmp_path / "model")


def test_every_key_of_transformers_has_its_place_in_the_table(transformers):
    for kind, form in FORMATS.items():
        config = type(transformers.AutoConfig.for_model(kind))
        theirs = {field.name for field in dataclasses.fields(config)}
        known = {*form.sizes, *form.rates, *form.supported, *form.aliases, *form.rest_keys}
        assert theirs <= known | form.inert | COMMON.keys() | DERIVED
        assert form.aliases == config.attribute_map
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        for key, values in form.supported.items():
            assert key not in defaults or defaults[key] == values[0]
        for name, key in form.sizes.items():
            assert defaults[name] == key.default or name in BASE[kind]
        assert form.rates == {key: defaults[key] for key in form.rates}
        assert form.eos_id == defaults["eos_token_id"]


RECALLED = {
    "Llama 2": {"pretraining_tp": 1, "rope_scaling": None, "torch_dtype": "float16"}
    | {"architectures": ["LlamaForCausalLM"], "max_length": 4096, "rms_norm_eps": 1e-5},
    "TinyLlama": {"rope_scaling": None, "rope_theta": 10000.0, "num_key_value_heads": 2}
    | {"attention_bias": False, "torch_dtype": "bfloat16", "use_cache": True},
    "SmolLM": {"rope_theta": 100000, "rope_interleaved": False, "is_llama_config": True}
    | {"rope_scaling": None, "num_key_value_heads": 1, "transformers.js_config": {"a": 1}},
}


@pytest.mark.parametrize("name", RECALLED)
def test_the_configs_of_published_llamas_open(name, transformers, tmp_path):
    assert check(transformers, "llama", RECALLED[name], tmp_path / "model") == "equal"


@pytest.mark.parametrize("name", ["gpt2", "distilgpt2"])
def test_the_configs_of_published_gpt2s_open(name, transformers, tmp_path):
    given = {"n_ctx": 24, "summary_activation": None, "architectures": ["GPT2LMHeadModel"]}
    given |= {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
    if name == "distilgpt2":
        given |= {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    assert check(transformers, "gpt2", given, tmp_path / "model") == "equal"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (SCALED[12] | {"model_type": None}, "model_type=None"),
        ({"model_type": "qwen2", "use_sliding_window": False}, "model_type='qwen2'"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\]"),
        ({"rope_scaling": SCALED[12], "rope_theta": 500000.0}, "rope_scaling="),
    ],
)
def test_published_configs_that_tinylm_does_not_compute_are_refused_by_name(given, named):
    with pytest.raises(ValueError, match=named):
        convert.import_config(BASE["llama"] | given)
