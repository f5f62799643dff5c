"""What fits into memory: the estimate before the first step, and rows that are found."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tinylm import config, model
from tinylm.checkpoint import Training
from tinylm.config import ModelConfig
from tinylm.profiling import estimate
from tinylm.train import fitting

CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=64, d_model=32, n_heads=2, n_layers=2, context_length=64, dropout=0.2
)


class Case:
    """A run on a small model on a machine with a share of the memory that all its rows need."""

    def __init__(self, monkeypatch, share, *overrides):
        self.run = config.load(None, ["train.batch_size=12", *overrides])
        self.net, self.said = model.build(SMALL), []
        self.session = SimpleNamespace(
            device=CPU, dtype=torch.float32, world=1, mode="none", beside=1, say=self.said.append
        )
        needed = self.needed(12)
        monkeypatch.setattr(fitting, "memory_of", lambda place: int(share * needed))

    def needed(self, rows):
        return sum(fitting.bytes_needed(self.run, self.net, self.session, rows).values())

    def fit(self, begun=None):
        alone = lambda name, make, write, read: make()  # noqa: E731
        return fitting.fit(self.run, self.net, self.session, begun, alone)


def test_a_run_that_cannot_fit_is_refused_with_the_key_to_lower(monkeypatch):
    with pytest.raises(ValueError, match=r"lower train\.micro_batch_size=12"):
        Case(monkeypatch, 0.5).fit()
    tight = Case(monkeypatch, 0.95)
    tight.fit()
    assert "warning" in tight.said[0]
    easy = Case(monkeypatch, 1.01)
    easy.fit()
    assert easy.said == []


def test_auto_takes_the_most_rows_that_fit_and_divide_the_batch(monkeypatch):
    assert Case(monkeypatch, 10, "train.micro_batch_size=auto").fit().train.micro_batch_size == 12
    case = Case(monkeypatch, 0.6, "train.micro_batch_size=auto")
    rows = case.fit().train.micro_batch_size
    limit = fitting.FILLED * fitting.memory_of(CPU)
    more = {4: 6, 3: 4, 2: 3, 6: 12}[rows]
    assert case.needed(rows) <= limit < case.needed(more)
    assert f"{rows} rows" in case.said[0]


def test_auto_finds_rows_that_divide_every_batch_of_a_course(monkeypatch):
    case = Case(monkeypatch, 10, "train.micro_batch_size=auto", "train.batch_size=8@0 12@0.5")
    assert case.fit().train.micro_batch_size == 4


def test_a_run_that_goes_on_keeps_its_rows(monkeypatch):
    begun = Training(step=1, tokens=0, optimizer={}, state={"micro_batch": 2})
    case = Case(monkeypatch, 10, "train.micro_batch_size=auto")
    assert case.fit(begun).train.micro_batch_size == 2


def test_memory_that_is_unknown_refuses_nothing(monkeypatch):
    case = Case(monkeypatch, 1, "train.micro_batch_size=auto")
    monkeypatch.setattr(fitting, "memory_of", lambda place: None)
    assert case.fit().train.micro_batch_size == 12


def test_shards_need_less_than_the_whole_and_are_checked_too(monkeypatch):
    case = Case(monkeypatch, 1, "train.batch_size=48")
    case.net = estimate.outline(replace(SMALL, d_model=256, n_layers=8))
    case.session.world, case.session.mode = 4, "ddp"
    whole = case.needed(12)
    case.session.mode, case.session.device = "fsdp", torch.device("cuda")
    assert 0.3 * whole < case.needed(12) < 0.8 * whole
    monkeypatch.setattr(fitting, "memory_of", lambda place: case.needed(12) // 2)
    with pytest.raises(ValueError, match=r"cuda has .* for each process: lower "):
        case.fit()
    # Each process on a CPU holds the whole model once, and they share one memory.
    case.session.device, case.session.beside = CPU, 4
    assert fitting.memory_for(case.session) == fitting.memory_of(CPU) // 4
    case.session.world = 64
    assert case.needed(1) >= 4 * case.net.n_parameters()


def test_the_memory_of_a_container_is_its_limit(monkeypatch, tmp_path):
    limit, machine = tmp_path / "max", tmp_path / "meminfo"
    monkeypatch.setattr(fitting, "CGROUP", limit)
    monkeypatch.setattr(fitting, "MEMINFO", machine)
    assert fitting.memory_of(CPU) is None
    machine.write_text("MemTotal:       1000 kB\nMemFree:  1 kB\n")
    assert fitting.memory_of(CPU) == 1_024_000
    limit.write_text("max\n")
    assert fitting.memory_of(CPU) == 1_024_000
    limit.write_text("5000\n")
    assert fitting.memory_of(CPU) == 5000


def test_a_gpu_is_asked_by_trying_and_running_out_is_an_answer(monkeypatch):
    case = Case(monkeypatch, 1)
    real = case.net.loss

    def loss(tokens, targets, **named):
        if len(tokens) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(tokens, targets, **named)

    monkeypatch.setattr(case.net, "loss", loss)
    found = fitting.largest_that_fits(
        [12, 6, 4, 3, 2, 1],
        lambda rows: fitting._tries(case.run, case.net, case.session, rows, spare=1000),
    )
    assert found == 4
    assert all(parameter.grad is None for parameter in case.net.parameters())


def test_the_rough_bound_is_above_the_estimate(monkeypatch):
    for sizes in ({}, {"d_model": 256, "n_layers": 4}, {"vocab_size": 5000}, {"n_heads": 8}):
        case = Case(monkeypatch, 1)
        case.net = model.build(replace(SMALL, **sizes))
        for rows in (1, 16):
            assert fitting._rough(case.net, rows) >= case.needed(rows)


def gradients(net, again):
    ids = torch.randint(64, (3, 64), generator=torch.Generator().manual_seed(0))
    net.activation_checkpointing = again
    torch.manual_seed(1)
    loss = net.loss(ids, ids)
    loss.backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("architecture", ["llama3", "gpt2", "speedrun"])
def test_blocks_that_are_computed_again_give_the_same_bits(architecture):
    shared = {"value_residual": True} if architecture == "speedrun" else {}
    net = model.build(replace(SMALL, architecture=architecture, **shared)).train()
    with torch.no_grad():
        # As built, branches end in zeros: an error in them would not show.
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    whole, again = gradients(net, False), gradients(net, True)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_blocks_that_are_computed_again_keep_less():
    def kept(again):
        net, held = model.build(SMALL).train(), []
        net.activation_checkpointing = again
        ids = torch.zeros((3, 64), dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, id):
            net.loss(ids, ids)
        return sum(held)

    assert kept(True) < 0.5 * kept(False)
