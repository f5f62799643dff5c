"""Compile the kernels for a GPU that is not there: sizes in, a line of JSON per kernel out.

    python -m tests.support.offline 4096 8192

The launchers run on CPU tensors with a recorder in the place of each kernel, so what is compiled
is what they would launch. TRITON_INTERPRET must be unset: it leaves nothing to compile.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from itertools import product

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tinylm import kernels

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Recorder:
    """Stands for a kernel and keeps the arguments of its launches."""

    def __init__(self, kernel):
        self.kernel, self.calls = kernel, []

    def __getitem__(self, grid):
        return lambda *values, **named: self.calls.append((values, named))


def kind(value):
    """The type and the alignment that triton's JIT would see in a runtime argument."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        # The JIT says float32 and Inductor float64, which shows every sum that it would widen.
        return "fp64", False
    return "i32", value % 16 == 0


def compiled(kernel, values, named, capability):
    """What ptxas says of one launch: registers, bytes spilled, shared memory, and the sources."""
    names = kernel.arg_names
    options = {"num_warps": named["num_warps"]}
    runtime = dict(zip(names, values, strict=False))
    constants = {name: named[name] for name in names if name in named}
    # The JIT turns an argument of 1 into a constant.
    constants |= {name: 1 for name, value in runtime.items() if type(value) is int and value == 1}
    signature, aligned = {}, {}
    for position, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name], divisible = kind(runtime[name])
        if divisible:
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
        triton.knobs.cache.dir = folder
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=options)

    def figure(pattern):
        return int(re.search(pattern, log.getvalue()).group(1))

    return {
        "registers": figure(r"Used (\d+) registers"),
        "spilled": figure(r"(\d+) bytes spill stores"),
        "shared": built.metadata.shared,
        "float64": bool(re.search(r"(add|mul|fma|div|sqrt)\S*\.f64", built.asm["ptx"])),
        "narrow": bool(re.search(r"arith\.muli .*(: |x)i32", built.asm["ttir"])),
    }


def launches(module, size, dtype):
    """Each kernel of a module with the arguments of its launch at one size."""
    names = [name for name, value in vars(module).items() if isinstance(value, triton.JITFunction)]
    for name in names:
        setattr(module, name, Recorder(getattr(module, name)))
    module.launch_all(size, dtype)
    for name in names:
        recorder = getattr(module, name)
        setattr(module, name, recorder.kernel)
        for values, named in recorder.calls:
            title = f"{module.__name__.rpartition('.')[2]}.{name}"
            yield title, recorder.kernel, values, named


def main(sizes):
    """Compile every kernel in bfloat16 and float32 for compute capability 9.0."""
    modules = [module for module in vars(kernels).values() if hasattr(module, "launch_all")]
    for module, size in product(modules, map(int, sizes)):
        for dtype in (torch.bfloat16, torch.float32):
            for name, kernel, values, named in launches(module, size, dtype):
                report = compiled(kernel, values, named, 90)
                title = {"kernel": name, "size": size, "dtype": str(dtype).removeprefix("torch.")}
                print(json.dumps(title | {"warps": named["num_warps"]} | report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
