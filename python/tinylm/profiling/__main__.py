"""`python -m tinylm.profiling RUN_OR_CONFIG [key=value ...]`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinylm import commands, config
from tinylm.config import ConfigError, ModelConfig, Run

HELP = """usage: python -m tinylm.profiling RUN_OR_CONFIG [key=value ...] [--json]

Print what training a model costs, without training it: parameters by component and role,
floating-point operations per token, memory by component, the time of a step.

RUN_OR_CONFIG is a recipe ({recipes}), a YAML file, the folder of a run or of a
checkpoint, or the folder of a transformers model. Settings are those of python -m tinylm.train:
  python -m tinylm.profiling stdlib model=small train.batch_size=32
  python -m tinylm.profiling runs/stdlib --json

  --json   print the numbers as JSON"""


def main(arguments: Sequence[str]) -> int:
    """Print the costs of a run; returns the exit code."""
    if commands.wants_help(arguments):
        print(HELP.format(recipes=", ".join(config.recipes())))
        return 0
    as_json = "--json" in arguments
    name, overrides = _parse([word for word in arguments if word != "--json"])
    folder = Path(commands.path(name))
    # These take seconds: a typo above is answered before them.
    from tinylm import device
    from tinylm.profiling import report

    if folder.is_dir():
        with commands.finding(folder, "profiling"):
            run = config.load(config.find(folder), overrides)
            model = _model_of(folder, run)
        if model is not run.model and (key := next(filter(_is_models, overrides), None)):
            raise ConfigError(f"{key}: the model is that of the weights in {folder}; name a recipe")
    else:
        run = config.load(name, overrides)
        base = run.train.init
        # Weights to start from bring their own model.
        model = run.model if base is None else _model_of(Path(base), run)
    size = model.vocab_size or report.vocabulary(run)
    place = device.find_or_best(run.train.device)
    dtype = device.pick_dtype(run.train.dtype, place)
    found = report.costs(run, replace(model, vocab_size=size), place, dtype)
    print(json.dumps(found, indent=1) if as_json else report.text(name, found))
    return 0


def _parse(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Arguments to the run or recipe and the settings."""
    words = [word for word in arguments if "=" not in word]
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("which run? python -m tinylm.profiling RUN_OR_CONFIG [key=value ...]")
    return words[0], [word for word in arguments if "=" in word]


def _is_models(override: str) -> bool:
    return override.startswith(("model=", "model."))


def _model_of(folder: Path, run: Run) -> ModelConfig:
    """The model in a folder: as its weights are, or as its settings say before any are saved."""
    saved = [folder, *sorted((folder / "checkpoints").glob("step-*[0-9]"), reverse=True)]
    home = next((path for path in saved if (path / "config.json").is_file()), None)
    if home is None and config.find(folder) is None:
        raise FileNotFoundError(2, "neither config.yaml nor config.json", str(folder))
    if home is None:
        return run.model
    from tinylm import convert

    return convert.import_config(json.loads((home / "config.json").read_bytes()))


if __name__ == "__main__":
    commands.run(main)
