"""The record of a run: its files at the beginning, its first lines and its last."""

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tinylm import checkpoint, device, evaluate, sample, track
from tinylm.config import SampleConfig
from tinylm.corpus import tasks
from tinylm.layers import fake
from tinylm.model import Model, inference
from tinylm.tokenizer import Tokenizer
from tinylm.track import Trackers
from tinylm.train import finetuning
from tinylm.train.folder import provenance, read_json, rewind_samples, write_json
from tinylm.train.loop import WATCHED_TOKENS, Trainer
from tinylm.train.session import Session

# How a file may begin, each continued eight times: ast.parse reads a share at the end of a run on
# Python. No space at the end: to the tokenizer a space belongs to the word after it.
PARSE_PROMPTS = ("def", "class", "import", "from")


def record(trainer: Trainer, shards: tuple[Path, ...]) -> None:
    """Begin the files of the run's folder, or take them back to the step that it goes on from."""
    session, step = trainer.session, trainer.progress.step
    # Without the tracker nobody would write again what is dropped.
    torn = track.rewind_metrics(trainer.folder, step) if "jsonl" in trainer.run.track.names else 0
    if torn:
        session.say(f"{trainer.folder / 'metrics.jsonl'}: {torn} torn lines are dropped")
    rewind_samples(trainer.folder, step)
    _mend_best(trainer)
    where = {
        "device": str(session.device),
        "dtype": str(session.dtype),
        "shards": str(shards[0]) if len(shards) == 1 else [str(folder) for folder in shards],
    }
    counts = trainer.model.describe()
    content = {**provenance(), **where, **counts, "peak": trainer.peak}
    write_json(trainer.folder / "run.json", content)


def _mend_best(trainer: Trainer) -> None:
    """Write best.json anew if it is missing or torn; the checkpoint knows what was in it."""
    progress, path = trainer.progress, trainer.folder / "best.json"
    if progress.best_step < 0 or read_json(path):
        return
    records = track.read_metrics(trainer.folder)
    scored = [r for r in records if r["step"] == progress.best_step and "bits_per_byte" in r]
    trainer.write_best(scored[-1]["bits_per_byte"] if scored else None)


def peak(session: Session, trackers: Trackers) -> float:
    """The device's operations per second, which MFU is a share of; 0 if measuring them fails."""
    with trackers.guard("the measurement of the peak"):
        return device.peak_flops(session.device, session.dtype)
    return 0.0


def opening(trainer: Trainer, shards: tuple[Path, ...], seconds: float) -> str:
    """Describe the run in four lines, before its first step; in one more per source."""
    net, run, session = trainer.model, trainer.run, trainer.session
    counts = net.describe()
    rows = trainer.loader.n_rows
    peak = f"{trainer.peak / 1e9:,.0f} GFLOP/s measured peak" if trainer.peak else "peak unknown"
    moved = finetuning.trainable(net)
    trained = "" if moved == counts["parameters"] else f" of which {moved:,} are trained"
    end = trainer.loader.given(run.train.rows(run.train.steps))
    epochs = min(source["epochs"] for source in end)
    each = [
        f"           {source['folder']}: {source['rows']:,} rows, {source['epochs']:.2f} epochs"
        for source in end
    ]
    named = shards[0] if len(shards) == 1 else f"{len(shards)} sources"
    padding = f", {trainer.loader.padding:.2%} padding" if run.data.pack else ""
    return "\n".join(
        (
            f"run        {trainer.folder}",
            f"data       {named}: {rows:,} rows of {net.config.context_length} tokens, "
            f"{epochs:.2f} epochs{padding}",
            *(each if len(shards) > 1 else ()),
            f"model      {net.config.architecture}, {counts['parameters']:,} parameters{trained}, "
            f"vocabulary {net.config.vocab_size:,}",
            f"device     {session.device}, {str(session.dtype).removeprefix('torch.')}, "
            f"{peak}; ready after {seconds:.1f} s",
        )
    )


def finish(trainer: Trainer, seconds: Callable[[], float]) -> None:
    """Score, sample and say how the run went; the last line is the bits per byte."""
    run, folder, progress = trainer.run, trainer.folder, trainer.progress
    # In float32, as `python -m tinylm.evaluate` scores it.
    most = run.evaluate.max_tokens
    scores = trainer.score(max_tokens=most, dtype=torch.float32)
    # Of other tokens than before, the scores are no better or worse than those.
    compared = min(trainer.validation.n_tokens, most or math.inf) <= WATCHED_TOKENS
    if progress.best_step < 0 or compared:
        trainer.keep_best(scores)
    with trainer.trackers.guard("sample"):
        trainer.show_sample()
    results: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "val_loss": scores.loss,
        "perplexity": scores.perplexity,
        "bits_per_byte": scores.bits_per_byte,
        "val_tokens": scores.tokens,
        "best_step": progress.best_step,
    }
    lines = [
        f"text       {n}: {s.bits_per_byte:.3f} bits per byte" for n, s in trainer.each.items()
    ]
    if trainer.each:
        results["sources"] = {name: asdict(scores) for name, scores in trainer.each.items()}
    # The first token of a text is no target.
    whole = most is None or most >= trainer.validation.n_tokens - 1
    scored = "the" if whole else f"the first {most:,} tokens of the"
    chat = trainer.validation.kind == "chat"
    if run.data.texts == ("stdlib",):
        with trainer.trackers.guard("the share of Python"):
            results["parse_share"] = share = parse_share(trainer.model, trainer.tokenizer)
            lines.append(f"python     ast.parse accepts {share:.0%} of 32 samples")
    if run.data.texts == (tasks.SOURCE,):
        with trainer.trackers.guard("the share of right answers"):
            held_out = tasks.instances(True, run.data.val_fraction)
            *_, total = evaluate.exact_match(trainer.model, trainer.tokenizer, held_out, limit=40)
            results["exact_match"] = total.share
            lines.append(
                f"answers    {total.share:.0%} of {total.asked} held-out tasks are right "
                f"(the commonest answer: {total.guess:.0%})"
            )
    if (grid := fake.grid_of(trainer.model)) is not None:
        results["weights"] = grid.describe()
        pack = shlex.join(
            ["python", "-m", "tinylm.quant", str(folder), "method=trained", f"out={folder}-packed"]
        )
        lines.append(f"weights    all scores are of {grid.describe()}; to pack them: {pack}")
    results["seconds"] = seconds()
    if trainer.session.leads:
        record = read_json(folder / "run.json")
        write_json(folder / "run.json", {**record, "results": results})
    trainer.tell("on_end", scores=scores)
    if trainer.tracer.written is not None:
        lines.append(f"profile    {trainer.tracer.written}: table.txt, trace.json")
    trainer.trackers.say(
        "\n".join(
            (
                f"done       {progress.step} steps, {progress.tokens:,} tokens, "
                f"{results['seconds']:.1f} s",
                f"time       {trainer.clock.words()} s; {_speed(trainer)}",
                f"loss       {scores.loss:.4f} nats per token on {scored} validation text "
                f"(perplexity {scores.perplexity:.2f})",
                *lines,
                _best(trainer),
                f"folder     {folder}: loss.png, samples.txt, metrics.jsonl, checkpoints",
                f"next       {sample_command(folder, trainer.prompt, chat=chat)}",
                f"           {shlex.join(['python', '-m', 'tinylm.evaluate', str(folder)])}",
                f"bits per byte: {scores.bits_per_byte:.3f}",
            )
        )
    )


def _speed(trainer: Trainer) -> str:
    """Tokens per second of the steps but the first, and the most memory."""
    spent, progress = trainer.clock.spent, trainer.progress
    gib = device.memory_bytes(trainer.session.device) / 2**30
    seconds = spent.get("steps", 0.0)
    steps = trainer.taken - 1
    if steps < 1 or not seconds:
        return f"{gib:.2f} GiB of memory at most"
    # Only the steps of this process count: an earlier one may have begun the run.
    tokens = progress.tokens / progress.step * steps
    return f"{tokens / seconds:,.0f} tokens/s, {gib:.2f} GiB of memory at most"


def _best(trainer: Trainer) -> str:
    """The step with the lowest validation loss, and its checkpoint, also known as RUN/best."""
    progress = trainer.progress
    path = checkpoint.path_of(trainer.folder, progress.best_step)
    return f"best       step {progress.best_step}, loss {progress.best_loss:.4f}: {path}"


def sample_command(folder: Path, prompt: str, *, chat: bool = False) -> str:
    """The command that goes on with `prompt`, or answers it; settings may be added to its end.

    Only a prompt that could be taken for an option or a setting comes after `--`, where nothing
    can be added.
    """
    mark = ["--"] if prompt.startswith("-") or "=" in prompt else []
    command = ["python", "-m", "tinylm.sample", str(folder), *(["--chat"] if chat else [])]
    return shlex.join([*command, *mark, prompt])


def parse_share(net: Model, tokenizer: Tokenizer) -> float:
    """Share of 32 samples (fixed prompts, seed 0, temperature 0.8) that `ast.parse` accepts."""
    # A file begins after the end of another, and one that has ended has ended.
    end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    prompts = [tokenizer.encode(prompt) for prompt in PARSE_PROMPTS]
    settings = SampleConfig(samples=8, max_tokens=128, temperature=0.8, seed=0, stop=end)
    with inference(net):
        drawn = sample.generate(net, [[*end, *prompt] for prompt in prompts], settings)
    begun = [prompt for prompt in prompts for _ in range(settings.samples)]
    texts = [tokenizer.decode(a + b) for a, b in zip(begun, drawn, strict=True)]
    return evaluate.parse_share(texts)
