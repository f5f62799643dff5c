"""`python -m tinylm.quant RUN method=METHOD out=FOLDER [key=value ...]`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import commands
from tinylm.config import ConfigError
from tinylm.quant import settings as reading

if TYPE_CHECKING:
    from torch import Tensor

    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer

HELP = """usage: python -m tinylm.quant RUN method=METHOD out=FOLDER [key=value ...]

Write the model of RUN with its matrices in 8 or 4 bits to a new folder, which
python -m tinylm.sample and python -m tinylm.evaluate open. transformers refuses it.

  method=int8   a scale per row, nothing to choose
  method=int4   a scale per group, chosen for the least error of the weights
  method=gptq   int4 that corrects itself on calibration text, column by column
  method=awq    int4 that gives finer steps to columns with large inputs
  method=static int8 whose inputs are rounded to 8 bits too, by scales measured on text
  method=trained the numbers that a run of train.qat was trained with, exactly

  embedding:  embedding and head in int8 (default) or float; norms and biases stay float
  turn:       turn values inside each head, so that no weight stands out (default true)

Of int4, gptq and awq:
  group:      numbers that share a scale, 32 (default), 64 or 128
  keep:       the most sensitive matrices stay in int8, up to this share of all (default 0.12)
  clip:       int4: search clipped scales (default true), or false for the largest magnitude

Of static:
  activations: scales by histogram (default, the least squared error), percentile (99.9%) or minmax

Of methods that look at text, which are all but int8, trained, and int4 with keep=0:
  rows:       rows of up to 512 tokens (default 64)
  seed:       which rows are drawn (default 0)
  shards:     where they are drawn from (default the shards that RUN was trained on)
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    if commands.wants_help(arguments):
        print(HELP, end="")
        return 0
    words, given = commands.sorted_words(arguments)
    if len(words) != 1:
        raise ConfigError("which run? python -m tinylm.quant RUN method=int4 out=FOLDER")
    settings = reading.read(given)
    if not given.get("out"):
        raise ConfigError("out= is missing: name the folder to write")
    folder, out = Path(commands.path(words[0])), Path(commands.path(given["out"]))
    if out.exists():
        raise ConfigError(f"out={out}: exists already: name a new folder")
    with commands.finding(folder, "quant"):
        # These take seconds: a typo above is answered before them.
        import torch

        from tinylm import checkpoint, data, threads
        from tinylm.quant.methods import check, quantise

        model, tokenizer = checkpoint.load(folder)
    check(model, settings)
    calibration = None
    if settings.calibrates:
        calibration = _calibration(folder, given, settings, model, tokenizer)
    before, began = _size(model), time.perf_counter()
    with threads.sharing(torch.get_num_threads()):
        quantise(model, settings, calibration)
    seconds = time.perf_counter() - began
    shards = [str(folder) for folder in data.recorded(folder)]
    named = shards[0] if len(shards) == 1 else shards
    note = json.dumps({"shards": named}, indent=1).encode() if shards else None
    checkpoint.write(
        out,
        checkpoint.content(model, tokenizer),
        # `evaluate` finds the text of the run by it.
        others=None if note is None else lambda draft: draft.add("run.json", [note]),
    )
    after = _size(model)
    print(
        f"{out}: {settings.method} in {seconds:.1f} s, {before:,} bytes of weights to {after:,}, "
        f"{before / after:.2f} times fewer"
    )
    return 0


def _calibration(
    folder: Path,
    given: dict[str, str],
    settings: reading.Settings,
    model: "Model",
    tokenizer: "Tokenizer | None",
) -> "Tensor":
    """Rows of the run's shards, or of those that are named."""
    from tinylm import data
    from tinylm.quant import calibration

    homes = [given["shards"]] if given.get("shards") else [*map(str, data.recorded(folder))]
    if not homes:
        raise ConfigError(
            f"{folder}: which shards it was trained on is not known: name some, shards=FOLDER; "
            "method=int4 keep=0 needs none"
        )
    datasets = [data.Dataset.open(commands.path(home)) for home in homes]
    for dataset in datasets:
        if tokenizer is None or tokenizer.sha256 != dataset.tokenizer_sha256:
            raise ValueError(
                f"{dataset.folder}: made by another tokenizer than the model's: prepare a text "
                f"with the tokenizer of {folder}"
            )
    length = min(calibration.LENGTH, model.context_length)
    return calibration.rows_of(datasets, settings.rows, length, settings.seed)


def _size(model: "Model") -> int:
    """Bytes of all tensors; a tied matrix counts once."""
    return sum(tensor.numel() * tensor.itemsize for tensor in model.state_dict().values())


if __name__ == "__main__":
    commands.run(main)
