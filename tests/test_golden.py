"""Today's results against the snapshots of `golden/`; its make.py says what each one is."""

import json
import warnings

import numpy as np
import pytest

from tests.golden import make
from tinylm import Tokenizer

# Sums in another order on another processor: 1e-7 a rounding, some hundred of them in 20 steps.
# Muon orthogonalises in bfloat16, 8e-3 a rounding, and takes an update of the weights' own size.
TOLERANCE = {"adamw": 1e-4, "sgd": 1e-4, "muon": 1e-2}
LOGITS = 1e-5


def snapshot(name):
    return json.loads(make.path_of(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["permutation", "merges", "splits", "shards", "rows"])
def test_what_is_discrete_is_what_it_was(name):
    assert make.SNAPSHOTS[name]() == snapshot(name)


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "o200k", "llama3"])
def test_the_scanner_cuts_the_pieces_it_cut(pattern):
    pieces = snapshot("splits")[pattern]
    text = "".join(pieces)
    # With merges enough, each piece is one token.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tokenizer = Tokenizer.train([text], vocab_size=2000, pattern=pattern)
    assert [tokenizer.decode([id]) for id in tokenizer.encode(text)] == pieces


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_the_logits_of_a_seed_are_what_they_were(architecture):
    now, then = make.logits()[architecture], snapshot("logits")[architecture]
    assert np.shape(now) == np.shape(then)
    assert np.abs(np.subtract(now, then)).max() < LOGITS


@pytest.mark.parametrize("optimizer", TOLERANCE)
def test_twenty_steps_go_down_the_same_losses(optimizer):
    now, then = make.train(optimizer), snapshot("losses")[optimizer]
    assert len(now) == len(then) == 20
    assert np.abs(np.subtract(now, then)).max() < TOLERANCE[optimizer] * max(then)
    assert then[-1] < 0.9 * then[0]


def test_every_snapshot_has_a_file_and_every_file_a_snapshot():
    # The figures of the kernels have a program of their own (tests/support/offline.py).
    files = {path.stem for path in make.FOLDER.glob("*.json")} - {"kernels"}
    assert files == make.SNAPSHOTS.keys()
