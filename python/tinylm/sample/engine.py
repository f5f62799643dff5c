"""Many requests on one model, each continued by one token per step; they may come and go.

    engine = Engine(model, tokenizer, max_batch=32)
    number = engine.add(ids, SampleConfig(temperature=0.8, max_tokens=50))
    while engine.live:
        for number, id in engine.step():
            ...
    engine.take_ended()     # [Ended(number, ids, reason="length")]

What is promised of a request's tokens: which numbers its draws take is a function of (seed, prompt,
sample, step) alone, and the logits are those of its own text alone, whatever its company, the order
of arrival, preemption, pages and shared prefixes: on a native cache bit for bit. In torch they
change the shapes of the products, and so perhaps the last bits of the logits. On a native cache a
step is drawn in float32 inside the native call, or in float64 if a request of it has filters or
penalties. So a request draws other tokens than alone only where a draw is as close to the border of
two, or the two likeliest logits to each other, as that rounding. The kinds of caches that evict are
no part of the promise: they judge after each piece of a prompt, and its company decides how it is
cut (`chunk`).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinylm.cache import Native
from tinylm.config import SampleConfig
from tinylm.model import Model, inference
from tinylm.sample import vocabulary
from tinylm.sample.drawer import check
from tinylm.sample.forward import Forward, make_cache
from tinylm.sample.logits import RowError
from tinylm.sample.logprobs import TokenLogprobs
from tinylm.sample.prompt import as_ids
from tinylm.sample.reader import Reader
from tinylm.sample.scheduling import Ended, EngineStats, Pass, Reason, Request, Scheduler, tell
from tinylm.sample.seats import Seats
from tinylm.sample.stops import check_ids

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Tokens of prompts that are read beside the decoding of one step. Not measured.
CHUNK = 512


class Engine:
    """Continues up to `max_batch` requests at once, over a cache of `max_tokens` tokens in all.

    A `paged` cache gives its blocks to whoever grows; a `contiguous` one gives each of `max_batch`
    rows an equal part. By default every row has room for a whole context. `chunk` is the most
    tokens of prompts that one step reads beside decoding. With a `tokenizer` a text ends at the end
    of text too, and only ids are drawn that have a token. `options` are the cache's own.

    A step that fails or is interrupted loses nothing: the next one reads every text anew, and the
    same tokens follow.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: "Tokenizer | None" = None,
        *,
        cache: str = "paged",
        max_batch: int = 32,
        max_tokens: int | None = None,
        chunk: int = CHUNK,
        **options: Any,
    ) -> None:
        limit = model.context_length
        max_tokens = max_batch * limit if max_tokens is None else max_tokens
        for name, value in (("max_batch", max_batch), ("max_tokens", max_tokens), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.model, self.tokenizer, self.kind = model, tokenizer, cache
        self.max_batch, self.max_tokens = max_batch, max_tokens
        paged = cache == "paged"
        if paged:
            options["tokens"] = max_tokens
        self.max_length = min(limit, max_tokens if paged else max_tokens // max_batch)
        if not self.max_length:
            raise ValueError(
                f"max_tokens={max_tokens}: must be at least max_batch={max_batch}, a token per row"
            )
        size, missing = vocabulary.size(model, tokenizer), vocabulary.missing(model, tokenizer)
        self.forward = Forward(model, vocab_size=size, missing=missing)
        with torch.inference_mode():
            self.cache = make_cache(model, max_batch, self.max_length, cache, **options)
        # A cache that forgets the oldest tokens by itself need not be filled anew.
        window = sys.maxsize if self.cache.streams else limit
        self.schedule = Scheduler(self.cache, max_batch, chunk=chunk, context_length=window)
        # The requests know all that counts; rows, queues and the drawer can be made anew.
        self._requests: dict[int, Request] = {}
        self._ended: list[Request] = []
        self._seats = Seats(self.forward, tokenizer)
        # Requests that have tokens which no step before the last whole one has returned.
        self._untold: list[Request] = []
        self._lent: set[int] = set()
        self._whole = True
        self._next = self._steps = self._passes = self._read = self._drawn = 0

    @property
    def live(self) -> int:
        """Number of requests that have not ended."""
        return len(self._requests)

    def add(
        self,
        ids: Sequence[int],
        config: SampleConfig,
        *,
        prompt: int = 0,
        sample: int = 0,
        drawn: Sequence[int] = (),
    ) -> int:
        """Take a request and return its number; nothing is allocated before a step admits it.

        It ends after `config.max_tokens`, or before the first id of `config.stop`; stop texts are
        the caller's (`decoding.write`), and the cache is the engine's. `prompt` and `sample` name
        its random numbers. The first tokens may be `drawn` already, fewer than `max_tokens`. Raises
        `ValueError` for an empty prompt, an id outside the vocabulary, beams, a draft, and a
        request that can never fit.
        """
        self.schedule.check(config)
        (ids,) = as_ids([ids])
        if not ids:
            raise ValueError("the prompt is empty: start from the end-of-text id")
        rows = self.model.embedding.num_embeddings
        check_ids("the prompt", ids, rows)
        check_ids("drawn", drawn, rows)
        if len(drawn) >= config.max_tokens:
            raise ValueError(
                f"drawn has {len(drawn)} tokens: must be fewer than max_tokens={config.max_tokens}"
            )
        if not 0 <= sample < config.samples:
            raise ValueError(f"sample={sample}: config.samples={config.samples}, numbered from 0")
        stops = vocabulary.stops(self.model, self.tokenizer, config)
        check(config, self.forward.vocab_size, self.tokenizer)
        self._check_room(len(ids), config.max_tokens)
        text = [*ids, *drawn]
        request = Request(
            number=self._next,
            config=config,
            place=(prompt, sample),
            text=text,
            prompt=len(ids),
            stops=stops,
            given=len(text),
            told=len(text),
        )
        self._next += 1
        self._requests[request.number] = request
        self.schedule.waiting.append(request)
        return request.number

    def step(self) -> list[tuple[int, int]]:
        """Continue every request that has a row by one token; returns (number, id) of each.

        A request whose prompt is still being read has no token yet. An id that ends a text is not
        returned. Requests that end are in `take_ended` afterwards.
        """
        # No module of a model runs natively, and to look at all of them takes time.
        native = isinstance(self.cache, Native)
        with torch.inference_mode() if native else inference(self.model):
            return self.advance()

    def advance(self) -> list[tuple[int, int]]:
        """`step` for callers that are inside `model.inference` already: entering it takes time."""
        if self._whole:
            for request in self._untold:
                request.told = len(request.text)
            self._untold = []
        else:
            self._mend()
        self._whole = False
        work = self.schedule.plan()
        if work and not self._inside(work):
            logits = self._read_all(work)
            ready: list[Request] = []
            rows: list[int] = []
            for row, request in enumerate(request for each in work for request in each.requests):
                if not request.new:
                    same = [request, *self.schedule.share(request)]
                    ready += same
                    rows += [row] * len(same)
            if ready:
                whole = rows == [*range(len(logits))]
                self._choose(ready, logits if whole else logits[rows])
        self._steps += 1
        told = tell(self._untold, self._requests)
        self._whole = True
        return told

    def cancel(self, number: int) -> None:
        """Forget a request and free all that it holds; `ValueError` for a number that is not live.

        The others go on unchanged.
        """
        if number not in self._requests:
            raise ValueError(f"request {number}: there is none, or it has ended")
        request = self._requests.pop(number)
        # After a step that was cut short the next one makes all rows anew.
        if self._whole:
            self.schedule.drop(request)

    def logprobs(self, number: int) -> list[TokenLogprobs]:
        """Those of the tokens that a live request has drawn, where `config.logprobs` is set."""
        return self._requests[number].logprobs

    def take_ended(self) -> list[Ended]:
        """The requests that have ended since the last call, in the order of their numbers."""
        ended = [
            Ended(r.number, r.text[r.prompt :], r.reason, r.error, r.logprobs)
            for r in sorted(self._ended, key=lambda request: request.number)
            if r.reason is not None
        ]
        # Last: an interrupted call is asked again.
        self._ended = []
        return ended

    @contextmanager
    def reading(self, ids: Sequence[int]) -> Iterator[Reader]:
        """Lend a row to a `Reader` of one text; requests that begin so then need not read it.

        They are added inside or right after: the row is given back when no request waits any more.
        Used inside `model.inference`. `ValueError` if no row is free.
        """
        if not self.schedule.free:
            raise ValueError(f"max_batch={self.max_batch}: no row is free to read in")
        row = heappop(self.schedule.free)
        self._lent.add(row)
        try:
            reader = Reader(
                self.model,
                [ids],
                0,
                vocab_size=self.forward.vocab_size,
                missing=self.forward.missing.tolist(),
                build=lambda *_: self.cache.rows([row]),
            )
            yield reader
        except BaseException:
            self.schedule.give_back(row)
            raise
        finally:
            self._lent.discard(row)
        self.schedule.bases[row] = reader.texts[0][-reader.held[0] :]

    def stats(self) -> EngineStats:
        """Counts of requests, steps and tokens, and what the cache stores."""
        counts = self.schedule.counts
        return EngineStats(
            waiting=len(self.schedule.waiting),
            running=len(self.schedule.running),
            steps=self._steps,
            passes=self._passes,
            read=self._read,
            drawn=self._drawn,
            preempted=counts.preempted,
            shared=counts.shared,
            matched=counts.matched,
            cache=self.cache.stats(),
        )

    def _check_room(self, prompt: int, new: int) -> None:
        """Raise `ValueError` for a request that does not fit even alone."""
        # The last token is drawn and not read.
        most = min(self.model.context_length, prompt + new - 1)
        blocks, total = self.cache.needed_for(most), self.cache.total
        why = ""
        if most > self.max_length:
            shared = "" if total else f" / max_batch={self.max_batch}"
            why = f"and a row holds {self.max_length} (max_tokens={self.max_tokens}{shared})"
        elif total and blocks > total:
            why = f"{blocks} blocks, and there are {total} (max_tokens={self.max_tokens})"
        if why:
            what = f"a prompt of {prompt} and max_tokens={new} need {most} tokens of the cache"
            raise ValueError(f"{what}, {why}")

    def _read_all(self, work: Sequence[Pass]) -> Tensor:
        """Read what is planned, in one pass; the logits [R, V] after each request, in order."""
        parts = []
        for requests, tokens in work:
            begin = [request.start + request.read for request in requests]
            ids = [r.text[at : at + tokens] for r, at in zip(requests, begin, strict=True)]
            parts.append((self.cache.rows([request.row for request in requests]), ids))
        logits = self.forward.step(parts)
        self._passed(work)
        return logits

    def _inside(self, work: Sequence[Pass]) -> bool:
        """Take a step whose tokens the native cache chooses itself; False where it cannot."""
        if self.schedule.followers or not isinstance(self.cache, Native):
            return False
        counts = {request: tokens for requests, tokens in work for request in requests}
        # The rows of a native pass have no order, so those that have a seat keep it.
        last = {request: None for request, tokens in counts.items() if request.new == tokens}
        ready = [*({r: None for r in self._seats.requests if r in last} | last)]
        drawer = self._seats.drawer_of(ready)
        chances = drawer.chances()
        if chances is None:
            return False
        # Of prompts that go on no token is wanted: the likeliest is found soonest.
        requests = ready + [request for request in counts if request not in last]
        heats, numbers = (some + [0.0] * (len(counts) - len(ready)) for some in chances)
        begin = {r: r.start + r.read for r in requests}
        new = [r.text[at : at + counts[r]] for r, at in begin.items()]
        view = self.cache.rows([request.row for request in requests])
        ids = self.forward.draw(new, view, (heats, numbers))
        if ids is None:
            return False
        ids = ids[: len(ready)]
        self._passed(work)
        self._untold += ready
        drawer.push(ids)
        self._take(ready, ids)
        return True

    def _passed(self, work: Sequence[Pass]) -> None:
        """Count what was planned as read."""
        for requests, tokens in work:
            for request in requests:
                request.read += tokens
                if not request.new and request.window is not None:
                    self.cache.note(request.row, request.held)
                    request.window = None
            self._read += len(requests) * tokens
        self._passes += 1

    def _choose(self, ready: list[Request], logits: Tensor) -> None:
        """Draw the next id of each request from its row of `logits` [R, V]."""
        self._untold += ready
        lengths = [len(request.text) for request in ready]
        bad = dict(self.forward.problems(logits, lengths))
        ready, logits = self._without(bad, ready, logits)
        logits = self.forward.hide(logits)
        ids: list[int] = []
        while ready and not ids:
            try:
                ids = self._seats.drawer_of(ready).draw(logits)
            except RowError as error:
                ready, logits = self._without({error.row: str(error)}, ready, logits)
        self._take(ready, ids)

    def _take(self, ready: list[Request], ids: list[int]) -> None:
        """Continue the requests by the ids that the drawer has counted, or end them."""
        for row, (request, id) in enumerate(zip(ready, ids, strict=True)):
            if id in request.stops:
                self._end(request, "stop")
                continue
            if request.config.logprobs is not None:
                request.logprobs.append(self._seats.drawer.rows[row].logprobs[-1])
            request.text.append(id)
            self._drawn += 1
            if len(request.text) - request.prompt >= request.config.max_tokens:
                self._end(request, "length")
            else:
                self.schedule.grown(request)

    def _without(
        self, bad: dict[int, str], ready: list[Request], logits: Tensor
    ) -> tuple[list[Request], Tensor]:
        """End the requests of bad rows, each by its own error; the others and their logits."""
        if not bad:
            return ready, logits
        for row, error in bad.items():
            ready[row].error = error
            self.cache.wipe([ready[row].row])
            ready[row].read = 0
            self._end(ready[row], "error")
        rows = [row for row in range(len(ready)) if row not in bad]
        return [ready[row] for row in rows], logits[rows]

    def _end(self, request: Request, reason: Reason) -> None:
        request.reason = reason
        self._ended.append(request)
        del self._requests[request.number]
        self.schedule.drop(request)

    def _mend(self) -> None:
        """After a step that was cut short: empty all rows, and begin again with every text."""
        for request in [*self._requests.values()]:
            del request.logprobs[len(request.text) - request.given :]
            if len(request.text) - request.prompt >= request.config.max_tokens:
                request.reason = "length"
            if request.reason is not None:
                del self._requests[request.number]
                if request not in self._ended:
                    self._ended.append(request)
        free = [row for row in range(self.max_batch) if row not in self._lent]
        self.schedule.restart(self._requests.values(), free)
        self._seats = Seats(self.forward, self.tokenizer)
