"""A model and a prompt to its continuation, as text or as ids, while it is written.

It runs on an `Engine`, beside the other continuations of the prompt. What it draws is a function of
(seed, prompt, sample, position), so its company changes it no more than the rounding of a larger
matrix product does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tinylm.config import SampleConfig
from tinylm.context import Cache
from tinylm.model import Model, inference
from tinylm.sample import beams, speculation, vocabulary
from tinylm.sample.drafts import find
from tinylm.sample.forward import make_cache
from tinylm.sample.guesses import Draft
from tinylm.sample.healing import Healed, heal
from tinylm.sample.logprobs import refuse_logprobs
from tinylm.sample.prompt import Prompt
from tinylm.sample.prompt import read as read_prompt
from tinylm.sample.reader import Reader
from tinylm.sample.samples import Samples
from tinylm.sample.stats import Stats
from tinylm.sample.stops import cut

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def stream(
    model: Model, tokenizer: "Tokenizer", prompt: str, config: SampleConfig, *, sample: int = 0
) -> Iterator[str]:
    """A prompt to the pieces of its continuation number `sample`, as the model writes them.

    The pieces hold whole characters. Joined, they are the text after the prompt, up to the
    end-of-text token, the first stop or `max_tokens`. An empty prompt starts from the
    end-of-text token. `ValueError` for a special token in the prompt.

    With `config.heal` the prompt's last tokens may give way to one that spells them and more; it
    counts as one of `max_tokens`. If they stay, or nothing could take their place, this is the
    text of `generate([[*opening, *ids]], config, tokenizer=tokenizer)[sample]`, where `ids` are
    those of the prompt and `config.bos` says what the opening is.
    """
    read = read_prompt(tokenizer, prompt, config, vocabulary.size(model, tokenizer))
    return write(tokenizer, stream_ids(model, tokenizer, read, config, sample=sample), config, read)


def stream_ids(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: str | Prompt,
    config: SampleConfig,
    *,
    sample: int = 0,
    draft: Draft | None = None,
    stats: Stats | None = None,
) -> Iterator[int]:
    """The ids of `stream`, up to end of text or a stop id; `write` makes them a text.

    They follow the first `Prompt.shared` ids of the prompt's own: where its end is healed, they
    begin with new ids for that. `draft` and `stats` are as in `generate`.
    """
    if not 0 <= sample < config.samples:
        raise ValueError(f"sample={sample}: config.samples={config.samples}, numbered from 0")
    (ids,) = _ids(model, tokenizer, prompt, config, [sample], draft, stats)
    return ids


def continuations(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: str | Prompt,
    config: SampleConfig,
    *,
    draft: Draft | None = None,
    stats: Stats | None = None,
) -> list[Iterator[int]]:
    """`stream_ids` of every sample, decoded together: while one is read, the others grow."""
    return _ids(model, tokenizer, prompt, config, range(config.samples), draft, stats)


def _ids(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: str | Prompt,
    config: SampleConfig,
    numbers: Sequence[int],
    draft: Draft | None,
    stats: Stats | None,
) -> list[Iterator[int]]:
    refuse_logprobs(config, "a stream has ids alone")
    samples = Samples(model, tokenizer, prompt, config, numbers)
    draft = draft or find(config, model, tokenizer)
    if draft is None and config.num_beams == 1:
        return [samples.ids(sample) for sample in numbers]
    read = samples.prompt
    return [_by_reader(model, tokenizer, read, config, i, draft, stats) for i in numbers]


def _by_reader(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: Prompt,
    config: SampleConfig,
    sample: int,
    draft: Draft | None,
    stats: Stats | None,
) -> Iterator[int]:
    """`stream_ids` by beams or by speculation, which need more than a token per step."""
    shared, stops = prompt.shared, vocabulary.stops(model, tokenizer, config)
    room = config.max_tokens if draft is None else speculation.room(config, draft)
    room += max((len(way.beginning) for way in prompt.ways), default=0) + len(prompt.ids)
    with inference(model):
        begun = [*prompt.opening, *prompt.ids[:shared]]
        reader = reader_for(model, [begun], room - shared, tokenizer, config)
        healed = Healed(prompt.ids, None)
        if prompt.ways:
            settings = config if config.num_beams == 1 else beams.greedily(config)
            healed = heal(reader, prompt, settings, sample=sample, ends=stops)
    # Not checked against the stops: these are the prompt's own text.
    yield from healed.ids[shared:]
    if healed.token is not None:
        if healed.token in stops:
            return
        yield healed.token
    if config.num_beams > 1:
        with inference(model):
            found = beams.search(reader, config, stops, tokenizer=tokenizer, first=healed.token)
        best = beams.of_samples(found, config)
        # Without the token that was returned above.
        yield from best[sample].ids[healed.token is not None :]
    elif draft is not None:
        yield from speculation.continued(
            reader,
            config,
            stops,
            draft,
            sample=sample,
            first=healed.token,
            tokenizer=tokenizer,
            stats=stats,
        )


def reader_for(
    model: Model,
    texts: Sequence[Sequence[int]],
    room: int,
    tokenizer: "Tokenizer | None",
    config: SampleConfig,
) -> Reader:
    """A reader of the ids that can be drawn: all of the model's, or those that have a token."""
    build: Callable[..., Cache] = partial(make_cache, kind=config.cache, **config.cache_options)
    missing = vocabulary.missing(model, tokenizer)
    size = vocabulary.size(model, tokenizer)
    return Reader(model, texts, room, vocab_size=size, missing=missing, build=build)


def write(
    tokenizer: "Tokenizer",
    ids: Iterable[int],
    config: SampleConfig,
    prompt: Prompt | None = None,
) -> Iterator[str]:
    """Ids to pieces of text, up to the first stop text of `config`, which is cut off.

    What might be the start of a stop text waits until it is or is not one. The text of the first
    `config.min_tokens` tokens is not searched for stops. The ids of `stream_ids` need their
    `prompt`, whose own text is left out.
    """
    stops = [stop for stop in config.stop if isinstance(stop, str)]
    characters, waiting = tokenizer.stream(), ""
    # The prompt's ids come first: its end may be cut inside a character.
    hidden = 0 if prompt is None else _length(tokenizer, prompt.ids)
    for token in prompt.ids[: prompt.shared] if prompt else ():
        hidden -= len(characters.push(token))
    drawn = 0
    for token in ids:
        new = characters.push(token)
        # Tokens of the prompt's own text do not count.
        drawn += hidden == 0 or len(new) > hidden
        wanted = stops if drawn > config.min_tokens else []
        text, waiting, ended = cut(waiting + new[hidden:], wanted)
        hidden = max(0, hidden - len(new))
        if text:
            yield text
        if ended:
            return
    text, waiting, ended = cut(waiting + characters.finish()[hidden:], stops)
    if text or waiting:
        yield text + waiting


def _length(tokenizer: "Tokenizer", ids: Iterable[int]) -> int:
    """Number of characters that some ids are decoded to."""
    characters = tokenizer.stream()
    return sum(len(characters.push(id)) for id in ids) + len(characters.finish())
