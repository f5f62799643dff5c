"""Runs sections one after another in processes of their own, and keeps what they report.

    python -m benches.gpu.runner [--dry] [--budget SECONDS] [--results FOLDER] [SECTION ...]

A row that shows no progress for 20 seconds hangs: its process is killed, the row says "hung", and
a new process goes on with the next row. A process that dies costs only its row, too. Results are
in `benches/results/<card>-<section>.json` as soon as a row is there. If the variable OUT names a
folder, it gets all of them as one file, `<card>.tar`.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from benches.gpu import report
from benches.gpu.job import PATIENCE, Order, label
from benches.gpu.machine import ROOT, gpu_state


class Section(NamedTuple):
    """A module with `cases` or `run`, and the most seconds that it may take."""

    module: str
    seconds: float


HOME = "benches.gpu.sections."
# By importance: a short lease gets the first ones. Machine and ceilings always come before them,
# because every file holds them.
SECTIONS = {
    "tests": Section(HOME + "tests", 140),
    "attention": Section(HOME + "attention", 60),
    "norms": Section(HOME + "norms", 60),
    "loss": Section(HOME + "loss", 60),
    "attention_backward": Section(HOME + "attention_backward", 60),
    "decode": Section(HOME + "decode", 30),
    "products": Section(HOME + "products", 50),
    "step": Section(HOME + "step", 150),
    "generate": Section(HOME + "generate", 90),
    "packed": Section(HOME + "packed", 70),
    "pointwise": Section(HOME + "pointwise", 40),
}
FIRST = Section(HOME + "ceilings", 80)
Row = dict[str, Any]


class Worker:
    """A process of `benches.gpu.worker`; `warm` makes it import torch before it has an order."""

    def __init__(self, dry: bool, warm: bool) -> None:
        environment = dict(os.environ)
        if dry:
            environment["TRITON_INTERPRET"] = "1"
        else:
            # The GPU shall run the kernels, whatever the shell of a developer says.
            environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, "-m", "benches.gpu.worker", *(["--warm"] if warm else [])]
        # A session of its own: the compiler's processes end with it.
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[Row | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def take(self, order: Order) -> None:
        """Let the process begin; one that died while it waited shows in `lines`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order._asdict()) + "\n")
            self.process.stdin.close()

    def kill(self) -> None:
        """End the process and those it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            # The driver has not let go of it yet.
            print("# a killed process is still there", flush=True)
            return
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Runner:
    """One call: its budget, the spare process, what is known of machine and ceilings."""

    def __init__(self, dry: bool, budget: float, folder: Path, spare: bool = True) -> None:
        self.dry, self.folder = dry, folder
        self.end = time.monotonic() + budget
        self.machine: Row = {}
        self.ceilings: dict[str, float] = {}
        self.keeps_spare = spare
        self.spare = Worker(dry, warm=True) if spare else None

    def _worker(self) -> Worker:
        """The spare process; a new spare takes its place unless nothing is left to do."""
        worker = self.spare or Worker(self.dry, warm=False)
        self.spare = Worker(self.dry, warm=True) if self.keeps_spare else None
        return worker

    def close(self) -> None:
        """End the spare process."""
        if self.spare is not None:
            self.spare.kill()
        self.keeps_spare, self.spare = False, None

    def section(self, name: str, section: Section) -> list[Row]:
        """Run a section to its end or to the end of its time, row by row; return its rows."""
        end = min(self.end, time.monotonic() + section.seconds)
        rows: list[Row] = []
        done: list[list[str]] = []
        complete = False
        print(f"# {name}: at most {max(0, end - time.monotonic()):.0f} s", flush=True)
        begun = time.monotonic()
        while not complete and time.monotonic() < end:
            before = len(done)
            worker = self._worker()
            try:
                worker.take(Order(section.module, self.dry, done, self.ceilings))
                complete = self._follow(worker, end, rows, done, name)
            finally:
                worker.kill()
            if not complete and len(done) == before and time.monotonic() < end:
                self._keep(rows, name, {**NOWHERE, "failed": "the process ended before any row"})
                break
        if not complete:
            self._keep(rows, name, {**NOWHERE, "failed": "not finished"})
        self._write(name, rows, complete)
        print(f"# {name}: {time.monotonic() - begun:.0f} s", flush=True)
        return rows

    def _follow(
        self, worker: Worker, end: float, rows: list[Row], done: list[list[str]], name: str
    ) -> bool:
        """Keep a process's rows until it ends or hangs; whether it said that it was through."""
        open_: list[list[str]] = []
        patience: float = 6 * PATIENCE

        def give_up(reason: str) -> bool:
            for key in open_:
                done.append(key)
                self._keep(rows, name, failed(key, reason))
            return False

        while True:
            wait = min(patience, end - time.monotonic())
            try:
                line = worker.lines.get(timeout=max(0.0, wait))
            except queue.Empty:
                if time.monotonic() >= end:
                    return False
                return give_up(f"hung: no progress for {patience:g} s")
            if line is None:
                return give_up(f"the process died, exit code {worker.process.wait()}")
            patience = line.get("patience", patience)
            if "begin" in line:
                open_.append(line["begin"])
            if "close" in line:
                open_.remove(line["close"])
            if "row" in line:
                row = line["row"]
                done.append([row["family"], label(row["at"]), row["name"]])
                if done[-1] in open_:
                    open_.remove(done[-1])
                self._keep(rows, name, row)
            if "end" in line:
                return True

    def _keep(self, rows: list[Row], name: str, row: Row) -> None:
        """Add a row, print it and write the file anew."""
        rows.append(row)
        if row["family"] == "machine":
            self.machine |= {k: v for k, v in row.items() if k not in ("family", "at", "name")}
            self.machine |= gpu_state()
        if name == "ceilings":
            for unit in {"gbps", "tflops"} & row.keys():
                self.ceilings[unit] = max(self.ceilings.get(unit, 0.0), row[unit])
        print(report.line(row, rows), flush=True)
        self._write(name, rows, False)

    def _write(self, name: str, rows: list[Row], complete: bool) -> None:
        """The file of a section, replaced as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.machine.get('card', 'unknown')}-{name}.json"
        head = {"section": name, "complete": complete, "machine": self.machine}
        text = json.dumps(head | {"ceilings": self.ceilings}, indent=1).removesuffix("\n}")
        # A line per row: a file that is committed again shows what changed.
        text += ',\n "rows": [\n' + ",\n".join("  " + json.dumps(row) for row in rows) + "\n ]\n}\n"
        fresh = path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)

    def run(self, names: list[str]) -> dict[str, list[Row]]:
        """The ceilings and then `names`, as far as the budget goes."""
        found: dict[str, list[Row]] = {}
        try:
            for name in ("ceilings", *names):
                if time.monotonic() >= self.end:
                    print(f"# {name}: no time left", flush=True)
                    continue
                self.keeps_spare = self.keeps_spare and name != names[-1]
                found[name] = self.section(name, FIRST if name == "ceilings" else SECTIONS[name])
                self._after(name)
        finally:
            self.close()
        return found

    def _after(self, name: str) -> None:
        """Say how hot the card is, and pack the results for a machine that gives one file back."""
        state = gpu_state()
        if state:
            print(f"# after {name}: {state}", flush=True)
        if os.environ.get("OUT"):
            card = self.machine.get("card", "unknown")
            with tarfile.open(Path(os.environ["OUT"]) / f"{card}.tar", "w") as tar:
                for path in sorted(self.folder.glob(f"{card}-*.json")):
                    tar.add(path, path.name)


NOWHERE: Row = {"family": "section", "at": {}, "name": "section"}


def failed(begun: list[str], reason: str) -> Row:
    """A row for something that was begun and never reported."""
    family, sizes, name = begun
    at = dict(pair.split("=", 1) for pair in sizes.split())
    numbers = {k: int(v) if v.isdigit() else v for k, v in at.items()}
    return {"family": family, "at": numbers, "name": name, "failed": reason}


def main(arguments: list[str]) -> int:
    """Run the sections named, or all; return 1 if a gate or a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=" ".join(SECTIONS))
    parser.add_argument("--dry", action="store_true", help="tiny shapes, without a GPU")
    parser.add_argument("--budget", type=float, default=540, help="seconds (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="default: benches/results")
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if options.dry and options.results is None:
        parser.error("--dry needs --results FOLDER: its figures mean nothing")
    # Terminated, it must end its processes as Ctrl-C does: one that hangs would hold the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = options.results or ROOT / "benches/results"
    found = Runner(options.dry, options.budget, folder).run(options.sections or list(SECTIONS))
    rows = [row for some in found.values() for row in some]
    broken = [row for row in rows if "failed" in row]
    # What another project's kernel cannot do is no fault of ours.
    faults = [row for row in broken if report.ours(row) or row["name"] in report.NO_CONTENDER]
    faults += [row for row in broken if row["family"] == "test"]
    print(
        f"# {len(rows)} rows, {len(faults)} of ours failed, {len(broken) - len(faults)} of others"
    )
    for row in broken:
        print(report.line(row, []))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
