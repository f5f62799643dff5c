"""Inputs in 8 bits: what is counted, the scale that is chosen, what is computed and saved."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import build, tokens
from tinylm import checkpoint, ops
from tinylm.config import ConfigError, ModelConfig
from tinylm.layers import fake, packed
from tinylm.layers.lora import matrices
from tinylm.quant import Settings, activations, quantise
from tinylm.quant import settings as reading

TINY = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=2, context_length=16, d_ff=64)
HOWS = ("minmax", "percentile", "histogram")


def drawn(seed, sizes):
    """Numbers of many magnitudes, a batch of each size."""
    random = np.random.default_rng(seed)
    return [
        torch.from_numpy((random.standard_t(2, size) * 2.0 ** random.integers(-9, 9)).astype("f4"))
        for size in sizes
    ]


@torch.no_grad()
def logits(net, ids):
    """As while scoring: with a gradient the norms take other forms."""
    return net(ids)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_the_counts_are_those_of_all_numbers_together(seed, sizes):
    parts = drawn(seed, sizes)
    found = activations.Histogram()
    for part in parts:
        found.add(part)
    whole = torch.cat(parts).abs().numpy().astype("f8")
    assert found.largest == whole.max()
    assert found.top / 2 <= found.largest < found.top
    expected, _ = np.histogram(whole, activations.BINS, (0, found.top))
    assert found.counts.tolist() == expected.tolist()


def error(x, scale):
    """Mean squared error of x rounded to 8 bits, by the numbers themselves."""
    return float(((x / scale).round().clamp(-127, 127) * scale - x).square().mean())


def test_each_scale_is_what_its_name_says():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=generator)
    x[0] = 50.0
    found = activations.Histogram()
    found.add(x)
    scales = {how: found.scale(how) for how in HOWS}
    assert scales["minmax"] == 50 / 127
    share = float((x.abs() <= 127 * scales["percentile"]).float().mean())
    assert 0.999 <= share < 0.9995
    tried = torch.linspace(0.005, 0.6, 400) * 64 / 127
    least = min(error(x, float(scale)) for scale in tried)
    assert error(x, scales["histogram"]) <= 1.02 * least
    assert error(x, scales["percentile"]) > 2 * least
    assert activations.Histogram().scale("histogram") == 1.0


@pytest.mark.parametrize("how", HOWS)
def test_a_static_model_rounds_its_inputs_and_reads_back_equal(tmp_path, how):
    net = build(TINY, dtype=torch.float32).eval()
    ids = tokens(TINY, 8, 16)
    expected = logits(net, ids)
    quantise(net, Settings("static", activations=how, embedding="float"), ids)
    parts = [p for p in net.modules() if isinstance(p, packed.PackedStatic)]
    assert len(parts) == 14
    assert all(0 < float(part.input_scale) < 1 for part in parts)
    # Another form of the same: inputs rounded, then a product of floats.
    part, x = parts[3], torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    scale = part.input_scale
    rounded = (x / scale).round().clamp(-127, 127) * scale
    by_hand = rounded @ ops.dequantise_int8(part.packed, part.scales).T
    torch.testing.assert_close(part(x), by_hand, rtol=1e-5, atol=1e-5)
    assert not torch.equal(part(x), x @ part.weight.T)
    found = logits(net, ids)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.2
    checkpoint.save(tmp_path / "static", net, None)
    again, _ = checkpoint.load(tmp_path / "static")
    assert again.quantisation["activations"] == how
    assert torch.equal(logits(again, ids), found)


@pytest.mark.parametrize("kept", [(), ("blocks.0.attention.v", "blocks.1.feedforward.up")])
@pytest.mark.parametrize("bits", ["int8", "int4", "ternary"])
def test_a_run_of_qat_packs_to_what_it_computed(tmp_path, bits, kept):
    net = build(TINY, dtype=torch.float32).eval()
    fake.quantise(net, fake.Grid(bits, 32, kept=kept))
    ids = tokens(TINY, 4, 16)
    expected = logits(net, ids)
    weights = {
        name: ops.fake_weight(part.weight, part.share, part.bits, 32)
        for name, part in matrices(net)
    }
    quantise(net, Settings("trained", embedding="float"))
    assert len(weights) == 14
    for name, weight in weights.items():
        part = net.get_submodule(name)
        assert part.form == ("int8" if name in kept else bits)
        # As the product widens it: `weight` has the dtype of the scales, of int4 bfloat16.
        wide = packed.FORMATS[part.form].widen(part.packed, part.scales.float())
        assert torch.equal(wide, weight), name
    torch.testing.assert_close(logits(net, ids), expected, rtol=1e-5, atol=1e-5)
    checkpoint.save(tmp_path / "packed", net, None)
    again, _ = checkpoint.load(tmp_path / "packed")
    assert torch.equal(logits(again, ids), logits(net, ids))
    assert again.quantisation["matrices"] == bits


def test_what_was_trained_on_a_grid_is_not_rounded_to_another():
    net = build(TINY, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"method=trained: packs a run of train\.qat"):
        quantise(net, Settings("trained"))
    fake.quantise(net, fake.Grid("int4", 32))
    with pytest.raises(ValueError, match="method=int8: the model was trained for int4 in groups"):
        quantise(net, Settings("int8"))
    with pytest.raises(ConfigError, match=r"activations=max: choose minmax, percentile, histogram"):
        reading.read({"method": "static", "activations": "max"})
    with pytest.raises(ConfigError, match=r"activations=minmax: has no effect with method=int8"):
        reading.read({"method": "int8", "activations": "minmax"})
