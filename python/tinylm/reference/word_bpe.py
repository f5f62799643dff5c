"""Word-level byte-pair encoding, the classic: text to ids and back, and how merges are learned.

Cut the text into words, write each word as characters and an end mark, and join the pair of
neighbouring symbols that occurs most often into one symbol, again and again:

    l o w </w> x5   l o w e r </w> x2   --(l, o)-->   lo w </w> x5   lo w e r </w> x2

The end mark makes `est</w>` (the end of "newest") another symbol than `est` (in "estate") and
is how `decode` knows where the spaces were. Source: Sennrich et al. 2016, arXiv:1508.07909,
algorithm 1; W and its counts are `char_spaced_word_freq`, the argmax is `train`.

The law: `decode(encode(t)) == " ".join(isolate(t).split())` for every text of characters that
were seen in training. What it does not do, and `byte_bpe` does: keep spaces and line ends,
keep "don't" in one piece, and spell characters that training has not seen: each of those
becomes `[UNK]`. Text cannot forge an end mark or a special token: their brackets are
punctuation, and so words of their own.

Cost: training reads all W different words for each of M merges, O(M W); encoding a word of n
characters tries all merges, O(M n). The fast tokenizer of this package is the byte-level one;
this one has no fast twin.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

Pair = tuple[str, str]

END = "</w>"
# Brackets are punctuation and become words of their own, so no text can hold one of these.
SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[BOS]", "[EOS]")
UNK, PAD, BOS, EOS = range(4)


def isolate(text: str) -> str:
    """`text` with a space on both sides of every punctuation mark and symbol.

    These are Unicode's categories P and S. Accents that follow their letter (category M) stay
    with it, which "everything but letters and digits" would tear off.
    """
    return "".join(f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in text)


def char_spaced_word_freq(text: str) -> Counter[str]:
    """How often each word stands in `text`; "low" is written "l o w </w>".

    Words end at any white space: a space, a tab, a line end. A word holds no space, so the
    spaces between its symbols are unambiguous.
    """
    return Counter(" ".join([*word, END]) for word in isolate(text).split())


def bigram_pair_freq(words: dict[str, int]) -> Counter[Pair]:
    """How often each pair of neighbouring symbols stands in all `words` together."""
    frequency: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word.split(" ")):
            frequency[pair] += count
    return frequency


def merge_word(pair: Pair, word: str) -> str:
    """`word` with each `pair` of whole symbols joined, from the left.

    `word.replace("a b", "ab")` would be shorter and wrong: it also joins the end of one symbol
    with the start of another, "xa by" to "xaby".
    """
    symbols, merged, i = word.split(" "), [], 0
    while i < len(symbols):
        # A slice, not an index: the last symbol has no neighbour.
        step = 2 if (symbols[i], "".join(symbols[i + 1 : i + 2])) == pair else 1
        merged.append("".join(symbols[i : i + step]))
        i += step
    return " ".join(merged)


def merge(pair: Pair, words: dict[str, int]) -> dict[str, int]:
    """All `words` with `pair` joined, and their counts."""
    return {merge_word(pair, word): count for word, count in words.items()}


def build_vocab(words: dict[str, int], merges: Iterable[Pair] = ()) -> dict[str, int]:
    """Symbol to id: special tokens 0 to 3, `</w>`, the characters in order, then the merges.

    `words` are those of `char_spaced_word_freq`, before any merge. Characters keep their ids
    however often they were merged, so that a new word can be spelled. Two merges that make the
    same symbol, (a, bc) and (ab, c), share an id.
    """
    # Sorted below, because the order of a set differs from run to run.
    characters = {symbol for word in words for symbol in word.split(" ")} - {END}
    joined = (left + right for left, right in merges)
    # A dictionary keeps the first of two equal symbols, and so their order.
    symbols = dict.fromkeys([*SPECIAL_TOKENS, END, *sorted(characters), *joined])
    return {symbol: i for i, symbol in enumerate(symbols)}


def train(text: str, vocab_size: int) -> tuple[dict[str, int], list[Pair]]:
    """The vocabulary and the merges, in order, learned from `text`.

    Stops at `vocab_size` symbols, special tokens included, or when every word is one symbol.
    Of pairs that occur equally often the smaller (left, right) by code points is merged.
    Raises `ValueError` where the characters alone do not fit `vocab_size`.
    """
    words: dict[str, int] = char_spaced_word_freq(text)
    vocab = build_vocab(words)
    if len(vocab) > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the special tokens and characters alone are {len(vocab)}; "
            f"give at least that"
        )
    merges: list[Pair] = []
    while len(vocab) < vocab_size and (frequency := bigram_pair_freq(words)):
        # Highest count first; among equals the smaller pair, so that every run learns the same.
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        words = merge(best, words)
        merges.append(best)
        # The same symbol can come of two merges; the second must not get an id.
        vocab.setdefault(best[0] + best[1], len(vocab))
    return vocab, merges


def encode(text: str, vocab: dict[str, int], merges: list[Pair]) -> list[int]:
    """Ids of `text`: each word's merges in the order learned; unseen characters are `[UNK]`.

    The text is isolated and cut as in training. `[BOS]` and `[EOS]` are for the caller to add.
    """
    ids: list[int] = []
    for word in isolate(text).split():
        spaced = " ".join([*word, END])
        for pair in merges:
            spaced = merge_word(pair, spaced)
        ids += [vocab.get(symbol, UNK) for symbol in spaced.split(" ")]
    return ids


def decode(ids: Iterable[int], vocab: dict[str, int]) -> str:
    """The text of `ids`, words parted by one space; `[UNK]` is shown, `[PAD]` and the like not.

    Raises `KeyError` for an id that is not in `vocab`.
    """
    # The inverse of the vocabulary: ids are unique, because `build_vocab` counts them.
    symbols = {i: symbol for symbol, i in vocab.items()}
    text = ""
    for i in ids:
        if i not in symbols:
            raise KeyError(f"id {i}: the vocabulary ends at {len(vocab) - 1}")
        if i not in (PAD, BOS, EOS):
            symbol = symbols[i]
            text += symbol.removesuffix(END) + (" " if symbol.endswith(END) else "")
    return text.removesuffix(" ")


def save_merge_rules(merges: Iterable[Pair], path: str | Path) -> None:
    """Write the merges as UTF-8 text, in order, one `left right` a line."""
    lines = (f"{left} {right}\n" for left, right in merges)
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def load_merge_rules(path: str | Path) -> list[Pair]:
    """The merges that `save_merge_rules` wrote; `ValueError` names the line that is none."""
    merges: list[Pair] = []
    # Lines end at "\n" only: splitlines() also cuts at characters that a symbol may hold.
    lines = Path(path).read_bytes().decode("utf-8").removesuffix("\n")
    for number, line in enumerate(lines.split("\n") if lines else [], 1):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise ValueError(
                f"{path}, line {number}: expected two symbols and a space, got {line!r}"
            )
        merges.append((left, right))
    return merges


def save_vocab(vocab: dict[str, int], path: str | Path) -> None:
    """Write the vocabulary as one UTF-8 JSON object, symbol to id."""
    text = json.dumps(vocab, ensure_ascii=False, indent=0)
    Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def load_vocab(path: str | Path) -> dict[str, int]:
    """The vocabulary that `save_vocab` wrote; `ValueError` where the file holds another thing."""
    vocab = json.loads(Path(path).read_bytes())
    if not isinstance(vocab, dict) or list(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"{path}: expected an object of symbols with the ids 0, 1, 2 in order")
    return vocab
