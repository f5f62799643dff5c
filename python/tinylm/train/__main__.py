"""`python -m tinylm.train [NAME|FILE] [section=preset] [section.key=value]`."""

import os
import shlex
from collections.abc import Sequence

from tinylm import commands, config
from tinylm.train import Interrupted, folder

HELP = """\
python -m tinylm.train [NAME|FILE] [section=preset] [section.key=value ...]

Train a language model: text, tokenizer, shards, model, steps, checkpoint. Without arguments it
learns the Python standard library of this machine, in about three minutes on two CPU cores.

  NAME|FILE        a recipe ({recipes}) or your YAML file
  --print-config   print the resolved settings as YAML and stop
  --help           print this text

  python -m tinylm.train data.source=input.txt           your own text, folder or .jsonl
  python -m tinylm.train model=small train.steps=5000    a preset and a setting
  python -m tinylm.train train.resume=auto               go on after Ctrl-C or a crash

Exit codes: {codes}.

Settings, with their defaults:
"""


def main(arguments: Sequence[str]) -> int:
    """Train as the arguments say; the exit code."""
    if commands.wants_help(arguments):
        print(HELP.format(recipes=", ".join(config.recipes()), codes=commands.EXIT_CODES))
        print(config.describe())
        return 0
    flags = [argument for argument in arguments if argument.startswith("-")]
    for flag in flags:
        if flag != "--print-config":
            raise config.ConfigError(f"unknown option {flag}: --help lists what there is")
    rest = [argument for argument in arguments if argument not in flags]
    recipe = rest.pop(0) if rest and "=" not in rest[0] else None
    run = config.load(recipe, rest)
    if flags:
        print(config.to_yaml(run), end="")
        return 0
    # Refuses a folder that does not fit before torch is there, which takes two seconds to import.
    folder.plan(run)
    from tinylm.train import train

    try:
        train(run)
    except Interrupted as stopped:
        print(f"{stopped}; go on with:\n  {_again(arguments)}")
        return stopped.code
    return 0


def _again(arguments: Sequence[str]) -> str:
    """The command that goes on with the run of these arguments."""
    kept = [argument for argument in arguments if not argument.startswith("train.resume=")]
    settings = shlex.join([*kept, "train.resume=auto"])
    # `make train` needs no active .venv, so neither may what follows it; make reads $$ as $.
    if os.environ.get("TINYLM_COMMAND") == "make train":
        return f"make train ARGS={shlex.quote(settings.replace('$', '$$'))}"
    return f"python -m tinylm.train {settings}"


if __name__ == "__main__":
    commands.run(main)
