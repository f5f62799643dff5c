"""Continuations of one prompt, each for a consumer of its own, on one engine."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tinylm.cache import PAGE
from tinylm.config import SampleConfig
from tinylm.model import Model, inference
from tinylm.sample import reader, vocabulary
from tinylm.sample.drawer import check
from tinylm.sample.engine import Engine
from tinylm.sample.healing import Healed, choices, decide
from tinylm.sample.logprobs import Told
from tinylm.sample.prompt import Prompt
from tinylm.sample.prompt import read as read_prompt
from tinylm.sample.stops import check_ids, split_stops

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Rows decoded together: more gain little on a small model, and the cache grows with them.
ROWS = 64


def engine_for(
    model: Model, tokenizer: "Tokenizer | None", config: SampleConfig, texts: int, longest: int
) -> Engine:
    """An engine for so many texts, the longest of that many tokens, which grow by `max_tokens`."""
    rows = min(ROWS, texts)
    most = min(model.context_length, longest + config.max_tokens)
    tokens = rows * most
    if config.cache == "paged":
        # Whole blocks for every text, so that none has to wait for another; one for each, which an
        # admission leaves free; and one for every two: of texts that share a block, the last needs
        # no copy of it, and is counted as if it did.
        tokens = (rows * -(-most // PAGE) + rows + rows // 2) * PAGE
    # Nobody waits for a token while prompts are read, so they are read at once.
    return Engine(
        model,
        tokenizer,
        cache=config.cache,
        max_batch=rows,
        max_tokens=tokens,
        chunk=reader.AT_ONCE,
        **config.cache_options,
    )


class Samples:
    """Continuations of one prompt that are decoded together, each for a consumer of its own.

        samples = Samples(model, tokenizer, "def ", SampleConfig(samples=3), range(3))
        for sample in range(3):
            print("".join(write(tokenizer, samples.tokens(sample), config, samples.prompt)))

    Nothing is computed before the first id is asked for; while one consumer waits for its next id,
    all continuations grow.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: "Tokenizer",
        prompt: str | Prompt,
        config: SampleConfig,
        samples: Sequence[int],
    ) -> None:
        vocab_size = vocabulary.size(model, tokenizer)
        if not isinstance(prompt, Prompt):
            prompt = read_prompt(tokenizer, prompt, config, vocab_size)
        check_ids("the prompt", [*prompt.opening, *prompt.ids], vocab_size)
        split_stops(config, vocab_size)
        # Now, and not when the first token is asked for.
        check(config, vocab_size, tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.prompt, self.samples = prompt, samples
        self._engine: Engine | None = None
        # The numbers of the requests that go on, and the ids that nobody has taken yet.
        self._live: dict[int, int] = {}
        self._found: dict[int, deque[Told]] = {sample: deque() for sample in samples}
        # How many log-probabilities of each were handed on.
        self._scored = dict.fromkeys(samples, 0)
        self._errors: dict[int, str] = {}

    def tokens(self, sample: int) -> Iterator[Told]:
        """The tokens of one continuation, as `stream_ids` says; who stops early cancels it."""
        if self._engine is None:
            self._engine = self._begin()
        found = self._found[sample]
        try:
            while True:
                while found:
                    yield found.popleft()
                if sample not in self._live:
                    break
                self._step(self._engine)
            if sample in self._errors:
                raise ValueError(self._errors[sample])
        finally:
            if sample in self._live:
                self._engine.cancel(self._live.pop(sample))

    def _begin(self) -> Engine:
        """Heal the end of the prompt for each sample, and hand all to an engine."""
        prompt, config, opening = self.prompt, self.config, self.prompt.opening
        longest = max([len(prompt.ids), *(len(way.beginning) for way in prompt.ways)])
        count = len(self.samples)
        engine = engine_for(self.model, self.tokenizer, config, count, len(opening) + longest)
        stops = vocabulary.stops(self.model, self.tokenizer, config)
        healed = dict.fromkeys(self.samples, Healed(prompt.ids, None))
        if prompt.ways:
            begun = [*opening, *prompt.ids[: prompt.shared]]
            with inference(self.model), engine.reading(begun) as held:
                found = choices(held, prompt)
                healed = {
                    sample: decide(*found, prompt, config, sample=sample, ends=stops)
                    for sample in self.samples
                }
        for sample, (ids, token) in healed.items():
            # Not checked against the stops: these are the prompt's own text.
            self._found[sample] += ids[prompt.shared :]
            drawn = [] if token is None else [token]
            if token in stops:
                continue
            self._found[sample] += drawn
            if len(drawn) < config.max_tokens:
                text = [*opening, *ids]
                self._live[sample] = engine.add(text, config, sample=sample, drawn=drawn)
        return engine

    def _step(self, engine: Engine) -> None:
        """Let all continuations grow."""
        samples = {number: sample for sample, number in self._live.items()}
        new, ends = engine.step(), engine.take_ended()
        if self.config.logprobs is None:
            for number, id in new:
                self._found[samples[number]].append(id)
        else:
            ended = {one.number: one.logprobs for one in ends}
            for number, sample in samples.items():
                scores = ended[number] if number in ended else engine.logprobs(number)
                self._found[sample] += scores[self._scored[sample] :]
                self._scored[sample] = len(scores)
        for one in ends:
            del self._live[samples[one.number]]
            if one.error:
                self._errors[samples[one.number]] = one.error
