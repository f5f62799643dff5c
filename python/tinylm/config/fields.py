"""A setting as the field of a dataclass, and the names that settings choose from.

Each `Literal` is the one list of what is built under that name; where the names are the keys of
a registry, a test holds the two equal.
"""

from dataclasses import field
from typing import Any, Literal, get_args

from tinylm.config.limits import Limits

Kind = Literal["bpe", "byte", "char", "whitespace"]
Order = Literal["shuffle", "sequential", "random"]
Architecture = Literal["llama3", "gpt2"]
Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned", "none"]
FeedForward = Literal["swiglu", "mlp", "relu2"]
Attention = Literal["sdpa", "manual"]
Optimizer = Literal["muon", "adamw", "sgd"]
Schedule = Literal["wsd", "cosine", "linear", "constant"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]
NonFinite = Literal["stop", "skip"]
Tracker = Literal["console", "jsonl", "plot"]


def setting(default: Any, text: str, limits: Limits | None = None, *, choices: Any = None) -> Any:
    """A dataclass field with what `--help` says of it.

    `limits` are those of a number, or of each number in a tuple; `choices` is the Literal of
    what is built, for a field that users may extend.
    """
    names = get_args(choices) if choices else ()
    return field(default=default, metadata={"help": text, "limits": limits, "choices": names})
