"""Small models for tests: every legal mix of parts, with weights that all matter."""

from typing import Any

import torch
from hypothesis import strategies as st

from tinylm import model
from tinylm.config import ARCHITECTURES, ModelConfig
from tinylm.layers import ATTENTIONS, FEEDFORWARDS, NORMS, POSITIONS

# The parts of a model that are there or not.
SWITCHES = sorted(name for name, part in ARCHITECTURES["llama3"].items() if part is False)
SWITCHES.remove("bias")


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> ModelConfig:
    """A small `ModelConfig`: any registered part with any other, any grouping of the heads."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_size = 2 * draw(st.integers(1, 4))
    drawn = {
        "architecture": draw(st.sampled_from(sorted(ARCHITECTURES))),
        "context_length": draw(st.integers(1, 12)),
        "vocab_size": draw(st.integers(1, 17)),
        "d_model": kv_heads * group * head_size,
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": kv_heads * group,
        "n_kv_heads": draw(st.sampled_from([kv_heads, *([None] if group == 1 else [])])),
        "d_ff": draw(st.none() | st.integers(1, 24)),
        "tied": draw(st.booleans()),
        "norm": draw(st.none() | st.sampled_from(sorted(NORMS))),
        "position": draw(st.none() | st.sampled_from(sorted(POSITIONS))),
        "feedforward": draw(st.none() | st.sampled_from(sorted(FEEDFORWARDS))),
        "attention": draw(st.sampled_from(sorted(ATTENTIONS))),
        "head_size": draw(st.none() | st.integers(1, 4).map(lambda n: 2 * n)),
        "value_embeddings": draw(st.integers(0, 1)),
        "bigrams": draw(st.integers(0, 3)),
        "windows": draw(st.lists(st.integers(0, 4), max_size=2).map(tuple)),
        "logit_softcap": draw(st.none() | st.floats(1, 30)),
        **{name: draw(st.none() | st.booleans()) for name in SWITCHES},
    }
    chosen = drawn | fixed
    exits = chosen["n_layers"] > 1 and draw(st.booleans())
    return ModelConfig(**({"exits": exits} | chosen))


# Statistics are float32 even where weights are float64, and a norm enlarges their rounding.
CLOSE = {"rtol": 0, "atol": 1e-4}


def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> model.Model:
    """A model whose weights are all random: as built, its branches end in zeros and do nothing."""
    made = model.build(config, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(dtype))
    return made


def tokens(config: ModelConfig, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random ids [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size or 1, (rows, length), generator=generator)
