"""Stop a run after any step: what it resumes to is what it would have been, bit for bit."""

import os
import random
import signal
import time
import traceback
import warnings

import pytest
import torch
from safetensors.torch import load_file

from tests.test_train import SMALL, TEXT, assert_same_weights
from tinylm import checkpoint, config, convert, optim, track
from tinylm.train import Trainer, train
from tinylm.train.state import load_state

STEPS = 60
# Dropout, accumulation over 3, a schedule that moves at every step, and clipping that clips.
HARD = [
    f"train.steps={STEPS}",
    "train.batch_size=6",
    "train.micro_batch_size=2",
    "model.context_length=16",
    "model.n_layers=1",
    "model.dropout=0.1",
    "optim.schedule=cosine",
    "optim.clip=0.1",
    "evaluate.every=0",
    "checkpoint.every=0",
    f"checkpoint.keep={STEPS}",
    "track.names=[]",
]


def snapshot(trainer):
    """Copies of all that a run carries from step to step."""
    progress = {**trainer.progress.state(), "seconds": None}
    tensors = {**trainer.model.state_dict(), **trainer.stepper.optimizer.state()}
    return {name: tensor.clone() for name, tensor in tensors.items()}, {
        **trainer.state().content(),
        "progress": progress,
    }


def take_up(trainer, path):
    """Put a checkpoint into a trainer as a new process would, but with its compiled loss."""
    kind = convert.export_config(trainer.model.config, dtype="float32")["model_type"]
    found = convert.import_tensors(kind, load_file(path / "model.safetensors"))
    with torch.no_grad():
        for name, parameter in trainer.model.state_dict().items():
            parameter.fill_(torch.nan).copy_(found[name])
    trainer.stepper.optimizer = optim.build(trainer.model, trainer.run.optim)
    trainer.restore(load_state(path))


def resume_from_every_step(trainer):
    """In place of `Trainer.train`: take and save every step, then go on from each to the end."""
    trainer.model.train()
    for _ in range(STEPS):
        trainer.step()
        path = trainer.save()
    trainer.writer.wait()
    tensors, state = snapshot(trainer)
    for k in range(1, STEPS):
        # As in another process: the generator is anywhere.
        torch.manual_seed(k)
        take_up(trainer, path.with_name(f"step-{k:08d}"))
        while trainer.progress.step < STEPS:
            trainer.step()
        again, found = snapshot(trainer)
        assert found == state, k
        assert again.keys() == tensors.keys()
        assert [name for name in tensors if not torch.equal(tensors[name], again[name])] == [], k
    trainer.tried = STEPS - 1


@pytest.mark.slow
@pytest.mark.timeout(900)
# The import of torch's compiler warns of its own parts.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [
        ("float32", "false"),
        ("float32", "true"),
        ("bfloat16", "false"),
        ("bfloat16", "true"),
        ("float16", "false"),
    ],
)
def test_a_run_resumed_after_any_step_ends_in_the_same_bits(dtype, compiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text(TEXT)
    seen = []

    def instead(trainer):
        resume_from_every_step(trainer)
        seen.append(trainer.tried)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", instead)
    mixed = [f"train.dtype={dtype}", f"train.compile={compiled}"]
    with pytest.raises(KeyboardInterrupt):
        train(config.load(None, [*SMALL, *HARD, *mixed]))
    assert seen == [STEPS - 1]


def child(settings):
    """Start a run in a process of its own, forked, so that it need not import torch; its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        train(settings)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def newest(folder):
    """The step of the newest checkpoint there, sound or not; 0 if there is none."""
    steps = (folder / "checkpoints").glob("step-*")
    return max((checkpoint.step_of(path) for path in steps), default=0)


def killed(process, folder, step, delay):
    """SIGKILL a run `delay` seconds after its checkpoint of `step` shows; whether that ended it."""
    while newest(folder) < step and not os.waitid(
        os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def last_step(folder):
    """The last step that a run reported."""
    return max((record["step"] for record in track.read_metrics(folder)), default=0)


KILLS, EVERY = 100, 3
QUICK = [
    "train.batch_size=2",
    "train.steps=300",
    "train.compile=false",
    "model.d_model=8",
    "model.dropout=0.1",
    "evaluate.every=0",
    f"checkpoint.every={EVERY}",
    "track.names=[jsonl]",
    "track.every=1",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("background", [True, False])
def test_sigkills_at_random_moments_lose_at_most_one_interval_and_no_bit(
    background, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text(TEXT)
    ways = [*SMALL, *QUICK, f"checkpoint.background={str(background).lower()}"]
    assert os.waitpid(child(config.load(None, [*ways, "out=whole"])), 0)[1] == 0
    # One more for what was done while it was written.
    most = EVERY * (1 + background) + 1
    chance, kills, at, run = random.Random(0), 0, [], 0
    while kills < KILLS:
        folder = tmp_path / f"cut-{run}"
        again = config.load(None, [*ways, f"out={folder}", "train.resume=auto"])
        # A tenth of them while it prepares; the others some saves further on.
        early = chance.random() < 0.1
        target = 0 if early else newest(folder) + chance.randint(1, 5 * EVERY)
        delay = chance.uniform(0.0, 0.3 if early else 0.03)
        ended = not killed(child(again), folder, min(target, 297), delay)
        kills += not ended
        steps = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
        if steps:
            # Without a warning, so the newest that is there is sound.
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert checkpoint.latest(folder).name == steps[-1]
            at.append(checkpoint.step_of(checkpoint.latest(folder)))
            assert last_step(folder) - at[-1] <= most
        if kills == KILLS:
            ended = os.waitpid(child(again), 0)[1] == 0
        if ended:
            assert_same_weights(tmp_path / "whole", folder)
            names = {path.name for path in (tmp_path / "whole").iterdir()}
            assert {path.name for path in folder.iterdir()} == names
            kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
            assert kept == ["step-00000297", "step-00000300"]
            run += 1
    print(f"background={background}: {KILLS} kills of {run} runs, the newest then {at}")
    # They did not all fall into the preparation.
    assert len(set(at)) > KILLS // 8
