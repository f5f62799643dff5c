"""A model and prompts to whole continuations, as ids, with log-probabilities where asked for.

They run on an `Engine`: texts of any length are decoded together, and one that waits takes the row
of one that has ended. What a text draws is a function of (seed, prompt, sample, position), so its
company changes it no more than the rounding of a larger matrix product does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tinylm.config import SampleConfig
from tinylm.model import Model, inference
from tinylm.sample import beams, replay, speculation, vocabulary
from tinylm.sample.decoding import reader_for
from tinylm.sample.drafts import find
from tinylm.sample.guesses import Ahead
from tinylm.sample.logprobs import TokenLogprobs, of_prompt, refuse_logprobs
from tinylm.sample.prompt import as_ids
from tinylm.sample.samples import engine_for
from tinylm.sample.stats import Stats
from tinylm.sample.stops import check_ids, split_stops

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

Found = tuple[list[int], list[TokenLogprobs]]


@dataclass(frozen=True)
class Completion:
    """A continuation, and why it ended: at a stop id, or after `max_tokens`.

    `logprobs` has an entry for each of `ids` if `config.logprobs` asks for them, and is empty
    otherwise. `prompt_logprobs` has one for each id of the prompt if `config.prompt_logprobs` does:
    None for the first one, and for those that the model does not see any more.
    """

    ids: list[int]
    reason: Literal["stop", "length"]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs | None]


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    *,
    tokenizer: "Tokenizer | None" = None,
    draft: Ahead | None = None,
    stats: Stats | None = None,
) -> list[list[int]]:
    """The ids of `complete` alone."""
    refuse_logprobs(config, "generate() returns ids alone")
    found = _complete("generate()", model, prompts, config, tokenizer, draft, stats)
    return [completion.ids for completion in found]


def complete(
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    *,
    tokenizer: "Tokenizer | None" = None,
    draft: Ahead | None = None,
    stats: Stats | None = None,
) -> list[Completion]:
    """Prompts as ids to `config.samples` continuations of each, new ids only, prompt by prompt.

    Ids are read as they are: `config.heal` and `config.bos` are about texts, which `stream`
    takes. A continuation ends after `max_tokens`, or before the first id of `config.stop`, which
    is not part of it. With `tokenizer` it also ends at the end of text, and only ids are drawn
    that have a token. A text longer than the context is cut as `visible` says. `ValueError` for
    an empty prompt, an id outside the vocabulary, or a stop text (`stream` takes those).

    `draft` is what `config.draft` names, which is loaded here otherwise (`drafts.find`); `stats`
    counts what it was worth.
    """
    return _complete("complete()", model, prompts, config, tokenizer, draft, stats)


def _complete(
    caller: str,
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    tokenizer: "Tokenizer | None",
    draft: Ahead | None,
    stats: Stats | None,
) -> list[Completion]:
    """`complete`, whose errors name the function that was called."""
    rows_of_model = model.embedding.num_embeddings
    prompts = as_ids(prompts)
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: start from the end-of-text id")
        check_ids(f"prompt {number}", prompt, rows_of_model)
    _, texts = split_stops(config, rows_of_model)
    if texts:
        raise ValueError(
            f"stop={texts[0]!r} is a text and {caller} stops at ids alone: "
            f"give ids, or use stream()"
        )
    if not prompts:
        return []
    stops = vocabulary.stops(model, tokenizer, config)
    read = partial(reader_for, model, tokenizer=tokenizer, config=config)
    draft = None if config.num_beams > 1 else draft or find(config, model, tokenizer)
    if config.num_beams > 1:
        found: list[Found] = []
        for prompt in prompts:
            with inference(model):
                reader = read([prompt], config.max_tokens)
                best = beams.search(reader, config, stops, tokenizer=tokenizer)
            found += [(beam.ids, beam.logprobs) for beam in beams.of_samples(best, config)]
    elif draft is not None:
        found = speculation.generate(
            model, read, prompts, config, stops, draft, tokenizer=tokenizer, stats=stats
        )
    elif replay.serves(model, prompts, config):
        size, missing = vocabulary.size(model, tokenizer), vocabulary.missing(model, tokenizer)
        with inference(model):
            texts_of = replay.generate(
                model, prompts, config, stops=stops, vocab_size=size, missing=missing
            )
        found = [(ids, []) for ids in texts_of]
    else:
        found = _decoded(model, prompts, config, tokenizer)
    scored = [_of_prompt(model, prompt, config, tokenizer) for prompt in prompts]
    return [
        Completion(
            ids,
            "length" if len(ids) == config.max_tokens else "stop",
            logprobs,
            scored[number // config.samples],
        )
        for number, (ids, logprobs) in enumerate(found)
    ]


def _decoded(
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    tokenizer: "Tokenizer | None",
) -> list[Found]:
    """The continuations, one token per step."""
    longest = max(len(prompt) for prompt in prompts)
    engine = engine_for(model, tokenizer, config, len(prompts) * config.samples, longest)
    # Prompts of one length are read together, and rows of like length attend with the least waste.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    places = {
        engine.add(prompts[i], config, prompt=i, sample=sample): (i, sample)
        for i in order
        for sample in range(config.samples)
    }
    found: dict[tuple[int, int], Found] = {}
    with inference(model):
        while engine.live:
            engine.advance()
            for ended in engine.take_ended():
                if ended.error:
                    raise ValueError(ended.error)
                found[places[ended.number]] = ended.ids, ended.logprobs
    return [found[i, sample] for i in range(len(prompts)) for sample in range(config.samples)]


def _of_prompt(
    model: Model, prompt: Sequence[int], config: SampleConfig, tokenizer: "Tokenizer | None"
) -> list[TokenLogprobs | None]:
    """The log-probabilities of a prompt, where they are asked for."""
    if config.prompt_logprobs is None:
        return []
    size = vocabulary.size(model, tokenizer)
    check_ids("a prompt with prompt_logprobs", prompt, size)
    missing = vocabulary.missing(model, tokenizer)
    with inference(model):
        return of_prompt(model, prompt, config.prompt_logprobs, size, missing)
