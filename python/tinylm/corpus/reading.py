"""How the text of a source becomes documents: the settings of `data` that decide it."""

from dataclasses import dataclass, fields
from typing import Any

from tinylm.corpus.filter_specs import canonical

# The field of a row that holds its text, unless `data.text_field` names another.
TEXT = "text"
# As of every seed.
SEEDS = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The settings `data.*` of the same names, which say which documents a source has.

    `ValueError` for a value out of its limits.
    """

    val_fraction: float
    separator: str = "auto"
    text_field: str = TEXT
    filters: tuple[str, ...] = ()
    shuffle_documents: int | None = None

    def __post_init__(self) -> None:
        # Spelled out, so that a bundle and its rules are the same settings.
        object.__setattr__(self, "filters", canonical(self.filters))
        if not 0 <= self.val_fraction <= 1:
            raise ValueError(f"data.val_fraction={self.val_fraction} must be between 0 and 1")
        seed = self.shuffle_documents
        if seed is not None and not 0 <= seed < SEEDS:
            raise ValueError(f"data.shuffle_documents={seed} must be at least 0 and below 2^63")
        if not self.separator:
            raise ValueError("data.separator='': must be auto, off or a text between documents")
        if not self.text_field:
            raise ValueError("data.text_field='': name the field of a row that holds its text")

    def recorded(self) -> dict[str, Any]:
        """As a manifest records them: what has a default only where it differs from it."""
        found: dict[str, Any] = {"val_fraction": self.val_fraction, "separator": self.separator}
        if self.text_field != TEXT:
            found["text_field"] = self.text_field
        if self.filters:
            found["filters"] = [*self.filters]
        if self.shuffle_documents is not None:
            found["shuffle_documents"] = self.shuffle_documents
        return found

    def agrees_with(self, record: dict[str, Any]) -> bool:
        """Whether these are the settings in a manifest's record of a source.

        Of one without a separator (TinyLM 0.1) the text was read as `off` reads it; most text has
        no mark, and then `auto` reads it so too.
        """
        known = {"separator": "auto", **record}
        names = {field.name for field in fields(self)}
        return {k: v for k, v in known.items() if k in names} == self.recorded()


def reading(settings: Any) -> dict[str, Any]:
    """Those of the settings of `data` that are fields of `Reading`, for `corpus.open`."""
    return {field.name: getattr(settings, field.name) for field in fields(Reading)}
