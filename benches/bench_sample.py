"""Reading a prompt and decoding on the CPU, against transformers and llama.cpp in one run.

    python benches/bench_sample.py                       prefill, and decoding of both models
    python benches/bench_sample.py decode --model RUN --threads 2 --rounds 5
    python benches/bench_sample.py large --batches 1 --simd portable

Prefill: 512 tokens through 6 layers of width 384 with a vocabulary of 50,304, up to the logits
that the next token is drawn from. Decode: 128 greedy tokens after 16, of the default run's model
(its shape with random weights, or --model). Large: 24 tokens of a 110M Llama with random weights.
Each in float32, bfloat16 and int8, where "torch" is TinyLM without its native step. llama.cpp reads
the same weights from a GGUF file (int8: Q8_0) and is asked token by token; it needs `pip install
llama-cpp-python gguf`. In float32 all contenders must give the same ids before anything is timed;
of the others the ids that agree are counted. The share is that of the memory bandwidth which a sum
over 256 MB reaches on as many threads, in the same minute.
"""

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from llama import Llama, why_not
from race import OURS, Race, check, measure, report
from torch import Tensor

from tinylm import checkpoint, model, native, quant, sample
from tinylm.config import ModelConfig, SampleConfig
from tinylm.model import Model, inference
from tinylm.sample.engine import Engine
from tinylm.sample.reader import Reader

PREFILL = ModelConfig(vocab_size=50_304, d_model=384, n_heads=6, n_layers=6, context_length=1024)
DEFAULT = ModelConfig(architecture="qwen3", vocab_size=2048, context_length=2048, rope_theta=1e5)
LARGE = ModelConfig(vocab_size=32_000, d_model=768, n_heads=12, n_layers=12, d_ff=2048)
PROMPT, READ = 512, 16
KINDS = ("float32", "bfloat16", "int8")


def built(config: ModelConfig) -> Model:
    """A model with weights that say something: as built, its branches end in zeros."""
    net = model.build(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def twin(net: Model, folder: Path) -> Any:
    """The same model in transformers, by way of a checkpoint."""
    checkpoint.save(folder / "model", net, None)
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def of_kind(net: Model, kind: str) -> Model:
    """A copy of a model with weights of that kind."""
    net = copy.deepcopy(net)
    if kind == "int8":
        quant.quantise(net, quant.Settings(method="int8"))
    return net.bfloat16() if kind == "bfloat16" else net


def in_torch(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same run by the definition, without the native step."""

    def slow(*arguments: Any) -> Any:
        with patch.object(native, "fits", lambda _: False):
            return run(*arguments)

    return slow


def prefill(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """A prompt to the logits after its last token."""
    net = built(PREFILL)
    theirs = twin(net, folder)
    ids = torch.randint(PREFILL.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(2))
    prompt = ids[0].tolist()

    def ours(_: None) -> Tensor:
        with inference(net):
            return Reader(net, [prompt], READ, vocab_size=net.embedding.num_embeddings).last[0]

    def peer(_: None) -> Tensor:
        with torch.inference_mode():
            return theirs(ids, use_cache=True, logits_to_keep=1).logits[0, -1]

    runs = {OURS: ours, "tinylm, torch": in_torch(ours), "transformers, last logits": peer}
    wanted = ours(None)
    for name, run in runs.items():
        check(torch.allclose(run(None), wanted, rtol=0, atol=1e-3), f"logits of {name}")
    yield Race(f"prefill {PROMPT} tokens", PROMPT, "tokens/s", runs, dict.fromkeys(runs, nothing))


def decode(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """The default run's model."""
    net = checkpoint.load(options.model)[0] if options.model else built(DEFAULT)
    yield from races("default model", net, folder, options, new=128)


def large(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """A Llama of 110M parameters."""
    yield from races("110M", built(LARGE), folder, options, new=24)


def races(
    what: str, net: Model, folder: Path, options: argparse.Namespace, *, new: int
) -> Iterator[Race]:
    """Greedy tokens of each kind of weights and each batch, and what a step of ours costs."""
    theirs = twin(net, folder)
    for kind in options.kinds:
        mine = of_kind(net, kind)
        peer = theirs.to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
        llama = None if why_not() else Llama(net, folder / f"{kind}.gguf", kind, options.threads)
        for batch in options.batches:
            generator = torch.Generator().manual_seed(3)
            ids = torch.randint(2000, (batch, READ), generator=generator)
            runs = contenders(mine, peer, llama, ids, kind, new)
            wanted = runs[OURS](None)
            for name, run in runs.items():
                found = run(None)
                same = sum(a == b for a, b in zip(flat(found), flat(wanted), strict=True))
                if kind == "float32":
                    check(same == len(flat(wanted)), f"ids of {name}, {what}, batch {batch}")
                else:
                    print(f"  {same} of {len(flat(wanted))} ids of {name} are ours")
            title = f"{what}, {kind}, batch {batch}: {new} tokens after {READ}"
            fresh = dict.fromkeys(runs, nothing)
            yield Race(title, batch * new, "tokens/s", runs, fresh)
            print(f"  {cost(mine, ids.tolist(), new)}")


def contenders(
    net: Model, peer: Any, llama: Llama | None, ids: Tensor, kind: str, new: int
) -> dict[str, Callable[[Any], Any]]:
    """Who continues the prompts ids [R, T] by `new` greedy tokens."""
    settings = SampleConfig(temperature=0, max_tokens=new)

    def ours(_: None) -> list[list[int]]:
        return sample.generate(net, ids.tolist(), settings)

    def hugging(_: None) -> list[list[int]]:
        with torch.inference_mode():
            found = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new,
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[:, ids.size(1) :].tolist()

    runs: dict[str, Callable[[Any], Any]] = {OURS: ours, "tinylm, torch": in_torch(ours)}
    if kind != "int8":
        runs["transformers"] = hugging
    if llama is not None and len(ids) == 1:
        runs["llama.cpp"] = lambda _: [llama.generate(ids[0].tolist(), new)]
    return runs


def cost(net: Model, prompts: list[list[int]], new: int) -> str:
    """First token, time per token, memory and share of the bandwidth of the native step."""
    step = native.step_for(net)
    assert step is not None
    engine = Engine(net, cache="contiguous", max_batch=len(prompts))
    for prompt in prompts:
        engine.add(prompt, SampleConfig(temperature=0, max_tokens=new))
    times = []
    while engine.live:
        start = time.perf_counter()
        engine.step()
        times.append(1e3 * (time.perf_counter() - start))
    first, rest = times[0], sorted(times[1:])
    middle, late = statistics.median(rest), rest[int(0.99 * len(rest))]
    share = step.bytes / (middle / 1e3) / bandwidth()
    return (
        f"first token {first:.1f} ms, then {middle:.2f} ms (p99 {late:.2f}); weights "
        f"{step.bytes / 1e6:.1f} MB, read at {share:.0%} of the bandwidth"
    )


def bandwidth() -> float:
    """Bytes a second that a sum over 256 MB reads."""
    # NumPy asks for pages of 2 MB, as the native step does; in those of torch the sum is slower.
    numbers = torch.from_numpy(np.ones(2**26, dtype=np.float32))
    speeds = []
    for _ in range(7):
        start = time.perf_counter()
        numbers.sum()
        speeds.append(4 * len(numbers) / (time.perf_counter() - start))
    return statistics.median(speeds)


def flat(rows: list[list[int]]) -> list[int]:
    """All ids in one row."""
    return [id for row in rows for id in row]


def nothing() -> None:
    """There is nothing to make anew between rounds."""


PARTS = {part.__name__: part for part in (prefill, decode, large)}


def main() -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of the default run's checkpoint")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--simd", default="auto", help="instructions of the native step")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    native.Step.__init__.__kwdefaults__["simd"] = options.simd
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, {versions}")
    print(f"llama.cpp: {why_not() or 'yes'}")
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for race in PARTS[name](Path(folder), options):
                report(race, measure(race, options.rounds))


if __name__ == "__main__":
    main()
