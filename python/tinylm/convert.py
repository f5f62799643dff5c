"""Our names to transformers' names and back: configurations and tensors; the home of synonyms.

    config = import_config(json.loads(text))          # config.json to a ModelConfig
    theirs = export_tensors("llama", model.state_dict())

Two formats of transformers hold what TinyLM builds, `gpt2` (GPT2LMHeadModel) and `llama`
(LlamaForCausalLM). A model with any other mix of parts is written as model_type `tinylm`
under our own names, and `obstacles` says what keeps it from opening elsewhere. All
translations are exact: tensors are renamed, transposed, joined and split, never computed.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

from tinylm.config import ARCHITECTURES, ModelConfig

ModelType = Literal["gpt2", "llama", "tinylm"]

# Which of our architectures each format of transformers holds.
HELD = {"llama": "llama3", "gpt2": "gpt2"}
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "tinylm": "TinyLM"}

# Ours to theirs, by module; the modules of a block follow the block's number.
NAMES: dict[str, dict[str, str]] = {
    "gpt2": {
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
    "llama": {
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
}
# What a bare GPT2Model or LlamaModel leaves off in front of every name but the head's.
PREFIX = {"gpt2": "transformer.", "llama": "model."}
# Constants that older files hold among the weights: causal masks and rotary frequencies.
CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")

# What a foreign config.json may say, by key; the first value is transformers' default.
SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "quantization_config": (None,),
    },
}


def obstacles(config: ModelConfig) -> list[str]:
    """A model to the settings that keep it from opening in transformers; none for most models."""
    return min((_differences(config, kind) for kind in HELD), key=len)


def model_type(config: ModelConfig) -> ModelType:
    """The format that a model is written in: gpt2, llama, or else tinylm."""
    for kind in HELD:
        if not _differences(config, kind):
            return kind  # type: ignore[return-value]
    return "tinylm"


def export_config(
    config: ModelConfig,
    *,
    dtype: str = "float32",
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> dict[str, Any]:
    """A model to the content of its config.json; `import_config` gives back an equal one.

    The key "tinylm" holds every field of ours, which transformers carries along unread.
    """
    kind = model_type(config)
    return {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "dtype": dtype,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        **({} if kind == "tinylm" else _KEYS[kind](config)),
        "tinylm": asdict(config),
    }


def import_config(content: Mapping[str, Any]) -> ModelConfig:
    """The content of a config.json to a model; `ValueError` names what TinyLM does not have.

    transformers' keys count: the key "tinylm" only adds what they cannot say, and is left
    aside where they contradict it, as after a resize of the vocabulary. One dropout rate
    stands for gpt2's three and for llama's of attention alone; where that changes training,
    a warning says so.
    """
    kind = content.get("model_type")
    if kind != "tinylm" and kind not in HELD:
        raise ValueError(f"model_type={kind!r}: supported are gpt2, llama and tinylm")
    own = _own(content["tinylm"]) if "tinylm" in content else None
    if kind == "tinylm":
        if own is None:
            raise ValueError("model_type='tinylm' without the key tinylm: not a TinyLM config.json")
        return own
    theirs = _foreign(kind, content)
    same_type = own is not None and model_type(own) == kind
    if own is not None and same_type and _foreign(kind, export_config(own)) == theirs:
        return own
    _warn_of_dropout(kind, content, theirs)
    return theirs


def export_tensors(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the tensors of a format, contiguous; a tied matrix is there once.

    gpt2 keeps matrices as [inputs, outputs] and joins q, k and v into c_attn.
    """
    if kind == "tinylm":
        return {name: tensor.contiguous() for name, tensor in state.items()}
    names, theirs = NAMES[kind], {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if kind == "gpt2" and module.endswith((".attention.k", ".attention.v")):
            continue
        if kind == "gpt2" and module.endswith(".attention.q"):
            stem = module[:-1]
            tensor = torch.cat([state[f"{stem}{part}.{leaf}"] for part in "qkv"])
        if kind == "gpt2" and _transposed(module, tensor):
            tensor = tensor.T
        theirs[_rename(name, "blocks", names["blocks"], names)] = tensor.contiguous()
    return theirs


def import_tensors(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a format, as `tidy` gives them, to our state dict; the results are views.

    Raises `KeyError` for a name that the format does not have.
    """
    if kind == "tinylm":
        return dict(tensors)
    names, ours = {theirs: name for name, theirs in NAMES[kind].items()}, {}
    for name, tensor in tensors.items():
        renamed = _rename(name, NAMES[kind]["blocks"], "blocks", names)
        module, _, leaf = renamed.rpartition(".")
        if kind == "gpt2" and _transposed(module, tensor):
            tensor = tensor.T
        if kind == "gpt2" and module.endswith(".attention.q"):
            stem = module[:-1]
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{stem}{part}.{leaf}"] = third
        else:
            ours[renamed] = tensor
    return ours


def tidy(kind: str, tensors: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """The tensors of a file, of whatever age, under the names that transformers writes today.

    Adds the prefix that a bare GPT2Model or LlamaModel lacks, drops stored constants, and a
    head that repeats the embedding it is tied to; `ValueError` where it differs.
    """
    if kind == "tinylm":
        return dict(tensors)
    names, prefix = NAMES[kind], PREFIX[kind]
    bare = not any(name.startswith(prefix) for name in tensors)
    full = {
        prefix + name if bare and not name.startswith(names["head"]) else name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(CONSTANTS)
    }
    head, embedding = f"{names['head']}.weight", f"{names['embedding']}.weight"
    if tied and head in full and embedding in full:
        if not torch.equal(full[head], full[embedding]):
            raise ValueError(
                f"{head} differs from {embedding}, but tie_word_embeddings=true: "
                f"set it to false in config.json"
            )
        del full[head]
    return full


def _rename(name: str, blocks: str, new_blocks: str, names: Mapping[str, str]) -> str:
    """`name` with its module looked up in `names`, inside a block without the block's number."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith(f"{blocks}."):
        return f"{names[module]}.{leaf}"
    number, _, inner = module[len(blocks) + 1 :].partition(".")
    return f"{new_blocks}.{number}.{names[inner]}.{leaf}"


def _transposed(module: str, tensor: Tensor) -> bool:
    """Whether gpt2 keeps this tensor as [inputs, outputs]: the matrices of its blocks."""
    return module.startswith("blocks.") and tensor.dim() == 2


def _differences(config: ModelConfig, kind: str) -> list[str]:
    """The settings of a model that `kind` cannot hold, each with what it would need."""
    mine = config.components()
    wanted = ARCHITECTURES[HELD[kind]]
    found = [
        f"model.{key}={str(mine[key]).lower()} ({kind} has {str(wanted[key]).lower()})"
        for key in mine
        if mine[key] != wanted.get(key)
    ]
    if config.attention not in ("sdpa", "manual"):
        found.append(f"model.attention={config.attention} ({kind} has sdpa)")
    if kind == "gpt2" and config.kv_heads != config.n_heads:
        found.append(f"model.n_kv_heads={config.n_kv_heads} (gpt2 has n_heads={config.n_heads})")
    return found


def _gpt2_keys(config: ModelConfig) -> dict[str, Any]:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
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


def _llama_keys(config: ModelConfig) -> dict[str, Any]:
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


_KEYS = {"gpt2": _gpt2_keys, "llama": _llama_keys}


def _own(content: Any) -> ModelConfig:
    """The key "tinylm" of a config.json to a model, every field checked."""
    known = {field.name for field in fields(ModelConfig)}
    if not isinstance(content, dict) or content.keys() - known:
        raise ValueError(f"tinylm={content}: expected the settings {', '.join(sorted(known))}")
    hints = get_type_hints(ModelConfig)
    return ModelConfig(**{key: _typed(content, key, hints[key]) for key in content})


def _foreign(kind: str, content: Mapping[str, Any]) -> ModelConfig:
    """transformers' keys, with its defaults where one is missing, to a model."""
    for key, values in SUPPORTED[kind].items():
        value = content.get(key, values[0])
        if value not in values:
            allowed = " or ".join(str(value) for value in values)
            raise ValueError(f"{key}={value!r}: TinyLM's {kind} supports {allowed}")
    return _from_gpt2(content) if kind == "gpt2" else _from_llama(content)


def _from_gpt2(content: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig(
        architecture="gpt2",
        context_length=_typed(content, "n_positions", int),
        vocab_size=_typed(content, "vocab_size", int),
        d_model=_typed(content, "n_embd", int),
        n_layers=_typed(content, "n_layer", int),
        n_heads=_typed(content, "n_head", int),
        d_ff=_typed(content, "n_inner", int | None, None),
        tied=_typed(content, "tie_word_embeddings", bool, True),
        dropout=_typed(content, "resid_pdrop", float, 0.1),
        norm_eps=_typed(content, "layer_norm_epsilon", float, 1e-5),
    )


def _from_llama(content: Mapping[str, Any]) -> ModelConfig:
    config = ModelConfig(
        architecture="llama3",
        context_length=_typed(content, "max_position_embeddings", int),
        vocab_size=_typed(content, "vocab_size", int),
        d_model=_typed(content, "hidden_size", int),
        n_layers=_typed(content, "num_hidden_layers", int),
        n_heads=_typed(content, "num_attention_heads", int),
        n_kv_heads=_typed(content, "num_key_value_heads", int | None, None),
        d_ff=_typed(content, "intermediate_size", int),
        tied=_typed(content, "tie_word_embeddings", bool, False),
        dropout=_typed(content, "attention_dropout", float | None, 0.0) or 0.0,
        rope_theta=_rope_theta(content),
        norm_eps=_typed(content, "rms_norm_eps", float, 1e-6),
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
    return float(_typed(source, "rope_theta", float, 10000.0))


_REQUIRED = object()


def _typed(content: Mapping[str, Any], key: str, kind: Any, default: Any = _REQUIRED) -> Any:
    """`content[key]` if it is of this kind; `ValueError` where it is not, or is not there."""
    value = content.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f"config.json lacks {key}: add it, the model cannot be built without")
    if type(value) is int and not isinstance(value, kind) and abs(value) < 2**53:
        value = float(value)
    # A bool is an int to Python, but "n_layer": true is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = getattr(kind, "__name__", str(kind)).replace("None", "null")
        raise ValueError(f"{key}={value!r}: expected {name}")
    return value


def _warn_of_dropout(kind: str, content: Mapping[str, Any], config: ModelConfig) -> None:
    """Say so where training here would drop other numbers than training there."""
    keys = ("resid_pdrop", "embd_pdrop", "attn_pdrop") if kind == "gpt2" else ("attention_dropout",)
    found = ", ".join(f"{key}={content[key]}" for key in keys if key in content)
    if any(content.get(key, config.dropout) != config.dropout for key in keys):
        reason = "has one rate for the three"
    elif kind == "llama" and config.dropout:
        reason = "drops embeddings and residual branches as well"
    else:
        return
    message = f"{found}: TinyLM {reason} and takes dropout={config.dropout}"
    warnings.warn(message, stacklevel=3)
