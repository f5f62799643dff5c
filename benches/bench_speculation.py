"""Speculation against plain decoding, and against transformers' own, with the same weights.

    python -m tinylm.train stdlib model.n_layers=12 model.exits=true out=runs/deep
    python -m tinylm.train stdlib model.n_layers=2 out=runs/small
    export OMP_NUM_THREADS=1
    python benches/bench_speculation.py model runs/deep runs/small
    python benches/bench_speculation.py skip runs/deep 2
    python benches/bench_speculation.py early runs/deep 2
    python benches/bench_speculation.py lookup runs/stdlib

Each part decodes the same prompts, one at a time. `model` and `skip` go on with the beginnings of
modules of the standard library, greedily and at temperature 1. `lookup` goes on with a text that is
there twice and begins a third time, greedily. Peers: transformers' `generate`, plain, with
`assistant_model` or with `prompt_lookup_num_tokens`. Before anything is timed, the greedy ids of
every contender must be equal. Speeds are in tokens per second of processor time, of one thread, so
that other work on the machine counts little; the ratios are to our plain decoding in the same
round, of whole calls and of decoding alone, which is what a call takes beyond one for one token.
`early` is no speculation: its ids may differ, and how many are equal is printed.
"""

import argparse
import inspect
import json.decoder
import os
import platform
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from race import check, middle_half

from tinylm import Tokenizer, checkpoint, sample
from tinylm.config import SampleConfig
from tinylm.model import Model
from tinylm.sample.drafts import ExitDraft, ModelDraft
from tinylm.sample.exits import EarlyExit
from tinylm.sample.guesses import Ahead, Draft
from tinylm.sample.lookup import LookupDraft
from tinylm.sample.stats import Stats

NEW, PLAIN = 96, "tinylm, plain"
MODULES = (argparse, inspect, json.decoder, textwrap)
Ids = list[list[int]]


def prompts(tokenizer: Tokenizer, copies: int) -> Ids:
    """Texts of 96 tokens, one of each module; or of `copies` and a third of such a text."""
    found = []
    for module in MODULES:
        # Past the words about a license and the imports, which all modules share.
        text = inspect.getsource(module)[2000:6000]
        ids = tokenizer.encode(text)[:96]
        found.append(ids * copies + ids[: 32 if copies > 1 else 0])
    return found


def ours(
    net: Model, texts: Ids, config: SampleConfig, draft: Ahead | None = None
) -> Callable[[int], Ids]:
    """Our decoding of all texts, one at a time, by so many tokens."""

    def run(tokens: int) -> Ids:
        given = replace(config, max_tokens=tokens)
        return [sample.generate(net, [text], given, draft=draft)[0] for text in texts]

    return run


def theirs(net: Any, texts: Ids, **options: Any) -> Callable[[int], Ids]:
    """transformers' greedy decoding of all texts, one at a time, by so many tokens."""

    def run(tokens: int) -> Ids:
        found = []
        for text in texts:
            ids = torch.tensor([text])
            with torch.inference_mode():
                out = net.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    **options,
                )
            found.append(out[0, len(text) :].tolist())
        return found

    return run


def twin(net: Model, folder: Path) -> Any:
    """The same model in transformers, by way of a checkpoint."""
    checkpoint.save(folder, net, None)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def race(
    name: str,
    net: Model,
    texts: Ids,
    draft: Draft,
    peers: dict[str, Callable[[int], Ids]],
    rounds: int,
    temperature: float = 0,
) -> None:
    """Check that all contenders give the same ids, and print their speeds."""
    config = SampleConfig(temperature=temperature, max_tokens=NEW)
    counts = [3, 7, 15] if isinstance(draft, LookupDraft) else [1, 2, 4]
    settings = {"tinylm, guesses": config}
    settings |= {f"tinylm, {n} guesses": replace(config, draft_tokens=n) for n in counts}
    runs = {PLAIN: ours(net, texts, config)}
    runs |= {who: ours(net, texts, given, draft) for who, given in settings.items()}
    if temperature == 0:
        runs |= peers
        wanted = runs[PLAIN](NEW)
        for who, run in runs.items():
            check(run(NEW) == wanted, f"ids of {who}")
    print(f"\n{name}")
    for who, words in timed(runs, rounds).items():
        kept = stats(net, texts, settings[who], draft) if who in settings else ""
        print(f"  {who:<34} {words}  {kept}", flush=True)


def timed(runs: dict[str, Callable[[int], Ids]], rounds: int) -> dict[str, str]:
    """Race the contenders, the first of which is our plain decoding, and describe their speeds."""
    found: dict[str, list[tuple[float, float]]] = {who: [] for who in runs}
    texts = len(runs[PLAIN](1))
    for _ in range(rounds):
        for who, run in runs.items():
            seconds = []
            for tokens in (1, NEW):
                start = time.process_time()
                run(tokens)
                seconds.append(time.process_time() - start)
            found[who].append((seconds[1], seconds[1] - seconds[0]))
    words = {}
    for who, times in found.items():
        pairs = [*zip(times, found[PLAIN], strict=True)]
        whole = statistics.median(plain[0] / mine[0] for mine, plain in pairs)
        ratios = [plain[1] / mine[1] for mine, plain in pairs]
        low, high = middle_half(ratios)
        speed = (NEW - 1) * texts / statistics.median(alone for _, alone in times)
        words[who] = (
            f"{speed:8.1f} tokens/s decoding {statistics.median(ratios):5.2f}x ({low:.2f} to "
            f"{high:.2f}), whole calls {whole:5.2f}x"
        )
    return words


def stats(net: Model, texts: Ids, config: SampleConfig, draft: Draft) -> str:
    """How many guesses are kept."""
    found = Stats()
    for text in texts:
        sample.generate(net, [text], config, draft=draft, stats=found)
    return f"{found.acceptance:.0%} of guesses kept, {found.tokens_per_pass:.2f} tokens per pass"


def load(folder: str) -> tuple[Model, Tokenizer]:
    """A run's model in float32 and its tokenizer."""
    net, tokenizer = checkpoint.load(folder)
    assert tokenizer is not None
    return net.float(), tokenizer


def model(options: Sequence[str], rounds: int) -> None:
    """A small model drafts for a large one."""
    (net, tokenizer), (small, _) = map(load, options)
    with tempfile.TemporaryDirectory() as folder:
        large, assistant = twin(net, Path(folder, "a")), twin(small, Path(folder, "b"))
    texts = prompts(tokenizer, 1)
    peers = {
        "transformers": theirs(large, texts),
        "transformers, assistant_model": theirs(large, texts, assistant_model=assistant),
    }
    name = f"{small.config.n_layers} blocks draft for {net.config.n_layers}"
    race(f"{name}, greedy", net, texts, ModelDraft(small), peers, rounds)
    race(f"{name}, temperature 1", net, texts, ModelDraft(small), {}, rounds, 1.0)


def skip(options: Sequence[str], rounds: int) -> None:
    """The first blocks draft for all."""
    net, tokenizer = load(options[0])
    draft, texts = ExitDraft(int(options[1])), prompts(tokenizer, 1)
    name = f"the first {draft.layers} blocks draft for {net.config.n_layers}"
    race(f"{name}, greedy", net, texts, draft, {}, rounds)
    race(f"{name}, temperature 1", net, texts, draft, {}, rounds, 1.0)


def early(options: Sequence[str], rounds: int) -> None:
    """Tokens of which the first blocks are sure are taken from there."""
    net, tokenizer = load(options[0])
    texts, layers = prompts(tokenizer, 1), int(options[1])
    for temperature in (0.0, 1.0):
        config = SampleConfig(temperature=temperature, max_tokens=NEW)
        runs = {PLAIN: ours(net, texts, config)}
        drafts = {f"confidence {least}": EarlyExit(layers, least) for least in (0.5, 0.8, 0.95)}
        runs |= {who: ours(net, texts, config, draft) for who, draft in drafts.items()}
        wanted = runs[PLAIN](NEW)
        print(f"\nexit after {layers} of {net.config.n_layers} blocks, temperature {temperature}")
        for who, words in timed(runs, rounds).items():
            pairs = zip(chain(*runs[who](NEW)), chain(*wanted), strict=True)
            same = sum(a == b for a, b in pairs) / (NEW * len(texts))
            found = Stats()
            if who in drafts:
                for text in texts:
                    sample.generate(net, [text], config, draft=drafts[who], stats=found)
            print(f"  {who:<34} {words}  {found.acceptance:.0%} early, {same:.0%} of ids the same")


def lookup(options: Sequence[str], rounds: int) -> None:
    """A text that is there twice goes on."""
    net, tokenizer = load(options[0])
    with tempfile.TemporaryDirectory() as folder:
        large = twin(net, Path(folder, "a"))
    texts = prompts(tokenizer, 2)
    peers = {
        "transformers": theirs(large, texts),
        "transformers, prompt lookup of 10": theirs(large, texts, prompt_lookup_num_tokens=10),
    }
    race("copied guesses, greedy", net, texts, LookupDraft(), peers, rounds)


PARTS = {part.__name__: part for part in (model, skip, early, lookup)}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("options", nargs="+", metavar="RUN", help="its runs, and N for skip")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    if torch.get_num_threads() != 1:
        parser.error("set OMP_NUM_THREADS=1: the time of several threads would be their sum")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {cores}, {versions}")
    PARTS[options.part](options.options, options.rounds)


if __name__ == "__main__":
    main()
