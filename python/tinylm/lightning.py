"""A model and its batches for PyTorch Lightning (`pip install 'tinylm[lightning]'`).

    data = TinyData("data/processed/cats-1a2b3c4d", run)
    module = TinyModule(model.build(config), run)
    lightning.Trainer(max_steps=run.train.steps, logger=False).fit(module, data)

Loss, optimizer, schedule, clipping, `train.nonfinite`, `train.tf32` and order of the batches are
those of `tinylm.train`: on the CPU each step has the same loss, bit for bit, if the model has no
dropout. Accumulation, devices and checkpoints are Lightning's: settings of those are refused. Its
checkpoints hold the place in the text too. They are pickles; `tinylm.checkpoint.save` writes a
folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tinylm import device, optim
from tinylm.config import Run
from tinylm.data import Batch, Dataset, Loader
from tinylm.data.loader import of_settings
from tinylm.data.turns import answers
from tinylm.layers import lora
from tinylm.model import Model
from tinylm.ops import IGNORED
from tinylm.tokenizer import Tokenizer


class Joined(torch.optim.Optimizer):
    """The optimizer of a run, which is several of torch's, as the one that Lightning steps."""

    def __init__(self, model: Model, run: Run) -> None:
        self.inner, self.run, self.taken = optim.build(model, run.optim), run, 0
        moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(moved, {"lr": run.optim.lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Compute loss and gradients by `closure`, then move every weight; returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        steps = self.run.train.steps
        rate = optim.schedule(self.taken, steps, self.run.optim)
        # For Lightning's monitor of the learning rate.
        self.param_groups[0]["lr"] = rate * self.run.optim.lr
        norms = self.inner.gradient_norms()
        finite = torch.linalg.vector_norm(norms).isfinite()
        if self.run.train.nonfinite == "stop" and not finite:
            raise ValueError(
                f"step {self.taken}: the loss or a gradient is not finite: lower optim.lr or "
                f"optim.matrix_lr, or set train.nonfinite=skip to pass over such batches"
            )
        self.inner.step(rate, progress=self.taken / steps, ok=finite, norms=norms)
        self.taken += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The steps taken, and each tensor of the state by its name."""
        return {"taken": self.taken, "tensors": self.inner.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.taken = state_dict["taken"]
        self.inner.load_state(state_dict["tensors"])


class TinyModule(lightning.LightningModule):  # type: ignore[misc]
    """A `Model` with its loss, and the optimizer and schedule of a run's settings.

    Raises `ValueError` for a setting that only `tinylm.train` follows, with what to do instead.
    """

    def __init__(self, model: Model, run: Run) -> None:
        super().__init__()
        for key, given, instead in _elsewhere(model, run):
            if given:
                value = getattr(getattr(run, key.partition(".")[0]), key.partition(".")[2])
                raise ValueError(f"{key}={value}: TinyModule does not follow it: {instead}")
        self.model, self.run = model, run
        model.activation_checkpointing = run.train.activation_checkpointing

    def configure_optimizers(self) -> Joined:
        """The optimizer of the run."""
        return Joined(self.model, self.run)

    def on_fit_start(self) -> None:
        """Set how the device multiplies float32."""
        device.use_tf32(self.device, self.run.train.tf32)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The mean loss of a batch."""
        loss = self._loss(batch)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the mean loss of a batch as `val_loss`; each target weighs the same."""
        counted = int((batch.targets != IGNORED).sum())
        if counted:
            self.log("val_loss", self._loss(batch), batch_size=counted)

    def _loss(self, batch: Batch) -> Tensor:
        place = self.model.weight.device
        dtype = device.pick_dtype(self.run.train.dtype, place)
        return self.model.loss(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            dtype=dtype,
        )

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
        """The batch on the module's device."""
        positions, documents = batch.positions, batch.documents
        return Batch(
            batch.tokens.to(device),
            batch.targets.to(device),
            None if positions is None else positions.to(device),
            None if documents is None else documents.to(device),
        )


def _elsewhere(model: Model, run: Run) -> list[tuple[str, bool, str]]:
    """Return the settings that are followed elsewhere: key, whether it asks for something, fix."""
    train = run.train
    whole = "it trains on whole rows and batches of one size: leave it out, or give one number"
    lightnings = "give lightning.Trainer"
    return [
        ("train.batch_size", len(train.batch_sizes.points) > 1, whole),
        ("train.sequence_length", train.sequence_length is not None, whole),
        ("train.window", train.window is not None, whole),
        (
            "train.micro_batch_size",
            train.micro_batch_size is not None,
            f"{lightnings} accumulate_grad_batches, and the rows of one pass as train.batch_size",
        ),
        ("train.deterministic", bool(train.deterministic), f"{lightnings} deterministic=True"),
        ("train.resume", train.resume != "never", "give ckpt_path to fit"),
        ("train.compile", train.compile is True, "compile the module with torch.compile"),
        ("train.dtype", train.dtype == "float16", "its loss is not scaled: set bfloat16"),
        ("train.init", train.init is not None, "load the model with tinylm.checkpoint.load"),
        (
            "train.freeze",
            bool(train.freeze) and all(p.requires_grad for p in model.parameters()),
            "call requires_grad_(False) on these parameters of the model",
        ),
        (
            "train.qat",
            train.qat != "none",
            "only `python -m tinylm.train` moves its share",
        ),
        (
            "lora.rank",
            run.lora.rank is not None and not lora.adapters(model),
            "put the adapters on the model with tinylm.layers.lora.adapt",
        ),
        ("data.sources", bool(run.data.sources), "train on one text, or with tinylm.train"),
        ("distributed.mode", run.distributed.mode != "none", f"{lightnings} devices and strategy"),
    ]


class TinyData(lightning.LightningDataModule):  # type: ignore[misc]
    """The batches of a run from a folder of shards, in the order of `tinylm.train`.

    Shards of conversations need the `tokenizer`, unless `data.loss` is all. With several processes
    each gets its own rows of every global batch.
    """

    def __init__(self, shards: str | Path, run: Run, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.shards, self.run, self.tokenizer = Path(shards), run, tokenizer
        # Where the training begins, and how many batches were trained on before.
        self._place: dict[str, Any] = {}
        self._before = 0

    def train_dataloader(self) -> Loader:
        """The training batches, without end, from the place of the checkpoint that is loaded."""
        loader = self._loader("train")
        if self._place:
            loader.restore(self._place)
        else:
            self._place = loader.state()
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was trained on, for Lightning's checkpoints."""
        if not self._place:
            return {}
        # Not by the loader, from which Lightning reads a batch ahead.
        taken = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        rows = (taken - self._before) * self.run.train.batch_sizes.at(0)
        return {"place": {**self._place, "rows": self._place["rows"] + rows}, "batches": taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._place, self._before = state_dict.get("place", {}), state_dict.get("batches", 0)

    def val_dataloader(self) -> Any:
        """Every target of the validation text once."""
        batches = list(self._loader("val").epoch())
        # Lightning takes a bare list for a list of loaders.
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def _loader(self, split: str) -> Loader:
        run, trainer = self.run, self.trainer
        dataset = Dataset.open(self.shards, split=split)
        # As in `tinylm.train`, the validation text is read in windows, without a mask.
        windows = {"order": "sequential", "mask_after_eos": run.data.mask_after_eos}
        rows: Any = of_settings(run.data) if split == "train" else windows
        return Loader(
            dataset,
            batch_size=run.train.batch_sizes.at(0),
            context_length=run.model.context_length,
            **rows,
            seed=run.train.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            threads=run.data.threads,
            keep=answers(run.data.loss, dataset, self.tokenizer),
        )
