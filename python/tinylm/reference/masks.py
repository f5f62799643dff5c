"""Which keys a query may look at, one query and one key at a time.

Places count from 0 in a row. A document is a run of equal numbers: a number that comes back after
another begins a new document. A mask is what every rule that is set allows; the rules are those of
Vaswani et al. 2017 (causal), Beltagy et al. 2020 (window) and Raffel et al. 2020 (prefix).
"""

from collections.abc import Sequence


def sees(
    query: int,
    key: int,
    *,
    causal: bool,
    window: int | None = None,
    prefix: int | None = None,
    documents: Sequence[int] | None = None,
) -> bool:
    """Whether the query at one place may look at the key at another, in one row."""
    # Documents come first: neither a window nor a prefix reaches into another document.
    if documents is not None:
        first, last = sorted((query, key))
        if len(set(documents[first : last + 1])) > 1:
            return False
    # A prefix is seen by every query, also by one that stands before the key.
    if prefix is not None and key < prefix:
        return True
    if window is not None and abs(query - key) >= window:
        return False
    return key <= query or not causal


def mask(
    queries: int,
    keys: int,
    *,
    pasts: Sequence[int] | None = None,
    causal: bool,
    window: int | None = None,
    prefixes: Sequence[int] | None = None,
    documents: Sequence[Sequence[int]] | None = None,
    rows: int = 1,
) -> list[list[list[bool]]]:
    """[B][T][S]: what each query of each row sees; the queries of row b follow pasts[b] keys.

    Without `pasts` the last query stands at the last key. A row holds nothing after its last
    query.
    """
    result = []
    for row in range(rows):
        # Without `pasts` all rows are full, so the last query is at the last key.
        past = keys - queries if pasts is None else pasts[row]
        prefix = None if prefixes is None else prefixes[row]
        own = None if documents is None else documents[row]
        result.append(
            [
                [
                    key < past + queries
                    and sees(query, key, causal=causal, window=window, prefix=prefix, documents=own)
                    for key in range(keys)
                ]
                for query in range(past, past + queries)
            ]
        )
    return result
