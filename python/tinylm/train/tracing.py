"""A profile of a few steps: a trace for a browser, and a table to read (`profile.steps`)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tinylm import ops
from tinylm.config.profile import ProfileConfig
from tinylm.model import Model
from tinylm.train.signals import Interrupted
from tinylm.train.step import Stepper

# The ranges that the code of TinyLM marks, in the order of a step.
RANGES = ("data", "forward", "embed", "attention", "feedforward", "loss", "optimizer")
ROWS = 25


class Tracer(AbstractContextManager["Tracer"]):
    """Profiles the steps that `settings` name, of those that this process takes.

    While no step is profiled, nothing is marked and nothing is wrapped: a step costs what it
    costs without this class. A compiled model, or one under DDP, shows no parts. Leaving the `with`
    block ends a profile that is still open.
    """

    def __init__(
        self,
        settings: ProfileConfig,
        folder: Path,
        net: Model,
        stepper: Stepper,
        guard: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """Inside `guard` an error is a warning: a full disk costs the profile, not the run."""
        self._settings, self._folder, self._guard = settings, folder / "profile", guard
        self._net, self._stepper = net, stepper
        # One process of a run speaks for all.
        self._wanted = settings.steps > 0 and stepper.session.leads
        self._compiled = stepper.loss != net.loss
        self._taken = 0
        self._open: ExitStack | None = None
        self._profile: Any = None
        self.written: Path | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, Interrupted):
            self.end()
        else:
            # Half a step was recorded: nothing is written of it.
            self._drop()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around each step; begins and ends the profile where it is time."""
        if self._wanted and self._taken == self._settings.start:
            self._begin()
        yield
        self._taken += 1
        if self._taken == self._settings.start + self._settings.steps:
            self.end()

    def range(self, name: str) -> Any:
        """A named range of the trace; nothing while no step is profiled."""
        return nullcontext() if self._open is None else record_function(name)

    def _begin(self) -> None:
        self._open = ExitStack()
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        kinds = [ProfilerActivity.CPU, *cuda]
        profiled = profile(activities=kinds, profile_memory=True, acc_events=True)
        self._profile = self._open.enter_context(profiled)
        self._mark(self._stepper, "loss", "forward")
        self._mark(self._stepper.optimizer, "step", "optimizer")
        # A compiled model would be compiled again for hooks.
        if not self._compiled:
            for name in ("cross_entropy", "linear_cross_entropy"):
                self._mark(ops, name, "loss")
            for path, module in self._net.named_modules():
                part = path.rpartition(".")[2]
                label = "embed" if part == "embedding" else part
                if label in RANGES:
                    self._hook(module, label)

    def _mark(self, owner: Any, name: str, label: str) -> None:
        """Let a function of `owner` be a range until the profile ends."""
        function: Callable[..., Any] = getattr(owner, name)
        had = name in vars(owner)

        @wraps(function)
        def marked(*arguments: Any, **options: Any) -> Any:
            with record_function(label):
                return function(*arguments, **options)

        setattr(owner, name, marked)
        assert self._open is not None
        # A method of the class comes back when the instance's own attribute goes.
        self._open.callback(*((setattr, owner, name, function) if had else (delattr, owner, name)))

    def _hook(self, module: nn.Module, label: str) -> None:
        ranges: list[Any] = []

        def begin(*_: Any) -> None:
            ranges.append(record_function(label))
            ranges[-1].__enter__()

        def end(*_: Any) -> None:
            ranges.pop().__exit__(None, None, None)

        assert self._open is not None
        self._open.callback(module.register_forward_pre_hook(begin).remove)
        self._open.callback(module.register_forward_hook(end, always_call=True).remove)

    def end(self) -> None:
        """End the profile, if one is open, and write its files."""
        if self._open is None:
            return
        self._drop()
        steps = self._taken - self._settings.start
        with self._guard("profile"):
            self._folder.mkdir(exist_ok=True)
            self._profile.export_chrome_trace(str(self._folder / "trace.json"))
            (self._folder / "table.txt").write_text(table(self._profile, steps), encoding="utf-8")
            self.written = self._folder
        self._profile = None

    def _drop(self) -> None:
        """Stop recording, and take every mark off the model and the optimizer."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()


def table(profiled: Any, steps: int) -> str:
    """The named ranges of a profile, then its operations by their own time, and by memory."""
    found = profiled.key_averages()
    gpu = any(event.self_device_time_total for event in found)
    by_name = {event.key: event for event in found}
    lines = [f"{steps} steps. Milliseconds per step of the ranges (a range holds those in it):", ""]
    for name in RANGES:
        if name in by_name:
            event = by_name[name]
            spent = event.device_time_total if gpu else event.cpu_time_total
            lines.append(f"{name:14}{spent / 1000 / steps:10.2f}   {event.count // steps} calls")
    kind = "device" if gpu else "cpu"
    for title, column in (("own time", "time_total"), ("memory", "memory_usage")):
        rows = found.table(sort_by=f"self_{kind}_{column}", row_limit=ROWS)
        lines += ["", f"Operations by {title}:", rows]
    return "\n".join(lines) + "\n"
