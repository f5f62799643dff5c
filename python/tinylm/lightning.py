"""A model and its batches for PyTorch Lightning (`pip install 'tinylm[lightning]'`).

    data = TinyData("data/processed/cats-1a2b3c4d", run)
    module = TinyModule(model.build(config), run)
    lightning.Trainer(max_steps=run.train.steps, logger=False).fit(module, data)

Loss, optimizer, schedule, clipping and order of the batches are those of `tinylm.train`: on the CPU
each step has the same loss, bit for bit, if the model has no dropout. Accumulation, devices and
checkpoints are Lightning's. Its checkpoints are pickles; `tinylm.checkpoint.save` writes a folder.
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
from tinylm.data.turns import answers
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
        self.inner.step(rate, progress=self.taken / steps)
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

    Raises `ValueError` for settings that change the shape of a batch during the run.
    """

    def __init__(self, model: Model, run: Run) -> None:
        super().__init__()
        train = run.train
        for key, value in (
            ("batch_size", train.batch_size if len(train.batch_sizes.points) > 1 else None),
            ("sequence_length", train.sequence_length),
            ("window", train.window),
        ):
            if value is not None:
                raise ValueError(
                    f"train.{key}={value}: TinyModule trains on whole rows and batches of one "
                    f"size: give one batch_size, and neither sequence_length nor window"
                )
        self.model, self.run = model, run
        model.activation_checkpointing = train.activation_checkpointing

    def configure_optimizers(self) -> Joined:
        """The optimizer of the run."""
        return Joined(self.model, self.run)

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


class TinyData(lightning.LightningDataModule):  # type: ignore[misc]
    """The batches of a run from a folder of shards, in the order of `tinylm.train`.

    Shards of conversations need the `tokenizer`, unless `data.loss` is all. With several processes
    each gets its own rows of every global batch.
    """

    def __init__(self, shards: str | Path, run: Run, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.shards, self.run, self.tokenizer = Path(shards), run, tokenizer

    def train_dataloader(self) -> Loader:
        """The training batches, without end."""
        return self._loader("train", order=self.run.data.order)

    def val_dataloader(self) -> Any:
        """Every target of the validation text once."""
        batches = list(self._loader("val", order="sequential").epoch())
        # Lightning takes a bare list for a list of loaders.
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def _loader(self, split: str, order: Any) -> Loader:
        run, trainer = self.run, self.trainer
        dataset = Dataset.open(self.shards, split=split)
        return Loader(
            dataset,
            batch_size=run.train.batch_sizes.at(0),
            context_length=run.model.context_length,
            order=order,
            stride=run.data.stride if split == "train" else None,
            mask_after_eos=run.data.mask_after_eos,
            seed=run.train.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            threads=run.data.threads,
            keep=answers(run.data.loss, dataset, self.tokenizer),
            # As in `tinylm.train`, the validation text is read without a mask.
            documents=run.data.document_mask and split == "train",
        )
