"""A run: from its settings to a folder with a trained model.

    folder = train(config.load(overrides=["train.steps=200"]))

`pipeline` puts the stages in order, `stages` holds what stands around the loop, `loop` takes the
steps, `folder` knows the files. Nothing here imports torch before it is used, so that the
command answers `--help` and a slip at once.
"""

from typing import TYPE_CHECKING

from tinylm.lazy import on_first_use

if TYPE_CHECKING:
    from tinylm.train.loop import Interrupted, NonFiniteError, Trainer
    from tinylm.train.pipeline import train

__all__ = ["Interrupted", "NonFiniteError", "Trainer", "train"]
__getattr__ = on_first_use(
    __name__,
    {
        "Interrupted": "tinylm.train.loop",
        "NonFiniteError": "tinylm.train.loop",
        "Trainer": "tinylm.train.loop",
        "train": "tinylm.train.pipeline",
    },
)
