"""nanoGPT beside TinyLM: its checkout, its data, its command, and its weights in our gpt2 preset.

Its code is fetched by whoever runs a bench (github.com/karpathy/nanoGPT) and never stored here.
"""

import importlib.util
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm import layers, model
from tinylm.config import ModelConfig
from tinylm.model import Model, inference

# The CPU command of its README, with its own text in data/shakespeare_char.
COMMAND = shlex.split(
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
SEED_LINE = "torch.manual_seed(1337 + seed_offset)"
# The preset gpt2 takes GELU's tanh approximation, as GPT-2 does; nanoGPT takes the exact one.
EXACT = "exact_gelu_mlp"
layers.FEEDFORWARDS[EXACT] = partial(layers.MLP, activation=torch.nn.functional.gelu)


class Characters:
    """The characters of a text in their order, as its prepare.py numbers them; its split."""

    def __init__(self, text: str) -> None:
        self.letters = sorted(set(text))
        numbers = {letter: i for i, letter in enumerate(self.letters)}
        cut = int(len(text) * 0.9)
        self.numbers, self.held_out = numbers, text[cut:]
        ids = np.array([numbers[letter] for letter in text], dtype=np.uint16)
        self.train, self.val = ids[:cut], ids[cut:]


def checkout(folder: Path, to: Path, characters: Characters, seed: int) -> Path:
    """A copy of its checkout that trains on `characters` from `seed`."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(".git"))
    data = to / "data" / "shakespeare_char"
    characters.train.tofile(data / "train.bin")
    characters.val.tofile(data / "val.bin")
    numbers = characters.numbers
    meta = {"vocab_size": len(numbers), "stoi": numbers, "itos": dict(enumerate(numbers))}
    # Its format. The bench wrote the file, so reading it is safe.
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    script = to / "train.py"
    source = script.read_text()
    if SEED_LINE not in source:
        raise SystemExit(f"error: {folder}/train.py has no line {SEED_LINE!r}: another version?")
    script.write_text(source.replace(SEED_LINE, SEED_LINE.replace("1337", str(1337 + seed))))
    return to


def module(folder: Path) -> Any:
    """Its model.py, imported from the checkout."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: {folder}/model.py is missing: fetch nanoGPT first")
    found = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["nanogpt_model"] = found
    spec.loader.exec_module(found)
    return found


def config_of(sizes: Mapping[str, Any]) -> ModelConfig:
    """Our settings for its `model_args`."""
    return ModelConfig(
        architecture="gpt2",
        feedforward=EXACT,
        vocab_size=sizes["vocab_size"],
        context_length=sizes["block_size"],
        d_model=sizes["n_embd"],
        n_layers=sizes["n_layer"],
        n_heads=sizes["n_head"],
    )


def ours_from(state: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> Model:
    """Our gpt2 preset with its weights; where it has no biases ours are zero and do not train."""
    net = model.build(config_of(sizes))
    names = {"attn.c_proj": "attention.o", "mlp.c_fc": "feedforward.up"}
    names |= {
        "mlp.c_proj": "feedforward.down",
        "ln_1": "attention_norm",
        "ln_2": "feedforward_norm",
    }
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    wanted = dict(net.named_parameters())

    def put(name: str, value: Tensor) -> None:
        parameter = wanted.pop(name)
        parameter.copy_(value)
        parameter.requires_grad_(True)

    for name, value in state.items():
        part, _, kind = name.removeprefix("transformer.").rpartition(".")
        if part in ("wte", "wpe", "ln_f"):
            own = {"wte": "embedding", "wpe": "position.table", "ln_f": "norm"}[part]
            put(f"{own}.{kind}", value)
        elif part.endswith("c_attn"):
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                put(f"blocks.{part.split('.')[1]}.attention.{letter}.{kind}", third)
        elif part.startswith("h."):
            _, layer, rest = part.split(".", 2)
            put(f"blocks.{layer}.{names[rest]}.{kind}", value)
        elif name != "lm_head.weight":
            raise ValueError(f"{name}: not a parameter of nanoGPT's model that is known here")
    if rest := [name for name in wanted if not name.endswith("bias")]:
        raise ValueError(f"no weights for {', '.join(rest)}")
    with torch.no_grad():
        for parameter in wanted.values():
            parameter.zero_()
    return net


def whole_loss(logits: Callable[[Tensor], Tensor], ids: np.ndarray, length: int) -> float:
    """Mean nats per target over all of `ids` but the first, in windows of `length` tokens.

    A window sees nothing of the one before it. `logits` takes tokens [B, T] to [B, T, V].
    """
    tokens = torch.from_numpy(ids.astype(np.int64))
    targets = len(tokens) - 1
    nats = 0.0
    for first in range(0, targets, 64 * length):
        end = min(targets, first + 64 * length)
        # Whole windows side by side, then what is left over as a row of its own.
        whole = (end - first) // length * length
        for a, b in ((first, first + whole), (first + whole, end)):
            if a < b:
                x = tokens[a:b].view(-1, length if b - a >= length else b - a)
                y = tokens[a + 1 : b + 1]
                z = logits(x).flatten(0, 1).double()
                nats += torch.nn.functional.cross_entropy(z, y, reduction="sum").item()
    return nats / targets


def loss_of(net: Model, ids: np.ndarray) -> float:
    """`whole_loss` of our model in float32, in windows of its context length."""

    def logits(tokens: Tensor) -> Tensor:
        found: Tensor = net(tokens)
        return found

    with inference(net):
        return whole_loss(logits, ids, net.config.context_length)
