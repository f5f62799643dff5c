"""The formats `llama` and `qwen3`: LlamaForCausalLM and Qwen3ForCausalLM."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinylm.config import ModelConfig
from tinylm.convert.format import INERT, Format, Key, one_of, typed

DEFAULT_THETA = 10000.0
# transformers 4 wrote the first name, 5 writes the second and reads either, the first first.
ROPE = ("rope_scaling", "rope_parameters")


def export_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that describe this model."""
    return {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.feedforward_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        # transformers 4 looks for the same number here.
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": config.dropout,
    }


def _rotation(content: Mapping[str, Any]) -> dict[str, Any]:
    """The base of the angles; `ValueError` if any of the three keys asks for more than a base.

    transformers 5 takes rope_scaling if it is not empty, else rope_parameters, and rope_theta
    only if the one taken has no base. transformers 4 reads rope_scaling and rope_theta. Keys
    that contradict each other would give different models, so they are refused.
    """
    ropes = {}
    for key in ROPE:
        ropes[key] = content.get(key) or {}
        if not isinstance(ropes[key], dict):
            raise ValueError(f"{key}={ropes[key]!r}: expected an object")
        _check_plain(key, ropes[key])
    given = {f"{key}.rope_theta": r["rope_theta"] for key, r in ropes.items() if "rope_theta" in r}
    if "rope_theta" in content:
        given["rope_theta"] = content["rope_theta"]
    stated = {name: typed(given, name, float) for name in given}
    taken = next((key for key in ROPE if ropes[key]), ROPE[0])
    default = stated.get("rope_theta", DEFAULT_THETA)
    base = stated.get(f"{taken}.rope_theta", default)
    if any(other != base for other in stated.values()):
        found = " and ".join(f"{key}={value}" for key, value in stated.items())
        raise ValueError(
            f"{found}: transformers 5 computes with {base}, other versions may not: "
            f"write the same rope_theta in each"
        )
    return {"rope_theta": base}


def _check_plain(key: str, rope: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless `rope` describes an unscaled rotation of whole heads."""
    plain = {
        "rope_theta": True,
        "rope_type": rope.get("rope_type", "default") == "default",
        "type": rope.get("type", "default") == "default",
        "partial_rotary_factor": one_of(rope.get("partial_rotary_factor", 1.0), (1.0,)),
    }
    if not all(plain.get(name, False) for name in rope):
        raise ValueError(f"{key}={rope}: TinyLM supports rope_type default, without scaling")


LLAMA = Format(
    architecture="llama3",
    class_name="LlamaForCausalLM",
    bare_class_name="LlamaModel",
    prefix="model.",
    names={
        "embedding": "model.embed_tokens",
        "blocks": "model.layers",
        "norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.o_proj",
        "feedforward_norm": "post_attention_layernorm",
        "feedforward.gate": "mlp.gate_proj",
        "feedforward.up": "mlp.up_proj",
        "feedforward.down": "mlp.down_proj",
    },
    sizes={
        "max_position_embeddings": Key("context_length", int),
        "vocab_size": Key("vocab_size", int),
        "hidden_size": Key("d_model", int),
        "num_hidden_layers": Key("n_layers", int),
        "num_attention_heads": Key("n_heads", int),
        "num_key_value_heads": Key("n_kv_heads", int | None, None),
        "intermediate_size": Key("d_ff", int),
        "tie_word_embeddings": Key("tied", bool, False),
        "rms_norm_eps": Key("norm_eps", float, 1e-6),
        "head_dim": Key("head_size", int | None, None),
    },
    rates={"attention_dropout": 0.0},
    supported={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        # Beside the object as well as in it: transformers moves it inside.
        "partial_rotary_factor": (None, 1.0),
    },
    aliases={},
    # Slices of the same products, which transformers 5 no longer makes.
    inert=INERT | {"pretraining_tp"},
    eos_id=2,
    joined=False,
    export_keys=export_keys,
    rest_keys=frozenset({*ROPE, "rope_theta"}),
    rest=_rotation,
)

# Qwen3 is Llama with a norm on each head of queries and keys. `sliding_window` counts only if
# `use_sliding_window` is true.
QWEN3 = replace(
    LLAMA,
    architecture="qwen3",
    class_name="Qwen3ForCausalLM",
    bare_class_name="Qwen3Model",
    names={
        **LLAMA.names,
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
    },
    sizes={
        **LLAMA.sizes,
        "num_key_value_heads": Key("n_kv_heads", int | None, 32),
        "head_dim": Key("head_size", int | None, 128),
    },
    supported={**LLAMA.supported, "use_sliding_window": (False,)},
    inert=INERT | {"max_window_layers", "sliding_window"},
    eos_id=None,
)
