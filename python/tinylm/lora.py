"""`python -m tinylm.lora`: the adapters of a run, by themselves or put into its matrices.

`lora.rank=8 train.init=BASE` trains them (`layers.lora` has the mathematics, `checkpoint.adapters`
the files). From Python:

    net, tokenizer = checkpoint.load("runs/base")
    lora.load(net, "adapter")     # PEFT's two files, of TinyLM or of PEFT
    lora.merge(net)               # an ordinary model
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import commands
from tinylm.config import ConfigError

if TYPE_CHECKING:
    from tinylm.model import Model

HELP = """usage: python -m tinylm.lora merge RUN out=FOLDER [base=BASE]
       python -m tinylm.lora save RUN out=FOLDER

merge puts the adapters of RUN into its matrices and writes an ordinary model, which transformers
opens. With base=BASE, RUN is a folder with adapters alone, which belong to BASE.
save writes the adapters alone: of a llama or qwen3 model in the format of PEFT, of any other model,
whose matrices PEFT has no names for, in files that TinyLM alone reads.
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    if commands.wants_help(arguments):
        print(HELP, end="")
        return 0
    words, given = commands.sorted_words(arguments)
    if len(words) != 2 or words[0] not in ("merge", "save"):
        raise ConfigError("which command? python -m tinylm.lora merge|save RUN out=FOLDER")
    for key in given.keys() - {"out", *(("base",) if words[0] == "merge" else ())}:
        raise ConfigError(f"unknown key '{key}': {words[0]} takes out=FOLDER, see --help")
    if not given.get("out"):
        raise ConfigError("out= is missing: name the folder to write")
    folder, out = Path(commands.path(words[1])), Path(commands.path(given["out"]))
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"out={out}: exists and is not empty")
    from tinylm import checkpoint
    from tinylm.checkpoint import adapters as lora_files
    from tinylm.layers import lora

    home = Path(commands.path(given["base"])) if "base" in given else folder
    with commands.finding(home, "lora"):
        net, tokenizer = checkpoint.load(home)
    if "base" in given:
        load(net, folder)
    count = len(lora.adapters(net))
    if not count:
        raise ConfigError(f"{folder} has no adapters: train some with lora.rank=8 train.init=RUN")
    if words[0] == "save":
        save(out, net)
    else:
        lora.merge(net)
        checkpoint.save(out, net, tokenizer)
    print(f"{out}: {count} adapters {'merged' if words[0] == 'merge' else 'saved'}")
    if words[0] == "save" and lora_files.files_of(net) == lora_files.OURS:
        print(
            f"only TinyLM reads them: PEFT has no names for the matrices of a "
            f"{lora_files.kind_of(net)} model; for other programs, merge them"
        )
    return 0


def load(net: "Model", folder: str | Path) -> None:
    """Put the adapters in `folder` on a model, in place: only they are trained from then on.

    `ValueError` for settings that are not plain LoRA, and for tensors that do not fit.
    """
    from tinylm.checkpoint import adapters

    adapters.read(Path(folder), net)


def save(folder: str | Path, net: "Model") -> None:
    """Write the adapters of a model to a new folder, whole or not at all.

    PEFT reads those of a llama or qwen3 model; others are in files of TinyLM's own.
    """
    import json

    from tinylm.checkpoint import adapters, files, tensors

    settings = adapters.settings(net)
    if settings is None:
        raise ValueError("the model has no adapters: nothing to save")
    _, found = adapters.named(net, net.state_dict())
    with files.whole(Path(folder).absolute()) as draft:
        names = adapters.files_of(net)
        draft.add(names[0], tensors.pieces(found, {"format": "pt"}))
        draft.add(names[1], [json.dumps(settings, indent=2).encode() + b"\n"])


def merge(net: "Model") -> None:
    """Put every adapter of a model into its matrix, in place: W + alpha / rank B A."""
    from tinylm.layers import lora

    lora.merge(net)


if __name__ == "__main__":
    commands.run(main)
