"""Byte-level byte-pair encoding: text to ids and back, and how the merges are learned.

Every text is a row of bytes, so 256 tokens suffice for all of them and nothing is ever
unknown. Training joins the most frequent pair of neighbours into a token, again and again:

    (a, b) = argmax over pairs of sum over words w of count(w) * #{i : w[i] = a, w[i+1] = b}

Encoding repeats the merges in the order in which they were learned. Merges stay inside the
pieces that a pattern cuts (`patterns.split`).

Cost: training visits, for each merge, every word that holds the pair; encoding a piece of n
bytes is O(n^2). Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al. 2019.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise

Pair = tuple[int, int]


def pairs_of(word: list[int]) -> Counter[Pair]:
    """How often each pair of neighbours stands in `word`; `aaa` holds (a, a) twice."""
    return Counter(pairwise(word))


def is_printable(id: int) -> bool:
    """Whether `id` is a byte that stands for itself in GPT-2's alphabet: its character in Latin-1
    is printable. The characters of all other bytes come after those."""
    return 0x21 <= id <= 0x7E or 0xA1 <= id <= 0xAC or 0xAE <= id <= 0xFF


def merge(word: list[int], pair: Pair, new: int) -> list[int]:
    """`word` with each `pair` replaced by `new`, from the left."""
    merged, i = [], 0
    while i < len(word):
        # Both tokens are taken at once, so aaa has one merge of (a, a) and not two.
        if tuple(word[i : i + 2]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def train(
    pieces: Iterable[bytes],
    size: int,
    ties: str = "ids",
    min_frequency: int = 1,
    max_length: int | None = None,
    blocked: Collection[bytes | tuple[bytes, bytes]] = (),
    characters: Sequence[str] = (),
) -> tuple[list[bytes], list[Pair]]:
    """The tokens by id, 256 bytes first, and the merges in order, learned from `pieces`.

    Stops at `size` tokens, or when no pair occurs `min_frequency` times that makes a token of at
    most `max_length` bytes and is not `blocked`: the bytes of a token that is never made, or those
    of two that never merge. `characters` of several bytes are tokens from the beginning, after the
    bytes; the pieces hold no others. Of pairs that occur equally often `ties` takes "ids": the
    smaller (left id, right id), "bytes": the greater (left bytes, right bytes), or "huggingface":
    as "ids", but bytes that are printable in Latin-1 go before the others, as in GPT-2's alphabet
    (with `characters` it is "ids").
    Merge number m makes token 256 + len(characters) + m: no two make the same bytes.
    """
    tokens = [bytes([b]) for b in range(256)] + [char.encode() for char in characters]
    merges: list[Pair] = []
    # Equal pieces are merged alike, so each is kept once with its count.
    counted = Counter(pieces)
    words, frequency = [symbols(piece, tokens) for piece in counted], list(counted.values())
    total: Counter[Pair] = Counter()
    # Words that ever held a pair. A word whose pair is gone costs a visit and changes nothing.
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for w, word in enumerate(words):
        for pair, n in pairs_of(word).items():
            total[pair] += n * frequency[w]
            holders[pair].add(w)

    while len(tokens) < size:
        lengths = {(a, b): len(tokens[a]) + len(tokens[b]) for a, b in total}
        open_ = {p: n for p, n in total.items() if max_length is None or lengths[p] <= max_length}
        for pair in list(open_) if blocked else ():
            left, right = (tokens[id] for id in pair)
            if left + right in blocked or (left, right) in blocked:
                del open_[pair]
        highest = max(open_.values(), default=0)
        if highest < max(1, min_frequency):
            break
        # Ties are decided by a rule, so that training gives one result on every machine.
        tied = [pair for pair, count in open_.items() if count == highest]
        if ties == "ids" or (ties == "huggingface" and characters):
            best = min(tied)
        elif ties == "huggingface":
            best = min(tied, key=lambda pair: [(not is_printable(id), id) for id in pair])
        else:
            best = max(tied, key=lambda pair: (tokens[pair[0]], tokens[pair[1]]))
        new = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        merges.append(best)
        # Only the words that hold the pair change, and with them only their own pairs' counts.
        for w in holders.pop(best):
            for pair, n in pairs_of(words[w]).items():
                total[pair] -= n * frequency[w]
            words[w] = merge(words[w], best, new)
            for pair, n in pairs_of(words[w]).items():
                total[pair] += n * frequency[w]
                holders[pair].add(w)
    return tokens, merges


def symbols(piece: bytes, tokens: list[bytes]) -> list[int]:
    """The ids of the bytes of `piece`, or of its characters if some of those are `tokens`."""
    id_of = {token: id for id, token in enumerate(tokens)}
    whole = [piece[i : i + 1] for i in range(len(piece))]
    if len(tokens) > 256:
        whole = [char.encode() for char in piece.decode()]
    return [id_of[part] for part in whole]


def most_frequent(
    pieces: Iterable[bytes], size: int, ties: str = "ids", min_frequency: int = 1
) -> list[bytes]:
    """256 bytes, then the most frequent of `pieces` of two bytes and more: no merges.

    The vocabulary of whole words or characters. Of equally frequent pieces `ties` takes "ids":
    the smaller, or "bytes": the greater.
    """
    frequent = [(n, piece) for piece, n in Counter(pieces).items() if n >= min_frequency]
    # Sorting is stable: by piece first, then by count, leaves ties in the order of the first.
    frequent.sort(key=lambda pair: pair[1], reverse=ties == "bytes")
    frequent.sort(key=lambda pair: -pair[0])
    longer = [piece for _, piece in frequent if len(piece) > 1]
    return [bytes([b]) for b in range(256)] + longer[: size - 256]


def encode(
    piece: bytes,
    merges: list[Pair],
    tokens: list[bytes],
    drops: Callable[[], bool] = lambda: False,
) -> list[int]:
    """The ids of `piece`: always the earliest merge that applies, the leftmost pair first.

    `drops()` says of a merge whether it is passed over this time (BPE-dropout, Provilkov et al.
    2020, arXiv:1910.13267). If all that apply are passed over, the piece stays as it is.
    """
    rank = {pair: r for r, pair in enumerate(merges)}
    id_of = {token: i for i, token in enumerate(tokens)}
    word = [id_of[bytes([b])] for b in piece]
    while True:
        pairs = [(rank[pair], i) for i, pair in enumerate(pairwise(word)) if pair in rank]
        i = next((i for _, i in sorted(pairs) if not drops()), None)
        if i is None:
            return word
        # The bytes name the token: no two merges make the same bytes.
        word[i : i + 2] = [id_of[tokens[word[i]] + tokens[word[i + 1]]]]


def encode_ranks(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The ids of `piece` by tiktoken's rule: a piece that is a token stays whole; else any two
    neighbours merge whose bytes are a token, the lowest rank first, leftmost first."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([b]) for b in piece]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def cut_special(text: str, special: Iterable[str]) -> list[str]:
    """`text` cut around the `special` tokens in it, which stand at the odd places.

    The first to begin is taken, of several at one place the longest; they do not overlap. The
    texts between, even where empty, are encoded as if each stood alone.
    """
    # next() takes the first that fits, which is then the longest.
    longest_first = sorted(special, key=len, reverse=True)
    parts, start, i = [], 0, 0
    while i < len(text):
        found = next((token for token in longest_first if text.startswith(token, i)), None)
        if found is None:
            i += 1
        else:
            parts += [text[start:i], found]
            start = i = i + len(found)
    return [*parts, text[start:]]


def decode(ids: Iterable[int], tokens: list[bytes]) -> bytes:
    """The bytes of `ids`, joined."""
    return b"".join(tokens[i] for i in ids)


def every_split(tokens: dict[bytes, int]) -> list[tuple[int, int]]:
    """All pairs of tokens that make a token, by its id, then theirs: ranks written as merges."""
    splits = []
    for token, id in tokens.items():
        for i in range(1, len(token)):
            left, right = tokens.get(token[:i]), tokens.get(token[i:])
            if left is not None and right is not None:
                splits.append((id, left, right))
    return [(left, right) for _, left, right in sorted(splits)]
