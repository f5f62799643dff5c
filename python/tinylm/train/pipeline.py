"""The stages of a run in their order: text, tokenizer, shards, model, steps, results."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from tinylm import checkpoint, corpus, data, device, optim, sample, track
from tinylm.config import Run
from tinylm.data import Dataset, Loader
from tinylm.track import Trackers
from tinylm.train import stages
from tinylm.train.folder import claim, plan, provenance, read_json, rewind_samples, write_json
from tinylm.train.loop import Trainer


def train(run: Run) -> Path:
    """Carry out a run; returns the folder that holds it.

    Ctrl-C and SIGTERM save and raise `Interrupted`. Settings that do not go together raise
    `ConfigError`, text or tokenizers that cannot be used `ValueError`, both before the run's
    folder is made; a loss that is not finite raises `NonFiniteError`, the last checkpoint
    being sound.
    """
    began = time.perf_counter()
    say = print if "console" in run.track.names else _silent
    folder, source = plan(run)
    resumed = None if source is None else stages.resume_point(source, say)
    training = None if resumed is None else checkpoint.load_training(resumed)
    results = read_json(folder / "run.json").get("results")
    if training is not None and results and training.step >= run.train.steps:
        say(f"{folder} is finished; a larger train.steps lengthens it")
        say(f"bits per byte: {results['bits_per_byte']:.3f}")
        return folder

    place = device.find(run.train.device)
    dtype = device.pick_dtype(run.train.dtype, place)
    text = corpus.open(run.data.source, val_fraction=run.data.val_fraction)
    net, tokenizer = stages.start(run, resumed, text, place, say)
    shards = data.default_folder(run.data.source, tokenizer.sha256, run.data.folder)
    data.prepare(text, tokenizer, shards)
    loader = Loader(
        Dataset.open(shards, split="train"),
        batch_size=run.train.batch_size,
        context_length=net.config.context_length,
        order=run.data.order,
        stride=run.data.stride,
        mask_after_eos=run.data.mask_after_eos,
        seed=run.train.seed,
        threads=run.data.threads,
        device=str(place),
    )
    prompt = stages.first_words(run, text, tokenizer)
    # One token now: settings of `sample` that cannot be are not found out in an hour.
    first = replace(run.sample, samples=1, max_tokens=1)
    "".join(sample.stream(net, tokenizer, prompt, first))
    folder = claim(run, folder)
    tokenizer.save(folder / "tokenizer.json")
    trainer = Trainer(
        run=run,
        folder=folder,
        model=net,
        tokenizer=tokenizer,
        loader=loader,
        validation=Dataset.open(shards, split="val"),
        optimizer=optim.build(net, run.optim),
        device=place,
        dtype=dtype,
        peak=device.peak_flops(place, dtype),
        loss=stages.loss_function(run, net, place, say),
        prompt=prompt,
    )
    if training is not None:
        say(f"going on from {resumed}")
        trainer.restore(training)
    track.rewind_metrics(folder, trainer.progress.step)
    rewind_samples(folder, trainer.progress.step)
    record = {**provenance(), "device": str(place), "dtype": str(dtype), "shards": str(shards)}
    write_json(folder / "run.json", {**record, **net.describe(), "peak": trainer.peak})
    say(stages.opening(trainer, shards, time.perf_counter() - began))
    trainer.trackers = Trackers(run.track.names, folder, run.train.steps)
    before = torch.are_deterministic_algorithms_enabled()
    # On the CPU a resumed run ends bit for bit where an uninterrupted one would.
    torch.use_deterministic_algorithms(place.type == "cpu")
    try:
        with trainer.signals():
            trainer.train()
        stages.finish(trainer, lambda: time.perf_counter() - began)
    finally:
        torch.use_deterministic_algorithms(before)
        trainer.trackers.close()
        loader.close()
    return folder


def _silent(text: str) -> None:
    """Say nothing: the run has no console."""
