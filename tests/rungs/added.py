"""Added tokens that always match, beside special ones: Rust against `reference.byte_bpe`."""

from dataclasses import replace

from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.rungs.text import encode
from tests.support.strategies import assigned_text
from tests.support.tokenizer_data import TOKENIZERS, standard_library
from tinylm import Tokenizer
from tinylm.reference import byte_bpe
from tinylm.tokenizer.contents import AddedToken

# Normalized tokens come after the others, so "the b  zzzzz" holds the third and not the fourth.
ADDED = (
    AddedToken("  ", 367, special=False),
    AddedToken("<|end|>", 368),
    AddedToken("b  zzzzz", 369, special=False),
    AddedToken("the b", 370, special=False, normalized=True),
    AddedToken("|>x<", 371, normalized=True),
)
ID_OF = {token.content: token.id for token in ADDED}
TOKENIZER = Tokenizer(replace(TOKENIZERS["gpt4"]._contents, added_tokens=ADDED))
PIECES = [*ID_OF, "the ", "b  zzzz", "|>x", "<|end", " w 1 ", "a"]
texts = st.lists(st.sampled_from(PIECES) | assigned_text(), max_size=9).map("".join)


def divided(text, passes):
    """`text` cut at the tokens of the first pass, the rest at those of the next; (part, id)."""
    if not passes:
        return [(text, None)]
    parts = [*byte_bpe.cut_special(text, passes[0]), ""]
    found = []
    for between, token in zip(parts[::2], parts[1::2], strict=True):
        found += divided(between, passes[1:])
        found += [("", ID_OF[token])] if token else []
    return found


def slowly(text, special):
    """The ids, or that a special token is refused."""
    known = [token for token in ADDED if special != "text" or not token.special]
    passes = [[t.content for t in known if t.normalized == late] for late in (False, True)]
    parts = divided(text, passes)
    if special == "raise" and {368, 371} & {id for _, id in parts}:
        return "refused"
    return [i for part, id in parts for i in (encode("gpt4", part) if id is None else [id])]


def quickly(text, special):
    try:
        return TOKENIZER.encode(text, special=special)
    except ValueError:
        return "refused"


def around_the_cut(text, more):
    """The ids of what stands before a safe cut in `text`, and of what follows."""
    core = TOKENIZER._core
    at = core.cut(text, "allow") or 0
    rest = text.encode()[at:] + more.encode()
    return core.encode(text.encode()[:at], "allow") + core.encode(rest, "allow")


@st.composite
def begun(draw):
    """The beginning of a text, which may end inside a token, and what follows."""
    text = draw(st.lists(st.sampled_from(PIECES)).map("".join)) + "w w w the b  zzzzz"
    at = len(text) - draw(st.integers(0, 9))
    return text[:at], text[at:]


RUNGS = (
    rust_rung(
        "added tokens",
        slowly,
        quickly,
        st.tuples(texts, st.sampled_from(["raise", "allow", "text"])),
        example=lambda: ("  ".join([standard_library(1)[:10_000]] * 4), "allow"),
    ),
    rust_rung(
        "cut of added tokens",
        lambda text, more: slowly(text + more, "allow"),
        around_the_cut,
        begun(),
        example=lambda: (standard_library(2)[:40_000], "the end"),
    ),
)
