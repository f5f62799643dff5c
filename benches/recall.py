"""A task that needs a certain token: facts, filler, then a question about one of the facts.

    BOS  key v1 v2  key v1 v2  ... (6 facts)  filler (24)  key   ->   v1 v2

The prompt of 44 tokens is read, and gives v1, whatever happens to the cache afterwards. v1 is read
next, and v2 must then come from what the cache has kept: 3% by chance. Two layers, whose heads
start as ones that copy (`model.start=copying`), learn it in 150 steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinylm import cache, model
from tinylm.config import ModelConfig
from tinylm.model import Model, inference
from tinylm.ops import IGNORED

KEYS = VALUES = 32
FILLERS, FACTS, FILLER = 16, 6, 24
PROMPT = 1 + 3 * FACTS + FILLER + 1
CONFIG = ModelConfig(
    vocab_size=1 + KEYS + VALUES + FILLERS,
    architecture="qwen3",
    d_model=64,
    n_layers=2,
    n_heads=2,
    start="copying",
    context_length=PROMPT + 3 * FACTS,
)
STEPS, ROWS, RATE = 150, 32, 3e-3


@dataclass(frozen=True)
class Questions:
    """Prompts [N, PROMPT] and what follows them [N, 2]."""

    prompts: Tensor
    answers: Tensor


def texts(rows: int, generator: torch.Generator) -> Tensor:
    """Facts, filler, and every fact again in another order [rows, PROMPT - 1 + 3 FACTS]."""

    def some(count: int, below: int, first: int) -> Tensor:
        return first + torch.randint(below, (rows, count), generator=generator)

    keys = 1 + torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :FACTS]
    values = some(2 * FACTS, VALUES, 1 + KEYS).view(rows, FACTS, 2)
    facts = torch.cat((keys[..., None], values), 2)
    order = torch.rand(rows, FACTS, generator=generator).argsort(1)
    asked = facts.gather(1, order[..., None].expand_as(facts))
    begin = torch.zeros(rows, 1, dtype=torch.int64)
    filler = some(FILLER, FILLERS, 1 + KEYS + VALUES)
    return torch.cat((begin, facts.flatten(1), filler, asked.flatten(1)), 1)


def questions(count: int, seed: int) -> Questions:
    """Questions that training has not seen: another generator, of 10^16 texts."""
    rows = texts(count, torch.Generator().manual_seed(10**6 + seed))
    return Questions(rows[:, :PROMPT], rows[:, PROMPT : PROMPT + 2])


def trained(seed: int, steps: int = STEPS) -> Model:
    """A model that has learned the task; AdamW with a linear decay."""
    net = model.build(CONFIG, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        rows = texts(ROWS, generator)
        targets = rows[:, 1:].clone()
        # The answers alone: keys and filler are drawn by chance.
        targets[:, : PROMPT - 1] = IGNORED
        targets[:, PROMPT + 1 :: 3] = IGNORED
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, 1 - step / steps)
        optimizer.zero_grad()
        net.loss(rows[:, :-1], targets).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def found(net: Model, asked: Questions, kind: str, **options: Any) -> float:
    """The share of the second values that the model names after the cache was cut."""
    with inference(net):
        held = cache.build(net, len(asked.prompts), PROMPT + 1, kind=kind, **options)
        net(asked.prompts, cache=held)
        logits = net(asked.answers[:, :1], cache=held)[:, -1]
    return (logits.argmax(-1) == asked.answers[:, 1]).double().mean().item()
