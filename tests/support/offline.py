"""Compile every launch of every kernel for GPUs that are not there, and compare with a table.

    make kernels-offline                                   # compile all, compare, 3 minutes
    python -m tests.support.offline --only attention       # those whose name has the word
    python -m tests.support.offline --write                # accept what the compiler says now

The launchers run on CPU tensors with a recorder in the place of each kernel, so what is compiled
is what they would launch. A kernel that spills registers, or that does not fit a multiprocessor,
is an error; so is a difference from `tests/golden/kernels.json`, where the version of triton has
a table there. TRITON_INTERPRET must be unset: it leaves nothing to compile.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature

from tinylm import kernels
from tinylm.kernels.config import Device

GOLDEN = Path(__file__).parents[1] / "golden/kernels.json"
# Per compute capability: the multiprocessors of an H100 and an A100, and the most shared memory
# that a program may have, in bytes. The rows of 8.0 also serve 8.6, 8.9 and 12.0, which have less
# than an A100.
DEVICES = {90: Device((9, 0), 132), 80: Device((8, 0), 108)}
SHARED = {90: 227 * 1024, 80: 99 * 1024}
REGISTERS = 65536
INSTRUCTIONS = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS")
# What the table keeps of a report.
COLUMNS = ("warps", "registers", "shared", "spilled")


class Recorder:
    """Stands for a kernel and keeps the arguments of its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.calls = kernel, []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *values, **named: self.calls.append((values, named))


def compiled(kernel: Any, values: tuple, named: dict[str, Any], capability: int) -> dict[str, Any]:
    """What ptxas says of one launch: registers, bytes spilled, shared memory, instructions."""
    target = GPUTarget("cuda", capability, 32)
    backend = CUDABackend(target)
    # The steps of triton's own launcher up to the point where it needs a GPU.
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*values, **named)
    options, signature, constants, attributes = kernel._pack_args(
        backend, named, bound, specialization, options
    )
    source_of = GluonASTSource if kernel.is_gluon() else ASTSource
    source = source_of(kernel, signature, constants, attributes)
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
        triton.knobs.cache.dir = folder
        built = triton.compile(source, target=target, options=options.__dict__)

    def figure(pattern: str) -> int:
        return int(re.search(pattern, log.getvalue()).group(1))

    ttir = built.asm.get("ttir", "")
    return {
        "warps": built.metadata.num_warps,
        "registers": figure(r"Used (\d+) registers"),
        "spilled": figure(r"(\d+) bytes spill stores"),
        "shared": built.metadata.shared,
        "float64": bool(re.search(r"(add|mul|fma|div|sqrt)\S*\.f64", built.asm["ptx"])),
        "narrow": bool(re.search(r"arith\.muli .*(: |x)i32", ttir)),
        "instructions": instructions(built.asm["cubin"]),
    }


def instructions(cubin: bytes) -> dict[str, int]:
    """How often the machine code has each of `INSTRUCTIONS`."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = subprocess.run(
            [tool, "--dump-sass", file.name], capture_output=True, text=True, check=False
        ).stdout
    counts = {name: len(re.findall(rf"\b{name}", code)) for name in INSTRUCTIONS}
    return {name: count for name, count in counts.items() if count}


@contextlib.contextmanager
def playing(capability: int) -> Iterator[None]:
    """CPU tensors are launched as on a GPU of this compute capability."""
    before, kernels.config.INTERPRETER = kernels.config.INTERPRETER, DEVICES[capability]
    try:
        yield
    finally:
        kernels.config.INTERPRETER = before


def modules() -> list[Any]:
    """The modules of kernels, each with its `every_launch`."""
    return [module for module in vars(kernels).values() if hasattr(module, "every_launch")]


def titles(capability: int) -> list[tuple[str, str]]:
    """Module and title of every launch, without launching any."""
    with playing(capability):
        return [
            (module.__name__.rpartition(".")[2], title)
            for module in modules()
            for title, _ in module.every_launch(DEVICES[capability].capability)
        ]


def reports(task: tuple[int, str, str]) -> dict[str, dict[str, Any]]:
    """Compile the kernels of one launch: a report per kernel, by name and title."""
    capability, module_name, title = task
    module = getattr(kernels, module_name)
    recorders = {
        name: Recorder(value)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
    }
    with playing(capability):
        call = dict(module.every_launch(DEVICES[capability].capability))[title]
        for name, recorder in recorders.items():
            setattr(module, name, recorder)
        try:
            call()
        finally:
            for name, recorder in recorders.items():
                setattr(module, name, recorder.kernel)
    found = {}
    for name, recorder in recorders.items():
        for values, named in recorder.calls:
            found[f"{module_name}.{name} {title}"] = compiled(
                recorder.kernel, values, named, capability
            )
    assert found, f"{module_name} launched nothing for {title}"
    return found


def faults(capability: int, report: dict[str, Any]) -> list[str]:
    """Why a kernel is not fit to ship; empty if it is."""
    found = []
    if report["spilled"]:
        found.append(f"spills {report['spilled']} bytes of registers")
    if report["registers"] * 32 * report["warps"] > REGISTERS:
        found.append(f"needs more than the {REGISTERS} registers of a multiprocessor")
    if report["shared"] > SHARED[capability]:
        found.append(f"needs {report['shared']} bytes of shared memory, over {SHARED[capability]}")
    if report["float64"]:
        found.append("computes in float64")
    if report["narrow"]:
        found.append("multiplies an address in 32 bits")
    return found


def compile_all(
    tasks: list[tuple[int, str, str]], processes: int
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Capability, name and report of every kernel of `tasks`, as they are done."""
    # Spawned: a forked process would share torch's threads.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for task, found in zip(tasks, pool.imap(reports, tasks), strict=True):
            for name, report in found.items():
                yield task[0], name, report


def golden() -> dict[str, Any]:
    """The committed table: version of triton, architecture, kernel to its figures."""
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def write(table: dict[str, Any]) -> None:
    """Replace the committed table; a line per kernel, so that a change shows as one line."""
    text = "{\n"
    for version in sorted(table):
        text += f' "{version}": {{\n'
        for architecture in sorted(table[version]):
            lines = [
                f"   {json.dumps(name)}: {json.dumps(figures)}"
                for name, figures in sorted(table[version][architecture].items())
            ]
            text += f'  "{architecture}": {{\n' + ",\n".join(lines) + "\n  },\n"
        text = text.removesuffix(",\n") + "\n },\n"
    GOLDEN.write_text(text.removesuffix(",\n") + "\n}\n")


def main(arguments: list[str]) -> int:
    """Compile, print a line per kernel, compare or write; return the exit code."""
    parser = argparse.ArgumentParser(description="Compile the kernels without a GPU.")
    parser.add_argument("--only", default="", help="compile the kernels whose name has this word")
    parser.add_argument("--write", action="store_true", help="accept the figures as the table's")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    tasks = [
        (capability, module, title)
        for capability in DEVICES
        for module, title in titles(capability)
        if options.only in f"{module} {title}"
    ]
    table, version, wrong = golden(), triton.__version__, 0
    known, seen = table.get(version, {}), {}
    if not known:
        print(f"{GOLDEN.name} has no table for triton {version}: only faults are looked for")
    for capability, name, report in compile_all(tasks, options.processes):
        architecture = f"sm_{capability}"
        figures = {column: report[column] for column in COLUMNS}
        seen.setdefault(architecture, {})[name] = figures
        problems = faults(capability, report)
        before = known.get(architecture, {}).get(name)
        if known and not options.write and before != figures:
            problems.append(f"differs from the table, which has {before}")
        wrong += bool(problems)
        print(
            f"{architecture}  {name:<64} warps {report['warps']:>2}"
            f"  registers {report['registers']:>3}  shared {report['shared']:>6}"
            f"  {report['instructions']}" + "".join(f"\n    error: it {p}" for p in problems),
            flush=True,
        )
    gone = [
        f"{architecture}  {name}"
        for architecture, names in known.items()
        for name in names.keys() - seen.get(architecture, {}).keys()
        if options.only in name
    ]
    if options.write:
        for architecture, names in seen.items():
            kept = table.setdefault(version, {}).setdefault(architecture, {})
            for name in [name for name in kept if options.only in name]:
                del kept[name]
            kept |= names
        write(table)
    elif gone:
        wrong += len(gone)
        print("error: the table has kernels that are launched no more:", *gone, sep="\n    ")
    total = sum(map(len, seen.values()))
    print(f"{total} kernels by triton {version}, {torch.__version__}: {wrong} at fault")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
