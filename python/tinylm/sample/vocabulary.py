"""The ids of a model that can be drawn with a tokenizer, and those that end a text."""

from typing import TYPE_CHECKING

from tinylm.config import SampleConfig
from tinylm.model import Model
from tinylm.sample.stops import split_stops

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def size(model: Model, tokenizer: "Tokenizer | None") -> int:
    """The number of ids that can be drawn: a padded model has more rows than its tokenizer ids."""
    rows = model.embedding.num_embeddings
    return rows if tokenizer is None else min(rows, tokenizer.vocab_size)


def missing(model: Model, tokenizer: "Tokenizer | None") -> list[int]:
    """The ids below `size` that have no token: a drawn one could not be decoded."""
    if tokenizer is None:
        return []
    return [id for id in tokenizer.missing_ids if id < size(model, tokenizer)]


def ends(model: Model, tokenizer: "Tokenizer | None") -> frozenset[int]:
    """The ids that end a text: the tokenizer's, and those that the model's folder names.

    Without a tokenizer nothing is known of the ids, and none does.
    """
    if tokenizer is None:
        return frozenset()
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return frozenset((*model.eos_ids, *own))


def stops(model: Model, tokenizer: "Tokenizer | None", config: SampleConfig) -> frozenset[int]:
    """The ids that end a text by `config.stop` or by the tokenizer."""
    ids, _ = split_stops(config, model.embedding.num_embeddings)
    return ends(model, tokenizer) | ids
