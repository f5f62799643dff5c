"""A setting as a dataclass field, and the lists of names that settings choose from.

Each `Literal` lists every name that is implemented. If the names are also the keys of a registry,
a test checks that both lists are equal.
"""

import os
from dataclasses import field
from typing import Any, Literal, get_args

from tinylm.config.limits import Limits

# Names and not the classes behind them: help and errors must not import torch.
Kind = Literal["bpe", "unigram", "byte", "char", "whitespace"]
Order = Literal["shuffle", "sequential", "random"]
Architecture = Literal["llama3", "gpt2", "qwen3", "speedrun"]
Norm = Literal["rmsnorm", "layernorm", "plain_rmsnorm", "plain_layernorm"]
Position = Literal["rope", "learned", "none"]
FeedForward = Literal["swiglu", "mlp", "relu2"]
Attention = Literal["auto", "triton", "hopper", "sdpa", "manual"]
Optimizer = Literal["muon", "adamw", "sgd"]
Orthogonal = Literal["polar_express", "newton_schulz"]
Schedule = Literal["wsd", "wsd_sqrt", "cosine", "linear", "constant"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
NonFinite = Literal["stop", "skip"]
Tracker = Literal["console", "jsonl", "plot", "tensorboard", "trackio", "wandb"]
CacheKind = Literal["contiguous", "paged", "window", "int8", "int4", "random", "h2o", "snapkv"]
Mode = Literal["none", "ddp", "fsdp"]
Qat = Literal["none", "int8", "int4", "ternary"]


def setting(
    default: Any,
    text: str,
    limits: Limits | None = None,
    *,
    choices: Any = None,
    off: float | None = None,
    course: type | None = None,
) -> Any:
    """Return a dataclass field with `text` as its help.

    `limits` bound a number, or each number of a tuple. `choices` is the `Literal` of the names that
    are implemented; pass it for a field whose names users may extend. `off` is the number that
    turns the feature off, for a field that is a number in any case: null means that number.
    `course` is int or float for a number that may change over the run (`tinylm.config.courses`).
    """
    names = get_args(choices) if choices else ()
    metadata = {"help": text, "limits": limits, "choices": names, "off": off, "course": course}
    return field(default=default, metadata=metadata)


def expand_home(config: Any, *names: str) -> None:
    """Replace a leading `~` by the home folder in these paths of a new section.

    A shell replaces `~` only at the beginning of a word, and so not in `data.folder=~/shards`.
    """
    for name in names:
        # Only a new section is changed: a frozen one that others hold must stay as it is.
        value = getattr(config, name)
        if value is not None:
            object.__setattr__(config, name, os.path.expanduser(value))
