"""Several tokens per pass: guesses of a draft, read together, of which the model keeps a beginning.

The texts have the distribution of plain decoding, whatever the guesses are worth: a guess d of the
draft's distribution q is kept with probability min(1, p[d] / q[d]), and the first one that is not
is replaced by a token of what p has more than q. If the guesses are sure (temperature 0, or copied
from the text), the texts are those of plain decoding themselves, up to the rounding of a pass over
several tokens. `tinylm.reference.speculation` is the definition.

What a text draws is a function of its own tokens, the seed, its place and the position, with one
stream of random numbers for guesses, one for which of them are kept, and that of plain decoding for
the rest.

Source: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
"""

import time
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.model import Model, inference
from tinylm.sample.drawer import Drawer
from tinylm.sample.exits import EarlyExit, Exiting
from tinylm.sample.guesses import Ahead, Draft
from tinylm.sample.logits import KEEP, draw
from tinylm.sample.logprobs import TokenLogprobs, Told
from tinylm.sample.reader import Reader
from tinylm.sample.stats import TRIED, Stats

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Rows decoded together, as in plain decoding.
ROWS = 64
# Texts and the number of tokens that they may grow by, to their reader.
Read = Callable[[Sequence[Sequence[int]], int], Reader]


def judge(p: Tensor, q: Tensor, guesses: Tensor, keep: Tensor, numbers: Tensor) -> Tensor:
    """Guesses [R] drawn from q [R, V] to tokens [R] of p: the guess where kept, or another.

    p and q are distributions; a row of q that is 0 has no guess, and its token is drawn from p.
    `keep` [R] and `numbers` [R] are independent random numbers in [0, 1).
    """
    had, have = (x.gather(-1, guesses[:, None]).squeeze(-1) for x in (q, p))
    rest = (p - q).clamp(min=0)
    # Of equal distributions a guess is refused by rounding alone, and then nothing may be left.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
    return torch.where((keep * had < have) & (had > 0), guesses, draw(rest.log(), numbers))


class Speculator:
    """Texts that grow by one or more tokens per step.

    `reader` and `drawer` hold the same texts, one row each; what the drawer has drawn and the
    reader has not read, at most one token per row, is read first. Each text grows by at most `left`
    tokens. Made and used inside `model.inference`.
    """

    def __init__(
        self,
        reader: Reader,
        drawer: Drawer,
        draft: Draft,
        left: int,
        *,
        tokens: int | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.reader, self.drawer = reader, drawer
        self.tokens = draft.tokens if tokens is None else tokens
        self.left = [left] * len(reader.texts)
        self.stats = Stats(tried=TRIED) if stats is None else stats
        self.guesses = draft.begin(reader, drawer, left + self.tokens)
        self.unread = [[*drawn[-1:]] for drawn in drawer.drawn]
        if any(self.unread):
            self.guesses.take(self.unread)

    def step(self) -> list[list[int]]:
        """The next ids of each row, one at least; `ValueError` where the logits are not numbers."""
        read = any(self.unread)
        if read:
            self.stats.try_plain(self.reader, self.unread)
        start = time.perf_counter()
        new = self._round() if read else [[id] for id in self.drawer.draw(self.reader.last)]
        self.guesses.take(new)
        self.left = [left - len(ids) for left, ids in zip(self.left, new, strict=True)]
        self.unread = [ids[-1:] for ids in new]
        self.stats.seconds += time.perf_counter() - start
        return new

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        self.reader.keep(rows)
        self.drawer.keep(rows)
        self.guesses.keep(rows)
        self.left = [self.left[row] for row in rows]
        self.unread = [self.unread[row] for row in rows]

    def _round(self) -> list[list[int]]:
        """Guess, read, and keep a beginning of each row and one token of the model's own."""
        reader, stats = self.reader, self.stats
        # A pass adds one token more than it has guesses. A window that would move in the middle is
        # left to plain steps.
        rooms = zip(self.left, reader.room(), strict=True)
        wanted = [max(0, min(self.tokens, left - 1, room - 1)) for left, room in rooms]
        proposal = self.guesses.propose(wanted)
        # Nothing is read after a guess that would end its text.
        texts = zip(proposal.tokens, self.drawer.rows, strict=True)
        guesses = [_ended(ids, text.ends) for ids, text in texts]
        sizes = [len(text) for text in reader.texts]
        new = None if proposal.distributions else self._chosen(guesses)
        if new is None:
            longest = max(map(len, guesses))
            # Shorter rows are filled up, and the filling is forgotten again.
            filled = [ids + [0] * (longest - len(ids)) for ids in guesses]
            rows = [unread + ids for unread, ids in zip(self.unread, filled, strict=True)]
            new = self._verify(reader.read(rows), guesses, proposal.distributions)
        lengths = [size + len(ids) for size, ids in zip(sizes, new, strict=True)]
        if lengths != [len(text) for text in reader.texts]:
            reader.truncate(lengths)
        stats.passes += len(new)
        stats.tokens += sum(map(len, new))
        stats.guessed += sum(map(len, guesses))
        # A guess that is not kept differs from the token in its place.
        pairs = zip(guesses, new, strict=True)
        stats.kept += sum(a == b for some, ids in pairs for a, b in zip(some, ids, strict=False))
        return new

    def _chosen(self, guesses: list[list[int]]) -> list[list[int]] | None:
        """The ids that each row gets where the native step chooses after each sure guess itself.

        None, and nothing is read, where it cannot.
        """
        chances = self.drawer.chances([len(ids) + 1 for ids in guesses])
        if chances is None:
            return None
        rows = [unread + ids for unread, ids in zip(self.unread, guesses, strict=True)]
        found = self.reader.draw(rows, chances)
        if found is None:
            return None
        texts = zip(found, guesses, self.drawer.rows, strict=True)
        new = [_agreed(ids, some, row.ends) for ids, some, row in texts]
        self.drawer.extend(new)
        return new

    def _verify(
        self, logits: Tensor, guesses: list[list[int]], distributions: list[Tensor] | None
    ) -> list[list[int]]:
        """Logits [R, T, V] after each token read to the ids that each row gets, up to an end."""
        drawer = self.drawer
        processed = drawer.every(logits) if distributions else None
        if processed is not None and distributions is not None:
            return self._judged(logits, processed, guesses, distributions)
        new: list[list[int]] = [[] for _ in guesses]
        going = [*range(len(guesses))]
        for place in range(logits.size(1)):
            here = [ids[place] if place < len(ids) else None for ids in guesses]
            choose = None
            if distributions is not None and place < len(distributions):
                choose = partial(self._judge, distributions[place], here)
            ids = drawer.draw(logits[:, place], choose, going)
            for row in going:
                new[row].append(ids[row])
            kept = [row for row in going if ids[row] == here[row]]
            going = [row for row in kept if ids[row] not in drawer.rows[row].ends]
            if not going:
                break
        return new

    def _judged(
        self,
        logits: Tensor,
        processed: Tensor,
        guesses: list[list[int]],
        distributions: list[Tensor],
    ) -> list[list[int]]:
        """`_verify` of all places at once, where no place depends on the tokens before it."""
        count = logits.size(1)
        q = torch.zeros_like(processed, dtype=torch.float64)
        for place in range(count - 1):
            q[:, place] = distributions[place]
        ids = torch.zeros(q.shape[:2], dtype=torch.int64, device=q.device)
        for row, some in enumerate(guesses):
            ids[row, : len(some)] = torch.tensor(some, dtype=torch.int64)
            # No guess, no distribution.
            q[row, len(some) :] = 0
        numbers = self.drawer.numbers(KEEP, count), self.drawer.numbers(count=count)
        p = processed.double().softmax(-1)
        found = judge(p.flatten(0, 1), q.flatten(0, 1), ids.flatten(), *numbers)
        texts = zip(found.view_as(ids).tolist(), guesses, self.drawer.rows, strict=True)
        new = [_agreed(some, guessed, row.ends) for some, guessed, row in texts]
        self.drawer.extend(new, logits)
        return new

    def _judge(self, q: Tensor, here: Sequence[int | None], logits: Tensor) -> Tensor:
        """Processed logits [R, V] of the model to a token per row, by the guesses at this place."""
        given = torch.tensor([id is not None for id in here], device=logits.device)
        ids = torch.tensor([id or 0 for id in here], device=logits.device)
        keep, numbers = self.drawer.numbers(KEEP), self.drawer.numbers()
        return judge(logits.double().softmax(-1), q * given[:, None], ids, keep, numbers)


def _agreed(ids: list[int], guesses: list[int], ends: Set[int]) -> list[int]:
    """The beginning of `ids` that is guessed, and one more; nothing after an end."""
    pairs = enumerate(zip(ids, guesses, strict=False))
    last = next((i for i, (id, guess) in pairs if id != guess or id in ends), len(guesses))
    return ids[: last + 1]


def _ended(ids: list[int], ends: Set[int]) -> list[int]:
    """Ids up to the first that ends a text, which is the last then."""
    end = next((place for place, id in enumerate(ids) if id in ends), len(ids))
    return ids[: end + 1]


def generate(
    model: Model,
    read: Read,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    stops: Set[int],
    draft: Ahead,
    *,
    tokenizer: "Tokenizer | None" = None,
    stats: Stats | None = None,
) -> list[tuple[list[int], list[TokenLogprobs]]]:
    """Prompts as ids to `config.samples` continuations of each, prompt by prompt.

    Each is its ids and, where `config.logprobs` asks for them, their log-probabilities. As
    `sample.complete`, several tokens per pass; `read` makes the reader of some texts.
    """
    drawer_of = partial(_drawer, config=config, stops=stops, tokenizer=tokenizer)
    found: dict[tuple[int, int], tuple[list[int], list[TokenLogprobs]]] = {}
    # Prompts of one length, because filling up changes the last bits of a result.
    for length in {len(prompt): None for prompt in prompts}:
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        rows = [(i, sample) for i in alike for sample in range(config.samples)]
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            used = sorted({prompt for prompt, _ in some})
            with inference(model):
                reader = read([prompts[i] for i in used], room(config, draft))
                reader.keep([used.index(prompt) for prompt, _ in some])
                speculator = _speculator(reader, drawer_of(reader, some), draft, stats)
                found |= zip(some, _grown(speculator, stops), strict=True)
    return [found[i, sample] for i in range(len(prompts)) for sample in range(config.samples)]


def _grown(
    speculator: Speculator | Exiting, stops: Set[int]
) -> list[tuple[list[int], list[TokenLogprobs]]]:
    """The continuation of each text, up to a stop, and its log-probabilities."""
    texts: list[list[int]] = [[] for _ in speculator.left]
    logprobs: list[list[TokenLogprobs]] = [[] for _ in texts]
    live = list(range(len(texts)))
    while live:
        going = []
        for place, ids in enumerate(speculator.step()):
            before = list(takewhile(lambda id: id not in stops, ids))
            texts[live[place]] += before
            # A row of the drawer goes when its text ends.
            logprobs[live[place]] = speculator.drawer.rows[place].logprobs
            if len(before) == len(ids) and speculator.left[place]:
                going.append(place)
        if 0 < len(going) < len(live):
            speculator.keep(going)
        live = [live[place] for place in going]
    # The drawer has drawn the stops too.
    return [(ids, some[: len(ids)]) for ids, some in zip(texts, logprobs, strict=True)]


def continued(
    reader: Reader,
    config: SampleConfig,
    stops: Set[int],
    draft: Ahead,
    *,
    sample: int = 0,
    first: int | None = None,
    tokenizer: "Tokenizer | None" = None,
    stats: Stats | None = None,
) -> Iterator[Told]:
    """The ids that follow the one text of `reader` in its sample number `sample`, up to a stop.

    With `config.logprobs` their log-probabilities instead. `first` is a token that was drawn
    already and is not read; it counts, and is not given again.
    """
    with inference(reader.model):
        drawer = _drawer(reader, [(0, sample)], config, stops, tokenizer)
        if first is not None:
            drawer.push([first])
        speculator = _speculator(reader, drawer, draft, stats)
    while speculator.left[0]:
        # Entered anew for each pass: the caller's code between two tokens keeps its own modes.
        with inference(reader.model):
            (ids,) = speculator.step()
        scores = drawer.rows[0].logprobs[-len(ids) :]
        for place, id in enumerate(ids):
            if id in stops:
                return
            yield scores[place] if scores else id


def room(config: SampleConfig, draft: Ahead) -> int:
    """How many tokens of room a text needs: a pass may end in guesses that are taken back."""
    return config.max_tokens + (config.draft_tokens or draft.tokens)


def _drawer(
    reader: Reader,
    places: Sequence[tuple[int, int]],
    config: SampleConfig,
    stops: Set[int],
    tokenizer: "Tokenizer | None",
) -> Drawer:
    """What draws the tokens of the texts of `reader`."""
    return Drawer(
        config,
        reader.texts,
        places,
        vocab_size=reader.vocab_size,
        device=reader.last.device,
        ends=stops,
        tokenizer=tokenizer,
    )


def _speculator(
    reader: Reader, drawer: Drawer, draft: Ahead, stats: Stats | None
) -> Speculator | Exiting:
    """What lets texts grow by the settings of `drawer`; they have drawn alike many tokens."""
    config = drawer.config
    left = config.max_tokens - len(drawer.drawn[0])
    if isinstance(draft, EarlyExit):
        return Exiting(reader, drawer, draft, left, stats)
    return Speculator(reader, drawer, draft, left, tokens=config.draft_tokens, stats=stats)
