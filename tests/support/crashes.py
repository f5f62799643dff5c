"""Tiny checkpoints, and a disk that crashes or fails at a chosen call."""

import errno
import os
from pathlib import Path

import torch

from tinylm import checkpoint
from tinylm.checkpoint import Training
from tinylm.config import ModelConfig
from tinylm.model import build

CONFIG = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, context_length=6)


def make_model(seed=0, config=CONFIG):
    """A tiny model whose every weight depends on the seed."""
    model = build(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_training(step):
    moments = torch.full((3,), float(step))
    state = {"loader": {"epoch": 1, "row": step}, "rate": 0.1, "best": None}
    return Training(step, step * 100, {"a.exp_avg": moments, "a.step": torch.tensor(1.0)}, state)


def save_step(run, step):
    """A checkpoint whose weights and training state are those of its step."""
    path = checkpoint.path_of(run, step)
    return checkpoint.save(path, make_model(step), None, training=make_training(step))


def holds_step(path, step, config=CONFIG):
    """Whether the checkpoint at `path` is, bit for bit, the one of `step`."""
    model, _ = checkpoint.load(path)
    weights = make_model(step, config).state_dict()
    exact = all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    return exact and checkpoint.load_training(path).tokens == step * 100


def steps_in(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip(path, position, mask=0x01):
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


class Crash(BaseException):
    """The process is gone."""


class Disk:
    """Stands before the calls of `os` that change a disk: counts, records, and breaks them.

    From call number `crash_at` on every call raises `Crash`, so no cleaning up reaches the
    disk, as after kill -9; a write then first brings half of its bytes. From `full_at` on,
    or at that call alone, calls raise an `OSError`.
    """

    CALLS = ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir")

    def __init__(self, crash_at=None, full_at=None, error=errno.ENOSPC, sticky=True):
        self.crash_at, self.full_at, self.error, self.sticky = crash_at, full_at, error, sticky
        self.calls = []
        self.paths = {}

    def __enter__(self):
        self.real = {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            setattr(os, name, self.replacement(name))
        return self

    def __exit__(self, *error):
        for name, call in self.real.items():
            setattr(os, name, call)

    def replacement(self, name):
        real = self.real[name]

        def call(*arguments, **keywords):
            writes = name != "open" or arguments[1] & os.O_CREAT
            if writes:
                self.interfere(name, arguments)
            result = real(*arguments, **keywords)
            if name == "open":
                self.paths[result] = Path(arguments[0]).name
            return result

        return call

    def interfere(self, name, arguments):
        number = len(self.calls)
        subject = arguments[0]
        self.calls.append(
            (
                name,
                self.paths.get(subject)
                if name in ("write", "fsync")
                else [Path(part).name for part in arguments if isinstance(part, str | Path)],
            )
        )
        if self.crash_at is not None and number >= self.crash_at:
            if name == "write" and number == self.crash_at:
                self.real["write"](subject, arguments[1][: len(arguments[1]) // 2])
            raise Crash(f"before call {number}, {name}")
        late = self.full_at is not None and number >= self.full_at
        # A full disk still renames and deletes.
        hits = name in ("open", "mkdir", "write", "fsync")
        if late and hits and (self.sticky or number == self.full_at):
            raise OSError(self.error, os.strerror(self.error))
