"""A model that was trained before, made ready for new data: frozen in part, grown by new tokens."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tinylm import model, optim
from tinylm.config import ConfigError, LoraConfig, OptimConfig, TrainConfig
from tinylm.layers import fake, lora
from tinylm.model import Model
from tinylm.quant.turning import turn_values
from tinylm.tokenizer import Tokenizer, chat


def refuse_state(
    net: Model, entries: Sequence[str], checkpoint: Path, state: Collection[str]
) -> None:
    """Raise `ConfigError` if the optimizer of a checkpoint moved weights that are now frozen.

    `state` has its quantities by `<parameter>.<quantity>`.
    """
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    moved = dict.fromkeys(name for key in state if (name := key.rpartition(".")[0]) in frozen)
    if moved:
        more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        raise ConfigError(
            f"train.freeze=[{','.join(entries)}]: freezes {next(iter(moved))}{more}, which the run "
            f"of {checkpoint} trained: give train.freeze as that run had it, or start from its "
            f"weights alone with train.init={checkpoint}"
        )


def adapt(net: Model, settings: LoraConfig, seed: int) -> None:
    """Give a model the adapters that `lora` asks for; one that resumes has them already."""
    if settings.rank is None:
        return
    if not lora.adapters(net):
        try:
            lora.adapt(
                net,
                rank=settings.rank,
                alpha=settings.alpha,
                dropout=settings.dropout,
                targets=settings.targets,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        generator = torch.Generator().manual_seed(seed)
        for part in lora.adapters(net).values():
            part.start(generator)


def quantise(net: Model, settings: TrainConfig, *, fresh: bool) -> None:
    """Let the matrices of a model compute as `train.qat` says once it begins; else plainly.

    The values of a `fresh` model, one that does not resume, are turned for int4: what it computes
    stays the same, and no weight of a head that copies stands out of its group.
    """
    fake.plain(net)
    if settings.qat == "none":
        return
    if settings.qat == "int4" and fresh:
        for block in net.blocks:
            turn_values(block)
    try:
        kept = fake.named(net, settings.qat_keep)
    except ValueError as error:
        raise ConfigError(f"train.qat_keep={error}") from None
    try:
        fake.quantise(net, fake.Grid(settings.qat, settings.qat_group, share=0.0, kept=kept))
    except ValueError as error:
        raise ConfigError(f"train.qat={error}") from None


def set_share(net: Model, settings: TrainConfig, step: int) -> None:
    """Give the quantised weights of a model the share that they have at this step.

    After each step: scores, samples and checkpoints are then of the model that the next step
    computes with, and at the end of the quantised one.
    """
    if settings.qat != "none":
        fake.set_share(net, settings.qat_share(step / settings.steps))


def merge(net: Model, say: Callable[[str], None]) -> None:
    """Put the adapters of a model that a new run starts from into its matrices, which are plain."""
    if count := len(lora.adapters(net)):
        lora.merge(net)
        say(f"its {count} adapters are merged into its matrices")
    if (grid := fake.grid_of(net)) is not None:
        fake.plain(net)
        say(f"it was trained for {grid.describe()}: its float weights are taken, not rounded")


def trainable(net: Model) -> int:
    """The number of weights that training moves."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def idle_rates(net: Model, settings: OptimConfig) -> list[str]:
    """Return a line for each learning rate of a role of which no weight is trained."""
    moved = {role for _, parameter, role in net.named_roles() if parameter.requires_grad}
    return [
        f"warning: optim.{key}={getattr(settings, key):g} has no effect: no {role} is trained"
        for role, key in optim.RATES.items()
        if getattr(settings, key) is not None and role not in moved
    ]


def with_marks(
    net: Model, tokenizer: Tokenizer, seed: int, say: Callable[[str], None]
) -> tuple[Model, Tokenizer]:
    """A model and tokenizer that know the marks of turns; new rows stand at the mean of the others.

    A little noise by `seed` tells new rows apart where the embedding is frozen.
    """
    ready = chat.with_marks(tokenizer)
    fresh = range(tokenizer.vocab_size, ready.vocab_size)
    if not fresh:
        return net, ready
    rows, size = net.embedding.num_embeddings, max(net.embedding.num_embeddings, ready.vocab_size)
    new = [mark for mark in chat.MARKS if mark not in tokenizer.special_tokens]
    say(
        f"{', '.join(new)}: new tokens, which mark the turns; the embedding has {size} rows now, "
        f"{rows} before, and theirs begin at the mean of the others"
    )
    return _grown(net, size, fresh, seed), ready


@torch.no_grad()
def _grown(net: Model, size: int, fresh: range, seed: int) -> Model:
    """The model with tables of `size` rows, those of the ids `fresh` new."""
    # Every weight is copied or set below: no start of its own.
    plain = replace(net.config, vocab_size=size, start="plain")
    grown = model.build(plain, seed=seed, device=net.weight.device, dtype=net.weight.dtype)
    grown.config = replace(plain, start=net.config.start)
    with torch.device("meta"):
        # A table of the vocabulary is what has another shape where the vocabulary has.
        other = dict(Model(replace(net.config, vocab_size=size + 1)).named_parameters())
    generator = torch.Generator().manual_seed(seed)
    old = net.state_dict()
    for name, parameter in grown.named_parameters():
        if other[name].shape == parameter.shape:
            parameter.copy_(old[name])
            continue
        known = old[name][: fresh.start]
        parameter[: len(old[name])] = old[name]
        noise = torch.randn(len(fresh), *parameter.shape[1:], generator=generator)
        spread = 0.1 * known.std(0, keepdim=True) if len(known) > 1 else 0.0
        parameter[fresh.start : fresh.stop] = known.mean(0) + spread * noise.to(parameter)
    grown.origin = net.origin
    return grown.train(net.training)
