"""Filters: which documents of a corpus stay, and how many each filter dropped.

    data.filters="[min_chars:200, gopher_quality, exact_duplicates, near_duplicates]"

Filters work in the order given, on the documents in the order of the corpus; a document that one
drops is not seen by the next. What is dropped depends on nothing else: not on threads, processes or
how often a corpus is read. Every document is filtered once, when the first is asked for; a byte per
document is remembered. Of a conversation the texts of its turns are what a filter sees.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tinylm import terminal
from tinylm.corpus.chats import messages_of
from tinylm.corpus.documents import Corpus, Parts, Section, joined
from tinylm.corpus.duplicates import Exact, Near
from tinylm.corpus.filter_specs import EXACT, NEAR, bands_and_rows
from tinylm.corpus.quality import RULES, Facts

# Changes with the answer of any filter, and so renames the shards of a filtered text.
VERSION = 1


def drops(spec: str) -> Callable[[Facts], bool]:
    """A filter as a function that says of each document whether it is dropped.

    `spec` is one of `canonical`. A filter of duplicates remembers what it was given.
    """
    name, _, value = spec.partition(":")
    if name in (EXACT, NEAR):
        seen = Exact() if name == EXACT else Near(*bands_and_rows(value, spec))
        return lambda facts: seen(facts.text)
    measure, limit = RULES[name].measure, float(value)
    if name.startswith("min_"):
        return lambda facts: measure(facts) < limit
    return lambda facts: measure(facts) > limit


@dataclass(slots=True)
class Count:
    """What a filter saw and dropped: documents, and their bytes of UTF-8."""

    filter: str
    seen_documents: int = 0
    seen_bytes: int = 0
    dropped_documents: int = 0
    dropped_bytes: int = 0


def total(filters: Sequence[str], parts: Iterable[Sequence[Count]]) -> list[Count]:
    """The counts of several parts of a corpus together."""
    found = [Count(name) for name in filters]
    for counts in parts:
        for whole, count in zip(found, counts, strict=True):
            whole.seen_documents += count.seen_documents
            whole.seen_bytes += count.seen_bytes
            whole.dropped_documents += count.dropped_documents
            whole.dropped_bytes += count.dropped_bytes
    return found


class Filtered:
    """The documents of sections that pass filters, which are `canonical`."""

    def __init__(self, sections: Sequence[Section], filters: Sequence[str], kind: str) -> None:
        self._sections, self._filters, self._kind = sections, filters, kind
        # For each section, whether each of its documents stays.
        self._kept: dict[int, bytearray] = {}
        self._counts: dict[int, list[Count]] = {}
        # Rules look at one document; whether it is a duplicate depends on all before it.
        self._is_global = any(name.partition(":")[0] in (EXACT, NEAR) for name in filters)
        self._lock = threading.Lock()
        self._done_bytes = 0

    def sections(self) -> tuple[Section, ...]:
        """The same sections with what stays."""
        return tuple(
            Section(section.bytes, partial(self._documents, number), partial(self._of, number))
            for number, section in enumerate(self._sections)
        )

    def counts(self) -> list[Count]:
        """What each filter dropped of the whole corpus, which is filtered for it if need be."""
        every = range(len(self._sections))
        self._filter(every)
        return total(self._filters, (self._counts[number] for number in every))

    def _of(self, number: int) -> list[Count]:
        """What each filter dropped of one section."""
        self._filter(range(len(self._sections)) if self._is_global else [number])
        return self._counts[number]

    def _documents(self, number: int) -> Iterator[tuple[bool, Parts]]:
        self._filter(range(len(self._sections)) if self._is_global else [number])
        documents = self._sections[number].documents()
        for stays, document in zip(self._kept[number], documents, strict=True):
            if stays:
                yield document

    def _filter(self, numbers: Iterable[int]) -> None:
        with self._lock:
            todo = [number for number in numbers if number not in self._kept]
            if not todo:
                return
            # Of duplicates all sections are filtered at once, or none of them.
            chain = [drops(name) for name in self._filters]
            counts = {n: [Count(name) for name in self._filters] for n in todo}
            found = {n: bytearray(self._stay(self._sections[n], chain, counts[n])) for n in todo}
            if terminal.watched():
                terminal.draw("\n")
            self._kept |= found
            self._counts |= counts

    def _stay(
        self, section: Section, chain: Sequence[Callable[[Facts], bool]], counts: Sequence[Count]
    ) -> Iterator[bool]:
        """For each document of a section whether it passes, counted."""
        live, drawn = terminal.watched(), 0
        for _, parts in section.documents():
            text = joined(parts)
            if self._kind == "chat":
                text = "\n".join(turn["content"] for turn in messages_of(text))
            facts, size = Facts(text), len(text) if text.isascii() else len(text.encode())
            dropped = False
            for is_dropped, count in zip(chain, counts, strict=True):
                count.seen_documents += 1
                count.seen_bytes += size
                dropped = is_dropped(facts)
                if dropped:
                    count.dropped_documents += 1
                    count.dropped_bytes += size
                    break
            yield not dropped
            self._done_bytes += size
            if live and self._done_bytes - drawn > 1 << 20:
                drawn = self._done_bytes
                terminal.draw(f"\r\x1b[Kfilter: {drawn / 1e6:.1f} MB read")


def filtered(corpus: Corpus) -> Corpus:
    """The documents that pass the corpus' filters; nothing is read before one is asked for."""
    names = corpus.reading.filters
    if not names:
        return corpus
    kept = Filtered(corpus.sections, names, corpus.kind)
    content = f"{corpus.fingerprint} filters {VERSION} {' '.join(names)}"
    return replace(
        corpus,
        sections=kept.sections(),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        counts=kept.counts,
    )


def table(counts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a table of the counts that a manifest has: what each filter saw and dropped."""
    if not counts:
        return
    width = max(len(count["filter"]) for count in counts)
    yield f"{'filter':{width}} {'documents':>12} {'dropped':>12} {'':>6} {'MB dropped':>11}"
    for count in counts:
        gone, seen = count["dropped_documents"], count["seen_documents"]
        yield (
            f"{count['filter']:{width}} {seen:>12,} {gone:>12,} {gone / max(1, seen):>6.1%} "
            f"{count['dropped_bytes'] / 1e6:>11,.1f}"
        )
    yield from summary(counts)


def summary(counts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line of what all filters left, none without filters."""
    if not counts:
        return
    seen, of = counts[0]["seen_documents"], counts[0]["seen_bytes"]
    gone = sum(count["dropped_documents"] for count in counts)
    size = sum(count["dropped_bytes"] for count in counts)
    yield (
        f"filters kept {seen - gone:,} of {seen:,} documents, {(of - size) / 1e6:,.1f} of "
        f"{of / 1e6:,.1f} MB"
    )
