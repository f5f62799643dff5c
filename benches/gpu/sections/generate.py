"""Decoding with GPT-2's smallest shape: a prompt is held, and 64 tokens follow it.

The choice of each token is part of what is timed, and so is the transfer of the ids to the host.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benches.gpu.case import Case, Contest, Missing, Patient, Place
from benches.gpu.job import LONG_PATIENCE
from benches.gpu.sections.step import SHAPE, TINY
from tinylm import cache
from tinylm.config import ModelConfig
from tinylm.model import Model, build, inference
from tinylm.sample.forward import Forward
from tinylm.sample.replay import Replay

PROMPT, TOKENS, STEPS, ROOM = 128, 64, 16, 1024


def cases(place: Place) -> Iterator[Case]:
    """One text, and 32 together."""
    for rows in place.sized((1, 32), (2,)):
        prompt, tokens = place.sized((PROMPT, TOKENS), (3, 2))
        at = {"rows": rows, "prompt": prompt, "tokens": tokens}
        yield Case("generate", at, lambda b=rows, p=prompt, n=tokens: generate(place, b, p, n))


def model_of(place: Place, dtype: torch.dtype) -> Model:
    """GPT-2's shape, with weights that all matter: it would begin with branches of zero."""
    shape: dict[str, Any] = place.sized(SHAPE, TINY)
    length = place.sized(ROOM, 8)
    model = build(ModelConfig(architecture="gpt2", context_length=length, **shape))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.to(place.device, dtype)


class Text:
    """A model that holds a prompt; each call grows it by `tokens` and takes them back.

    The model and what decodes it are made at the first call. Returns the ids [tokens, R].
    """

    def __init__(
        self,
        place: Place,
        prompt: Tensor,
        tokens: int,
        make: "Callable[[Text], Callable[[list[int]], list[list[int]]]]",
        *,
        fixed: bool = True,
    ) -> None:
        self.place, self.prompt, self.tokens = place, prompt, tokens
        self.make, self.fixed = make, fixed
        self.grow: Callable[[list[int]], list[list[int]]] | None = None

    def __call__(self) -> Tensor:
        if self.grow is None:
            self.model = model_of(self.place, torch.bfloat16)
            self.forward = Forward(self.model, vocab_size=self.model.config.vocab_size)
        with inference(self.model):
            if self.grow is None:
                room = self.model.context_length
                self.cache = cache.build(self.model, len(self.prompt), room, fixed=self.fixed)
                self.model(self.prompt[:, :-1], cache=self.cache)
                self.grow = self.make(self)
            newest, found = self.prompt[:, -1].tolist(), []
            while len(found) < self.tokens:
                found += self.grow(newest)
                newest = found[-1]
            self.cache.truncate(torch.full((len(self.prompt),), self.prompt.size(1) - 1))
        return torch.tensor(found)


def replayed(text: Text, compiled: bool) -> Callable[[list[int]], list[list[int]]]:
    """Several steps per call of the host."""
    ways = {"compiled": text.place.compiled} if compiled else {}
    replay = Replay(text.forward, text.cache, steps=text.place.sized(STEPS, 2), **ways)
    return lambda newest: replay(newest)[0]


def eager(text: Text) -> Callable[[list[int]], list[list[int]]]:
    """Our own loop: every operation is launched, and every id is waited for."""

    def step(newest: list[int]) -> list[list[int]]:
        return [text.forward.last([[id] for id in newest], text.cache).argmax(-1).tolist()]

    return step


def reduced(text: Text) -> Callable[[list[int]], list[list[int]]]:
    """A step with the choice inside, compiled for little overhead, as gpt-fast has it."""
    model, held = text.model, text.cache

    def step(tokens: Tensor, context: Any) -> Tensor:
        return model.head(model.hidden(model.embed(tokens), context)[:, -1]).argmax(-1)

    if text.place.dry:
        compiled = torch.compile(step, dynamic=False, backend="eager")
    else:
        for buffer in (*held.k, *held.v):
            torch._dynamo.mark_static_address(buffer)
        compiled = torch.compile(step, dynamic=False, mode="reduce-overhead")

    def call(newest: list[int]) -> list[list[int]]:
        tokens = torch.tensor(newest, device=text.place.device)[:, None]
        ids: list[int] = compiled(tokens, model.context(1, cache=held, tokens=tokens)).tolist()
        held.advance(1)
        return [ids]

    return call


def shares(place: Place, prompt: Tensor, ids: Tensor) -> Tensor:
    """How likely each id is beside the likeliest, by the model in float32, read at once.

    The choice between two tokens that are nearly equal falls by rounding: so 1 or little less is
    right, and an id by a wrong cache is not near it.
    """
    exact = model_of(place, torch.float32)
    text = torch.cat((prompt, ids.T.to(prompt.device)), 1)
    with inference(exact):
        logits = exact(text[:, :-1])[:, prompt.size(1) - 1 :]
    chosen = logits.gather(-1, text[:, prompt.size(1) :, None]).squeeze(-1)
    return (chosen - logits.amax(-1)).exp()


def generate(place: Place, rows: int, length: int, tokens: int) -> Contest:
    """Greedy, from a random prompt."""
    words = place.sized(SHAPE, TINY)["vocab_size"]
    prompt = torch.randint(0, words, (rows, length), device=place.device)

    def text(make: Any, **ways: Any) -> Text:
        return Text(place, prompt, tokens, make, **ways)

    contenders: dict[str, Callable[[], Any] | Missing] = {
        "tinylm": text(lambda own: replayed(own, compiled=False)),
        "tinylm compiled": Patient(text(lambda own: replayed(own, compiled=True)), LONG_PATIENCE),
        "eager loop": text(eager, fixed=False),
        "torch.compile reduce-overhead": Patient(text(reduced), LONG_PATIENCE),
    }
    weights = sum(p.numel() for p in model_of(place, torch.bfloat16).parameters())
    return Contest(
        contenders,
        lambda: torch.ones(rows, tokens),
        5e-2,
        pick=lambda ids: shares(place, prompt, ids).cpu(),
        bytes=2 * weights * tokens,
        tokens=rows * tokens,
    )
