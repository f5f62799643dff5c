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
    losses, seen = [], []

    class Note(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())
            seen.append(batch.tokens)

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
    assert json.loads(json.dumps(data.state_dict()))["batches"] == 6
    # Its checkpoint goes on where it was, also in the text.
    data = TinyData(record["shards"], run)
    seen.clear()
    again = TinyModule(model.build(config, seed=1), run)
    path = next(tmp_path.glob("checkpoints/*.ckpt"))
    lightning.Trainer(
        max_steps=7,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        callbacks=[Note()],
    ).fit(again, data, ckpt_path=path)
    assert again.optimizers().optimizer.taken == 7
    with TinyData(record["shards"], run).train_dataloader() as loader:
        seventh = [next(loader).tokens for _ in range(7)][-1]
    assert len(seen) == 1
    assert torch.equal(seen[0], seventh)
    scores = trainer.validate(module, data, verbose=False)[0]
    assert scores["val_loss"] == pytest.approx(ours[-1], abs=0.5)
    assert torch.isfinite(torch.tensor(scores["val_loss"]))


REFUSED = [
    ("train.batch_size=4@0 8@0.5", "one number"),
    ("train.sequence_length=8", "whole rows"),
    ("train.window=8", "whole rows"),
    ("train.micro_batch_size=2", "accumulate_grad_batches"),
    ("train.deterministic=true", "deterministic=True"),
    ("train.resume=auto", "ckpt_path"),
    ("train.compile=true", "torch.compile"),
    ("train.dtype=float16", "bfloat16"),
    ("train.init=base", "checkpoint.load"),
    ("train.freeze=[embedding]", "requires_grad_"),
    ("distributed.mode=ddp", "strategy"),
]


@pytest.mark.parametrize(("given", "instead"), REFUSED)
def test_what_only_our_own_trainer_follows_is_refused_by_name(given, instead):
    pytest.importorskip("lightning", reason="pip install lightning")
    from tinylm.lightning import TinyModule

    net = model.build(settings("model.vocab_size=64").model)
    run = settings("train.sequence_length=null", given)
    with pytest.raises(ValueError, match=rf"{given.partition('=')[0]}=.* does not .*{instead}"):
        TinyModule(net, run)


def test_a_batch_that_is_not_finite_stops_or_is_passed_over():
    pytest.importorskip("lightning", reason="pip install lightning")
    from tinylm.lightning import Joined

    net = model.build(settings("model.vocab_size=64").model)
    before = {name: weight.clone() for name, weight in net.named_parameters()}

    def poison():
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        return torch.tensor(float("nan"))

    with pytest.raises(ValueError, match=r"step 0: .*not finite.*train.nonfinite=skip"):
        Joined(net, settings("train.steps=9")).step(poison)
    skipping = Joined(net, settings("train.steps=9", "train.nonfinite=skip"))
    skipping.step(poison)
    assert skipping.taken == 1
    assert all(torch.equal(before[name], weight) for name, weight in net.named_parameters())
