"""A run: from its settings to a folder with a trained model.

    folder = train(config.load(overrides=["train.steps=200"]))

`pipeline` puts the stages in order, `stages` holds what stands around the loop, `loop` takes the
steps, `folder` knows the files. Nothing here imports torch before it is used, so that the
command answers `--help` and a slip at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.train.loop import Interrupted, NonFiniteError, Trainer
    from tinylm.train.pipeline import train

__all__ = ["Interrupted", "NonFiniteError", "Trainer", "train"]


def __getattr__(name: str) -> Any:
    """Import the loop on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinylm.train import loop, pipeline

    return pipeline.train if name == "train" else getattr(loop, name)
