"""What a run begins with: its earlier state, its text, tokenizer, weights, shards and batches."""

import errno
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinylm import checkpoint, corpus, data, model, optim
from tinylm.checkpoint import Training
from tinylm.config import ConfigError, DataConfig, Run
from tinylm.config.limits import show
from tinylm.corpus import Corpus, filters
from tinylm.data import Dataset, Loader, mixture
from tinylm.data.loader import of_settings
from tinylm.data.turns import answers
from tinylm.layers import copying
from tinylm.layers.freezing import freeze
from tinylm.model import Model
from tinylm.tokenizer import Tokenizer, chat
from tinylm.train import finetuning
from tinylm.train.distributed import First
from tinylm.train.folder import Home, read_json
from tinylm.train.session import Session
from tinylm.train.state import load_state
from tinylm.train.texts import Texts

Say = Callable[[str], None]
# Tokens of the training text, the first ones, whose pairs are counted for model.start=bigram. The
# 3.2 million of the default run hold 223,000 different pairs.
COUNTED = 2**24


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from, and the training state in it."""

    checkpoint: Path
    training: Training


def resume(source: Path | None, say: Say, share: tuple[int, int] = (0, 1)) -> Resumed | None:
    """The state that a run resumes from, or `share` of it; None for a new run.

    If `source` is a checkpoint, it must verify (`ValueError`). If it is a run, the newest
    checkpoint that verifies is taken.
    """
    found = None if source is None else _resume_point(source, say)
    return None if found is None else Resumed(found, load_state(found, share))


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


def go_on(
    run: Run, home: Home | None, first: First, say: Say
) -> tuple[Resumed | None, Path | None]:
    """The state that the run goes on from, and its folder if it has ended; equal in all processes.

    `home` is the first process's, which chooses. Under FSDP each gets its rows of the optimizer's
    tensors.
    """
    share = first.session.share

    def choose() -> tuple[Resumed | None, Path | None]:
        assert home is not None, "only the first process chooses"
        resumed = resume(home.source, say, share)
        ended = resumed is not None and is_finished(run, home.folder, resumed, say)
        return resumed, home.folder if ended else None

    def write(found: tuple[Resumed | None, Path | None]) -> str:
        paths = (found[0] and found[0].checkpoint, found[1])
        return json.dumps([None if path is None else str(path) for path in paths])

    def read(text: str) -> tuple[Resumed | None, Path | None]:
        chosen, ended = (None if path is None else Path(path) for path in json.loads(text))
        resumed = None if chosen is None else Resumed(chosen, load_state(chosen, share))
        return resumed, ended

    return first("resumed", choose, write, read)


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
    if data.is_shards(settings.source):
        raise FileNotFoundError(errno.ENOENT, "a folder of shards has no text", settings.source)
    text = corpus.open(settings.source, **corpus.reading(settings))
    for note in text.notes:
        say(note)
    return text


def start(
    run: Run,
    resumed: Resumed | None,
    text: Callable[[], Texts],
    sharded: Callable[[Tokenizer], tuple[Path, ...]],
    first: First,
) -> tuple[Model, Tokenizer]:
    """The model with its first weights, and its tokenizer; each is loaded, or new if there is none.

    Calls `text` only to train a tokenizer, and `sharded`, which makes the shards, only for weights
    that depend on the text.
    """
    net, tokenizer = _weights(run, resumed, text, sharded, first)
    finetuning.adapt(net, run.lora, run.train.seed)
    finetuning.quantise(net, run.train, fresh=resumed is None)
    freeze(net, run.train.freeze)
    if resumed is not None:
        moved = resumed.training.optimizer
        finetuning.refuse_state(net, run.train.freeze, resumed.checkpoint, moved)
    for line in finetuning.idle_rates(net, run.optim):
        first.session.say(line)
    return net, tokenizer


def _weights(
    run: Run,
    resumed: Resumed | None,
    text: Callable[[], Texts],
    sharded: Callable[[Tokenizer], tuple[Path, ...]],
    first: First,
) -> tuple[Model, Tokenizer]:
    session = first.session
    given = None if run.train.init is None else Path(run.train.init)
    given = given if resumed is None else resumed.checkpoint
    if given is None:
        # Before any work on the text, which may take hours.
        chosen = run.model.start
        if chosen != "plain" and (problem := copying.refusal(run.model)) is not None:
            raise ConfigError(f"model.start={chosen}: {problem}, or set model.start=plain")
        tokenizer = _new_tokenizer(run, text, first)
        size = run.model.vocab_size or tokenizer.vocab_size
        _refuse_mismatch(tokenizer, size, "model.vocab_size")
        config = replace(run.model, vocab_size=size)
        counted = None
        if chosen == "bigram":
            counted = _first_tokens(run, sharded(tokenizer))
        net = model.build(config, seed=run.train.seed, device=session.builds_on, text=counted)
        return net, tokenizer
    # A checkpoint to resume from was verified when it was chosen.
    net, loaded = checkpoint.load(
        given, device=session.builds_on, dtype=torch.float32, verify=resumed is None
    )
    if net.quantisation is not None:
        raise ConfigError(
            f"train.init={given}: its weights are quantised and cannot be trained: "
            "name the folder that they were made from"
        )
    if loaded is None or (resumed is None and run.tokenizer.path is not None):
        loaded = _new_tokenizer(run, text, first)
    elif run.tokenizer.eos is not None:
        loaded = loaded.with_eos(run.tokenizer.eos)
    _refuse_mismatch(loaded, net.embedding.num_embeddings, f"train.init={given}")
    if resumed is None:
        session.say(f"weights, model and tokenizer settings come from {given}")
        if run.model.exits:
            # They have no weights of their own, so any model can learn them.
            net.config = replace(net.config, exits=True)
        finetuning.merge(net, session.say)
        if _is_chat(text):
            return finetuning.with_marks(net, loaded, run.train.seed, session.say)
    return net, loaded


def _first_tokens(run: Run, shards: tuple[Path, ...]) -> torch.Tensor:
    """The tokens to count pairs in [N]; of several texts by their weights as the run begins."""
    first = [1.0] if run.data.weights is None else [weight.at(0) for weight in run.data.weights]
    read = []
    for weight, folder in zip(first, shards, strict=True):
        dataset = Dataset.open(folder, split="train")
        n = min(dataset.n_tokens, int(COUNTED * weight / sum(first)))
        read.append(torch.from_numpy(dataset.read(0, n).astype("int64")))
    return torch.cat(read)


def _is_chat(text: Callable[[], Texts]) -> bool:
    """Whether the run is to learn conversations. Where its text is gone, its tokenizer knows."""
    try:
        return text().kind == "chat"
    except (FileNotFoundError, ConnectionError):
        return False


def _new_tokenizer(run: Run, text: Callable[[], Texts], first: First) -> Tokenizer:
    """The tokenizer of the settings, which one process makes for all."""

    def make() -> Tokenizer:
        return _make_tokenizer(run, text, first.session.say)

    def write(made: Tokenizer) -> str:
        with tempfile.TemporaryDirectory() as folder:
            made.save(path := Path(folder) / "tokenizer.json")
            return path.read_text(encoding="utf-8")

    def read(content: str) -> Tokenizer:
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "tokenizer.json").write_text(content, encoding="utf-8")
            return Tokenizer.load(path)

    return first("tokenizer", make, write, read)


def _make_tokenizer(run: Run, text: Callable[[], Texts], say: Say) -> Tokenizer:
    settings = run.tokenizer
    made = [source for source in run.data.texts if data.is_shards(source)]
    if settings.path is not None:
        # A run keeps a tokenizer.json, so one that comes from a .model begins as that.
        tokenizer = Tokenizer.load(settings.path).converted()
    elif made:
        beside = Path(made[0]) / "tokenizer.json"
        if not beside.is_file():
            raise ConfigError(
                f"tokenizer.path: name the tokenizer that made the shards of {made[0]}"
            )
        tokenizer = Tokenizer.load(beside)
    else:
        source = text()
        say(f"training a {settings.kind} tokenizer on {source.name}")
        marks = chat.MARKS if source.kind == "chat" else ()
        tokenizer = Tokenizer.train(
            source.training_texts(),
            vocab_size=settings.vocab_size,
            kind=settings.kind,
            pattern=settings.pattern,
            # Each once, in this order: one of them may be among the settings.
            special_tokens=dict.fromkeys((*settings.special_tokens, *marks)),
        )
    if _is_chat(text):
        tokenizer = chat.with_marks(tokenizer)
    return tokenizer if settings.eos is None else tokenizer.with_eos(settings.eos)


def _refuse_mismatch(tokenizer: Tokenizer, size: int, what: str) -> None:
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model ({what}) rows for "
            f"{size}: give the tokenizer that belongs to the model, or a larger model.vocab_size"
        )


def shards(
    run: Run, resumed: Resumed | None, texts: Texts, tokenizer: Tokenizer, session: Session
) -> tuple[Path, ...]:
    """The folders of the shards of each text of the run, made where they are not there."""
    if resumed is not None and run.data.sources:
        # Several versions of a text may have shards: a run goes on with those that it began with.
        known = data.recorded(resumed.checkpoint)
        if len(known) == len(texts.runs):
            return known
    with texts.naming():
        return tuple(
            _shards_of(alone, resumed, partial(texts.open, number), tokenizer, session)
            for number, alone in enumerate(texts.runs)
        )


def _shards_of(
    run: Run,
    resumed: Resumed | None,
    text: Callable[[], Corpus],
    tokenizer: Tokenizer,
    session: Session,
) -> Path:
    """The folder of the shards of a run's one text, made if it is not there.

    A run that goes on does not look at its text, which may have changed or gone since. A new one
    checks that its shards are those of the text, if the text is there.
    """
    if (given := data.given(run.data.source, tokenizer)) is not None:
        for name in ("folder", "separator", "text_field", "filters", "shuffle_documents"):
            if (value := getattr(run.data, name)) != getattr(DataConfig(), name):
                raise ConfigError(
                    f"data.{name}={show(value)}: has no meaning for shards as a text: leave it out"
                )
        return given
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
    manifest = data.prepare(source, tokenizer, folder)
    for line in filters.summary(manifest.source.get("filtered", ())):
        session.say(line)
    return folder


def _made_before(run: Run, resumed: Resumed | None, tokenizer: Tokenizer) -> Path | None:
    """The folder of shards that an earlier start made of the run's source, as far as is known."""
    made_of: dict[str, Any] = {
        "source": run.data.source,
        **corpus.reading(run.data),
        "tokenizer_sha256": tokenizer.sha256,
    }
    if run.data.folder is not None:
        folder = Path(run.data.folder)
        return folder if data.fits(folder, **made_of) else None
    # Several versions of a text may have shards: a run goes on with those that it began with.
    place = {} if resumed is None else resumed.training.state.get("loader", {})
    # That of a mixture is not the fingerprint of any of its texts.
    known = None if "mixture" in place else place.get("fingerprint")
    return data.find(**made_of, fingerprint=known)


def loader(
    run: Run,
    shards: tuple[Path, ...],
    tokenizer: Tokenizer,
    context_length: int,
    session: Session,
    resumed: Resumed | None = None,
) -> Loader:
    """The batches of a run, of which this process gets its own rows.

    Raises `ConfigError` if train.sequence_length does not divide the model's context length, which
    a folder to start from may have decided.
    """
    steps = run.train.steps
    for length in lengths.values if (lengths := run.train.sequence_lengths) else ():
        if context_length % length:
            raise ConfigError(
                f"train.sequence_length={length}: must divide the context length of the model, "
                f"{context_length}: choose another, or null for whole rows"
            )
    datasets = [Dataset.open(folder, split="train") for folder in shards]
    weights = None
    if run.data.weights is not None:
        weights = mixture.staged(run.data.weights, lambda p: run.train.rows(round(p * steps)))
        began = steps if resumed is None else resumed.training.state.get("steps", steps)
        if isinstance(weights, dict) and began != steps:
            raise ConfigError(
                f"train.steps={steps}: the weights of data.sources change over the run, which "
                f"began with {began} steps: resume with those, or start anew with train.init"
            )
    return Loader(
        datasets[0] if weights is None else datasets,
        weights=weights,
        batch_size=run.train.batch_sizes.at(0),
        context_length=context_length,
        **of_settings(run.data),
        seed=run.train.seed,
        rank=session.rank,
        world_size=session.world,
        threads=run.data.threads,
        device=str(session.device),
        keep=answers(run.data.loss, datasets[0], tokenizer),
    )
