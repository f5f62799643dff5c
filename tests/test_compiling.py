"""Whether a run is compiled: by times that were measured, kept and may be damaged."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.support.models import build
from tinylm import config, model
from tinylm.checkpoint import Training
from tinylm.config import ModelConfig
from tinylm.train import compiling
from tinylm.train.compiling import Times

TIMES = Times(eager=0.05, first=30.0, compiled=0.03)
# 30 s are paid back by 0.02 s a step after 1,500 steps.
EVEN = 1500


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_can", lambda asked, say: True)


class Case:
    """A run of `steps` steps on a small model, and what is said about it."""

    def __init__(self, steps, compile="auto"):
        run = config.load(None, [f"train.steps={steps}", "train.batch_size=2"])
        self.run = replace(run, train=replace(run.train, compile=compile))
        self.net = model.build(ModelConfig(vocab_size=16, d_model=16, n_heads=1, n_layers=1))
        self.said = []
        place = torch.device("cpu")
        self.session = SimpleNamespace(
            device=place, dtype=torch.float32, world=1, mode="none", say=self.said.append
        )

    def wanted(self, **state):
        begun = Training(step=3, tokens=0, optimizer={}, state=state) if state else None
        return compiling.wanted(self.run, self.net, self.session, begun)

    def remember(self, times=TIMES):
        compiling.remember(compiling.key_of(self.run, self.net, self.session), times)


def test_a_compiler_is_used_if_the_run_is_long_enough_to_pay_for_it():
    for steps in (EVEN - 1, EVEN + 1):
        case = Case(steps)
        case.remember()
        assert case.wanted() == (steps > EVEN)
        (line,) = case.said
        assert "30 ms compiled and 50 not" in line
        assert "1,500 steps" in line
    slower = Case(10**6)
    slower.remember(replace(TIMES, compiled=0.06))
    assert not slower.wanted()


def test_a_run_that_goes_on_keeps_what_it_began_with():
    case = Case(EVEN + 1)
    case.remember()
    assert case.wanted(compiled=1, steps=20)
    assert not case.wanted(compiled=0, steps=EVEN + 1)
    # Checkpoints from before the key: compiled if the run had 500 steps.
    assert case.wanted(steps=500)
    assert not case.wanted(steps=499)
    assert not Case(EVEN + 1, compile=False).wanted(compiled=1, steps=20)


def test_what_is_not_known_is_measured_once_if_the_run_is_long(monkeypatch):
    tried = []
    monkeypatch.setattr(compiling.Probe, "seconds", lambda self, loss: 0.05)
    monkeypatch.setattr(compiling.Probe, "compiled", lambda self, eager: tried.append(1) or TIMES)
    # A fifth of 0.05 s, 4,000 times, are the 40 s that a compiler is guessed to take.
    assert not Case(3_900).wanted()
    assert tried == []
    long = Case(4_100)
    assert long.wanted()
    assert long.wanted()
    assert tried == [1]
    assert compiling.recall(compiling.key_of(long.run, long.net, long.session)) == TIMES


def test_a_probe_leaves_no_trace_in_the_model():
    case = Case(500)
    before = {name: value.clone() for name, value in case.net.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert compiling.Probe(case.run, case.net, case.session).seconds(case.net.loss) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in case.net.parameters())
    assert all(torch.equal(before[name], value) for name, value in case.net.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"key": {"eager": 0.05, "fir',
        b"\xff\xfe",
        b"[]",
        b'{"key": 3}',
        b'{"key": {"eager": 1}}',
        b'{"key": {"eager": "a", "first": 1.0, "compiled": 1.0}}',
        b'{"key": {"eager": -1.0, "first": 1.0, "compiled": 1.0}}',
    ],
)
def test_a_damaged_file_is_no_file(content):
    path = compiling.cache_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert compiling.recall("key") is None
    compiling.remember("key", TIMES)
    assert compiling.recall("key") == TIMES


def test_the_file_keeps_other_models_and_stays_small(monkeypatch):
    monkeypatch.setattr(compiling, "REMEMBERED", 3)
    for number in range(5):
        compiling.remember(f"key{number}", replace(TIMES, first=float(number + 1)))
    assert list(json.loads(compiling.cache_file().read_bytes())) == ["key2", "key3", "key4"]
    assert compiling.recall("key3") == replace(TIMES, first=4.0)


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    compiling.remember("key", TIMES)
    assert compiling.recall("key") is None


def test_the_cache_is_where_the_standard_says(tmp_path, monkeypatch):
    assert compiling.cache_file() == tmp_path / "cache" / "tinylm" / "compile.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert compiling.cache_file() == tmp_path / ".cache" / "tinylm" / "compile.json"


def test_the_key_tells_models_batches_and_threads_apart():
    case = Case(500)
    keys = {compiling.key_of(case.run, case.net, case.session)}
    wider = replace(case.run, train=replace(case.run.train, batch_size=4))
    keys.add(compiling.key_of(wider, case.net, case.session))
    other = model.build(ModelConfig(vocab_size=16, d_model=32, n_heads=1, n_layers=1))
    keys.add(compiling.key_of(case.run, other, case.session))
    case.session.dtype = torch.bfloat16
    keys.add(compiling.key_of(case.run, case.net, case.session))
    assert len(keys) == 4


def test_several_processes_are_not_measured():
    for steps in (499, 500):
        case = Case(steps)
        case.session.mode = "fsdp"
        assert case.wanted() == (steps == 500)


@pytest.mark.slow
def test_more_shapes_than_torchs_limit_are_compiled_each(monkeypatch):
    # Only here: it imports torch's compiler.
    from torch._dynamo.testing import CompileCounter

    case, counter, real = Case(500), CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **given: real(f, backend=counter, **given))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        loss = compiling.loss_function(case.net.train(), case.session, True, 10)
        for length in range(2, 12):
            ids = torch.zeros((2, length), dtype=torch.int64)
            for _ in range(2):
                loss(ids, ids)
    assert counter.frame_count == 10


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "speedrun"])
def test_blocks_that_are_computed_again_are_part_of_one_graph(architecture):
    shape = {"n_layers": 3, "architecture": architecture, "value_residual": True}
    config = replace(Case(500).net.config, **shape)
    net = build(config, dtype=torch.float32).train()
    ids = torch.randint(config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for again in (False, True):
        net.activation_checkpointing = again
        torch._dynamo.reset()
        loss = torch.compile(net.loss, dynamic=False, fullgraph=True, backend="aot_eager")
        loss(ids, ids).backward()
        found.append({name: weight.grad for name, weight in net.named_parameters()})
        net.zero_grad()
    torch.testing.assert_close(*found)
