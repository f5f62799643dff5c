"""The format `gpt2`: GPT2LMHeadModel."""

from typing import Any

from tinylm.config import ModelConfig
from tinylm.convert.format import INERT, Format, Key

# The residual rate first: it is the one that is taken where they differ.
RATES = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


def export_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that describe this model."""
    return {
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(RATES, config.dropout),
    }


GPT2 = Format(
    architecture="gpt2",
    class_name="GPT2LMHeadModel",
    bare_class_name="GPT2Model",
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
    sizes={
        "n_positions": Key("context_length", int),
        "vocab_size": Key("vocab_size", int),
        "n_embd": Key("d_model", int),
        "n_layer": Key("n_layers", int),
        "n_head": Key("n_heads", int),
        "n_inner": Key("d_ff", int | None, None),
        "tie_word_embeddings": Key("tied", bool, True),
        "layer_norm_epsilon": Key("norm_eps", float, 1e-5),
    },
    rates=RATES,
    supported={
        # Three spellings of one formula, the tanh approximation.
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    inert=INERT
    | {
        # The order of the same products, in float32.
        "reorder_and_upcast_attn",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    },
    eos_id=50256,
    joined=True,
    export_keys=export_keys,
)
