"""What ends a text: stop ids, stop texts, and the part of a text that may begin a stop text."""

from collections.abc import Sequence

from tinylm.config import SampleConfig


def split_stops(config: SampleConfig, vocab_size: int) -> tuple[set[int], list[str]]:
    """Return the stop ids and the stop texts of `config.stop`.

    Raises `ValueError` for an id outside the vocabulary and for an empty text.
    """
    ids = [stop for stop in config.stop if isinstance(stop, int)]
    texts = [stop for stop in config.stop if isinstance(stop, str)]
    check_ids("stop", ids, vocab_size)
    if "" in texts:
        raise ValueError("stop='': a stop text has at least one character")
    return set(ids), texts


def check_ids(where: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise `ValueError` with the first id that is outside the vocabulary."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{where} has id {token}: the vocabulary is 0 to {vocab_size - 1}")


def cut(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """A text to (what surely precedes any stop, what may begin one, whether a stop has come).

    Of several stops the one that ends first counts, as if the text came letter by letter.
    """
    # Of those that end at one place the longest begins first: the negative length prefers it.
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if ends:
        end, length = min(ends)
        return text[: end + length], "", True
    # The longest overlap: a shorter one may still be the start of a stop inside it.
    held = max((_overlap(text, stop) for stop in stops), default=0)
    return text[: len(text) - held], text[len(text) - held :], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text[-n:] == stop[:n]), 0
    )
