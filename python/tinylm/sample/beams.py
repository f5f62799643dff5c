"""Beam search: of the likeliest continuations, those that a search of a few at a time finds."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.sample.drawer import Drawer, Row
from tinylm.sample.logits import NEVER, RowError
from tinylm.sample.logprobs import TokenLogprobs
from tinylm.sample.reader import Reader

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Beam:
    """A continuation, its score, and the log-probabilities of its tokens where asked for.

    The score is the sum of the log-probabilities, also of the token that ended it, divided by the
    number of these tokens ** length_penalty.
    """

    ids: list[int]
    score: float
    logprobs: list[TokenLogprobs]


def greedily(config: SampleConfig) -> SampleConfig:
    """The settings of a beam search: it does not draw, so nothing divides or filters logits."""
    return replace(config, temperature=0.0)


def search(
    reader: Reader,
    config: SampleConfig,
    ends: Set[int],
    *,
    tokenizer: "Tokenizer | None" = None,
    first: int | None = None,
) -> list[Beam]:
    """The best `config.num_beams` continuations of the one text of `reader`, best first.

    `reader` is left with some of them. Restrictions and penalties change the log-probabilities as
    they do in drawing. `first` is a token that was chosen already and is not read yet; it counts
    as one of `max_tokens` and begins every continuation, without a score. A beam that no token may
    follow drops out; `RowError` if none is left and none has ended. The slow definition is
    `tinylm.reference.choice.beam_search`. Used inside `model.inference`.
    """
    width, penalty = config.num_beams, config.length_penalty
    drawer = Drawer(
        greedily(config),
        reader.texts,
        [(0, 0)],
        vocab_size=reader.vocab_size,
        device=reader.last.device,
        ends=ends,
        tokenizer=tokenizer,
    )
    most = config.max_tokens
    if first is not None:
        drawer.push([first])
        most -= 1
        if most == 0:
            return [Beam([first], 0.0, [])]
        reader.read([[first]])
    totals = torch.zeros(1, dtype=torch.float64, device=reader.last.device)
    finished: list[Beam] = []
    for length in range(1, most + 1):
        try:
            logits = drawer.processed(reader.last)
        except RowError:
            rows = zip(drawer.rows, reader.last, strict=True)
            kept = [i for i, (row, own) in enumerate(rows) if not _dead_end(row, own)]
            if not kept and finished:
                return ranked(finished, width)
            if not kept or len(kept) == len(drawer.rows):
                raise
            reader.keep(kept)
            drawer.keep(kept)
            totals = totals[kept]
            logits = drawer.processed(reader.last)
        scores = logits.double().log_softmax(-1) + totals[:, None]
        going: list[tuple[int, int, float]] = []
        for rank, (parent, id, total) in enumerate(best(scores, 2 * width)):
            if id not in ends:
                going.append((parent, id, total))
            elif rank < width:
                texts, logprobs = drawer.drawn[parent], drawer.logprobs[parent]
                finished.append(Beam([*texts], total / length**penalty, [*logprobs]))
        going = going[:width]
        # Totals only fall: a beam can reach at most this score, and later ones lose ties.
        hope = max((total for *_, total in going), default=NEVER)
        hope /= (most if penalty > 0 else min(length + 1, most)) ** penalty
        if not going or _worst(finished, width) >= hope:
            return ranked(finished, width)
        parents = [parent for parent, *_ in going]
        ids = [id for _, id, _ in going]
        totals = totals.new_tensor([total for *_, total in going])
        logits = reader.last[parents]
        if parents != [*range(len(drawer.rows))]:
            reader.keep(parents)
            drawer.keep(parents)
        drawer.push(ids, logits)
        if length < most:
            reader.read([[id] for id in ids])
    finished += [
        Beam([*row.drawn], total / most**penalty, [*row.logprobs])
        for row, total in zip(drawer.rows, totals.tolist(), strict=True)
    ]
    return ranked(finished, width)


def best(scores: Tensor, count: int) -> list[tuple[int, int, float]]:
    """The `count` largest of the scores [B, V]: (beam, id, score), best first.

    Of equal ones, those of the earlier beam come first, then the smaller id. Those that are -inf
    are left out.
    """
    flat = scores.flatten()
    count = min(count, flat.numel())
    places = (flat >= flat.topk(count).values[-1]).nonzero()[:, 0]
    values, order = flat[places].sort(descending=True, stable=True)
    found = zip(places[order][:count].tolist(), values[:count].tolist(), strict=True)
    size = scores.size(1)
    return [(place // size, place % size, value) for place, value in found if value > NEVER]


def ranked(beams: Sequence[Beam], width: int) -> list[Beam]:
    """The best `width` beams by their score, best first; of equal ones those found first."""
    return sorted(beams, key=lambda beam: -beam.score)[:width]


def of_samples(found: Sequence[Beam], config: SampleConfig) -> Sequence[Beam]:
    """The beam of each sample; `ValueError` if the search found fewer."""
    if len(found) < config.samples:
        raise ValueError(
            f"the search found {len(found)} continuations, and samples={config.samples}: "
            f"ask for fewer samples, or allow more tokens"
        )
    return found[: config.samples]


def _dead_end(row: Row, logits: Tensor) -> bool:
    """Whether the settings alone leave no token: the logits [V] of the model do."""
    if not logits.amax().isfinite():
        return False
    logits = logits.clone()
    row.restrict(logits)
    return bool(logits.amax() == NEVER)


def _worst(finished: Sequence[Beam], width: int) -> float:
    """The score that a beam must pass to be among the best `width`."""
    return ranked(finished, width)[-1].score if len(finished) >= width else NEVER
