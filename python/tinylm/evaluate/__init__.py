"""Model and text to figures: loss, perplexity, bits per byte, and whether samples are Python.

    scores = evaluate(model, Dataset.open(folder, split="val"), tokenizer=tokenizer)

`scoring` runs the model over a split, `python` parses samples, `__main__` is the command.
"""

from tinylm.evaluate.python import parse_share
from tinylm.evaluate.scoring import Scores, evaluate

__all__ = ["Scores", "evaluate", "parse_share"]
