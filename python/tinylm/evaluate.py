"""Model and text to figures: loss, perplexity, bits per byte, and whether samples are Python.

    scores = evaluate(model, Dataset.open(folder, split="val"), tokenizer=tokenizer)

Bits per byte = (nats over every target) / ln 2 / (bytes of the text). A tokenizer that packs more
bytes into a token has a higher loss a token, yet no better score: only this figure compares
models across tokenizers.

torch is imported inside `evaluate`, so that the command answers `--help` at once.
"""

import ast
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import commands, config
from tinylm.config import ConfigError, Run

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tinylm.data import Dataset
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    """What a model makes of a text: `tokens` targets that stand for `bytes` of text."""

    loss: float  # mean nats a target
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def evaluate(
    model: "Model",
    dataset: "Dataset",
    *,
    tokenizer: "Tokenizer",
    batch_size: int = 8,
    max_tokens: int | None = None,
    dtype: "torch.dtype | None" = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every token of a split but its first, once, in windows of the context length.

    A window sees nothing of the one before it. `max_tokens` scores only the first so many, over
    the bytes that they stand for; `dtype` is that of the matrix products (default the weights');
    `progress` is told the targets scored and to score. `batch_size` changes the figures by
    rounding alone. `ValueError` for a split of another tokenizer, or one of fewer than 2 tokens.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from tinylm.model import inference
    from tinylm.ops import IGNORED

    total = _check(model, dataset, tokenizer, batch_size, max_tokens)
    device = model.embedding.weight.device
    autocast = torch.autocast(device.type, dtype, enabled=dtype not in (None, torch.float32))
    nats, done = 0.0, 0
    for tokens, targets in _batches(dataset, total, batch_size, model.config.context_length):
        if tokens.max() >= model.embedding.num_embeddings:
            raise ValueError(
                f"token {tokens.max()} of the dataset: the model's vocabulary has "
                f"{model.embedding.num_embeddings}"
            )
        inputs, wanted = (torch.from_numpy(a).to(device) for a in (tokens, targets))
        with inference(model), autocast:
            logits = model(inputs).flatten(0, 1).float()
            losses = cross_entropy(logits, wanted.flatten(), ignore_index=IGNORED, reduction="none")
        # On the CPU, for MPS has no float64.
        nats += losses.cpu().double().sum().item()
        done += int((targets != IGNORED).sum())
        if progress is not None:
            progress(done, total)
    n_bytes = _count_bytes(dataset, tokenizer, total)
    loss = nats / total
    # exp overflows above 709 nats.
    perplexity = math.exp(loss) if not loss > 709 else math.inf
    bits = nats / math.log(2) / n_bytes if n_bytes else math.inf
    return Scores(loss, perplexity, bits, total, n_bytes)


def _check(
    model: "Model",
    dataset: "Dataset",
    tokenizer: "Tokenizer",
    batch_size: int,
    max_tokens: int | None,
) -> int:
    """How many targets to score."""
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if dataset.n_tokens < 2:
        raise ValueError(f"the split has {dataset.n_tokens} tokens: scoring takes at least 2")
    theirs, ours = dataset.tokenizer_sha256, tokenizer.sha256
    if theirs != ours:
        raise ValueError(
            f"the dataset was made by tokenizer {theirs[:12]}, the model's is {ours[:12]}: "
            f"prepare the text with the model's tokenizer"
        )
    targets = dataset.n_tokens - 1
    return targets if max_tokens is None else min(max_tokens, targets)


def _batches(
    dataset: "Dataset", total: int, batch_size: int, length: int
) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """Windows of the first `total` targets as tokens and targets [B, T]; the rest is -100."""
    import numpy as np

    from tinylm.ops import IGNORED

    for first in range(0, total, batch_size * length):
        count = min(batch_size * length, total - first)
        rows = -(-count // length)
        read = np.asarray(dataset.read(first, count + 1)).astype(np.int64)
        tokens = np.zeros(rows * length, np.int64)
        targets = np.full(rows * length, IGNORED)
        tokens[:count], targets[:count] = read[:-1], read[1:]
        yield tokens.reshape(rows, length), targets.reshape(rows, length)


def _count_bytes(dataset: "Dataset", tokenizer: "Tokenizer", total: int) -> int:
    """Bytes of text that the first `total` targets stand for; of the whole split, its own count.

    A special token stands for none. The whole split includes its first token, which is no
    target: the figure is over the text, not over what could be predicted of it.
    """
    import numpy as np

    whole = total == dataset.n_tokens - 1
    if whole and dataset.n_bytes is not None:
        return dataset.n_bytes
    vocab = tokenizer.vocab
    lengths = np.zeros(max(vocab) + 1, np.int64)
    for token, content in vocab.items():
        lengths[token] = len(content)
    lengths[list(tokenizer.special_tokens.values())] = 0
    start = 0 if whole else 1
    block = 2**20
    return sum(
        int(lengths[np.asarray(dataset.read(at, min(block, total + 1 - at)))].sum())
        for at in range(start, total + 1, block)
    )


def parse_share(texts: Sequence[str]) -> float:
    """Python texts, each cut off somewhere, to the share of them that `ast.parse` accepts.

    A text that does not parse whole is tried once more without its unfinished end (see
    `without_end`). Accepted are texts with statements on at least 3 lines, docstrings aside.
    """
    if not texts:
        raise ValueError("no texts: the share of nothing is not defined")
    return sum(max(map(_code_lines, (text, without_end(text)))) >= 3 for text in texts) / len(texts)


def _code_lines(text: str) -> int:
    """Number of lines on which a statement other than a bare string starts; 0 if invalid."""
    try:
        with warnings.catch_warnings():
            # A text may hold "\d": valid, but a SyntaxWarning.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    # The last two are for hostile nesting; a null byte is a ValueError in some versions.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
    return len({node.lineno for node in statements if not _is_string(node)})


def _is_string(node: ast.stmt) -> bool:
    """Whether a statement is a string alone, such as a docstring."""
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


# What a logical line is made of, as far as finding its end goes.
_LEXEME = re.compile(
    r'''(?P<triple>"""|\'\'\')(?:\\.|.)*?(?:(?P=triple)|\Z)'''
    r"""|(?P<quote>["'])(?:\\.|(?!(?P=quote))[^\\\n])*(?P=quote)?"""
    r"""|\#[^\n]*|\\\n|[()\[\]{}\n]""",
    re.DOTALL,
)
# No line inside brackets can begin with these: where one does, the bracket was never closed.
_OUTSIDE = re.compile(
    r"[ \t]*(?:assert|break|class|continue|def|del|elif|except|finally|global|import|nonlocal|"
    r"pass|raise|return|try|while|with)\b"
)


def logical_lines(text: str) -> list[str]:
    """A Python text to its logical lines, without blank lines and comments; joined by brackets,
    triple quotes and backslashes as Python does, but never failing on a broken text.
    """
    lines, start, depth = [], 0, 0
    for found in _LEXEME.finditer(text):
        lexeme = found[0]
        if lexeme in "([{":
            depth += 1
        elif lexeme in ")]}":
            depth = max(0, depth - 1)
        elif lexeme == "\n" and (not depth or _OUTSIDE.match(text, found.end())):
            lines.append(text[start : found.end()])
            start, depth = found.end(), 0
    lines.append(text[start:])
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def without_end(text: str) -> str:
    """A Python text without its last, unfinished statement.

    The last logical line goes, and then, as long as there are any, what its loss or the cut
    leaves unfinished: a header without a body (`if x:`), a decorator without a definition, a
    `try` that neither `except` nor `finally` follows. Nothing before is touched: an error there
    stays an error.
    """
    lines = logical_lines(text)[:-1]
    while lines:
        last = lines[-1].strip()
        if not (_is_header(last) or last.startswith("@")):
            open_try = _open_try(lines)
            if open_try is None:
                break
            lines = lines[: open_try + 1]
        lines.pop()
    return "".join(lines)


def _is_header(line: str) -> bool:
    code = _LEXEME.sub(lambda found: "" if found[0].startswith("#") else found[0], line)
    return code.rstrip().endswith(":")


def _open_try(lines: Sequence[str]) -> int | None:
    """Index of the outermost `try:` whose body the last of `lines` is in."""
    found, indent = None, math.inf
    for number in reversed(range(len(lines))):
        width = len(lines[number]) - len(lines[number].lstrip())
        # Less indented than all that follow: the header of a block that the end is in.
        if width < indent:
            indent = width
            if re.match(r"\s*try\s*:", lines[number]):
                found = number
    return found


HELP = """usage: python -m tinylm.evaluate RUN [key=value ...]

Score the validation text of RUN: loss (nats a token), perplexity, bits per byte.

RUN is the folder of a run, of one of its checkpoints, or of a transformers model; the last has
no settings and needs data.source=. Another text is tokenized by the model's own tokenizer, and
its validation part is scored, or all of it:
  python -m tinylm.evaluate runs/stdlib data.source=novel.txt data.val_fraction=1
"""
# The settings that change a score; the others of a run are taken as they are.
KEYS = (
    "data.source",
    "data.folder",
    "data.val_fraction",
    "train.batch_size",
    "train.device",
    "train.dtype",
)
# What a key means here, where that is not what it means in training.
ABOUT = {
    "data.val_fraction": "Share of the text that is scored, what training holds out; 1 for all.",
    "train.dtype": "Arithmetic of the scoring: float32 (default) or bfloat16.",
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
    folder, keys, run, text = _parse(arguments)
    # These take seconds: a typo above is answered before them.
    import torch

    from tinylm import checkpoint, device

    place = device.find_or_best(run.train.device)
    model, tokenizer = checkpoint.load(folder, device=place)
    # Asked for here: the dtype that the run was trained in does not decide how it is scored.
    in_bfloat16 = "train.dtype" in keys and run.train.dtype == "bfloat16"
    if tokenizer is None:
        raise ValueError(f"{folder} holds no tokenizer.json: its vocabulary cannot be known")
    with tempfile.TemporaryDirectory() as scratch:
        dataset = _validation(text, tokenizer, keys, Path(scratch))
        print(f"{'part':15}{_part(dataset, other='data.source' in keys)}", flush=True)
        scores = evaluate(
            model,
            dataset,
            tokenizer=tokenizer,
            batch_size=run.train.batch_size,
            dtype=torch.bfloat16 if in_bfloat16 else None,
            progress=_show_progress if sys.stderr.isatty() else None,
        )
    for name, value in asdict(scores).items():
        print(f"{name.replace('_', ' '):15}{value if isinstance(value, int) else f'{value:.4f}'}")
    return 0


@dataclass(frozen=True)
class Text:
    """What to score: the fields of `config.DataConfig`, of which the fraction may here be 1."""

    source: str
    folder: str | None
    val_fraction: float


def _parse(arguments: Sequence[str]) -> tuple[Path, set[str], Run, Text]:
    """Arguments to the model's folder, the keys they set, all settings, and the text."""
    words = [word for word in arguments if "=" not in word]
    overrides = [word for word in arguments if "=" in word]
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("which run? python -m tinylm.evaluate RUN [key=value ...]")
    folder = Path(words[0])
    keys = {override.partition("=")[0] for override in overrides}
    file = config.find(folder)
    # Nothing would be left to train on, so the settings of a run refuse a fraction of 1.
    whole = [word for word in overrides if word in ("data.val_fraction=1", "data.val_fraction=1.0")]
    run = config.load(file, [word for word in overrides if word not in whole])
    text = Text(run.data.source, run.data.folder, 1.0 if whole else run.data.val_fraction)
    for key in keys.difference(KEYS):
        raise ConfigError(f"{key}: has no part in a score; these have: {', '.join(KEYS)}")
    if not folder.exists():
        raise FileNotFoundError(2, "no such run, checkpoint or model folder", str(folder))
    if file is None and not keys & {"data.source", "data.folder"}:
        raise ConfigError(f"{folder} has no config.yaml: say what to score, data.source=FILE")
    return folder, keys, run, text


def _validation(text: Text, tokenizer: "Tokenizer", keys: set[str], scratch: Path) -> "Dataset":
    """The validation split: of the run's shards, or of another text, made in `scratch`."""
    from tinylm import data

    other = keys & {"data.source", "data.val_fraction"}
    home = data.default_folder(text, tokenizer)
    folder = scratch if other and "data.folder" not in keys else home
    # The run's shards are taken as they are: its source may have changed or gone since.
    if other or not (folder / "manifest.json").is_file():
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
    print(f"\r{done} of {total} tokens", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    commands.run(main)
