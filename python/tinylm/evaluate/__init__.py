"""Model and text to figures: loss, perplexity, bits per byte, right answers, samples that parse.

    scores = evaluate(model, Dataset.open(folder, split="val"), tokenizer=tokenizer)

`scoring` runs the model over a split, `parts` over those of several texts, `exact` asks tasks,
`python` parses samples, `__main__` is the command.
"""

from tinylm.evaluate.exact import Exact, exact_match
from tinylm.evaluate.parts import score_each
from tinylm.evaluate.python import parse_share
from tinylm.evaluate.scoring import Scores, evaluate

__all__ = ["Exact", "Scores", "evaluate", "exact_match", "parse_share", "score_each"]
