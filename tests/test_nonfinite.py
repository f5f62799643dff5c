"""A loss or a gradient that is not finite: what is named, what stays as it was, who waits."""

import random
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.test_resume import snapshot
from tests.test_train import SMALL, TEXT, settings, weights
from tinylm import checkpoint, config, optim
from tinylm.config import ModelConfig
from tinylm.data import Batch
from tinylm.model import Model
from tinylm.train import NonFiniteError, Trainer, nonfinite, train
from tinylm.train.distributed import Spread
from tinylm.train.nonfinite import MOST_SKIPPED, first_bad
from tinylm.train.scaling import FIRST, FLOOR, GROWTH, PATIENCE, SHRINK, LossScale
from tinylm.train.session import Session
from tinylm.train.state import Progress
from tinylm.train.step import Stepper

BAD = (float("nan"), float("inf"), -float("inf"))
PLAIN = ["evaluate.every=0", "checkpoint.every=0", "track.names=[]", "model.n_layers=1"]
LONG = ["train.steps=500", "train.compile=false"]
MIXED = ["train.micro_batch_size=2", "model.dropout=0.1", "train.nonfinite=skip"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text(TEXT)


def within(monkeypatch, run, experiment):
    """Let a run prepare itself, then do something else with its trainer than to train it."""
    done = []

    def instead(trainer):
        trainer.model.train()
        experiment(trainer)
        done.append(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", instead)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    return done[0]


def spoil(trainer, name, value, chance):
    """Make the loss, or one entry of the gradient of `name`, bad until that is undone."""
    if name == "the loss":
        sound = trainer.stepper.loss
        trainer.stepper.loss = lambda *batch, **rest: sound(*batch, **rest) * value
        return lambda: setattr(trainer.stepper, "loss", sound)

    def hook(gradient):
        spoiled = gradient.clone()
        spoiled.view(-1)[chance.randrange(gradient.numel())] = value
        return spoiled

    return dict(trainer.model.named_parameters())[name].register_hook(hook).remove


@pytest.mark.parametrize(
    ("times", "name"),
    [(6, "muon"), (6, "sgd"), pytest.param(200, "muon", marks=pytest.mark.slow)],
)
def test_a_batch_that_is_passed_over_might_never_have_been_seen(times, name, monkeypatch):
    chance, said = random.Random(times), []
    plan = {}
    for step in sorted(chance.sample(range(2 * times), times)):
        # Never so many in a row that the run ends.
        if all(step - back in plan for back in range(1, MOST_SKIPPED - 1)):
            continue
        plan[step] = chance.choice(BAD)
    expected = {}

    def spoiled(trainer):
        trainer.stepper.refusals.say = said.append
        names = ["the loss", *trainer.stepper.optimizer.names.values()]
        for step in range(2 * times):
            if step not in plan:
                trainer.step()
                continue
            where = chance.choice(names)
            undo = spoil(trainer, where, plan[step], chance)
            before = snapshot(trainer)[0]
            trainer.step()
            undo()
            after = snapshot(trainer)[0]
            # The first step makes the moments, if it moves.
            assert [key for key in before if not torch.equal(before[key], after[key])] == [], where
            what = where if where == "the loss" else f"the gradient of {where}"
            expected[step] = f"step {step}: {what} is not finite; the batch is passed over"

    def never_seen(trainer):
        for step in range(2 * times):
            if step in plan:
                batch = next(trainer.loader)
                trainer.progress.step += 1
                trainer.progress.tokens += batch.tokens.numel()
            else:
                trainer.step()

    run = config.load(None, [*SMALL, *PLAIN, *MIXED, f"optim.name={name}", *LONG])
    one = within(monkeypatch, run, spoiled)
    other = within(monkeypatch, run, never_seen)
    assert said == list(expected.values())
    assert one.progress.skipped_in_all == len(plan)
    first, second = snapshot(one), snapshot(other)
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(tensor, second[0][key]) for key, tensor in first[0].items())
    assert first[1]["loader"] == second[1]["loader"]


def poisoned(monkeypatch, name, steps):
    """Make a tensor NaN in these steps of a run."""
    original = Trainer.step

    def step(trainer):
        if trainer.progress.step not in steps:
            return original(trainer)
        undo = spoil(trainer, name, float("nan"), random.Random(0))
        try:
            return original(trainer)
        finally:
            undo()

    monkeypatch.setattr(Trainer, "step", step)


class Late:
    """The arrival of a copy at the third time that somebody asks, or when somebody waits."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return self.asked > 3

    def synchronize(self):
        self.asked = 4


@pytest.mark.parametrize("late", [False, True])
def test_stop_names_step_and_tensor_and_saves_nothing_of_it(late, monkeypatch):
    if late:
        monkeypatch.setattr(nonfinite, "to_host", lambda number: (number, Late()))
    name = "blocks.1.attention.q.weight"
    poisoned(monkeypatch, name, {6})
    words = (
        rf"^step 6: the gradient of {name} is not finite; step 4 is saved; lower optim\.lr .*skip"
    )
    with pytest.raises(NonFiniteError, match=words):
        train(settings("out=bad", "train.nonfinite=stop", "evaluate.every=0"))
    assert checkpoint.latest("bad").name == "step-00000004"
    assert all(torch.isfinite(tensor).all() for tensor in weights(Path("bad")).values())


@pytest.mark.parametrize("late", [False, True])
def test_too_many_in_a_row_end_a_run_that_skips(late, monkeypatch, capsys):
    if late:
        monkeypatch.setattr(nonfinite, "to_host", lambda number: (number, Late()))
    poisoned(monkeypatch, "the loss", set(range(2, 30)))
    with pytest.raises(NonFiniteError, match=r"^step 11: the loss is not finite; "):
        train(settings("out=bad", "train.steps=30", "train.nonfinite=skip", "checkpoint.every=0"))
    assert capsys.readouterr().out.count("the batch is passed over") == MOST_SKIPPED - 1


def test_the_count_of_skipped_batches_is_saved_with_what_was_found_late(monkeypatch):
    monkeypatch.setattr(nonfinite, "to_host", lambda number: (number, Late()))
    poisoned(monkeypatch, "the loss", {3, 5, 11})
    folder = train(settings("train.nonfinite=skip"))
    progress = checkpoint.load_training(folder).state["progress"]
    assert (progress["skipped"], progress["skipped_in_all"]) == (1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_bad_tensor_is_found_without_the_host(dtype):
    sound = [torch.ones(3, 2, dtype=dtype), torch.ones(4, dtype=dtype), torch.ones(1, dtype=dtype)]
    for bad in BAD:
        spoiled = [tensor.clone() for tensor in sound]
        for place in (2, 1, 0):
            spoiled[place].view(-1)[-1] = bad
            assert first_bad(torch.ones(()), spoiled) == 1 + place
        assert first_bad(torch.tensor(bad), spoiled) == 0
    # Each is finite, and the sum of their squares is not.
    assert first_bad(torch.ones(()), [torch.full((2,), 3e38)]) == 2
    # A weight without rows in this process has nothing that could be bad.
    assert first_bad(torch.ones(()), [torch.ones(0, 2), torch.full((2,), BAD[0])]) == 2


def test_the_scale_moves_as_that_of_torch():
    ours, chance = LossScale(torch.device("cpu")), random.Random(0)
    scale, tracker = torch.tensor(FIRST), torch.tensor(0, dtype=torch.int32)
    for step in range(3 * PATIENCE):
        finite = step > 10 and chance.random() > 1e-3
        found = torch.tensor(0.0 if finite else 1.0)
        torch._amp_update_scale_(scale, tracker, found, GROWTH, SHRINK, PATIENCE)
        ours.update(torch.tensor(finite))
        assert ours.state() == {"value": scale.item(), "good": tracker.item()}, step
    other = LossScale(torch.device("cpu"))
    other.load_state(ours.state())
    assert other.state() == ours.state()
    for _ in range(60):
        ours.update(torch.tensor(False))
    assert ours.state() == {"value": FLOOR, "good": 0}


def test_an_infinite_gradient_of_a_scaled_loss_is_no_failure_until_the_scale_is_at_its_floor(
    monkeypatch, capsys
):
    def experiment(trainer):
        stepper, progress = trainer.stepper, trainer.progress
        undo = spoil(trainer, "embedding.weight", float("inf"), random.Random(0))
        before = snapshot(trainer)[0]
        for halved in range(1, 17):
            trainer.step()
            assert stepper.scale.state() == {"value": FIRST / 2**halved, "good": 0}
        after = snapshot(trainer)[0]
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert (progress.skipped, progress.step) == (0, 16)
        with pytest.raises(NonFiniteError, match=r"^step 16: the gradient of embedding.weight"):
            trainer.step()
        undo()
        trainer.step()
        assert stepper.scale.state() == {"value": FLOOR, "good": 1}
        undo = spoil(trainer, "the loss", float("nan"), random.Random(0))
        stepper.scale.load_state({"value": FIRST, "good": 1})
        with pytest.raises(NonFiniteError, match="the loss is not finite"):
            trainer.step()

    half = [*SMALL, *PLAIN, "train.dtype=float16", "train.steps=40"]
    within(monkeypatch, config.load(None, half), experiment)


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_cuda_the_host_reads_no_number_of_a_step(name, dtype, monkeypatch):
    # Tensors that say they are on CUDA and hold no number: to read one raises. Their backward pass
    # needs a real GPU, so the gradients are given.
    read = []
    monkeypatch.setattr(nonfinite, "to_host", lambda number: (read.append(number), Never()))
    run = config.load(None, [f"optim.name={name}", "train.nonfinite=skip"])
    place, shape = (
        torch.device("cuda", 0),
        ModelConfig(vocab_size=64, n_layers=1, d_model=32, n_heads=2),
    )
    with FakeTensorMode(), place:
        net = Model(shape)
        session = Session(device=place, dtype=dtype, rank=0, world=1, say=print)
        stepper = Stepper(
            run=run,
            context_length=16,
            loss=net.loss,
            spread=Spread(net.loss),
            optimizer=optim.build(net, run.optim),
            session=session,
            say=print,
        )

        def backward(batch, step):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            return torch.ones(())

        monkeypatch.setattr(stepper, "_backward", backward)
        tokens, progress = torch.zeros(4, 16, dtype=torch.int64), Progress()
        for _ in range(3):
            stepper(Batch(tokens, tokens), progress)
            stepper.settle(progress)
        with pytest.raises(DataDependentOutputException):
            read[0].item()
    assert len(read) == progress.step == 3


class Never:
    """An arrival that is still to come."""

    def query(self):
        return False
