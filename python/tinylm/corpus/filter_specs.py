"""The names of filters and their limits: what `data.filters` may hold, checked and spelled out."""

from collections.abc import Iterable, Iterator

from tinylm.corpus.quality import BUNDLES, RULES

EXACT, NEAR = "exact_duplicates", "near_duplicates"
# Bands and rows of `near_duplicates`, as FineWeb takes them.
BANDS = "14x8"


def canonical(filters: Iterable[str]) -> tuple[str, ...]:
    """Every filter as NAME:VALUE, bundles replaced by their rules; `ValueError` for an unknown one.

    A rule that is named twice keeps its first place and its last value.
    """
    found: dict[str, str] = {}
    for given in filters:
        name, colon, value = given.strip().partition(":")
        if name in BUNDLES:
            if colon:
                raise ValueError(f"data.filters: {given}: {name} takes no value, its rules do")
            names = [rule.partition(":") for rule in BUNDLES[name]]
        else:
            names = [(name, colon, value)]
        for rule, _, limit in names:
            found[rule] = _spec(rule, limit, given)
    return tuple(found.values())


def _spec(name: str, value: str, given: str) -> str:
    if name == EXACT:
        if value:
            raise ValueError(f"data.filters: {given}: {EXACT} takes no value")
        return name
    if name == NEAR:
        bands, rows = bands_and_rows(value or BANDS, given)
        return f"{name}:{bands}x{rows}"
    if name not in RULES:
        names = ", ".join([*RULES, EXACT, NEAR, *BUNDLES])
        raise ValueError(f"data.filters: {given}: no such filter; there are {names}")
    rule = RULES[name]
    if not value and rule.limit is None:
        raise ValueError(f"data.filters: {given}: needs a number of {rule.about}: {name}:200")
    try:
        limit = float(value) if value else float(rule.limit or 0)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e18:
        raise ValueError(
            f"data.filters: {given}: {value} must be a number of at least 0 and below 1e18"
        )
    return f"{name}:{limit:.15g}"


def bands_and_rows(value: str, given: str) -> tuple[int, int]:
    """The two numbers of `14x8`; `ValueError` names the filter as it was `given`."""
    bands, _, rows = value.partition("x")
    if not (bands.isdecimal() and rows.isdecimal() and 1 <= int(bands) * int(rows) <= 1024):
        raise ValueError(
            f"data.filters: {given}: {value} must be BANDSxROWS of at most 1024 hashes, such as "
            f"{BANDS}"
        )
    return int(bands), int(rows)


def listed() -> Iterator[str]:
    """A line for each filter: its name, its usual limit and what it measures."""
    for name, rule in RULES.items():
        limit = "N" if rule.limit is None else f"{rule.limit:g}"
        yield f"{f'{name}:{limit}':38} {rule.about}"
    yield f"{EXACT:38} documents that came before, letter by letter"
    yield f"{f'{NEAR}:{BANDS}':38} documents like an earlier one (MinHash, bands x rows)"
    for name, rules in BUNDLES.items():
        yield f"{name:38} = {', '.join(rules)}"
