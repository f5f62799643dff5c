"""The costs of a run as numbers (`costs`) and as text (`text`)."""

import math
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from tinylm import corpus, device
from tinylm.config import ConfigError, ModelConfig, Run
from tinylm.model import Model
from tinylm.profiling import estimate
from tinylm.tokenizer import Tokenizer

Costs = dict[str, Any]


def costs(run: Run, config: ModelConfig, place: torch.device, dtype: torch.dtype) -> Costs:
    """What training `config` as `run` says costs on a device, as plain numbers for JSON.

    Operations, bytes, and seconds at `estimate.GOOD_MFU` of the peak that is measured now. The
    loss and its head are counted in `operations`, lookups and elementwise work are not.
    """
    net = estimate.outline(config, run.lora, run.train.freeze)
    # The largest batch of the run decides what memory it needs, cut into its longest rows.
    batch = max(run.train.batch_sizes.values)
    lengths = run.train.sequence_lengths
    length = config.context_length if lengths is None else max(lengths.values)
    rows = min(run.train.micro_rows or batch, batch) * config.context_length // length
    memory = estimate.memory(
        net,
        rows=rows,
        optimizer=run.optim.name,
        dtype=dtype,
        length=length,
        checkpointing=run.train.activation_checkpointing,
    )
    operations = mean_operations(net, run)
    per_step = batch * config.context_length
    peak = device.peak_flops(place, dtype)
    seconds = estimate.seconds_per_step(per_step * operations.total, peak)
    parameters, all_rows = net.n_parameters(), run.train.rows(run.train.steps)
    return {
        "parameters": {
            "total": parameters,
            "by component": estimate.components(net),
            "by role": estimate.roles(net),
        },
        "operations per token": {
            "forward": operations.forward,
            "backward": operations.backward,
            "of these attention": operations.attention,
        },
        "memory of a step": {
            "rows": rows,
            "tokens of a row": length,
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "weights in the dtype of the products": memory.casts,
            "activations": memory.activations,
            "logits": memory.logits,
            "total": memory.total,
            "keys and values per token": memory.kv_per_token,
        },
        "time": {
            "device": str(place),
            "dtype": str(dtype).removeprefix("torch."),
            "peak operations per second": peak,
            "mfu": estimate.GOOD_MFU,
            "tokens per step": per_step,
            "seconds per step": seconds,
            "steps": run.train.steps,
            "seconds of all steps": seconds * all_rows / batch,
        },
        "tokens per parameter": all_rows * config.context_length / parameters,
    }


def vocabulary(run: Run) -> int:
    """The number of tokens that the tokenizer of a run will have.

    That of characters and words is read off the text. `ConfigError` if the text is a download.
    """
    settings = run.tokenizer
    if settings.path is not None:
        return Tokenizer.load(settings.path).vocab_size
    if settings.kind == "bpe":
        return settings.vocab_size
    texts: Iterable[str] = ("any",)
    if settings.kind != "byte":
        for source in filter(corpus.is_download, run.data.texts):
            raise ConfigError(
                f"tokenizer.kind={settings.kind}: its tokens are those of the text, and "
                f"data.source={source} is a download: add model.vocab_size=N or name a file"
            )
        reading = corpus.reading(run.data)
        opened = [corpus.open(source, **reading) for source in run.data.texts]
        texts = chain.from_iterable(text.training_texts() for text in opened)
    made = Tokenizer.train(
        texts,
        vocab_size=settings.vocab_size,
        kind=settings.kind,
        pattern=settings.pattern,
        special_tokens=settings.special_tokens,
    )
    size: int = made.vocab_size
    return size


def mean_operations(net: Model, run: Run) -> estimate.Operations:
    """The operations per token, as the mean over all tokens of a run whose rows may be cut."""
    train, tokens = run.train, Counter[int]()
    lengths = train.sequence_lengths
    for step in range(train.steps if lengths else 1):
        progress = step / train.steps
        length = lengths.at(progress) if lengths else net.config.context_length
        tokens[length] += train.batch_sizes.at(progress)
    each = {length: estimate.operations(net, length) for length in tokens}

    def mean(part: str) -> int:
        total = sum(count * int(getattr(each[n], part)) for n, count in tokens.items())
        return round(total / tokens.total())

    return estimate.Operations(mean("forward"), mean("backward"), mean("attention"))


def text(name: str | Path, found: Costs) -> str:
    """The costs as lines for people, in the order of `costs`."""
    counts, memory, time = found["parameters"], found["memory of a step"], found["time"]
    total = counts["total"]
    lines = [f"{name}", "", f"{'parameters':34}{total:>16,}"]
    for kind in ("by component", "by role"):
        lines += [f"  {kind}"]
        lines += [
            f"    {part:30}{number:>16,}  {number / total:6.1%}"
            for part, number in counts[kind].items()
        ]
    lines += ["", "floating-point operations per token of a step"]
    lines += [f"  {part:32}{number:>16,}" for part, number in found["operations per token"].items()]
    lines += [
        "",
        f"memory of a step of {memory['rows']} rows of {memory['tokens of a row']} tokens, "
        f"{time['dtype']}, before what the allocator and libraries add",
    ]
    for part, number in memory.items():
        if part not in ("rows", "tokens of a row"):
            lines.append(f"  {part:36}{_bytes(number):>12}")
    words = "not known" if math.isinf(time["seconds per step"]) else _time(time)
    lines += ["", f"time on {time['device']}: {words}"]
    lines += [
        f"{found['tokens per parameter']:.1f} tokens per parameter (20 is Chinchilla's ratio)"
    ]
    return "\n".join(lines)


def _time(time: Costs) -> str:
    return (
        f"{time['seconds per step'] * 1000:.1f} ms per step of {time['tokens per step']:,} tokens "
        f"at {time['mfu']:.0%} of the measured {time['peak operations per second'] / 1e9:,.0f} "
        f"GFLOP/s; {time['steps']:,} steps take {time['seconds of all steps']:,.0f} s"
    )


def _bytes(number: int) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"
