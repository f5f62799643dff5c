"""The format `llama`: LlamaForCausalLM."""

from collections.abc import Mapping
from typing import Any

from tinylm.config import ModelConfig
from tinylm.convert.format import Format, typed


def export_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that describe this model."""
    return {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.feedforward_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        # Where transformers 4, and what was built on it, look for the same number.
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": config.dropout,
    }


def import_keys(content: Mapping[str, Any]) -> ModelConfig:
    """A config.json to the model that it describes, with transformers' defaults."""
    config = ModelConfig(
        architecture="llama3",
        context_length=typed(content, "max_position_embeddings", int),
        vocab_size=typed(content, "vocab_size", int),
        d_model=typed(content, "hidden_size", int),
        n_layers=typed(content, "num_hidden_layers", int),
        n_heads=typed(content, "num_attention_heads", int),
        n_kv_heads=typed(content, "num_key_value_heads", int | None, None),
        d_ff=typed(content, "intermediate_size", int),
        tied=typed(content, "tie_word_embeddings", bool, False),
        dropout=typed(content, "attention_dropout", float | None, 0.0) or 0.0,
        rope_theta=_rope_theta(content),
        norm_eps=typed(content, "rms_norm_eps", float, 1e-6),
    )
    head_size = content.get("head_dim") or config.head_size
    if head_size != config.head_size:
        raise ValueError(
            f"head_dim={head_size}: TinyLM supports hidden_size / num_attention_heads, "
            f"{config.head_size}"
        )
    return config


def _rope_theta(content: Mapping[str, Any]) -> float:
    """The base of the angles, from rope_parameters (transformers 5) or rope_theta (4)."""
    key = "rope_parameters" if content.get("rope_parameters") else "rope_scaling"
    rope = content.get(key) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{key}={rope!r}: expected a dictionary")
    plain = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
    kind = rope.get("rope_type", rope.get("type", "default"))
    share = rope.get("partial_rotary_factor", 1.0)
    if kind != "default" or share != 1.0 or rope.keys() - plain:
        raise ValueError(f"{key}={rope}: TinyLM supports rope_type default, without scaling")
    source = rope if "rope_theta" in rope else content
    return float(typed(source, "rope_theta", float, 10000.0))


LLAMA = Format(
    architecture="llama3",
    class_name="LlamaForCausalLM",
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
    supported={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "quantization_config": (None,),
    },
    dropout=("attention_dropout",),
    joined=False,
    export_keys=export_keys,
    import_keys=import_keys,
)
