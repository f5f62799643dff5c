"""Which requests read how many tokens in the next step: rows, budget, sharing, preemption.

A request is a text that grows. Its row of the cache holds a beginning of what the model sees of
the text (`reader.visible`), and a step reads what is missing. So one rule serves a new prompt, the
token that was drawn last, a window that has moved on, and a request that had lost its row.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal, NamedTuple

import torch

from tinylm.config import SampleConfig
from tinylm.context import Cache, CacheStats
from tinylm.sample.logprobs import TokenLogprobs
from tinylm.sample.reader import visible

Reason = Literal["stop", "length", "error"]


# Compared and hashed by identity: two requests may ask for the same.
@dataclass(slots=True, eq=False)
class Request:
    """A text that is being continued, and what the cache holds of it."""

    number: int
    config: SampleConfig
    # Its random numbers: (number of the prompt, number of the sample).
    place: tuple[int, int]
    # The prompt's ids and the drawn ones; how many of them are the prompt's.
    text: list[int]
    prompt: int
    stops: frozenset[int]
    # Tokens that it began with, and those that the caller knows because a step returned them.
    given: int
    told: int
    # What the model sees begins here; its row holds `read` tokens from here on.
    start: int = 0
    read: int = 0
    # -1 while it waits.
    row: int = -1
    # All that it sees, from the moment when its row is empty until it is read: equal windows are
    # read once.
    window: tuple[int, ...] | None = None
    reason: Reason | None = None
    error: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def new(self) -> int:
        """Number of tokens that the model sees and the row does not hold."""
        return len(self.text) - self.start - self.read

    @property
    def held(self) -> list[int]:
        """The ids that the row holds."""
        return self.text[self.start : self.start + self.read]

    def begin(self, context_length: int) -> None:
        """Begin to read anew, with an empty row, what the model sees."""
        self.start = len(self.text) - visible(len(self.text), context_length)
        self.read, self.window = 0, tuple(self.text[self.start :])


@dataclass(frozen=True)
class Ended:
    """A request that is over, and why: a stop id, its `max_tokens`, or an error in its logits."""

    number: int
    ids: list[int]
    reason: Reason
    error: str = ""
    # Of each id, where `config.logprobs` asks for them; else empty.
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True)
class EngineStats:
    """What an engine has to do and has done.

    `read` counts the tokens that passes have read, `passes` these; `shared` requests took over what
    another had read of the same text, and `matched` tokens were known from texts that began alike.
    """

    waiting: int
    running: int
    steps: int
    passes: int
    read: int
    drawn: int
    preempted: int
    shared: int
    matched: int
    cache: CacheStats


class Pass(NamedTuple):
    """Requests that read `tokens` more each, by their rows."""

    requests: list[Request]
    tokens: int


@dataclass
class Counts:
    """How often a scheduler did what costs or saves time."""

    preempted: int = 0
    # Requests that took over what another had read of the same text.
    shared: int = 0
    # Tokens that the cache knew from texts with the same beginning.
    matched: int = 0


@dataclass
class _Step:
    """The plan of one step while it is made; blocks are those of the cache."""

    # Tokens of prompts that may yet be read.
    chunk: int
    # Blocks that the passes of this step take, and those that all rows need to be read whole.
    taken: int = 0
    owed: int = 0
    work: list[tuple[Request, int]] = field(default_factory=list)
    # The first request that reads each window, and those that wait for it.
    readers: dict[tuple[int, ...], Request] = field(default_factory=dict)


class Scheduler:
    """Gives requests the rows of a cache, the oldest first, and plans the passes of each step.

    All requests with one new token read it in every step, and prompts share `chunk` tokens per
    step beside them: reading never holds up decoding. A request waits until its whole prompt fits
    into the cache's free blocks, beside what those before it still need. If the blocks run out
    while texts grow, the youngest request gives its row back and is read again later. The oldest
    can take all blocks in the end, so it always goes on.
    """

    def __init__(self, cache: Cache, rows: int, *, chunk: int, context_length: int) -> None:
        self.cache, self.chunk, self.context_length = cache, chunk, context_length
        self.waiting: deque[Request] = deque()
        # In the order of their admission, so the youngest is last.
        self.running: list[Request] = []
        self.free = [*range(rows)]
        self.followers: dict[Request, list[Request]] = {}
        # Rows without a request, and the ids that they hold for requests that begin so.
        self.bases: dict[int, list[int]] = {}
        self.counts = Counts()

    @staticmethod
    def check(config: SampleConfig) -> None:
        """Raise `ValueError` for settings that are not served by one token per step."""
        for name, off in (("draft", None), ("exit_confidence", None), ("num_beams", 1)):
            value = getattr(config, name)
            if value != off:
                raise ValueError(
                    f"sample.{name}={value}: the engine draws one token at a time; use generate() "
                    "or stream()"
                )

    def plan(self) -> list[Pass]:
        """What the next step reads; requests are admitted and preempted on the way.

        `followers` then names the requests that wait for one that reads the same.
        """
        step, self.followers = _Step(self.chunk), {}
        place = 0
        while place < len(self.running) or self._admit(step):
            self._work(self.running[place], step)
            # One that gave way to those before it is gone.
            place = min(place + 1, len(self.running))
        if not self.waiting:
            self._drop_bases()
        groups: dict[tuple[int, int], list[Request]] = {}
        for request, tokens in step.work:
            # Rows of one length need no mask. Decoding goes without: it is one pass for all.
            length = 0 if tokens == 1 else request.read
            groups.setdefault((tokens, length), []).append(request)
        return [
            Pass(sorted(group, key=lambda request: request.row), tokens)
            for (tokens, _), group in groups.items()
        ]

    def _work(self, request: Request, step: _Step) -> None:
        """What a running request reads in this step, if it reads."""
        if request.window is not None:
            first = step.readers.setdefault(request.window, request)
            if first is not request and not request.read:
                self.followers.setdefault(first, []).append(request)
                return
        new = request.new
        tokens = min(new, 1 if new == 1 else step.chunk, self.cache.at_once)
        taken = step.taken
        if tokens and self._make_room(request, tokens, step):
            step.work.append((request, tokens))
            step.chunk -= 0 if new == 1 else tokens
        if request.row >= 0:
            whole = tokens == new
            step.owed += step.taken - taken if whole else self.cache.needed(request.row, new)

    def _make_room(self, request: Request, tokens: int, step: _Step) -> bool:
        """Take blocks for `tokens` more from younger requests; False if it had to give way."""
        while (need := self.cache.needed(request.row, tokens)) > self.cache.free - step.taken:
            if self.bases:
                self._drop_bases()
                continue
            youngest = self.running[-1]
            self.release(youngest)
            # In front: it is older than all that have never run.
            self.waiting.appendleft(youngest)
            self.counts.preempted += 1
            if youngest is request:
                return False
        step.taken += need
        return True

    def _admit(self, step: _Step) -> bool:
        """Give the next waiting request a row, if there is one and its blocks are free."""
        if not self.waiting:
            return False
        request = self.waiting[0]
        request.begin(self.context_length)
        assert request.window is not None, "it has just begun"
        follows = request.window in step.readers
        base = None if follows else self._base(request.window)
        if base is None and not self.running:
            self._drop_bases()
        # The last that may want a base goes on in its row, the others in copies.
        whole = base is not None and (len(self.waiting) == 1 or not self.free)
        if base is not None and whole:
            request.row = base
        elif self.free:
            request.row = self.free[0]
        else:
            return False
        if base is not None:
            self._copy(base, request)
        elif not follows:
            request.read = self.cache.match(request.row, request.window)
            # A block for each that runs beside it: else the next step may take it away again.
            need = self.cache.needed(request.row, request.new) + len(self.running)
            limited = self.cache.total and self.running
            if limited and need > self.cache.free - max(step.owed, step.taken):
                self.cache.clear([request.row])
                request.row, request.read = -1, 0
                return False
        if whole:
            del self.bases[request.row]
        else:
            heappop(self.free)
        self.counts.matched += request.read
        self.running.append(self.waiting.popleft())
        return True

    def _base(self, window: tuple[int, ...]) -> int | None:
        """The row of a base that a window begins with."""
        return next((row for row, ids in self.bases.items() if [*window[: len(ids)]] == ids), None)

    def _drop_bases(self) -> None:
        for row in self.bases:
            self.give_back(row)
        self.bases = {}

    def _copy(self, base: int, request: Request) -> None:
        """Give a request what a base holds, but for the last of all tokens."""
        if request.row != base:
            self.cache.fork(base, [request.row])
        # The logits after a text are those of its last token, which must be read for them.
        request.read = min(len(self.bases[base]), request.new - 1)
        more = len(self.bases[base]) - request.read
        if more:
            held = self.cache.rows([request.row])
            held.truncate(torch.tensor([held.longest - more]))

    def share(self, request: Request) -> list[Request]:
        """Hand what a request has read to all that waited for it; returns these."""
        followers = self.followers.pop(request, [])
        if followers:
            self.cache.fork(request.row, [other.row for other in followers])
            for other in followers:
                other.read, other.window = request.read, None
            self.counts.shared += len(followers)
        return followers

    def grown(self, request: Request) -> None:
        """Note that a text has grown: past the context the model sees its newer half, anew."""
        if len(request.text) - request.start > self.context_length:
            self.cache.clear([request.row])
            request.begin(self.context_length)

    def give_back(self, row: int) -> None:
        """Empty a row and let others have it."""
        self.cache.clear([row])
        heappush(self.free, row)

    def release(self, request: Request) -> None:
        """Take a running request's row; the cache may remember what it held."""
        self.running.remove(request)
        if request.read:
            self.cache.note(request.row, request.held)
        self.give_back(request.row)
        request.row, request.read, request.window = -1, 0, None

    def drop(self, request: Request) -> None:
        """Forget a request, running or waiting."""
        if request.row >= 0:
            self.release(request)
        else:
            self.waiting.remove(request)

    def restart(self, requests: Iterable[Request], rows: Iterable[int]) -> None:
        """Begin again with these requests, all waiting, and these rows, which are emptied."""
        self.waiting, self.running, self.bases = deque(requests), [], {}
        for request in self.waiting:
            request.row, request.read, request.window = -1, 0, None
        self.free = sorted(rows)
        self.cache.clear(self.free)


def tell(untold: Sequence[Request], live: Container[int]) -> list[tuple[int, int]]:
    """The tokens that no step has returned yet, by the numbers of their requests.

    Of requests that are not live those count that have ended, not those that were cancelled.
    """
    return [
        (request.number, id)
        for request in sorted({*untold}, key=lambda request: request.number)
        if request.reason is not None or request.number in live
        for id in request.text[request.told :]
    ]
