"""`python -m tinylm.train [NAME|FILE] [section=preset] [section.key=value]`."""

import os
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tinylm import commands, config
from tinylm.train import Interrupted, folder, processes

HELP = """\
python -m tinylm.train [NAME|FILE] [section=preset] [section.key=value ...]

Train a language model: text, tokenizer, shards, model, steps, checkpoint. Without arguments it
learns the Python standard library of this machine: about three minutes on two CPU cores.

  NAME|FILE        a recipe ({recipes}) or your YAML file;
                   default stdlib; if a preset, a setting of the model or train.init is given,
                   the settings below
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
    _refuse_slips(arguments)
    rest = [argument for argument in arguments if argument not in flags]
    named = rest and "=" not in rest[0]
    recipe = rest.pop(0) if named else config.general_recipe(rest)
    run = config.load(recipe, rest)
    if flags:
        print(config.to_yaml(run), end="")
        return 0
    # Both refuse what does not fit before torch is there, which takes two seconds to import.
    if processes.place(run).leads:
        folder.plan(run)
    # A notebook sets a backend for the commands that it starts, and matplotlib cannot be imported
    # where that one is not installed. loss.png is drawn to a file, without any backend.
    os.environ.pop("MPLBACKEND", None)
    from tinylm.train import train

    code = 0
    try:
        train(run)
    except Interrupted as stopped:
        code = stopped.code
        if not processes.place(run).leads:
            return code
        make = f" (make says Error {code}: stopped before its end)" if _by_make() else ""
        command = _again(arguments, stopped.checkpoint.parents[1])
        _say(f"{stopped}{make}; go on with:\n  {command}")
    # A console that cannot be written to was warned of, and is no error of a run.
    commands.settle(sys.stdout)
    return code


def _refuse_slips(arguments: Sequence[str]) -> None:
    """Refuse an unknown option, and `train.steps 100`: with the setting that was meant."""
    known = config.settings()
    for word, following in pairwise([*arguments, ""]):
        key, equals, value = word.lstrip("-").partition("=")
        value = value if equals else following
        meant = f"{key}={value}" if value and not ("=" in value and not equals) else f"{key}=VALUE"
        if word.startswith("-") and word != "--print-config":
            hint = f"write {meant}" if key in known else "--help lists what there is"
            raise config.ConfigError(f"unknown option {word}: {hint}")
        if not equals and key in known:
            raise config.ConfigError(f"{word}: a setting and its value are one word: write {meant}")


def _say(text: str) -> None:
    """Print on standard output, or on standard error if that is not possible."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        commands.tell(text)


def _by_make() -> bool:
    return os.environ.get("TINYLM_COMMAND") == "make train"


def _again(arguments: Sequence[str], home: Path) -> str:
    """The command that goes on with this very run, whatever runs have begun since."""
    kept = [argument for argument in arguments if not argument.startswith("train.resume=")]
    settings = shlex.join([*kept, f"train.resume={home}"])
    # `make train` needs no active .venv, so neither may what follows it; make reads $$ as $.
    if _by_make():
        return f"make train ARGS={shlex.quote(settings.replace('$', '$$'))}"
    return f"python -m tinylm.train {settings}"


if __name__ == "__main__":
    commands.run(main)
