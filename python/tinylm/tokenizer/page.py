"""A text with its tokens as a page for a browser: `view --html`.

One file that needs no network: `page.html` holds its styles and its program, and here the data is
put in. All text reaches the page as JSON in which no `<` stands, and the program makes text nodes
of it, so nothing in a text can be taken for a part of the page.
"""

import json
from collections.abc import Sequence, Set
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tinylm.tokenizer.contents import merges_of
from tinylm.tokenizer.models import Bpe, CharBpe, Unigram
from tinylm.tokenizer.shown import Piece, pieces, visible
from tinylm.tokenizer.tokenizer import Tokenizer

TEMPLATE = Path(__file__).with_name("page.html")
# Bytes of text on one page of the view: a browser lays out so many tokens without a pause.
PAGE = 12_000


def page(title: str, note: str, tokenizers: Sequence[tuple[str, Tokenizer]], data: bytes) -> str:
    """The page of `data` with the tokens of one or two tokenizers, each with its name."""
    found = [pieces(tokenizer, data) for _, tokenizer in tokenizers]
    # What all have: the places at which pages may begin, and the tokens that do not differ.
    places = [list(pairwise(accumulate((len(p.data) for p in one), initial=0))) for one in found]
    shared = set(places[0]).intersection(*places[1:])
    cuts = {at for at, _ in places[0]}.intersection(*({at for at, _ in one} for one in places[1:]))
    views = [
        _view(name, tokenizer, one, at, cuts, shared)
        for (name, tokenizer), one, at in zip(tokenizers, found, places, strict=True)
    ]
    content = {"title": title, "note": note, "bytes": len(data), "views": views}
    # In JSON inside of HTML only `<` could end the element; in a string it may be written so.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{DATA}}", text)


def _view(
    name: str,
    tokenizer: Tokenizer,
    found: Sequence[Piece],
    places: Sequence[tuple[int, int]],
    cuts: Set[int],
    shared: Set[tuple[int, int]],
) -> dict[str, Any]:
    """What the page shows of one tokenizer: its pieces at their places."""
    vocab, ranks = tokenizer.vocab, _ranks(tokenizer)
    pages, last = [0], 0
    for number, (at, _) in enumerate(places):
        # Pages begin where all tokenizers cut, so that two columns show the same text.
        if at - last >= PAGE and at in cuts:
            pages.append(number)
            last = at
    ids = [-1 if piece.id is None else piece.id for piece in found]
    used = sorted({id for id in ids if id >= 0})
    return {
        "name": name,
        "size": tokenizer.vocab_size,
        "ids": ids,
        "texts": [_text(piece) for piece in found],
        "differs": [number for number, place in enumerate(places) if place not in shared],
        "pages": pages,
        "tokens": {id: [repr(vocab[id])[2:-1], len(vocab[id]), ranks(id)] for id in used},
    }


def _text(piece: Piece) -> str | list[str]:
    """A piece as text; in a list if some of it is escaped, as half characters are."""
    chars = piece.data.decode(errors="surrogateescape")
    # The page shows line breaks and tabs itself.
    shown = "".join(char if char in "\n\t" else visible(char) for char in chars)
    return shown if shown == chars else [shown]


def _ranks(tokenizer: Tokenizer) -> Any:
    """What the model goes by, for the id of a token."""
    contents = tokenizer._contents
    model, special = contents.model, {*tokenizer.special_tokens.values()}
    added = {token.id for token in contents.added_tokens}
    if isinstance(model, Unigram):
        scores = dict(zip(contents.tokens.values(), model.scores, strict=True))
        of = {id: f"log probability {score:.2f}" for id, score in scores.items()}
    elif isinstance(model, Bpe | CharBpe) and model.merges is not None:
        made = (left + right for left, right in merges_of(contents))
        merges = {token: rank for rank, token in reversed([*enumerate(made)])}
        of = {
            id: f"merge {merges[token]}" for token, id in contents.tokens.items() if token in merges
        }
    elif isinstance(model, Bpe):
        of = {id: f"rank {id}" for id in contents.tokens.values()}
    else:
        of = {}
    return lambda id: "special" if id in special else "added" if id in added else of.get(id, "")
