"""Several tokens per call of the host: steps of decoding that a GPU repeats from a CUDA graph.

A step of a small model is a few hundred kernels of a few microseconds, and launching them takes the
host longer than running them takes the GPU. A graph is launched as a whole. It holds the choice of
each token as well, so the next step need not wait for the host, which gets the ids of all steps in
one transfer.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm import cache, device
from tinylm.cache.contiguous import Contiguous
from tinylm.config import SampleConfig
from tinylm.context import Context
from tinylm.model import Model
from tinylm.sample.forward import Forward
from tinylm.sample.logits import draw, greedy, temperature, uniforms
from tinylm.sample.reader import Reader

# Steps of a graph, and those that run before it is recorded: the first ones allocate, compile
# kernels and choose algorithms. Neither number was measured, for no GPU was at hand.
STEPS, WARM_UPS = 16, 2
# Rows that grow together, and the fewest new tokens that are worth a graph: recording one takes as
# long as STEPS + WARM_UPS steps that are launched one by one.
ROWS, FEWEST = 64, 4 * STEPS
# Settings that do not change which token a row of logits gives.
FREE = ("samples", "max_tokens", "temperature", "stop", "heal", "bos", "seed")
Step = Callable[[Tensor, Context], Tensor]


class Replay:
    """Grows every row of `cache` by `steps` tokens per call, without penalties and filters.

    The cache is contiguous with `fixed` shapes and holds each text but for its newest token. On a
    GPU the first call records the graph; elsewhere each call runs the same steps one by one, which
    is what the tests compare. `compiled` wraps a step, (tokens [R, 1], context) to logits [R, V],
    as `torch.compile` does. Made and used inside `model.inference`.
    """

    def __init__(
        self,
        forward: Forward,
        cache: Contiguous,
        *,
        temperature: float = 0.0,
        steps: int = STEPS,
        compiled: Callable[[Step], Step] = lambda step: step,
    ) -> None:
        if not cache.fixed:
            raise ValueError("the cache has changing shapes: build it with fixed=True")
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        self.forward, self.cache = forward, cache
        self.temperature, self.steps = temperature, steps
        home, rows = cache.device, len(cache.ends)
        self.missing = forward.missing.to(home)
        self.step = compiled(self._step)
        # What a graph reads and writes stays where it is.
        ints: dict[str, Any] = {"dtype": torch.int64, "device": home}
        self.tokens, self.lengths = torch.zeros(rows, **ints), torch.zeros(rows, **ints)
        self.numbers = torch.zeros(steps, rows, dtype=torch.float64, device=home)
        # A last row says whose logits were all finite.
        self.ids = torch.zeros(steps + 1, rows, **ints)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self, tokens: Sequence[int], numbers: Tensor | None = None
    ) -> tuple[list[list[int]], list[bool]]:
        """Read the newest token of each row, and draw `steps` more: their ids [steps][R].

        `numbers` [steps, R] float64 in [0, 1) are the random numbers of the draws; a temperature of
        0 needs none. The second list says whether all logits of a row were finite: if not, its ids
        mean nothing. The newest id of each row is not read yet. Raises `ValueError` where the steps
        do not fit the cache or the context.
        """
        cache, limit = self.cache, self.forward.model.context_length
        if cache.longest + self.steps > limit:
            raise ValueError(
                f"{cache.longest} + {self.steps} tokens pass the context length, {limit}"
            )
        cache.reserve(self.steps)
        self.tokens.copy_(torch.tensor(tokens))
        if numbers is not None:
            self.numbers.copy_(numbers)
        self.lengths.copy_(cache.lengths)
        if self.tokens.is_cuda:
            if self.graph is None:
                self.graph = self._recorded()
            self.graph.replay()
            # Recording counts on the host; replaying cannot.
            self._counted([end + self.steps for end in cache.ends])
        else:
            cache.lengths = self.lengths
            self._run(self.steps)
        # A copy: what follows may read the cache in another way, and the next call writes here.
        cache.lengths = self.lengths.clone()
        *ids, finite = self.ids.tolist()
        return ids, [bool(row) for row in finite]

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """A graph of the steps; nothing of the cache's texts has changed afterwards."""
        ends, lengths, tokens = self.cache.ends, self.lengths.clone(), self.tokens.clone()

        def again() -> None:
            # The keys that a run has stored are behind the lengths, and are written anew.
            self._counted(ends)
            self.lengths.copy_(lengths)
            self.tokens.copy_(tokens)
            self.cache.lengths = self.lengths

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                again()
                self._run(1)
        torch.cuda.current_stream().wait_stream(side)
        again()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run(self.steps)
        self._counted(ends)
        return graph

    def _counted(self, ends: Sequence[int]) -> None:
        """Set the host's lengths alone."""
        cache = self.cache
        cache.ends, cache.longest = [*ends], max(ends, default=0)

    def _run(self, steps: int) -> None:
        """So many steps: from what is fixed into what is fixed, and no question to the device."""
        cache, model = self.cache, self.forward.model
        tokens, finite = self.tokens, torch.ones_like(self.tokens, dtype=torch.bool)
        for at in range(steps):
            given = tokens[:, None]
            logits = self.step(given, model.context(1, cache=cache, tokens=given))
            cache.advance(1)
            # The largest of a row with NaN is NaN.
            finite = finite & logits.amax(-1).isfinite()
            tokens = self.choose(logits, self.numbers[at])
            self.ids[at].copy_(tokens)
        self.ids[-1].copy_(finite)
        self.tokens.copy_(tokens)
        self.lengths.copy_(cache.lengths)

    def _step(self, tokens: Tensor, context: Context) -> Tensor:
        model = self.forward.model
        return self.forward.logits(model.hidden(model.embed(tokens), context)[:, -1])

    def choose(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The id of each row of logits [R, V], by its number [R]."""
        if len(self.missing):
            logits = logits.index_fill(-1, self.missing, -torch.inf)
        if self.temperature == 0:
            return greedy(logits)
        return draw(temperature(logits, self.temperature), numbers)


def serves(model: Model, prompts: Sequence[Sequence[int]], config: SampleConfig) -> bool:
    """Whether `generate` can continue these prompts, and recording a graph is worth it."""
    default = SampleConfig()
    changed = {name for name in vars(config) if getattr(config, name) != getattr(default, name)}
    longest = max(map(len, prompts)) + config.max_tokens
    fits = longest + STEPS <= model.context_length and config.max_tokens >= FEWEST
    return model.weight.is_cuda and fits and changed <= {*FREE}


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    *,
    stops: Collection[int],
    vocab_size: int,
    missing: Sequence[int] = (),
) -> list[list[int]]:
    """Prompts as ids to `config.samples` continuations of each, as `sample.generate`.

    Used inside `model.inference`, where `serves` says so. `ValueError` where the model's logits are
    not numbers.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    places = [(i, sample) for i in order for sample in range(config.samples)]
    found: dict[tuple[int, int], list[int]] = {}
    for start in range(0, len(places), ROWS):
        some = places[start : start + ROWS]
        used = [*dict.fromkeys(prompt for prompt, _ in some)]
        reader = Reader(
            model,
            [prompts[i] for i in used],
            config.max_tokens + STEPS,
            vocab_size=vocab_size,
            missing=missing,
            build=partial(cache.build, fixed=True),
        )
        reader.keep([used.index(prompt) for prompt, _ in some])
        found |= zip(some, _grown(reader, some, config, stops), strict=True)
    return [found[i, sample] for i in range(len(prompts)) for sample in range(config.samples)]


def _grown(
    reader: Reader,
    places: Sequence[tuple[int, int]],
    config: SampleConfig,
    stops: Collection[int],
) -> list[list[int]]:
    """The continuations of the texts that `reader` has read."""
    assert isinstance(reader.cache, Contiguous)
    replay = Replay(reader.forward, reader.cache, temperature=config.temperature, steps=STEPS)
    numbers = torch.from_numpy(
        np.stack([uniforms(config.seed, *place, 0, config.max_tokens + STEPS) for place in places])
    ).T.to(replay.numbers.device)
    tokens: list[int] = replay.choose(reader.last, numbers[0]).tolist()
    texts = [[token] for token in tokens]
    at = 1
    while True:
        texts = [_until(text, stops, config.max_tokens) for text in texts]
        going = [row for row, text in enumerate(texts) if len(text) == at < config.max_tokens]
        if not going:
            return texts
        ids, finite = replay(tokens, numbers[at : at + STEPS])
        for row in going:
            if not finite[row]:
                what = f"a logit within {STEPS} tokens of token {len(reader.texts[row]) + at}"
                dtype = reader.forward.dtype
                raise ValueError(device.not_finite(what, float("nan"), dtype, reader.model))
            texts[row] += [step[row] for step in ids]
        tokens = ids[-1]
        at += STEPS


def _until(text: list[int], stops: Collection[int], most: int) -> list[int]:
    """The ids before the first stop, `most` at most."""
    return [*takewhile(lambda id: id not in stops, text)][:most]
