"""A pass of decoding, from the model in torch to the native step."""

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.models import build
from tinylm.config import ModelConfig
from tinylm.model import inference
from tinylm.native import Step

# Errors of the logits by their size, in 2-norms. Models this small round coarsely: 250 drawn ones
# had at most 1.2e-6, 0.023 and 0.052.
LIMITS = {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12}


def drawn(shape, lengths, seed):
    """A model and texts of these lengths."""
    architecture, heads, kv_heads, size, layers, tied = shape
    config = ModelConfig(
        architecture=architecture,
        vocab_size=53,
        context_length=64,
        d_model=heads * size + 2,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_size=size,
        n_layers=layers,
        tied=tied,
    )
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(53, (n,), generator=generator).tolist() for n in lengths]
    return build(config, seed, dtype=torch.float32), texts


def by_model(shape, lengths, weights, seed):
    """The logits after each token, each text read alone."""
    model, texts = drawn(shape, lengths, seed)
    with inference(model):
        return weights, np.concatenate([model(torch.tensor([text]))[0].numpy() for text in texts])


def natively(shape, lengths, weights, seed):
    """The same from all texts in one call."""
    model, texts = drawn(shape, lengths, seed)
    held = Step(model, weights).cache(len(texts), 64)
    return weights, held.read(texts, every=True).numpy()


def same(slow, fast):
    """Whether the logits differ by no more than the weights allow."""
    (weights, wanted), (_, found) = slow, fast
    return bool(np.linalg.norm(found - wanted) <= LIMITS[weights] * np.linalg.norm(wanted))


SHAPES = st.tuples(
    st.sampled_from(["llama3", "qwen3", "gpt2"]),
    st.sampled_from([2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([4, 10, 16]),
    st.integers(1, 2),
    st.booleans(),
)

RUNGS = (
    Rung(
        "native step",
        "metal",
        ("tensors", "rust"),
        by_model,
        natively,
        st.tuples(
            SHAPES,
            st.lists(st.integers(1, 40), min_size=1, max_size=5),
            st.sampled_from(list(LIMITS)),
            SEEDS,
        ),
        lambda: (("qwen3", 4, 2, 64, 4, True), [60] * 8, "float32", 0),
        same=same,
        # Drawing, and copying pages: tests/test_native.py.
        covers=(
            *("Network", "Network.bytes", "Network.simd", "KeyValues", "KeyValues.bytes"),
            *(f"KeyValues.{name}" for name in ("read", "draw", "copy", "grow")),
        ),
        cost=4,
    ),
)
