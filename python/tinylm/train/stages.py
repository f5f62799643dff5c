"""The stages around the loop: device, tokenizer, weights and compiler before it, results after."""

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tinylm import checkpoint, evaluate, model, sample
from tinylm.config import Run, SampleConfig
from tinylm.corpus import Corpus
from tinylm.model import Model
from tinylm.tokenizer import Tokenizer
from tinylm.train.folder import read_json, write_json
from tinylm.train.loop import WATCHED_TOKENS, Trainer

# Shorter runs end before a compiler has paid for itself.
COMPILE_FROM = 500
# How a file may begin, each continued eight times: ast.parse reads a share at the end of a run on
# Python. No space at the end: to the tokenizer a space belongs to the word after it.
PARSE_PROMPTS = ("def", "class", "import", "from")

Say = Callable[[str], None]


def resume_point(source: Path, say: Say) -> Path | None:
    """The checkpoint that `source` (a checkpoint or a run) goes on from; None for a run without.

    An explicit checkpoint must verify (`ValueError`); of a run it is the newest that does.
    """
    if not (source / "config.yaml").is_file():
        checkpoint.verify(source)
        return source
    try:
        return checkpoint.latest(source)
    except FileNotFoundError:
        if any((source / "checkpoints").glob("step-*")):
            # There are some, and none is sound: that is not the same as none yet.
            raise
        say(f"{source} holds no checkpoint yet: starting from its beginning")
        return None


def start(
    run: Run, resumed: Path | None, text: Corpus, device: torch.device, say: Say
) -> tuple[Model, Tokenizer]:
    """The model with its first weights, and its tokenizer: loaded where there is one, or new."""
    given = resumed or (None if run.train.init is None else Path(run.train.init))
    if given is None:
        tokenizer = _new_tokenizer(run, text, say)
        size = run.model.vocab_size or tokenizer.vocab_size
        _refuse_mismatch(tokenizer, size, "model.vocab_size")
        config = replace(run.model, vocab_size=size)
        return model.build(config, seed=run.train.seed, device=device), tokenizer
    net, loaded = checkpoint.load(given, device=device, dtype=torch.float32)
    if loaded is None or (resumed is None and run.tokenizer.path is not None):
        loaded = _new_tokenizer(run, text, say)
    _refuse_mismatch(loaded, net.embedding.num_embeddings, f"train.init={given}")
    if resumed is None:
        say(f"weights, model and tokenizer settings come from {given}")
    return net, loaded


def _new_tokenizer(run: Run, text: Corpus, say: Say) -> Tokenizer:
    settings = run.tokenizer
    if settings.path is not None:
        return Tokenizer.load(settings.path)
    say(f"training a {settings.kind} tokenizer on {text.name}")
    return Tokenizer.train(
        text.train(),
        vocab_size=settings.vocab_size,
        kind=settings.kind,
        pattern=settings.pattern,
        special_tokens=settings.special_tokens,
    )


def _refuse_mismatch(tokenizer: Tokenizer, size: int, what: str) -> None:
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model ({what}) rows for "
            f"{size}: give the tokenizer that belongs to the model, or a larger model.vocab_size"
        )


def loss_function(
    run: Run, net: Model, device: torch.device, say: Say
) -> Callable[[Tensor, Tensor], Tensor]:
    """`Model.loss`, compiled where the run asks for it and the machine can."""
    wanted = run.train.compile
    if wanted == "auto":
        wanted = run.train.steps >= COMPILE_FROM and device.type in ("cpu", "cuda")
    if wanted and not _has_compiler():
        if run.train.compile is True:
            raise ValueError(
                "train.compile=true needs a C++ compiler, and neither g++ nor clang++ is found: "
                "install one or set train.compile=false"
            )
        say("no C++ compiler (g++, clang++) is found: training without torch.compile, slower")
        wanted = False
    if not wanted:
        return net.loss
    say("compiling the model at the first step: up to 30 s the first time, a few seconds later on")
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(net.loss, dynamic=False)
    return compiled


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++")
    return any(shutil.which(name) for name in names if name)


def first_words(run: Run, text: Corpus, tokenizer: Tokenizer) -> str:
    """What samples begin with: a function of Python, else an early line of the validation text."""
    if run.data.source == "stdlib":
        # No lone `def` or `def `: hardly a file begins so, and the space belongs to the name.
        return "def main("
    # The first line may be the end of one: a single text is cut at a character.
    lines = [line.strip() for line in next(iter(text.validation()))[:1000].splitlines()]
    line = next((line[:60] for line in lines[1:] if line), lines[0][:60] if lines else "")
    # In the corpus a special token is text; a prompt may not hold one.
    for token in tokenizer.special_tokens:
        line = line.partition(token)[0]
    return line or "The"


def opening(trainer: Trainer, shards: Path, seconds: float) -> str:
    """What is about to happen, in four lines."""
    net, run = trainer.model, trainer.run
    counts = net.describe()
    rows = trainer.loader.n_rows
    epochs = run.train.steps * run.train.batch_size / rows
    return "\n".join(
        (
            f"run        {trainer.folder}",
            f"data       {shards}: {rows:,} rows of {net.config.context_length} tokens, "
            f"{epochs:.2f} epochs",
            f"model      {net.config.architecture}, {counts['parameters']:,} parameters, "
            f"vocabulary {net.config.vocab_size:,}",
            f"device     {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}, "
            f"{trainer.peak / 1e9:,.0f} GFLOP/s measured peak; ready after {seconds:.1f} s",
        )
    )


def finish(trainer: Trainer, seconds: Callable[[], float]) -> None:
    """Score, sample and say how the run went; the last line is the bits per byte."""
    run, folder, progress = trainer.run, trainer.folder, trainer.progress
    # In float32, as `python -m tinylm.evaluate` scores it.
    scores = trainer.score(dtype=torch.float32)
    if progress.best_step < 0 or trainer.validation.n_tokens <= WATCHED_TOKENS:
        trainer.keep_best(scores)
    trainer.show_sample()
    results = {
        "step": progress.step,
        "tokens": progress.tokens,
        "val_loss": scores.loss,
        "perplexity": scores.perplexity,
        "bits_per_byte": scores.bits_per_byte,
        "best_step": progress.best_step,
    }
    lines = []
    if run.data.source == "stdlib":
        results["parse_share"] = share = parse_share(trainer.model, trainer.tokenizer)
        lines.append(f"python     ast.parse accepts {share:.0%} of 32 samples")
    results["seconds"] = seconds()
    record = read_json(folder / "run.json")
    write_json(folder / "run.json", {**record, "results": results})
    trainer.trackers.say(
        "\n".join(
            (
                f"done       {progress.step} steps, {progress.tokens:,} tokens, "
                f"{results['seconds']:.0f} s",
                f"loss       {scores.loss:.4f} nats a token on the validation text "
                f"(perplexity {scores.perplexity:.2f})",
                *lines,
                f"folder     {folder}: loss.png, samples.txt, metrics.jsonl, checkpoints",
                f"next       {sample_command(folder, trainer.prompt)}",
                f"bits per byte: {scores.bits_per_byte:.3f}",
            )
        )
    )


def sample_command(folder: Path, prompt: str) -> str:
    """The command that goes on with `prompt`; settings may be added to its end.

    Only a prompt that could be taken for an option or a setting comes after `--`, where nothing
    can be added.
    """
    mark = ["--"] if prompt.startswith("-") or "=" in prompt else []
    return shlex.join(["python", "-m", "tinylm.sample", str(folder), *mark, prompt])


def parse_share(net: Model, tokenizer: Tokenizer) -> float:
    """Share of 32 samples (fixed prompts, seed 0, temperature 0.8) that `ast.parse` accepts."""
    # A file begins after the end of another, and one that has ended has ended.
    end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    prompts = [tokenizer.encode(prompt) for prompt in PARSE_PROMPTS]
    settings = SampleConfig(samples=8, max_tokens=128, temperature=0.8, seed=0, stop=end)
    drawn = sample.generate(net, [[*end, *prompt] for prompt in prompts], settings)
    begun = [prompt for prompt in prompts for _ in range(settings.samples)]
    texts = [tokenizer.decode(a + b) for a, b in zip(begun, drawn, strict=True)]
    return evaluate.parse_share(texts)
