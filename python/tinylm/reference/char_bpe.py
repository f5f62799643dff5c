"""BPE over characters: what Llama, Mistral and CLIP do, and what is done without a token.

It merges as `byte_bpe` does, but begins with characters. One without a token becomes the tokens of
its UTF-8 bytes (`<0x00>` to `<0xFF>`), or is unknown. Characters inside a piece may have a prefix
in the vocabulary, the last one a suffix (CLIP's `</w>`).

Sennrich et al. 2016, arXiv:1508.07909; Kudo and Richardson 2018, arXiv:1808.06226 for the rule by
scores; Provilkov et al. 2020, arXiv:1910.13267 for dropout. Quadratic in the piece.
"""

from collections import Counter
from collections.abc import Callable, Collection
from itertools import pairwise

Pair = tuple[str, str]


def alphabet(
    words: Counter[str], initial: str = "", coverage: float = 1.0, limit: int | None = None
) -> list[tuple[str, int]]:
    """The characters that are tokens of their own with their counts, the most frequent first.

    As in sentencepiece the most frequent ones are taken until they are `coverage` of the text, as
    in Hugging Face's trainer the `initial` ones always are, and there are `limit` at most. Of
    equally frequent ones the lower code point comes first.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    taken, covered = dict.fromkeys(initial), 0
    for char in sorted(counts, key=lambda char: (-counts[char], char)):
        if covered >= coverage * counts.total():
            break
        covered += counts[char]
        if limit is None or len(taken) < limit:
            taken[char] = None
    return sorted(((char, counts[char]) for char in taken), key=lambda pair: (-pair[1], pair[0]))


def within(words: Counter[str], characters: Collection[str]) -> Counter[str]:
    """The parts of `words` between characters that are not in the alphabet, with their counts."""
    parts: Counter[str] = Counter()
    for word, count in words.items():
        spaced = "".join(char if char in characters else "\0" for char in word)
        for part in filter(None, spaced.split("\0")):
            parts[part] += count
    return parts


def symbols(
    piece: str,
    vocab: dict[str, int],
    *,
    byte_fallback: bool = False,
    unknown: str | None = None,
    fuse: bool = False,
    prefix: str = "",
    suffix: str = "",
) -> list[str]:
    """The tokens of the characters of `piece`, before anything is merged.

    Without `unknown` a character without a token is left out; with `fuse` neighbours that are
    unknown are one token.
    """
    tokens: list[str] = []
    after_unknown = False
    for i, char in enumerate(piece):
        char = prefix * (i > 0) + char + suffix * (i == len(piece) - 1)
        as_bytes = [f"<0x{byte:02X}>" for byte in char.encode()]
        if char in vocab:
            tokens.append(char)
            after_unknown = False
        elif byte_fallback and all(token in vocab for token in as_bytes):
            tokens += as_bytes
            after_unknown = False
        elif unknown is not None:
            if not (fuse and after_unknown):
                tokens.append(unknown)
            after_unknown = True
    return tokens


def merge_all(
    tokens: list[str], rank: dict[Pair, int], drops: Callable[[], bool], prefix: str = ""
) -> list[str]:
    """`tokens` after all merges: the lowest rank first, the leftmost of equal ranks.

    `drops()` says of a merge whether it is passed over this time (BPE-dropout): they are tried in
    their order until one is not. If all are passed over, the piece stays as it is.
    """
    tokens = list(tokens)
    while True:
        due = sorted((rank[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in rank)
        chosen = next((i for _, i in due if not drops()), None)
        if chosen is None:
            return tokens
        left, right = tokens[chosen : chosen + 2]
        tokens[chosen : chosen + 2] = [left + right.removeprefix(prefix)]


def ranks_of_scores(scores: dict[str, float]) -> dict[Pair, int]:
    """sentencepiece's merges: any two tokens whose text is a token, the highest score first."""
    order = sorted(set(scores.values()), reverse=True)
    return {
        (token[:i], token[i:]): order.index(score)
        for token, score in scores.items()
        for i in range(1, len(token))
        if token[:i] in scores and token[i:] in scores
    }


def encode(
    piece: str,
    vocab: dict[str, int],
    rank: dict[Pair, int],
    *,
    byte_fallback: bool = False,
    unknown: str | None = None,
    fuse: bool = False,
    prefix: str = "",
    suffix: str = "",
) -> list[int]:
    """The ids of `piece`."""
    tokens = symbols(
        piece,
        vocab,
        byte_fallback=byte_fallback,
        unknown=unknown,
        fuse=fuse,
        prefix=prefix,
        suffix=suffix,
    )
    return [vocab[token] for token in merge_all(tokens, rank, lambda: False, prefix)]
