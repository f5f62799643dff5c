"""The post_processor of a `tokenizer.json`: the ids that it puts around a text or a pair of texts.

| type | one text | two texts |
|---|---|---|
| TemplateProcessing | as `single` says | as `pair` says |
| BertProcessing | cls A sep | cls A sep B sep |
| RobertaProcessing | cls A sep | cls A sep sep B sep |
| ByteLevel, null | A | A B |
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from tinylm.tokenizer.checks import check_keys, checked, shown, steps_of
from tinylm.tokenizer.steps import PRE_TOKENIZERS

KEYS = {
    "TemplateProcessing": {"type", "single", "pair", "special_tokens"},
    "RobertaProcessing": {"type", "sep", "cls", "trim_offsets", "add_prefix_space"},
    "BertProcessing": {"type", "sep", "cls"},
    "ByteLevel": {"type", *PRE_TOKENIZERS["ByteLevel"]},
}
Part = int | Literal["A", "B"]
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
# All ids in a row, and where those of each text begin, with the number of all at the end.
Rows: TypeAlias = "tuple[NDArray[np.uint32] | NDArray[np.uint16], NDArray[np.int64]]"


class Template(NamedTuple):
    """Ids and the places of the texts, "A" and "B", for one text and for two."""

    single: tuple[Part, ...] = ("A",)
    pair: tuple[Part, ...] = ("A", "B")

    def join(self, first: list[int], second: list[int] | None) -> list[int]:
        """The ids of one text, or of two, with those that belong around them."""
        texts = {"A": first, "B": second or []}
        parts = self.single if second is None else self.pair
        framed = (texts[part] if isinstance(part, str) else [part] for part in parts)
        return [id for ids in framed for id in ids]

    def join_batch(self, first: Rows, second: "Rows | None") -> Rows:
        """`join` for the rows of a batch: all ids (n,) and offsets (rows + 1,), see `Rows`."""
        import numpy as np

        texts = {"A": first, "B": second or (first[0][:0], np.zeros_like(first[1]))}
        parts = self.single if second is None else self.pair
        sizes = [np.diff(texts[part][1]) if isinstance(part, str) else 1 for part in parts]
        offsets = np.zeros_like(first[1])
        np.cumsum(sum(sizes, np.zeros(len(offsets) - 1, np.int64)), out=offsets[1:])
        out = np.empty(offsets[-1], first[0].dtype)
        # The place of the next id of each row.
        place = offsets[:-1].copy()
        for part, size in zip(parts, sizes, strict=True):
            if isinstance(part, str):
                ids, starts = texts[part]
                out[np.repeat(place - starts[:-1], size) + np.arange(len(ids))] = ids
            else:
                out[place] = part
            place += size
        return out, offsets


def check(part: object) -> None:
    """ValueError for a post_processor that cannot be applied."""
    found = steps_of(part, "post_processor", "processors")
    for step in found:
        kind = step["type"]
        if kind not in KEYS:
            raise ValueError(
                f"post_processor {kind} is not known, only {', '.join(sorted(KEYS))}: {shown(step)}"
            )
        check_keys(step, KEYS[kind], f"post_processor {kind}.")
        _of_step(step)


def template_of(part: object) -> Template:
    """The template of a checked post_processor.

    In a Sequence a later one is put around what the earlier ones made.
    """
    single, pair = Template()
    for step in steps_of(part, "post_processor", "processors"):
        outer = _of_step(step)
        single = _filled(outer.single, {"A": single})
        # The first one that says something about two texts decides it.
        pair = outer.pair if pair == ("A", "B") else pair
    return Template(single, pair)


def _filled(parts: tuple[Part, ...], texts: Mapping[str, tuple[Part, ...]]) -> tuple[Part, ...]:
    return tuple(
        inner for part in parts for inner in (texts[part] if isinstance(part, str) else (part,))
    )


def _of_step(step: Mapping[str, Any]) -> Template:
    match step["type"]:
        case "TemplateProcessing":
            known = checked(step["special_tokens"], dict, "post_processor special_tokens")
            return Template(*(_of_pieces(step[form], known, form) for form in ("single", "pair")))
        case "BertProcessing" | "RobertaProcessing":
            cls, sep = (_marked(step[key], key) for key in ("cls", "sep"))
            twice = (sep, sep) if step["type"] == "RobertaProcessing" else (sep,)
            return Template((cls, "A", sep), (cls, "A", *twice, "B", sep))
    return Template()


def _of_pieces(pieces: object, known: Mapping[str, Any], form: str) -> tuple[Part, ...]:
    found: list[Part] = []
    for piece in checked(pieces, list, f"post_processor {form}"):
        match piece:
            case {"Sequence": {"id": "A" | "B" as text}}:
                found.append(text)
            case {"SpecialToken": {"id": str(token)}} if token in known:
                ids = checked(known[token]["ids"], list, f"post_processor {token!r} ids")
                found += (checked(id, int, f"post_processor {token!r} id") for id in ids)
            case _:
                raise ValueError(f"post_processor {form} has {shown(piece)}, which is not known")
    return tuple(found)


def _marked(value: object, key: str) -> int:
    match value:
        case [str(), int(id)]:
            return checked(id, int, f"post_processor {key}")
    raise ValueError(f"post_processor {key} = {shown(value)} is not a token and its id")
