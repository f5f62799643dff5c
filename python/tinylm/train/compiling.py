"""Whether the loss is compiled: if that takes less time than it saves in the rest of the run.

    seconds(eager) = n e        seconds(compiled) = g first + n c

A step takes e or c seconds and the first compiled one `first`, for each of the g shapes of batch
and window that the run goes through. They are measured, once for each
machine, model and batch, and kept in a small file (`cache_file`). Where nothing is known yet, a
compiler is tried if the run is long enough to pay for it by a cautious guess.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm import device, disk
from tinylm.checkpoint import Training
from tinylm.config import Run, TrainConfig
from tinylm.model import Model
from tinylm.train import finetuning
from tinylm.train.session import Session

# Runs of fewer steps are not compiled: they are over before the first compiled step is.
LEAST_STEPS = 200
# The guess before anything is measured: seconds of the first step, and the share of each that is
# saved. Two cores of an AMD EPYC: 15 to 40 s, and 10% to 35%.
GUESSED_SECONDS, GUESSED_GAIN = 40.0, 0.2
# Steps that are timed, of which the fastest counts: others can only slow one down.
TIMED = 3
# Runs of several processes are not measured: they are compiled from this many steps on.
COMPILED_BEFORE = 500
# Models whose times are remembered; the file stays below 64 KiB.
REMEMBERED = 200

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Times:
    """Seconds of a plain step, of the first compiled step, and of one after it."""

    eager: float
    first: float
    compiled: float

    def pays(self, steps: int, graphs: int = 1) -> bool:
        """Whether `steps` compiled steps of `graphs` shapes take less time than plain ones."""
        return graphs * self.first + steps * self.compiled < steps * self.eager

    def describe(self, steps: int, graphs: int = 1) -> str:
        """Return the line that says what was decided for a run of `steps` steps."""
        taken = "compiling the model" if self.pays(steps, graphs) else "not compiling the model"
        each = f"a step takes {1e3 * self.compiled:.0f} ms compiled and {1e3 * self.eager:.0f} not"
        gain = self.eager - self.compiled
        if gain <= 0:
            return f"{taken}: {each}"
        spent = graphs * self.first
        even = f"{spent / gain:,.0f} steps"
        return f"{taken}: {each}, which pays for the first {spent:.0f} s after {even}"


def cache_file() -> Path:
    """`$XDG_CACHE_HOME/tinylm/compile.json`, by default in `~/.cache`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says to ignore a path that is not absolute.
    folder = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return folder / "tinylm" / "compile.json"


def recall(key: str) -> Times | None:
    """The times under `key`; None if there are none, or the file cannot be read or is damaged."""
    entry = _entries().get(key)
    if not isinstance(entry, dict) or entry.keys() != {"eager", "first", "compiled"}:
        return None
    if not all(isinstance(value, float) and value > 0 for value in entry.values()):
        return None
    return Times(**entry)


def remember(key: str, times: Times) -> None:
    """Keep `times` under `key`. Where the file cannot be written the next run measures again."""
    # If two processes write at once, one entry may be lost, but never the file, which is replaced
    # as a whole.
    kept = {name: entry for name, entry in _entries().items() if name != key}
    newest = dict(list(kept.items())[-(REMEMBERED - 1) :])
    newest[key] = asdict(times)
    # RuntimeError: this user has no home.
    with suppress(OSError, RuntimeError):
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.replace(path, json.dumps(newest, indent=1).encode())


def _entries() -> dict[str, Any]:
    # ValueError: not UTF-8, or not JSON. RuntimeError: this user has no home.
    with suppress(OSError, ValueError, RuntimeError):
        found = json.loads(cache_file().read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def key_of(run: Run, net: Model, session: Session) -> str:
    """Return a hash of everything that the times depend on: machine, torch, model and batch."""
    cuda = session.device.type == "cuda"
    machine = torch.cuda.get_device_name(session.device) if cuda else _processor()
    threads = 0 if cuda else torch.get_num_threads()
    known = (machine, threads, platform.python_version(), torch.__version__, str(session.dtype))
    rows, moved = _rows(run, session), finetuning.trainable(net)
    model = (astuple(net.config), rows, moved, run.train.activation_checkpointing)
    return hashlib.sha256(repr((known, model)).encode()).hexdigest()[:16]


def _processor() -> str:
    """The name of the processor, and what it can do."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return f"{names[0]} {torch.backends.cpu.get_cpu_capability()} {len(names)}"
    return f"{platform.machine()} {platform.processor()} {os.cpu_count()}"


def _rows(run: Run, session: Session) -> int:
    rows = max(run.train.batch_sizes.values) // session.world
    return min(run.train.micro_rows or rows, rows)


def shapes(train: TrainConfig) -> int:
    """Return how often a run compiles: anew where sizes or window change, and where qat begins."""
    courses = (train.batch_sizes, train.sequence_lengths, train.windows)
    changes = {place for course in courses if course for place, _ in course.points[1:]}
    if train.qat != "none" and train.qat_start > 0:
        changes.add(train.qat_start)
    return 1 + len(changes)


def wanted(run: Run, net: Model, session: Session, begun: Training | None) -> bool:
    """Whether the loss of this run is to be compiled; says why if `train.compile=auto` decides.

    `begun` is the state that a run goes on from: plain and compiled steps differ in the last
    digits, so it keeps what it began with. May measure, which leaves no trace in the model. Raises
    `ValueError` if a compiler is asked for and there is none.
    """
    setting, say = run.train.compile, session.say
    if setting == "auto" and begun is not None:
        # Checkpoints without the key are of versions that compiled all runs from 500 steps on.
        before = begun.state.get("steps", begun.step) >= COMPILED_BEFORE
        return bool(begun.state.get("compiled", before)) and _can(False, say)
    if setting != "auto":
        return setting and _can(True, say)
    steps = run.train.steps
    if steps < LEAST_STEPS or session.device.type not in ("cpu", "cuda") or not _can(False, say):
        return False
    if session.mode != "none":
        # The times of one process are not those of many, and under FSDP it may lack the memory.
        return steps >= COMPILED_BEFORE
    key, graphs = key_of(run, net, session), shapes(run.train)
    times = recall(key)
    if times is None:
        probe = Probe(run, net, session)
        eager = probe.seconds(net.loss)
        if steps * eager * GUESSED_GAIN < graphs * GUESSED_SECONDS:
            return False
        say("trying the compiler, once for this model and machine: up to a minute")
        times = probe.compiled(eager)
        remember(key, times)
        # The compiler's time for one shape is spent: it counts no more for this run.
        chosen = times.pays(steps, graphs - 1)
        each = f"{1e3 * times.compiled:.0f} ms compiled and {1e3 * times.eager:.0f} not"
        say(f"{'' if chosen else 'not '}compiling the model: a step takes {each}")
        return chosen
    say(times.describe(steps, graphs))
    return times.pays(steps, graphs)


class Probe:
    """Times forward and backward passes over a batch of chance, on the model of a run."""

    def __init__(self, run: Run, net: Model, session: Session) -> None:
        self.run, self.net, self.session = run, net, session
        shape = _rows(run, session), net.config.context_length
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(net.embedding.num_embeddings, shape, generator=generator)
        self.tokens = ids.to(session.device)

    def seconds(self, loss: Loss) -> float:
        """The fastest of a few steps."""
        return min(self._step(loss) for _ in range(TIMED))

    def compiled(self, eager: float) -> Times:
        """The times of the compiled loss, of which the first step compiles it."""
        loss = compile_loss(self.net)
        return Times(eager, self._step(loss), self.seconds(loss))

    def _step(self, loss: Loss) -> float:
        net, session = self.net, self.session
        # A plain step must not import the compiler, which takes 1.6 s.
        compiled = loss != net.loss
        with (
            device.repeatable(session.device, self.run.train.deterministic, compiled=compiled),
            torch.random.fork_rng(devices=()),
        ):
            net.train()
            start = time.perf_counter()
            places = {"positions": None, "documents": None}
            found = loss(self.tokens, self.tokens, **places, dtype=session.dtype)
            torch.autograd.backward(found)
            # Reading one number waits for an asynchronous device.
            found.item()
            taken = time.perf_counter() - start
        for parameter in net.parameters():
            parameter.grad = None
        return taken


def compile_loss(net: Model) -> Loss:
    """`Model.loss`, compiled at its first call."""
    compiled: Loss = torch.compile(net.loss, dynamic=False)
    return compiled


def loss_function(net: Model, session: Session, compiled: bool, graphs: int = 1) -> Loss:
    """The loss of a run: as it is, or compiled for each of its `graphs` shapes."""
    if not compiled:
        return net.loss
    # Only here: it takes 1.6 s.
    import torch._dynamo

    # From the ninth shape on torch would go back to plain steps, with no word but a warning. Beside
    # those of the run there may be one of the probe, and one of rows that an earlier run had cut.
    limit = max(torch._dynamo.config.recompile_limit, graphs + 2)
    torch._dynamo.config.recompile_limit = limit
    session.say("the first step compiles: up to 30 s the first time, a few seconds later on")
    return compile_loss(net)


def _can(asked: bool, say: Callable[[str], None]) -> bool:
    """Whether there is a C++ compiler; `ValueError` if it was asked for."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    if any(shutil.which(name) for name in names if name):
        return True
    if asked:
        raise ValueError(
            "train.compile=true needs a C++ compiler, and neither g++ nor clang++ is found: "
            "install one or set train.compile=false"
        )
    say("no C++ compiler (g++, clang++) is found: training without torch.compile, slower")
    return False
