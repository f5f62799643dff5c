"""The stages around the loop: tokenizer, weights, shards and compiler before it, results after."""

import math
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm import checkpoint, corpus, data, device, evaluate, model, optim, sample, track
from tinylm.checkpoint import Training
from tinylm.config import Run, SampleConfig
from tinylm.corpus import Corpus
from tinylm.data import Dataset, Loader
from tinylm.model import Model
from tinylm.tokenizer import Tokenizer
from tinylm.track import Trackers
from tinylm.train.folder import provenance, read_json, rewind_samples, write_json
from tinylm.train.loop import WATCHED_TOKENS, Trainer
from tinylm.train.session import Session
from tinylm.train.state import load_state

# Shorter runs end before a compiler has paid for itself.
COMPILE_FROM = 500
# How a file may begin, each continued eight times: ast.parse reads a share at the end of a run on
# Python. No space at the end: to the tokenizer a space belongs to the word after it.
PARSE_PROMPTS = ("def", "class", "import", "from")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from, and the training state in it."""

    checkpoint: Path
    training: Training


def resume(source: Path | None, say: Say) -> Resumed | None:
    """The state that a run resumes from; None for a new run.

    If `source` is a checkpoint, it must verify (`ValueError`). If it is a run, the newest
    checkpoint that verifies is taken.
    """
    found = None if source is None else _resume_point(source, say)
    return None if found is None else Resumed(found, load_state(found))


def _resume_point(source: Path, say: Say) -> Path | None:
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


def is_finished(run: Run, folder: Path, resumed: Resumed, say: Say) -> bool:
    """Whether the run in `folder` has ended, at its last step or by early stopping.

    Says so, or says if a longer run makes its learning rate rise again.
    """
    training = resumed.training
    results = read_json(folder / "run.json").get("results")
    length = training.state.get("steps", training.step)
    whole = isinstance(results, dict) and {"step", "bits_per_byte"} <= results.keys()
    ended: dict[str, Any] = results or {} if whole else {"step": math.inf}
    if training.step >= ended["step"] and run.train.steps <= length:
        say(f"{folder} is finished; a larger train.steps lengthens it")
        say(f"bits per byte: {ended['bits_per_byte']:.3f}")
        return True
    was = optim.schedule(min(training.step, length - 1), length, run.optim)
    now = optim.schedule(training.step, run.train.steps, run.optim)
    if run.train.steps > length and now > 1.01 * was:
        say(
            f"train.steps grew from {length} to {run.train.steps}: the learning rate rises again, "
            f"from {was:.0%} of its peak to {now:.0%}"
        )
    return False


def open_text(run: Run, say: Say) -> Corpus:
    """The text of the run; says what is left out of it, and how its documents end."""
    settings = run.data
    text = corpus.open(
        settings.source, val_fraction=settings.val_fraction, separator=settings.separator
    )
    for note in text.notes:
        say(note)
    return text


def start(
    run: Run, resumed: Resumed | None, text: Callable[[], Corpus], session: Session
) -> tuple[Model, Tokenizer]:
    """The model with its first weights, and its tokenizer; each is loaded, or new if there is none.

    Calls `text` only to train a tokenizer.
    """
    given = None if run.train.init is None else Path(run.train.init)
    given = given if resumed is None else resumed.checkpoint
    if given is None:
        tokenizer = _new_tokenizer(run, text, session.say)
        size = run.model.vocab_size or tokenizer.vocab_size
        _refuse_mismatch(tokenizer, size, "model.vocab_size")
        config = replace(run.model, vocab_size=size)
        return model.build(config, seed=run.train.seed, device=session.device), tokenizer
    # A checkpoint to resume from was verified when it was chosen.
    net, loaded = checkpoint.load(
        given, device=session.device, dtype=torch.float32, verify=resumed is None
    )
    if loaded is None or (resumed is None and run.tokenizer.path is not None):
        loaded = _new_tokenizer(run, text, session.say)
    elif run.tokenizer.eos is not None:
        loaded = loaded.with_eos(run.tokenizer.eos)
    _refuse_mismatch(loaded, net.embedding.num_embeddings, f"train.init={given}")
    if resumed is None:
        session.say(f"weights, model and tokenizer settings come from {given}")
    return net, loaded


def _new_tokenizer(run: Run, text: Callable[[], Corpus], say: Say) -> Tokenizer:
    settings = run.tokenizer
    if settings.path is not None:
        loaded = Tokenizer.load(settings.path)
        return loaded if settings.eos is None else loaded.with_eos(settings.eos)
    source = text()
    say(f"training a {settings.kind} tokenizer on {source.name}")
    tokenizer = Tokenizer.train(
        source.train(),
        vocab_size=settings.vocab_size,
        kind=settings.kind,
        pattern=settings.pattern,
        special_tokens=settings.special_tokens,
    )
    return tokenizer if settings.eos is None else tokenizer.with_eos(settings.eos)


def _refuse_mismatch(tokenizer: Tokenizer, size: int, what: str) -> None:
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model ({what}) rows for "
            f"{size}: give the tokenizer that belongs to the model, or a larger model.vocab_size"
        )


def shards(
    run: Run,
    resumed: Resumed | None,
    text: Callable[[], Corpus],
    tokenizer: Tokenizer,
    session: Session,
) -> Path:
    """The folder of the run's shards, made if it is not there.

    A run that goes on does not look at its text, which may have changed or gone since. A new one
    checks that its shards are those of the text, if the text is there.
    """
    there = _made_before(run, resumed, tokenizer)
    if there is not None and resumed is not None:
        return there
    try:
        source = text()
    except (FileNotFoundError, ConnectionError):
        if there is None:
            raise
        session.say(
            f"{run.data.source} cannot be read: training on the shards that were made of it"
        )
        return there
    if run.data.folder is not None:
        folder = Path(run.data.folder)
    else:
        folder = data.default_folder(source, tokenizer.sha256)
    data.prepare(source, tokenizer, folder)
    return folder


def _made_before(run: Run, resumed: Resumed | None, tokenizer: Tokenizer) -> Path | None:
    """The folder of shards that an earlier start made of the run's source, as far as is known."""
    made_of: dict[str, Any] = {
        "source": run.data.source,
        "val_fraction": run.data.val_fraction,
        "separator": run.data.separator,
        "tokenizer_sha256": tokenizer.sha256,
    }
    if run.data.folder is not None:
        folder = Path(run.data.folder)
        return folder if data.fits(folder, **made_of) else None
    # Several versions of a text may have shards: a run goes on with those that it began with.
    state = {} if resumed is None else resumed.training.state
    return data.find(**made_of, fingerprint=state.get("loader", {}).get("fingerprint"))


def loader(run: Run, shards: Path, context_length: int, session: Session) -> Loader:
    """The batches of a run, of which this process gets its own rows."""
    return Loader(
        Dataset.open(shards, split="train"),
        batch_size=run.train.batch_size,
        context_length=context_length,
        order=run.data.order,
        stride=run.data.stride,
        mask_after_eos=run.data.mask_after_eos,
        seed=run.train.seed,
        rank=session.rank,
        world_size=session.world,
        threads=run.data.threads,
        device=str(session.device),
    )


def loss_function(run: Run, net: Model, session: Session) -> Callable[..., Tensor]:
    """`Model.loss`, compiled where the run asks for it and the machine can."""
    wanted, say = run.train.compile, session.say
    if wanted == "auto":
        wanted = run.train.steps >= COMPILE_FROM and session.device.type in ("cpu", "cuda")
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
    compiled: Callable[..., Tensor] = torch.compile(net.loss, dynamic=False)
    return compiled


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++")
    return any(shutil.which(name) for name in names if name)


def first_words(run: Run, validation: Dataset, net: Model, tokenizer: Tokenizer) -> str:
    """The prompt of samples: a function of Python, else an early line of the validation text.

    One token after it is drawn: invalid settings of `sample` fail now, not an hour into the run.
    """
    # No lone `def` or `def `: hardly a file begins so, and the space belongs to the name.
    python = run.data.source == "stdlib"
    prompt = "def main(" if python else _early_line(_beginning(validation, tokenizer), tokenizer)
    settings = replace(run.sample.as_trained(), samples=1, max_tokens=1)
    "".join(sample.stream(net, tokenizer, prompt, settings))
    return prompt


def _early_line(text: str, tokenizer: Tokenizer) -> str:
    # The first line may be the end of one: a single text is cut at a character.
    lines = [line.strip() for line in text.splitlines()]
    line = next((line[:60] for line in lines[1:] if line), lines[0][:60] if lines else "")
    # In the corpus a special token is text; a prompt may not hold one.
    for token in tokenizer.special_tokens:
        line = line.partition(token)[0]
    return line or "The"


def _beginning(validation: Dataset, tokenizer: Tokenizer) -> str:
    """The first 1,000 characters of the first document.

    From its tokens: that needs no text, and a run that resumes has the prompt that it had.
    """
    # A character is at most 4 bytes and a token at least one.
    ids = validation.read(0, min(4 * 1000, validation.n_tokens)).tolist()
    ids = ids[: ids.index(validation.eos_id)] if validation.eos_id in ids else ids
    return tokenizer.decode_bytes(ids).decode(errors="replace")[:1000]


def record(trainer: Trainer, shards: Path) -> None:
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
        "shards": str(shards),
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


def opening(trainer: Trainer, shards: Path, seconds: float) -> str:
    """Describe the run in four lines, before its first step."""
    net, run, session = trainer.model, trainer.run, trainer.session
    counts = net.describe()
    rows = trainer.loader.n_rows
    peak = f"{trainer.peak / 1e9:,.0f} GFLOP/s measured peak" if trainer.peak else "peak unknown"
    epochs = run.train.steps * run.train.batch_size / rows
    return "\n".join(
        (
            f"run        {trainer.folder}",
            f"data       {shards}: {rows:,} rows of {net.config.context_length} tokens, "
            f"{epochs:.2f} epochs",
            f"model      {net.config.architecture}, {counts['parameters']:,} parameters, "
            f"vocabulary {net.config.vocab_size:,}",
            f"device     {session.device}, {str(session.dtype).removeprefix('torch.')}, "
            f"{peak}; ready after {seconds:.1f} s",
        )
    )


def finish(trainer: Trainer, seconds: Callable[[], float]) -> None:
    """Score, sample and say how the run went; the last line is the bits per byte."""
    run, folder, progress = trainer.run, trainer.folder, trainer.progress
    # In float32, as `python -m tinylm.evaluate` scores it.
    scores = trainer.score(dtype=torch.float32)
    if progress.best_step < 0 or trainer.validation.n_tokens <= WATCHED_TOKENS:
        trainer.keep_best(scores)
    with trainer.trackers.guard("sample"):
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
        with trainer.trackers.guard("the share of Python"):
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
                f"loss       {scores.loss:.4f} nats per token on the validation text "
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
