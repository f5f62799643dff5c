"""The post_processor of a `tokenizer.json`: the ids that it puts around a text or a pair of texts.

| type | one text | two texts |
|---|---|---|
| TemplateProcessing | as `single` says | as `pair` says |
| BertProcessing | cls A sep | cls A sep B sep |
| RobertaProcessing | cls A sep | cls A sep sep B sep |
| ByteLevel, null | A | A B |
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from tinylm.tokenizer.checks import check_keys, checked, shown, steps_of
from tinylm.tokenizer.steps import PRE_TOKENIZERS

KEYS = {
    "TemplateProcessing": {"type", "single", "pair", "special_tokens"},
    "RobertaProcessing": {"type", "sep", "cls", "trim_offsets", "add_prefix_space"},
    "BertProcessing": {"type", "sep", "cls"},
    "ByteLevel": {"type", *PRE_TOKENIZERS["ByteLevel"]},
}
Part = int | Literal["A", "B"]


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
