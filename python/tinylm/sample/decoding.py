"""A model and a prompt to its continuation, as text or as ids, while it is written.

It runs on an `Engine`, beside the other continuations of the prompt. What it draws is a function of
(seed, prompt, sample, position), so its company changes it no more than the rounding of a larger
matrix product does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tinylm.config import SampleConfig
from tinylm.context import Cache
from tinylm.model import Model, inference
from tinylm.sample import beams, speculation, vocabulary
from tinylm.sample.drafts import find
from tinylm.sample.forward import make_cache
from tinylm.sample.guesses import Ahead
from tinylm.sample.healing import Healed, heal
from tinylm.sample.logprobs import TokenLogprobs, Told, id_of, refuse_logprobs
from tinylm.sample.prompt import Prompt
from tinylm.sample.prompt import read as read_prompt
from tinylm.sample.reader import Reader
from tinylm.sample.samples import Samples
from tinylm.sample.stats import Stats
from tinylm.sample.stops import cut

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


class Piece(str):
    """A piece of a streamed text; `logprobs` are those of the tokens that begin in it.

    They are there if `config.logprobs` asks for them. A token whose first byte does not complete a
    character begins where that character will stand.
    """

    logprobs: Sequence[TokenLogprobs] = ()


def stream(
    model: Model, tokenizer: "Tokenizer", prompt: str, config: SampleConfig, *, sample: int = 0
) -> Iterator[Piece]:
    """A prompt to the pieces of its continuation number `sample`, as the model writes them.

    The pieces hold whole characters. Joined, they are the text after the prompt, up to the
    end-of-text token, the first stop or `max_tokens`. An empty prompt starts from the
    end-of-text token. `ValueError` for a special token in the prompt.

    With `config.logprobs` every piece has `logprobs`; all together they are those of `complete`,
    up to a stop text, and the prompt is not healed.

    With `config.heal` the prompt's last tokens may give way to one that spells them and more; it
    counts as one of `max_tokens`. If they stay, or nothing could take their place, this is the
    text of `generate([[*opening, *ids]], config, tokenizer=tokenizer)[sample]`, where `ids` are
    those of the prompt and `config.bos` says what the opening is.
    """
    config = _unhealed(config)
    read = read_prompt(tokenizer, prompt, config, vocabulary.size(model, tokenizer))
    (found,) = _tokens(model, tokenizer, read, config, [_checked(sample, config)])
    return write(tokenizer, found, config, read)


def stream_ids(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: str | Prompt,
    config: SampleConfig,
    *,
    sample: int = 0,
    draft: Ahead | None = None,
    stats: Stats | None = None,
) -> Iterator[Told]:
    """The ids of `stream`, up to end of text or a stop id; `write` makes them a text.

    They follow the first `Prompt.shared` ids of the prompt's own: where its end is healed, they
    begin with new ids for that. With `config.logprobs` each is a `TokenLogprobs`, which has the id.
    `draft` and `stats` are as in `generate`.
    """
    numbers = [_checked(sample, config)]
    (found,) = _tokens(model, tokenizer, prompt, config, numbers, draft, stats)
    return found


def continuations(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: str | Prompt,
    config: SampleConfig,
    *,
    draft: Ahead | None = None,
    stats: Stats | None = None,
) -> list[Iterator[Told]]:
    """`stream_ids` of every sample, decoded together: while one is read, the others grow."""
    return _tokens(model, tokenizer, prompt, config, range(config.samples), draft, stats)


def _checked(sample: int, config: SampleConfig) -> int:
    if not 0 <= sample < config.samples:
        raise ValueError(f"sample={sample}: config.samples={config.samples}, numbered from 0")
    return sample


def _unhealed(config: SampleConfig) -> SampleConfig:
    """The settings, without healing where log-probabilities are asked for."""
    return config if config.logprobs is None else replace(config, heal=False)


def _tokens(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: str | Prompt,
    config: SampleConfig,
    numbers: Sequence[int],
    draft: Ahead | None = None,
    stats: Stats | None = None,
) -> list[Iterator[Told]]:
    """The tokens of some samples, each for a consumer of its own."""
    refuse_logprobs(config, "a stream has those of new tokens alone", ["prompt_logprobs"])
    if config.logprobs is not None and isinstance(prompt, Prompt):
        prompt = replace(prompt, ways=())
    samples = Samples(model, tokenizer, prompt, _unhealed(config), numbers)
    draft = draft or find(config, model, tokenizer)
    if draft is None and config.num_beams == 1:
        return [samples.tokens(sample) for sample in numbers]
    read = samples.prompt
    if draft is None:
        searched: list[list[Told]] = []
        return [_searched(model, tokenizer, read, config, i, searched) for i in numbers]
    return [_ahead(model, tokenizer, read, config, i, draft, stats) for i in numbers]


def _begun(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: Prompt,
    config: SampleConfig,
    new: int,
    sample: int = 0,
) -> tuple[Reader, Healed, list[int], bool]:
    """A reader of the healed prompt with room for `new` tokens.

    Also what healing chose, the ids that follow the prompt's shared ones by it, and whether more
    may follow them.
    """
    shared, stops = prompt.shared, vocabulary.stops(model, tokenizer, config)
    room = new + max((len(way.beginning) for way in prompt.ways), default=0) + len(prompt.ids)
    begun = [*prompt.opening, *prompt.ids[:shared]]
    healed = Healed(prompt.ids, None)
    with inference(model):
        reader = reader_for(model, [begun], room - shared, tokenizer, config)
        if prompt.ways:
            healed = heal(reader, prompt, config, sample=sample, ends=stops)
    # Not checked against the stops: these are the prompt's own text.
    ids = [*healed.ids[shared:]]
    going = healed.token not in stops
    if healed.token is not None and going:
        ids.append(healed.token)
    return reader, healed, ids, going


def _searched(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: Prompt,
    config: SampleConfig,
    sample: int,
    searched: list[list[Told]],
) -> Iterator[Told]:
    """`stream_ids` by beams; the first one that is asked for its ids fills `searched` for all."""
    if not searched:
        begun = _begun(model, tokenizer, prompt, beams.greedily(config), config.max_tokens)
        reader, healed, ids, going = begun
        found: list[list[Told]] = [[*ids] for _ in range(config.samples)]
        if going:
            stops, first = vocabulary.stops(model, tokenizer, config), healed.token
            with inference(model):
                best = beams.search(reader, config, stops, tokenizer=tokenizer, first=first)
            for some, beam in zip(found, beams.of_samples(best, config), strict=True):
                # Without the token of healing, which is there already.
                some += beam.logprobs or beam.ids[first is not None :]
        searched += found
    yield from searched[sample]


def _ahead(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: Prompt,
    config: SampleConfig,
    sample: int,
    draft: Ahead,
    stats: Stats | None,
) -> Iterator[Told]:
    """`stream_ids` by speculation or early exit, whose steps are not those of an engine."""
    room = speculation.room(config, draft)
    reader, healed, ids, going = _begun(model, tokenizer, prompt, config, room, sample)
    yield from ids
    if going:
        yield from speculation.continued(
            reader,
            config,
            vocabulary.stops(model, tokenizer, config),
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
    ids: Iterable[Told],
    config: SampleConfig,
    prompt: Prompt | None = None,
) -> Iterator[Piece]:
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
    drawn, scores = 0, Scores()
    for told in ids:
        scores.add(told, len(waiting))
        new = characters.push(id_of(told))
        # Tokens of the prompt's own text do not count.
        drawn += hidden == 0 or len(new) > hidden
        wanted = stops if drawn > config.min_tokens else []
        text, waiting, ended = cut(waiting + new[hidden:], wanted)
        hidden = max(0, hidden - len(new))
        if text:
            yield scores.piece(text)
        if ended:
            return
    text, waiting, ended = cut(waiting + characters.finish()[hidden:], stops)
    text = text if ended else text + waiting
    if text or (scores.waiting and not ended):
        yield scores.piece(text, all=not ended)


class Scores:
    """The log-probabilities of tokens whose text was not returned yet."""

    def __init__(self) -> None:
        # Each with the number of characters before it, from the end of the text returned last.
        self.waiting: list[tuple[int, TokenLogprobs]] = []

    def add(self, token: Told, before: int) -> None:
        """Note a token that begins after `before` characters, if it has a log-probability."""
        if not isinstance(token, int):
            self.waiting.append((before, token))

    def piece(self, text: str, *, all: bool = False) -> Piece:
        """The next piece, with the tokens that begin in it, or with all that are left."""
        piece, size = Piece(text), len(text)
        piece.logprobs = tuple(one for at, one in self.waiting if all or at < size)
        left = self.waiting[len(piece.logprobs) :]
        self.waiting = [(max(0, at - size), one) for at, one in left]
        return piece


def _length(tokenizer: "Tokenizer", ids: Iterable[int]) -> int:
    """Number of characters that some ids are decoded to."""
    characters = tokenizer.stream()
    return sum(len(characters.push(id)) for id in ids) + len(characters.finish())
