"""What of a checkpoint's state a run must find before it goes on from there."""

from pathlib import Path

from tinylm import checkpoint
from tinylm.checkpoint import Training
from tinylm.checkpoint.state import LOSS, OBJECT, SECONDS, TEXT, WHOLE, check, whole

# torch takes any number of threads and ends the process at a senseless one.
MOST_THREADS = 4096
RULES = {"progress": OBJECT, "loader": OBJECT, "threads": whole(1, MOST_THREADS)}
# Not in the checkpoints of earlier versions.
OPTIONAL = {"steps": WHOLE, "torch": TEXT}
PROGRESS = {
    "step": WHOLE,
    "tokens": WHOLE,
    "seconds": SECONDS,
    "best_loss": LOSS,
    # -1: none yet.
    "best_step": whole(-1),
    "without_better": WHOLE,
    "skipped": WHOLE,
}


def load_state(folder: Path) -> Training:
    """The training state of a checkpoint that was verified, fit for `Trainer.restore`.

    `ValueError` names the file and the key that is missing or wrong.
    """
    path, training = folder / "state.json", checkpoint.load_training(folder, verify=False)
    state = training.state
    check(path, state, RULES, "state.")
    check(path, state, {key: OPTIONAL[key] for key in OPTIONAL if key in state}, "state.")
    progress = state["progress"]
    check(path, progress, PROGRESS, "state.progress.")
    for key in progress:
        if key not in PROGRESS:
            raise ValueError(
                f"{path}: state.progress.{key}: this TinyLM knows no such key: resume with the "
                f"one that saved it"
            )
    for key, value in (("step", training.step), ("tokens", training.tokens)):
        if progress[key] != value:
            raise ValueError(
                f"{path}: state.progress.{key}={progress[key]} and {key}={value} differ: one of "
                f"them was edited; take another checkpoint"
            )
    check(path, state["loader"], {"rows": WHOLE}, "state.loader.")
    return training
