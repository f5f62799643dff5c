"""`python -m tinylm.evaluate RUN [key=value ...]`."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import commands, config, terminal, threads
from tinylm.config import ConfigError, Run
from tinylm.evaluate.parts import score_each
from tinylm.evaluate.scoring import evaluate

if TYPE_CHECKING:
    from tinylm.data import Dataset
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer

HELP = """usage: python -m tinylm.evaluate RUN [key=value ...]

Score the validation text of RUN: loss (nats per token), perplexity, bits per byte.

RUN is the folder of a run, of one of its checkpoints, of its model in fewer bits
(python -m tinylm.quant), or of a transformers model; the last has no text of its own and needs
data.source=. Another text is tokenized by the model's own tokenizer, and its validation part is
scored, or all of it:
  python -m tinylm.evaluate runs/stdlib data.source=novel.txt data.val_fraction=1

With tasks=N a model that chats answers N held-out tasks of each kind of data.source=tasks, with
tasks=all every one. An answer counts if it is right letter by letter:
  python -m tinylm.evaluate runs/chat tasks=all
"""
# The settings that change a score; the others of a run are taken as they are.
KEYS = (
    "data.source",
    "data.folder",
    "data.separator",
    "data.text_field",
    "data.filters",
    "data.val_fraction",
    "data.loss",
    "train.batch_size",
    "train.device",
    "train.dtype",
)
# What a key means here, where that is not what it means in training.
ABOUT = {
    "data.val_fraction": "Share of the text that is scored, what training holds out; 1 for all.",
    "train.dtype": "Arithmetic of the scoring: float32 (default), bfloat16 or float16.",
}


def main(arguments: Sequence[str]) -> int:
    """Print the scores of a run; returns the exit code."""
    if commands.wants_help(arguments):
        about = config.settings()
        print(
            HELP
            + "".join(f"\n  {key}: {ABOUT.get(key) or about[key].metadata['help']}" for key in KEYS)
        )
        return 0
    arguments, asked = _tasks(arguments)
    folder, keys, run, fraction = _parse(arguments)
    # Asked for here: the dtype that the run was trained in does not decide how it is scored.
    narrow = run.train.dtype if "train.dtype" in keys else "auto"
    with commands.finding(folder, "evaluate"):
        if asked is None:
            _check_text(folder, keys)
        # These take seconds: a typo above is answered before them.
        import torch

        from tinylm import checkpoint, device

        place = device.find_or_best(run.train.device)
        # Weights in 16 bits are the same numbers in float32.
        model, tokenizer = checkpoint.load(folder, device=place, dtype=torch.float32)
    if tokenizer is None:
        from tinylm.checkpoint import origin

        raise origin.why_no_tokenizer(folder, "its vocabulary cannot be known")
    watched = threads.sharing(torch.get_num_threads())
    if asked is not None:
        with watched:
            _print_exact(model, tokenizer, asked, fraction)
        return 0
    with tempfile.TemporaryDirectory() as scratch, watched:
        datasets = _held_out(folder, run.data, fraction, tokenizer, keys, Path(scratch))
        for dataset in datasets:
            print(f"{'part':15}{_part(dataset, other='data.source' in keys)}", flush=True)
        scores, each = score_each(
            {_name(dataset, number): dataset for number, dataset in enumerate(datasets)},
            lambda dataset, most: evaluate(
                model,
                dataset,
                tokenizer=tokenizer,
                batch_size=max(run.train.batch_sizes.values),
                max_tokens=most,
                dtype=None if narrow == "auto" else device.DTYPES[narrow],
                loss=run.data.loss,
                progress=_show_progress if terminal.watched() else None,
            ),
        )
    for name, part in each.items():
        print(f"{'bits per byte':15}{part.bits_per_byte:.4f} of {name}")
    for name, value in asdict(scores).items():
        print(f"{name.replace('_', ' '):15}{value if isinstance(value, int) else f'{value:.4f}'}")
    return 0


def _name(dataset: "Dataset", number: int) -> str:
    """What a text is called in the scores: its source, or its number if that is not known."""
    return str(dataset.manifest.source.get("source", f"text {number + 1}"))


def _held_out(
    home: Path,
    settings: config.DataConfig,
    fraction: float,
    tokenizer: "Tokenizer",
    keys: set[str],
    scratch: Path,
) -> "list[Dataset]":
    """The validation splits of the run's texts, or that of another text."""
    from tinylm import corpus, data

    if not settings.sources:
        return [_validation(home, settings, fraction, tokenizer, keys, scratch)]
    known = data.recorded(home)
    if known and not keys & {f"data.{name}" for name in corpus.reading(settings)}:
        return [data.Dataset.open(folder, split="val") for folder in known]
    found = []
    for number, text in enumerate(settings.texts):
        alone = replace(settings, source=text, sources=())
        place = scratch / str(number)
        found.append(_validation(home, alone, fraction, tokenizer, keys, place))
    return found


def _parse(arguments: Sequence[str]) -> tuple[Path, set[str], Run, float]:
    """Arguments to the model's folder, the keys they set, all settings, and the share to score."""
    words = [word for word in arguments if "=" not in word]
    overrides = [word for word in arguments if "=" in word]
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("which run? python -m tinylm.evaluate RUN [key=value ...]")
    folder = Path(commands.path(words[0]))
    keys = {override.partition("=")[0] for override in overrides}
    for key in keys.difference(KEYS):
        raise ConfigError(_refusal(key))
    file = config.find(folder)
    # Nothing would be left to train on, so the settings of a run refuse a fraction of 1.
    whole = [word for word in overrides if word in ("data.val_fraction=1", "data.val_fraction=1.0")]
    # Another text takes the place of all that a run of several has.
    alone = ["data.sources=[]"] if keys & {"data.source", "data.folder"} else []
    run = config.load(file, [*alone, *(word for word in overrides if word not in whole)])
    fraction = 1.0 if whole else run.data.val_fraction
    return folder, keys, run, fraction


def _tasks(arguments: Sequence[str]) -> tuple[list[str], int | None]:
    """The arguments without tasks=N, and N: None without one, 0 for all."""
    rest = [word for word in arguments if not word.startswith("tasks=")]
    given = [word.partition("=")[2] for word in arguments if word.startswith("tasks=")]
    if not given:
        return rest, None
    number = given[0]
    if len(given) > 1:
        raise ConfigError(f"tasks: given twice, as {number} and as {given[1]}: leave one out")
    if number != "all" and not (number.isascii() and number.isdecimal() and int(number) > 0):
        raise ConfigError(f"tasks={number}: expected a whole number above 0, or all")
    return rest, 0 if number == "all" else int(number)


def _print_exact(model: "Model", tokenizer: "Tokenizer", asked: int, fraction: float) -> None:
    """A line for each kind of task, and one for all."""
    from tinylm.corpus import tasks
    from tinylm.evaluate.exact import exact_match

    held_out = tasks.instances(True, fraction)
    print(f"{'tasks':12}{'right':>8}{'asked':>8}{'share':>8}{'guess':>8}")
    for part in exact_match(model, tokenizer, held_out, limit=asked or None):
        print(
            f"{part.kind:12}{part.right:8}{part.asked:8}{part.share:8.1%}{part.guess:8.1%}",
            flush=True,
        )


def _refusal(key: str) -> str:
    """Why a key is refused: it is a setting of something else, or a slip for one of `KEYS`."""
    if key in config.settings():
        return f"{key}: has no part in a score; these have: {', '.join(KEYS)}"
    short = {known.rpartition(".")[2]: known for known in KEYS}
    near = get_close_matches(key, [*KEYS, *short], n=1)
    hint = f"did you mean '{short.get(near[0], near[0])}'? " if near else ""
    return f"unknown key '{key}': {hint}evaluate takes {', '.join(KEYS)}"


def _check_text(folder: Path, keys: set[str]) -> None:
    """Raise `ConfigError` where no text to score is known."""
    if not folder.is_dir():
        return
    if config.find(folder) is not None or keys & {"data.source", "data.folder"}:
        return
    from tinylm import data

    if not data.recorded(folder) and (
        commands.what_it_holds(folder, "evaluate") is None or not any(folder.iterdir())
    ):
        raise ConfigError(f"{folder} has no config.yaml: say what to score, data.source=FILE")


def _validation(
    home: Path,
    settings: config.DataConfig,
    fraction: float,
    tokenizer: "Tokenizer",
    keys: set[str],
    scratch: Path,
) -> "Dataset":
    """The validation split: of the run's shards, or of another text, made in `scratch`."""
    from tinylm import corpus, data

    if "data.source" in keys:
        shards = data.given(settings.source, tokenizer)
        if shards is not None:
            return data.Dataset.open(shards, split="val")
    # A whole text is scored with 1, which no run may have.
    reading = {**corpus.reading(settings), "val_fraction": fraction}
    if "data.source" in keys:
        # The order changes no score. The run's filters chose what to learn from, and another text
        # is scored as it is.
        reading["shuffle_documents"] = None
        reading["filters"] = settings.filters if "data.filters" in keys else ()
    other = keys & {"data.source", *(f"data.{name}" for name in reading)}
    folder = None if settings.folder is None else Path(settings.folder)
    if other and "data.folder" not in keys:
        folder = scratch
    elif folder is None:
        known = data.recorded(home)
        folder = (known[0] if len(known) == 1 else None) or data.find(
            settings.source,
            **reading,
            tokenizer_sha256=tokenizer.sha256,
        )
    # The run's shards are taken as they are: its source may have changed or gone since.
    if other or folder is None or not (folder / "manifest.json").is_file():
        text = corpus.open(settings.source, **reading)
        for note in text.notes:
            commands.tell(note)
        folder = folder or data.default_folder(text, tokenizer.sha256)
        data.prepare(text, tokenizer, folder)
    return data.Dataset.open(folder, split="val")


def _part(dataset: "Dataset", *, other: bool) -> str:
    """Which text a dataset is, and how much of it; of another text how to score it all."""
    source = dataset.manifest.source
    sizes = [split.bytes for split in dataset.manifest.splits.values()]
    of = "" if None in sizes else f" of {sum(size or 0 for size in sizes):,}"
    n_bytes = "?" if dataset.n_bytes is None else f"{dataset.n_bytes:,}"
    text = f"{n_bytes}{of} bytes of {source.get('source', 'the shards')}"
    fraction = source.get("val_fraction", 1)
    if fraction == 1:
        return text
    # All of a run's own text would include what it was trained on.
    advice = "; 1 scores all" if other else ""
    return f"{text}, held out by data.val_fraction={fraction:g}{advice}"


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    terminal.draw(f"\r{done} of {total} tokens{end}")


if __name__ == "__main__":
    commands.run(main)
