"""TinyLM's model and batches in PyTorch Lightning: the same losses as in TinyLM's own trainer.

pip install lightning
"""

import json
from pathlib import Path

import pytest
import torch

from tests.test_train import SMALL, TEXT, settings
from tinylm import model, track
from tinylm.train import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_each_step_has_the_loss_of_our_own_trainer(name, tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning", reason="pip install lightning")
    from tinylm.lightning import TinyData, TinyModule

    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT[:6000])
    run = settings(
        *SMALL,
        *(f"optim.name={name}", "tokenizer.kind=byte", "train.dtype=float32", "track.every=1"),
        *("train.steps=6", "evaluate.every=0", "track.names=[jsonl]", "out=run"),
        *("train.compile=false", "train.sequence_length=null", "train.window=null"),
    )
    folder = train(run)
    ours = [record["loss"] for record in track.read_metrics(folder) if "loss" in record]
    record = json.loads((folder / "run.json").read_text())
    losses = []

    class Note(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    size = json.loads((folder / "checkpoints/step-00000006/config.json").read_text())["vocab_size"]
    config = settings(*SMALL, f"model.vocab_size={size}").model
    module = TinyModule(model.build(config, seed=run.train.seed), run)
    data = TinyData(record["shards"], run)
    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        callbacks=[Note()],
        enable_progress_bar=False,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    assert losses == ours
    # Its checkpoint goes on where it was.
    again = TinyModule(model.build(config, seed=1), run)
    path = next(tmp_path.glob("checkpoints/*.ckpt"))
    lightning.Trainer(
        max_steps=7,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    ).fit(again, data, ckpt_path=path)
    assert again.optimizers().optimizer.taken == 7
    scores = trainer.validate(module, data, verbose=False)[0]
    assert scores["val_loss"] == pytest.approx(ours[-1], abs=0.5)
    assert torch.isfinite(torch.tensor(scores["val_loss"]))


def test_courses_are_refused():
    pytest.importorskip("lightning", reason="pip install lightning")
    from tinylm.lightning import TinyModule

    run = settings("train.batch_size=4@0 8@0.5")
    with pytest.raises(ValueError, match="one batch_size"):
        TinyModule(model.build(settings("model.vocab_size=64").model), run)
