"""A model of TinyLM in llama.cpp: its weights as a GGUF file, and greedy decoding."""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tinylm.model import Model

NEEDED = ("llama_cpp", "gguf")


def why_not() -> str:
    """What is missing; empty if llama.cpp can run."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f"left out, {' and '.join(missing)} not installed" if missing else ""


def write(net: Model, path: Path, kind: str) -> None:
    """Write a Llama or Qwen3 model with tied embeddings; int8 is Q8_0."""
    import gguf

    config = net.config
    qwen = config.components()["qk_norm"]
    writer: Any = gguf.GGUFWriter(path, "qwen3" if qwen else "llama")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.feedforward_width)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(net.embedding.num_embeddings)
    writer.add_tokenizer_model("no_vocab")
    types = gguf.GGMLQuantizationType
    form = {"float32": types.F32, "bfloat16": types.BF16, "int8": types.Q8_0}[kind]

    def add(name: str, weight: Tensor) -> None:
        values = weight.detach().float().numpy()
        if weight.dim() == 1 or form == types.F32:
            writer.add_tensor(f"{name}.weight", values)
        else:
            packed = gguf.quants.quantize(values, form)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=form)

    def turned(weight: Tensor) -> Tensor:
        """Rows of a head as llama.cpp rotates them: neighbours for Llama, halves for Qwen3."""
        heads = weight.view(-1, 2, config.head_width // 2, config.d_model)
        return weight if qwen else heads.transpose(1, 2).reshape(weight.shape)

    add("token_embd", net.embedding.weight)
    add("output_norm", net.norm.weight)  # type: ignore[arg-type]
    for i, block in enumerate(net.blocks):
        part: Any = block
        attention, feedforward = part.attention, part.feedforward
        add(f"blk.{i}.attn_norm", part.attention_norm.weight)
        add(f"blk.{i}.attn_q", turned(attention.q.weight))
        add(f"blk.{i}.attn_k", turned(attention.k.weight))
        add(f"blk.{i}.attn_v", attention.v.weight)
        add(f"blk.{i}.attn_output", attention.o.weight)
        if qwen:
            add(f"blk.{i}.attn_q_norm", attention.q_norm.weight)
            add(f"blk.{i}.attn_k_norm", attention.k_norm.weight)
        add(f"blk.{i}.ffn_norm", part.feedforward_norm.weight)
        for name in ("gate", "up", "down"):
            add(f"blk.{i}.ffn_{name}", getattr(feedforward, name).weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """llama.cpp with one text, driven by its C interface."""

    def __init__(self, net: Model, path: Path, kind: str, threads: int) -> None:
        import llama_cpp

        write(net, path, kind)
        self.cpp: Any = llama_cpp
        # Its own report of every tensor would drown the table.
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        self._quiet = quiet
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.vocab_size = net.embedding.num_embeddings
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_threads, context.n_threads_batch = 256, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit("error: llama.cpp does not open the GGUF file")

    def generate(self, ids: list[int], new: int) -> list[int]:
        """The `new` likeliest tokens after ids."""
        cpp = self.cpp
        cpp.llama_memory_clear(cpp.llama_get_memory(self.context), True)
        found: list[int] = []
        for _ in range(new):
            tokens = (cpp.llama_token * len(ids))(*ids)
            if cpp.llama_decode(self.context, cpp.llama_batch_get_one(tokens, len(ids))):
                raise SystemExit("error: llama.cpp does not decode")
            logits = cpp.llama_get_logits_ith(self.context, -1)
            found.append(int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax()))
            ids = found[-1:]
        return found
