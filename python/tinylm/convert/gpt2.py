"""The format `gpt2`: GPT2LMHeadModel."""

from collections.abc import Mapping
from typing import Any

from tinylm.config import ModelConfig
from tinylm.convert.format import Format, typed

DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def export_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that describe this model."""
    rates = dict.fromkeys(DROPOUT, config.dropout)
    return {
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        **rates,
    }


def import_keys(content: Mapping[str, Any]) -> ModelConfig:
    """A config.json to the model that it describes, with transformers' defaults."""
    return ModelConfig(
        architecture="gpt2",
        context_length=typed(content, "n_positions", int),
        vocab_size=typed(content, "vocab_size", int),
        d_model=typed(content, "n_embd", int),
        n_layers=typed(content, "n_layer", int),
        n_heads=typed(content, "n_head", int),
        d_ff=typed(content, "n_inner", int | None, None),
        tied=typed(content, "tie_word_embeddings", bool, True),
        dropout=typed(content, "resid_pdrop", float, 0.1),
        norm_eps=typed(content, "layer_norm_epsilon", float, 1e-5),
    )


GPT2 = Format(
    architecture="gpt2",
    class_name="GPT2LMHeadModel",
    prefix="transformer.",
    names={
        "embedding": "transformer.wte",
        "position.table": "transformer.wpe",
        "blocks": "transformer.h",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        "attention_norm": "ln_1",
        "attention.q": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "feedforward_norm": "ln_2",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    },
    supported={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    dropout=DROPOUT,
    joined=True,
    export_keys=export_keys,
    import_keys=import_keys,
)
