"""The stages of a run in their order: text, tokenizer, shards, model, steps, results."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path

import torch

from tinylm import device, optim, threads
from tinylm.config import Run
from tinylm.tokenizer import Tokenizer
from tinylm.track import Trackers
from tinylm.train import beginning, compiling, distributed, fitting, processes, prompts, reporting
from tinylm.train.callbacks import CALLBACKS, Callback, Callbacks
from tinylm.train.folder import Home
from tinylm.train.loop import Trainer
from tinylm.train.norms import RoleNorms
from tinylm.train.session import Session
from tinylm.train.step import Stepper
from tinylm.train.texts import Texts, Validation


def train(run: Run, callbacks: Sequence[Callback] = ()) -> Path:
    """Carry out a run; returns the folder that holds it.

    `callbacks` are functions named on_start, on_step, on_eval, on_checkpoint or on_end
    (`tinylm.train.callbacks`).

    Ctrl-C, SIGTERM and SIGHUP save and raise `Interrupted`. Settings that do not go together raise
    `ConfigError`, text or tokenizers that cannot be used `ValueError`, both before the run's
    folder is made; a loss that is not finite raises `NonFiniteError`, and the last checkpoint
    is sound. `BlockingIOError` names the process that writes to the run's folder.
    """
    began = time.perf_counter()
    if run.train.deterministic:
        device.reserve_workspaces()
    called = Callbacks((*CALLBACKS, *callbacks))
    place = processes.place(run)
    # One process speaks for all.
    trackers = Trackers(run.track.names if place.leads else (), run.train.steps)
    session = Session.start(run.train.device, run.train.dtype, trackers.say, place)
    if session.device.type == "cpu":
        device.keep_memory()
    device.use_tf32(session.device, run.train.tf32)
    with ExitStack() as stack:
        first = stack.enter_context(distributed.meeting(place, session))
        home = stack.enter_context(Home(run)) if session.leads else None
        resumed, finished = beginning.go_on(run, home, first, session.say)
        if finished is not None:
            return finished
        texts = Texts(run, lambda alone: beginning.open_text(alone, session.say))

        @cache
        def sharded(tokenizer: Tokenizer) -> tuple[Path, ...]:
            def made() -> tuple[Path, ...]:
                return beginning.shards(run, resumed, texts, tokenizer, session)

            return first("shards", made, write, read)

        def write(folders: tuple[Path, ...]) -> str:
            return json.dumps([str(folder) for folder in folders])

        def read(text: str) -> tuple[Path, ...]:
            return tuple(map(Path, json.loads(text)))

        net, tokenizer = beginning.start(run, resumed, texts.all, sharded, first)
        shards = sharded(tokenizer)
        validation = Validation.open(run, shards)
        length = net.config.context_length
        loader = beginning.loader(run, shards, tokenizer, length, session, resumed)
        prompt = prompts.first_words(run, validation.first, net, tokenizer)
        begun = None if resumed is None else resumed.training
        # Before `fit`, which measures what a step needs.
        net.activation_checkpointing = run.train.activation_checkpointing
        run = fitting.fit(run, net, session, begun, first)
        compiled = first(
            "compile",
            lambda: compiling.wanted(run, net, session, begun),
            str,
            lambda text: text == "True",
        )
        loss = compiling.loss_function(net, session, compiled, compiling.shapes(run.train))
        spread = distributed.spread(net, loss, session, compiled=compiled)
        weights = net if spread.shards is None else spread.shards
        optimizer = optim.build(weights, run.optim, spread.shards)
        trainer = Trainer(
            run=run,
            # Only now is the folder made: whatever can be refused has been checked before.
            folder=first("folder", lambda: _claim(home), str, Path),
            model=net,
            tokenizer=tokenizer,
            loader=stack.enter_context(loader),
            validation=validation,
            stepper=Stepper(
                run=run,
                context_length=net.config.context_length,
                loss=spread.loss,
                spread=spread,
                optimizer=optimizer,
                session=session,
                say=trackers.say,
                norms=RoleNorms(net, optimizer) if run.track.norms else None,
            ),
            session=session,
            peak=session.world * reporting.peak(session, trackers),
            prompt=prompt,
            compiled=compiled,
            trackers=trackers,
            callbacks=called,
        )
        if session.leads:
            tokenizer.save(trainer.folder / "tokenizer.json")
        if resumed is not None:
            session.say(f"going on from {resumed.checkpoint}")
            trainer.restore(resumed.training)
        trainer.clock.spent["setup"] = time.perf_counter() - began
        if session.leads:
            reporting.record(trainer, shards)
        session.say(reporting.opening(trainer, shards, trainer.clock.spent["setup"]))
        trackers.start(trainer.folder)
        stack.enter_context(threads.sharing(torch.get_num_threads()))
        repeatable = device.repeatable(session.device, run.train.deterministic, compiled=compiled)
        with repeatable, closing(trackers):
            trainer.train()
            reporting.finish(trainer, lambda: time.perf_counter() - began)
    return trainer.folder


def _claim(home: Home | None) -> Path:
    assert home is not None, "only the first process claims the folder"
    return home.claim()
