"""WordPiece: from the left, the longest token that stands there, as BERT encodes.

Tokens inside a word have a prefix of their own (`##` in BERT). A word that no tokens make, or that
is too long, is unknown as a whole.

Y. Wu et al. 2016, arXiv:1609.08144, section 4.1; Devlin et al. 2018 for the prefix. Quadratic in
the word.
"""


def encode(
    word: str, vocab: dict[str, int], unknown: int, prefix: str = "##", longest: int = 100
) -> list[int]:
    """The ids of `word`, which is not empty; `[unknown]` if it has over `longest` characters or a
    part of it is no token."""
    if len(word) > longest:
        return [unknown]
    ids, start = [], 0
    while start < len(word):
        before = prefix if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if before + word[start:end] in vocab), None)
        if end is None:
            return [unknown]
        ids.append(vocab[before + word[start:end]])
        start = end
    return ids
