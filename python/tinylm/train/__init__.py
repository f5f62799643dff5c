"""A run: from its settings to a folder with a trained model.

    folder = train(config.load(overrides=["train.steps=200"]))

`pipeline` puts the stages in order. Before the steps come `beginning` (text, tokenizer, weights),
`fitting` (memory), `compiling`, `distributed` (several processes) and `prompts`; `loop` takes the
steps, each one a `step`; `reporting` comes after. `folder` knows the files and who writes to them,
`session` the device and the random numbers. Nothing here imports torch before it is used, so that
the command answers `--help` and typing errors at once.
"""

from typing import TYPE_CHECKING

from tinylm.lazy import on_first_use
from tinylm.train.signals import Interrupted

if TYPE_CHECKING:
    from tinylm.train.callbacks import CALLBACKS, Event
    from tinylm.train.loop import Trainer
    from tinylm.train.nonfinite import NonFiniteError
    from tinylm.train.pipeline import train

__all__ = ["CALLBACKS", "Event", "Interrupted", "NonFiniteError", "Trainer", "train"]
__getattr__ = on_first_use(
    __name__,
    {
        "CALLBACKS": "tinylm.train.callbacks",
        "Event": "tinylm.train.callbacks",
        "NonFiniteError": "tinylm.train.nonfinite",
        "Trainer": "tinylm.train.loop",
        "train": "tinylm.train.pipeline",
    },
)
