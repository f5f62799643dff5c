"""A model and prompts to continuations, as ids or as text while it is written.

Texts of one length are decoded together: one forward pass per step over their cache. What a row
draws is a function of (seed, prompt, sample, position), so its company changes its text no more
than the rounding of a larger matrix product does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tinylm import cache
from tinylm.config import SampleConfig
from tinylm.context import Cache
from tinylm.model import Model, inference
from tinylm.sample import beams, speculation
from tinylm.sample.drafts import Draft, find
from tinylm.sample.drawer import Drawer, check
from tinylm.sample.healing import Healed, heal
from tinylm.sample.prompt import Prompt, as_ids
from tinylm.sample.prompt import read as read_prompt
from tinylm.sample.reader import Reader
from tinylm.sample.speculation import Stats
from tinylm.sample.stops import check_ids, cut, split_stops

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Rows decoded together: more gain little on a small model, and the cache grows with them.
ROWS = 64


class Decoder:
    """Texts that grow by one token per step: a reader gives the logits, a drawer chooses.

    The reader holds `texts`, one row each; `places` names their random numbers: (number of the
    prompt, number of the sample). Made and used inside `model.inference`: whoever hands ids out
    between steps leaves it then.
    """

    def __init__(
        self,
        reader: Reader,
        texts: Sequence[Sequence[int]],
        places: Sequence[tuple[int, int]],
        config: SampleConfig,
        ends: Iterable[int] = (),
        tokenizer: "Tokenizer | None" = None,
    ) -> None:
        self.reader = reader
        self.drawer = Drawer(
            config,
            texts,
            places,
            vocab_size=reader.vocab_size,
            device=reader.last.device,
            ends=ends,
            tokenizer=tokenizer,
        )
        self.drawn: list[int] = []

    def push(self, tokens: Sequence[int]) -> None:
        """Go on with one token per text that was chosen elsewhere, before the first step."""
        self.drawer.push(tokens)
        self.drawn = [*tokens]

    def step(self) -> list[int]:
        """The next id of each row; `ValueError` where the model's logits are not numbers."""
        # Tokens are read only when the next ones are wanted: the last tokens of a text need no
        # pass.
        if self.drawn:
            self.reader.read([[token] for token in self.drawn])
        self.drawn = self.drawer.draw(self.reader.last)
        return self.drawn

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        self.reader.keep(rows)
        self.drawer.keep(rows)
        self.drawn = [self.drawn[row] for row in rows]


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    *,
    tokenizer: "Tokenizer | None" = None,
    draft: Draft | None = None,
    stats: Stats | None = None,
) -> list[list[int]]:
    """Prompts as ids to `config.samples` continuations of each, new ids only, prompt by prompt.

    Ids are read as they are: `config.heal` and `config.bos` are about texts, which `stream`
    takes. A continuation ends after `max_tokens`, or before the first id of `config.stop`, which
    is not part of it. With `tokenizer` it also ends at the end of text, and only ids are drawn
    that have a token. A text longer than the context is cut as `visible` says. `ValueError` for
    an empty prompt, an id outside the vocabulary, or a stop text (`stream` takes those).

    `draft` is what `config.draft` names, which is loaded here otherwise (`drafts.find`); `stats`
    counts what it was worth.
    """
    rows_of_model = model.embedding.num_embeddings
    prompts = as_ids(prompts)
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: start from the end-of-text id")
        check_ids(f"prompt {number}", prompt, rows_of_model)
    stops, texts = split_stops(config, rows_of_model)
    if texts:
        raise ValueError(
            f"stop={texts[0]!r} is a text and generate() stops at ids alone: "
            f"give ids, or use stream()"
        )
    if tokenizer is not None:
        stops |= _ends(model, tokenizer)
    if config.num_beams > 1:
        with inference(model):
            readers = (
                _reader(model, [prompt], config.max_tokens, tokenizer, config) for prompt in prompts
            )
            found = [beams.search(r, config, stops, tokenizer=tokenizer) for r in readers]
        return [beam.ids for best in found for beam in best[: config.samples]]
    draft = draft or find(config, model, tokenizer)
    if draft is not None:
        read = partial(_reader, model, tokenizer=tokenizer, config=config)
        return speculation.generate(
            model, read, prompts, config, stops, draft, tokenizer=tokenizer, stats=stats
        )
    texts_at: dict[tuple[int, int], list[int]] = {}
    # Rows of one length need no padding, which would change the last bits of their results.
    # A dict and not a set, because it keeps the order of the prompts.
    for length in {len(prompt): None for prompt in prompts}:
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        rows = [(i, sample) for i in alike for sample in range(config.samples)]
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            with inference(model):
                texts_of = _decode(model, prompts, some, config, stops, tokenizer)
                texts_at |= zip(some, texts_of, strict=True)
    return [texts_at[i, sample] for i in range(len(prompts)) for sample in range(config.samples)]


def _decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, int]],
    config: SampleConfig,
    stops: set[int],
    tokenizer: "Tokenizer | None",
) -> list[list[int]]:
    """The continuations of `rows`: (number of the prompt, number of the sample), one length."""
    # A prompt is read once, whatever number of rows continue it.
    used = sorted({prompt for prompt, _ in rows})
    reader = _reader(model, [prompts[i] for i in used], config.max_tokens, tokenizer, config)
    # The cache of a prompt is copied for each sample, which costs less than reading it again.
    reader.keep([used.index(prompt) for prompt, _ in rows])
    texts_of = [prompts[prompt] for prompt, _ in rows]
    decoder = Decoder(reader, texts_of, rows, config, stops, tokenizer)
    texts: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))
    for _ in range(config.max_tokens):
        ids = decoder.step()
        going = [place for place, token in enumerate(ids) if token not in stops]
        for place in going:
            texts[live[place]].append(ids[place])
        if not going:
            break
        # Rows that have ended leave the cache: the others need not wait for the longest text.
        if len(going) < len(live):
            decoder.keep(going)
            live = [live[place] for place in going]
    return texts


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
    read = read_prompt(tokenizer, prompt, config, _vocab_size(model, tokenizer))
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
    vocab_size = _vocab_size(model, tokenizer)
    if not isinstance(prompt, Prompt):
        prompt = read_prompt(tokenizer, prompt, config, vocab_size)
    check_ids("the prompt", [*prompt.opening, *prompt.ids], vocab_size)
    stops, _ = split_stops(config, vocab_size)
    stops |= _ends(model, tokenizer)
    # Now, and not when the first token is asked for.
    check(config, vocab_size, tokenizer)
    draft = draft or find(config, model, tokenizer)
    return _until(model, tokenizer, prompt, config, sample, stops, draft, stats)


def _until(
    model: Model,
    tokenizer: "Tokenizer",
    prompt: Prompt,
    config: SampleConfig,
    sample: int,
    stops: set[int],
    draft: Draft | None,
    stats: Stats | None,
) -> Iterator[int]:
    shared, left = prompt.shared, config.max_tokens
    room = left if draft is None else speculation.room(config, draft)
    room += max((len(way.beginning) for way in prompt.ways), default=0) + len(prompt.ids)
    begun = [*prompt.opening, *prompt.ids[:shared]]
    with inference(model):
        reader = _reader(model, [begun], room - shared, tokenizer, config)
        healed = Healed(prompt.ids, None)
        if prompt.ways:
            settings = config if config.num_beams == 1 else beams.greedily(config)
            healed = heal(reader, prompt, settings, sample=sample)
        decoder = Decoder(
            reader, [[*prompt.opening, *healed.ids]], [(0, sample)], config, stops, tokenizer
        )
        if healed.token is not None:
            decoder.push([healed.token])
    # Not checked against the stops: these are the prompt's own text.
    yield from healed.ids[shared:]
    if healed.token is not None:
        if healed.token in stops:
            return
        yield healed.token
        left -= 1
    if config.num_beams > 1:
        with inference(model):
            best = beams.search(reader, config, stops, tokenizer=tokenizer, first=healed.token)
        # Without the token that was returned above.
        yield from best[sample].ids[healed.token is not None :]
        return
    if draft is not None:
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
        return
    for _ in range(left):
        # Entered anew for each token: the caller's code between two of them keeps its own modes.
        with inference(model):
            (token,) = decoder.step()
        if token in stops:
            return
        yield token


def _reader(
    model: Model,
    texts: Sequence[Sequence[int]],
    room: int,
    tokenizer: "Tokenizer | None",
    config: SampleConfig,
) -> Reader:
    """A reader of the ids that can be drawn: all of the model's, or those that have a token."""
    build: Callable[..., Cache] = partial(cache.build, kind=config.cache, **config.cache_options)
    if tokenizer is None:
        size = model.embedding.num_embeddings
        return Reader(model, texts, room, vocab_size=size, build=build)
    size = _vocab_size(model, tokenizer)
    # A drawn id without a token could not be decoded.
    missing = [id for id in tokenizer.missing_ids if id < size]
    return Reader(model, texts, room, vocab_size=size, missing=missing, build=build)


def _vocab_size(model: Model, tokenizer: "Tokenizer") -> int:
    """The number of ids that can be drawn: a padded model has more rows than its tokenizer ids."""
    return min(model.embedding.num_embeddings, tokenizer.vocab_size)


def _ends(model: Model, tokenizer: "Tokenizer") -> set[int]:
    """The ids that end a text: the tokenizer's, and those that the model's folder names."""
    return {
        *model.eos_ids,
        *(() if tokenizer.eos_id is None else (tokenizer.eos_id,)),
    }


def write(
    tokenizer: "Tokenizer",
    ids: Iterable[int],
    config: SampleConfig,
    prompt: Prompt | None = None,
) -> Iterator[str]:
    """Ids to pieces of text, up to the first stop text of `config`, which is cut off.

    What might be the start of a stop text waits until it is or is not one. The text of the first
    `config.min_tokens` tokens is not searched for stops. The ids of `stream_ids`
    need their `prompt`, whose own text is left out.
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
