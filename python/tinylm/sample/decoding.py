"""A model and prompts to continuations, as ids or as text while it is written.

Texts of one length are decoded together: one forward pass per step over their cache. What a row
draws is a function of (seed, prompt, sample, position), so its company changes its text no more
than the rounding of a larger matrix product does.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tinylm.config import SampleConfig
from tinylm.model import Model, inference
from tinylm.sample.drawer import Drawer
from tinylm.sample.reader import Reader

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Rows decoded together: more gain little on a small model, and the cache grows with them.
ROWS = 64


class Decoder:
    """Texts that grow by one token per step: a reader gives the logits, a drawer chooses.

    `rows` names the continuations: (index into `prompts`, number of the sample, number of the
    prompt in the generator). A prompt is read once, whatever number of rows continue it.
    Made and used inside `model.inference`: whoever hands ids out between steps leaves it then.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[tuple[int, int, int]],
        config: SampleConfig,
        *,
        vocab_size: int,
    ) -> None:
        self.reader = Reader(model, prompts, config.max_tokens, vocab_size=vocab_size)
        self.reader.keep([row for row, _, _ in rows])
        self.drawer = Drawer(
            config,
            [prompts[row] for row, _, _ in rows],
            [(prompt, sample) for _, sample, prompt in rows],
            vocab_size=vocab_size,
            device=self.reader.last.device,
        )
        self.drawn: list[int] = []

    def step(self) -> list[int]:
        """The next id of each row; `ValueError` where the model's logits are not numbers."""
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
    model: Model, prompts: Sequence[Sequence[int]], config: SampleConfig
) -> list[list[int]]:
    """Prompts as ids to `config.samples` continuations of each, new ids only, prompt by prompt.

    A continuation ends after `max_tokens`, or before the first id of `config.stop`, which is not
    part of it. A text longer than the context is cut as `visible` says. `ValueError` for an
    empty prompt, an id outside the vocabulary, or a stop text (`stream` takes those).
    """
    vocab_size = model.embedding.num_embeddings
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty: start from the end-of-text id")
        _check_ids(f"prompt {number}", prompt, vocab_size)
    stops, texts = _stops(config, vocab_size)
    if texts:
        raise ValueError(
            f"stop={texts[0]!r} is a text and generate() has no tokenizer: "
            f"give ids, or use stream()"
        )
    found: dict[tuple[int, int], list[int]] = {}
    for length in {len(prompt): None for prompt in prompts}:
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        rows = [(i, sample) for i in alike for sample in range(config.samples)]
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            with inference(model):
                found |= zip(some, _decode(model, prompts, some, config, stops), strict=True)
    return [found[i, sample] for i in range(len(prompts)) for sample in range(config.samples)]


def _decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, int]],
    config: SampleConfig,
    stops: set[int],
) -> list[list[int]]:
    """The continuations of `rows`: (number of the prompt, number of the sample), one length."""
    used = sorted({prompt for prompt, _ in rows})
    places = [(used.index(prompt), sample, prompt) for prompt, sample in rows]
    size = model.embedding.num_embeddings
    decoder = Decoder(model, [prompts[i] for i in used], places, config, vocab_size=size)
    texts: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))
    for _ in range(config.max_tokens):
        ids = decoder.step()
        going = [place for place, token in enumerate(ids) if token not in stops]
        for place in going:
            texts[live[place]].append(ids[place])
        if not going:
            break
        if len(going) < len(live):
            decoder.keep(going)
            live = [live[place] for place in going]
    return texts


def stream(
    model: Model, tokenizer: "Tokenizer", prompt: str, config: SampleConfig, *, sample: int = 0
) -> Iterator[str]:
    """A prompt to the pieces of its continuation number `sample`, as the model writes them.

    The pieces hold whole characters; joined, they are the text before the end-of-text token,
    before the first stop, or of `max_tokens`. An empty prompt starts from the end-of-text token.
    It is the text of `generate([ids], config)[sample]`. `ValueError` for a special token in
    the prompt.
    """
    counted = stream_ids(model, tokenizer, prompt, config, sample=sample)
    return write(tokenizer, counted, config)


def stream_ids(
    model: Model, tokenizer: "Tokenizer", prompt: str, config: SampleConfig, *, sample: int = 0
) -> Iterator[int]:
    """The ids of `stream`, up to end of text or a stop id; `write` makes them a text."""
    if not 0 <= sample < config.samples:
        raise ValueError(f"sample={sample}: config.samples={config.samples}, numbered from 0")
    ids = tokenizer.encode(prompt, special="raise")
    if not ids:
        if tokenizer.eos_id is None:
            raise ValueError("the prompt is empty, and the tokenizer has no end-of-text token")
        ids = [tokenizer.eos_id]
    vocab_size = min(model.embedding.num_embeddings, tokenizer.vocab_size)
    _check_ids("the prompt", ids, vocab_size)
    stops, _ = _stops(config, vocab_size)
    if tokenizer.eos_id is not None:
        stops.add(tokenizer.eos_id)
    return _until(model, ids, config, sample, vocab_size, stops)


def _until(
    model: Model,
    prompt: Sequence[int],
    config: SampleConfig,
    sample: int,
    vocab_size: int,
    stops: set[int],
) -> Iterator[int]:
    with inference(model):
        decoder = Decoder(model, [prompt], [(0, sample, 0)], config, vocab_size=vocab_size)
    for _ in range(config.max_tokens):
        with inference(model):
            (token,) = decoder.step()
        if token in stops:
            return
        yield token


def write(tokenizer: "Tokenizer", ids: Iterable[int], config: SampleConfig) -> Iterator[str]:
    """Ids to pieces of text, up to the first stop text of `config`, which is cut off.

    What might be the start of a stop text waits until it is or is not one.
    """
    stops = [stop for stop in config.stop if isinstance(stop, str)]
    characters, waiting = tokenizer.stream(), ""
    for token in ids:
        text, waiting, ended = cut(waiting + characters.push(token), stops)
        if text:
            yield text
        if ended:
            return
    text, waiting, ended = cut(waiting + characters.finish(), stops)
    if text or waiting:
        yield text + waiting


def cut(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """A text to (what surely precedes any stop, what may begin one, whether a stop has come).

    Of several stops the one that ends first counts, as if the text came letter by letter.
    """
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if ends:
        end, length = min(ends)
        return text[: end + length], "", True
    held = max((_overlap(text, stop) for stop in stops), default=0)
    return text[: len(text) - held], text[len(text) - held :], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text[-n:] == stop[:n]), 0
    )


def _stops(config: SampleConfig, vocab_size: int) -> tuple[set[int], list[str]]:
    """The stop ids and the stop texts."""
    ids = [stop for stop in config.stop if isinstance(stop, int)]
    texts = [stop for stop in config.stop if isinstance(stop, str)]
    _check_ids("stop", ids, vocab_size)
    if "" in texts:
        raise ValueError("stop='': a stop text has at least one character")
    return set(ids), texts


def _check_ids(where: str, ids: Sequence[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{where} has id {token}: the vocabulary is 0 to {vocab_size - 1}")
