"""Logits to the next token of each text: restrictions, penalties, filters, and the draw."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.sample.counting import Counts, counts_tokens
from tinylm.sample.grammar import Matcher, Structures
from tinylm.sample.logits import STREAM, RowError, check_largest, draw, greedy, process, uniforms
from tinylm.sample.logprobs import TokenLogprobs, of_tokens
from tinylm.sample.restrictions import Rules

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Random numbers made at once per text: one costs as much to make as a hundred.
BLOCK = 64
# Configs whose rules are kept for the next text with the same one.
KNOWN = 64
# The settings that leave tokens out.
FILTERS = ("top_k", "top_p", "min_p", "typical_p")
# The settings of `process`: rows in which they are equal are processed together.
CHAIN = (
    *("temperature", *FILTERS),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)

# Processed logits [R, V] to an id per text [R].
Choose = Callable[[Tensor], Tensor]


@dataclass
class Row:
    """One text: its settings, its tokens, and what follows from both.

    `ends` are the ids that end it, `rules` and `matcher` what may come next, `numbers` by stream
    the index of a block of random numbers and the block.
    """

    config: SampleConfig
    place: tuple[int, int]
    prompt: list[int]
    drawn: list[int]
    ends: frozenset[int]
    rules: Rules | None
    matcher: Matcher | None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    numbers: dict[int, tuple[int, list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        # Found once: rows are grouped anew whenever one comes or goes.
        self.chain = tuple(getattr(config, name) for name in CHAIN)
        self.counted = counts_tokens(config)
        free = not self.counted and not config.restricted and config.min_tokens == 0
        # Whether its tokens have no part in what becomes of its logits.
        self.free = free
        # Whether its likeliest token is all that is wanted.
        self.plain = config.temperature == 0 and free
        filtered = any(getattr(config, name) is not None for name in FILTERS)
        # Whether temperature and number alone choose its token.
        self.simple = free and not filtered and self.matcher is None and config.logprobs is None

    def copy(self) -> "Row":
        """A row that grows by itself from here on."""
        return replace(
            self,
            drawn=[*self.drawn],
            logprobs=[*self.logprobs],
            matcher=self.matcher and self.matcher.copy(),
            numbers=dict(self.numbers),
        )

    def number(self, stream: int, ahead: int = 0) -> float:
        """The random number of the position, or of one so far `ahead`, of one stream."""
        block, place = divmod(len(self.drawn) + ahead, BLOCK)
        known = self.numbers.get(stream)
        if known is None or known[0] != block:
            first, seed = block * BLOCK, self.config.seed
            some = uniforms(seed, *self.place, first, BLOCK, stream=stream).tolist()
            known = self.numbers[stream] = block, some
        return known[1][place]

    def restrict(self, logits: Tensor) -> None:
        """Change the logits [V] of this text in place by what is forbidden and favoured next."""
        if self.rules is not None:
            if self.rules.bias is not None:
                logits += self.rules.bias
            logits[[*self.rules.forbidden([*self.prompt, *self.drawn])]] = -math.inf
        if self.matcher is not None:
            logits.masked_fill_(~self.matcher.allowed().to(logits.device), -math.inf)
        if len(self.drawn) < self.config.min_tokens:
            # A padded model may name an end that has no logit.
            logits[[id for id in self.ends if id < logits.size(-1)]] = -math.inf

    def problem(self) -> str:
        """Why no token is left, for an error."""
        names = [*self.config.restrictions, *(["min_tokens"] if self.config.min_tokens else [])]
        given = ", ".join(f"sample.{name}" for name in names)
        return f"no token may follow after {len(self.drawn)} tokens by {given}: allow more"


class Drawer:
    """Draws one token per text and step, by the settings of each text.

    `places` names each text: (number of its prompt, number of its sample). What a text draws is
    a function of its logits, its settings, its place and its position, the number of tokens drawn
    before: not of its company. `configs` is one config for all texts, or one for each. `ends` are
    the ids that end a text, and `tokenizer` is for settings that name texts.
    """

    def __init__(
        self,
        configs: SampleConfig | Sequence[SampleConfig],
        texts: Sequence[Sequence[int]],
        places: Sequence[tuple[int, int]],
        *,
        vocab_size: int,
        device: torch.device,
        ends: Iterable[int] = (),
        tokenizer: "Tokenizer | None" = None,
    ) -> None:
        self.vocab_size, self.device, self.tokenizer = vocab_size, device, tokenizer
        self.rows: list[Row] = []
        self._rules: dict[SampleConfig, Rules] = {}
        self._structures = Structures(tokenizer, vocab_size)
        self._groups: list[tuple[SampleConfig, Tensor]] | None = None
        self._counts = Counts(vocab_size, device)
        if isinstance(configs, SampleConfig):
            configs = [configs] * len(texts)
        last = frozenset(ends)
        for config, text, place in zip(configs, texts, places, strict=True):
            self.rows.append(self._row(config, text, place, (), last))
        self._regroup()

    def add(
        self,
        config: SampleConfig,
        text: Sequence[int],
        place: tuple[int, int],
        drawn: Sequence[int] = (),
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """Append a text with settings of its own, which may have `drawn` tokens before."""
        self.rows.append(self._row(config, text, place, drawn, ends))
        self._regroup()

    @property
    def config(self) -> SampleConfig:
        """The settings of the first text."""
        return self.rows[0].config

    @property
    def drawn(self) -> list[list[int]]:
        """The tokens that each text has drawn."""
        return [row.drawn for row in self.rows]

    @property
    def logprobs(self) -> list[list[TokenLogprobs]]:
        """What each text has drawn, with log-probabilities; empty where they are not asked for."""
        return [row.logprobs for row in self.rows]

    def draw(
        self, logits: Tensor, choose: Choose | None = None, going: Sequence[int] | None = None
    ) -> list[int]:
        """logits [R, V] to the next id of each text.

        They are processed first; `choose` takes the ids in another way then. Texts outside
        `going`, if given, stay as they are, and their ids mean nothing. Raises `RowError`, before
        anything changes, where no token of a text can be drawn.
        """
        if choose is None and self.rows and all(row.plain for row in self.rows):
            # The plainest case needs one pass, which also tells whether the logits are finite.
            largest, ids = logits.max(-1)
            check_largest(largest, self.rows[0].config)
        else:
            ids = (choose or self.choose)(self.processed(logits, going))
        # One transfer from the device for all rows, not one per row.
        found: list[int] = ids.tolist()
        self._counts.add(ids, going)
        self._append(found, logits, going)
        return found

    def processed(self, logits: Tensor, going: Sequence[int] | None = None) -> Tensor:
        """logits [R, V] to the logits that the next token of each text is drawn from.

        Nothing changes. Raises `RowError` where no token of a text can be drawn. Texts
        outside `going`, if given, are left out: their logits mean nothing.
        """
        rows = range(len(self.rows)) if going is None else going
        restricted = [i for i in rows if self._restricts(self.rows[i])]
        if restricted:
            logits = logits.clone()
        for i in restricted:
            try:
                self.rows[i].restrict(logits[i])
            except ValueError as error:
                raise RowError(i, str(error)) from None
            if logits[i].amax() == -math.inf:
                raise RowError(i, self.rows[i].problem())
        groups = self._alike()
        if len(groups) == 1 and len(rows) == len(self.rows):
            return process(logits, self._counts.seen, self._counts.counts, groups[0][0])
        found = torch.zeros_like(logits)
        wanted = torch.tensor([*rows], device=self.device)
        for config, group in groups:
            index = group if len(rows) == len(self.rows) else group[torch.isin(group, wanted)]
            try:
                found[index] = process(logits[index], *self._counts.of(index), config)
            except RowError as error:
                row = int(index[error.row])
                raise RowError(row, str(error).replace(f"row {error.row}", f"row {row}")) from None
        return found

    def choose(self, processed: Tensor, stream: int = STREAM) -> Tensor:
        """Processed logits [R, V] to an id per text [R]: the likeliest, or one drawn."""
        cold = [row.config.temperature == 0 for row in self.rows]
        if all(cold):
            return greedy(processed)
        if not any(cold):
            return draw(processed, self.numbers(stream))
        here = torch.tensor(cold, device=processed.device)
        ids = torch.empty(len(cold), dtype=torch.int64, device=processed.device)
        ids[here] = greedy(processed[here])
        ids[~here] = draw(processed[~here], self.numbers(stream)[~here])
        return ids

    def chances(
        self, counts: Sequence[int] | None = None
    ) -> tuple[list[float], list[float]] | None:
        """The temperature and the random number of each text, if those alone choose its token.

        With `counts` those of so many positions of each text from its next one on, text by text.
        """
        if not all(row.simple for row in self.rows):
            return None
        if counts is None:
            heats = [row.config.temperature for row in self.rows]
            pairs = zip(self.rows, heats, strict=True)
            return heats, [row.number(STREAM) if heat else 0.0 for row, heat in pairs]
        places = [
            (row, row.config.temperature, ahead)
            for row, count in zip(self.rows, counts, strict=True)
            for ahead in range(count)
        ]
        numbers = [row.number(STREAM, ahead) if heat else 0.0 for row, heat, ahead in places]
        return [heat for _, heat, _ in places], numbers

    def numbers(self, stream: int = STREAM, count: int = 1) -> Tensor:
        """The random numbers [R count] float64 of each text's next positions, of one stream."""
        numbers = [row.number(stream, ahead) for row in self.rows for ahead in range(count)]
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)

    def every(self, logits: Tensor) -> Tensor | None:
        """logits [R, T, V] of each text's next positions to those that tokens are drawn from.

        None if those depend on the tokens before them, or on different settings of the texts.
        """
        if len(self._alike()) > 1 or not all(row.free for row in self.rows):
            return None
        return process(logits.flatten(0, 1), None, None, self.config).view_as(logits)

    def push(self, tokens: Sequence[int], logits: Tensor | None = None) -> None:
        """Count one token per text as drawn, which was chosen elsewhere; its number is unused.

        Its log-probability is taken from the `logits` [R, V] before it, where they are given.
        """
        self._append(tokens, logits)
        self._count(range(len(self.rows)))

    def extend(self, tokens: Sequence[Sequence[int]], logits: Tensor | None = None) -> None:
        """As `push`, but any number of tokens per text; the logits are [R, T, V]."""
        for i, (row, ids) in enumerate(zip(self.rows, tokens, strict=True)):
            row.drawn += ids
            if row.matcher is not None:
                for id in ids:
                    row.matcher.push(id)
            if row.config.logprobs is not None and logits is not None:
                row.logprobs += of_tokens(logits[i, : len(ids)], ids, row.config.logprobs)
        self._count(range(len(self.rows)))

    def truncate(self, positions: Sequence[int]) -> None:
        """Take draws back: text b goes on at positions[b], with the number that belongs there.

        Raises `ValueError` for a position that a text has not reached.
        """
        reached = [len(row.drawn) for row in self.rows]
        if len(positions) != len(reached) or any(
            not 0 <= position <= most for position, most in zip(positions, reached, strict=True)
        ):
            raise ValueError(f"positions={[*positions]}: the texts have drawn {reached} tokens")
        for row, position in zip(self.rows, positions, strict=True):
            if row.matcher is not None:
                row.matcher.take_back(len(row.drawn) - position)
            del row.drawn[position:]
            del row.logprobs[position:]
        # Counted anew, not subtracted: a token that is taken back may also be in the prompt.
        self._count(i for i, most in enumerate(reached) if positions[i] < most)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order; one may come several times."""
        # Copies only where a row comes again: each then grows by itself.
        seen: set[int] = set()
        kept = []
        for i in rows:
            kept.append(self.rows[i].copy() if i in seen else self.rows[i])
            seen.add(i)
        self.rows = kept
        self._counts.keep(rows)
        self._regroup()

    def _row(
        self,
        config: SampleConfig,
        text: Sequence[int],
        place: tuple[int, int],
        drawn: Sequence[int],
        ends: frozenset[int],
    ) -> Row:
        rules = None
        if config.restricted:
            if len(self._rules) >= KNOWN:
                # The rows keep their own; this only forgets those of texts that may be gone.
                self._rules.clear()
            if config not in self._rules:
                self._rules[config] = Rules(config, self.vocab_size, self.tokenizer, self.device)
            rules = self._rules[config]
        matcher = self._structures.matcher(config) if config.structure else None
        if matcher is not None:
            for id in drawn:
                matcher.push(id)
        return Row(config, place, [*text], [*drawn], ends, rules, matcher)

    def _restricts(self, row: Row) -> bool:
        early = len(row.drawn) < row.config.min_tokens and bool(row.ends)
        return row.rules is not None or row.matcher is not None or early

    def _append(
        self, tokens: Sequence[int], logits: Tensor | None, going: Sequence[int] | None = None
    ) -> None:
        """Add a token to each text, or to those of `going` alone."""
        for i in range(len(self.rows)) if going is None else going:
            row, token = self.rows[i], tokens[i]
            row.drawn.append(token)
            if row.matcher is not None:
                row.matcher.push(token)
            if row.config.logprobs is not None and logits is not None:
                row.logprobs += of_tokens(logits[i : i + 1], [token], row.config.logprobs)

    def _regroup(self) -> None:
        """Make the tables of counts those of the rows; groups are found when they are needed."""
        self._groups = None
        if any(row.counted for row in self.rows):
            missing = self._counts.want(len(self.rows))
            self._count(missing)
        else:
            # Rows without penalties may come now, for which the tables would have no place.
            self._counts = Counts(self.vocab_size, self.device)

    def _alike(self) -> list[tuple[SampleConfig, Tensor]]:
        """The rows of equal settings, with these."""
        if self._groups is None:
            groups: dict[tuple[object, ...], list[int]] = {}
            for i, row in enumerate(self.rows):
                groups.setdefault(row.chain, []).append(i)
            self._groups = [
                (self.rows[group[0]].config, torch.tensor(group, device=self.device))
                for group in groups.values()
            ]
        return self._groups

    def _count(self, rows: Iterable[int]) -> None:
        """Count the tokens of some texts anew."""
        for i in rows:
            self._counts.set(i, self.rows[i].prompt, self.rows[i].drawn)


def check(config: SampleConfig, vocab_size: int, tokenizer: "Tokenizer | None") -> None:
    """Raise `ConfigError` where a drawer could not take these settings; for the error's sake."""
    if config.restricted:
        Rules(config, vocab_size, tokenizer, torch.device("cpu"))
    if config.structure:
        Structures(tokenizer, vocab_size).matcher(config)
