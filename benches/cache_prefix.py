"""What blocks save: the time to the first token of a known beginning, and memory that stays empty.

Two sections of `bench_cache.py`. prefix: a prompt of 512 known tokens and 32 new ones, up to the
logits that its first token is drawn from, through 6 layers of width 384 with a vocabulary of 2,048.
The blocks of the known ones are in the cache, of a row that has ended; natively and in torch.
waste: 256 requests of 100 to 1,024 tokens in and out, all from step 0 on; the share of their places
in which no token is.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_sample import built, twin
from race import OURS, Race, check, measure, report
from torch import Tensor

from tinylm import cache
from tinylm.cache.blocks import Blocks
from tinylm.config import ModelConfig
from tinylm.model import inference
from tinylm.sample.forward import Forward, make_cache

SHAPE = ModelConfig(vocab_size=2048, d_model=384, n_heads=6, n_layers=6, context_length=1024)
KNOWN, NEW = 512, 32
REQUESTS, LEAST, MOST = 256, 100, 1024


def prefix(rounds: int) -> None:
    """A known beginning against reading it: in blocks, in one buffer, and in transformers."""
    net = built(SHAPE)
    forward = Forward(net, vocab_size=SHAPE.vocab_size)
    generator = torch.Generator().manual_seed(2)
    known, *ends = (
        torch.randint(SHAPE.vocab_size, (1, n), generator=generator) for n in (KNOWN, *[NEW] * 99)
    )
    size, budget = KNOWN + NEW, KNOWN + 4 * NEW
    # As the sampler has it, natively where the model fits, and in torch.
    held = make_cache(net, 1, size, "paged", tokens=budget)
    in_torch = cache.build(net, 1, size, "paged", tokens=budget)
    turn = iter(ends)

    def first(held: cache.Base, ids: Tensor) -> Tensor:
        """The logits after `ids`, of which the cache may have a beginning."""
        with inference(net):
            held.clear()
            found = held.match(0, ids[0].tolist())
            return forward.last([ids[0, found:].tolist()], held)[0]

    for each in (held, in_torch):
        with inference(net):
            forward.last(known.tolist(), each)
        each.note(0, known[0].tolist())
        check(each.needed_for(KNOWN) * cache.PAGE == KNOWN, "whole blocks")
    plain = make_cache(net, 1, size)
    ids = torch.cat((known, ends[0]), 1)
    with tempfile.TemporaryDirectory() as folder:
        theirs = twin(net, Path(folder))

        def peer(ids: Tensor) -> Tensor:
            with torch.inference_mode():
                return Tensor(theirs(ids, use_cache=True, logits_to_keep=1).logits[0, -1])

        def fresh() -> Tensor:
            """Another end each time: only the known tokens are found."""
            return torch.cat((known, next(turn)), 1)

        runs: dict[str, Any] = {
            OURS: lambda ids: first(held, ids),
            "tinylm, nothing known": lambda ids: first(plain, ids),
            "torch": lambda ids: first(in_torch, ids),
            "torch, nothing known": lambda ids: first(cache.build(net, 1, size), ids),
            "transformers": peer,
        }
        for name, run in runs.items():
            check(torch.allclose(run(ids), peer(ids), rtol=0, atol=1e-3), f"logits of {name}")
        for each in (held, in_torch):
            stats = each.stats()
            check((stats.asked, stats.found) == (size, KNOWN), "the known tokens were found")
        race = Race(f"first token after {KNOWN} known and {NEW} new", 1, "a second", runs, {})
        race.fresh.update(dict.fromkeys(runs, fresh))
        report(race, measure(race, rounds))


def waste() -> None:
    """The share of places without a token, over all steps of all requests."""
    print("| storage | waste |")
    print("|---|---|")
    for page in (16, 32, 64, 2 * MOST):
        name = f"blocks of {page}" if page < MOST else f"one buffer of {page}"
        print(f"| {name} | {wasted(page):.2%} |")


def wasted(page: int) -> float:
    """Empty places of all, added over the steps; a request that has ended has none."""
    draw = random.Random(0)
    blocks = Blocks(REQUESTS * (2 * MOST // page), page)
    rows = [(draw.randint(LEAST, MOST), draw.randint(LEAST, MOST), []) for _ in range(REQUESTS)]
    empty = places = 0
    for step in range(MOST + 1):
        for prompt, new, own in rows:
            while step == new and own:
                blocks.release(own.pop())
            while step < new and len(own) * page < prompt + step:
                own.append(blocks.take())
            places += len(own) * page
            empty += len(own) * page - (prompt + step if own else 0)
    check(blocks.free == blocks.total, "all blocks came back")
    return empty / places
