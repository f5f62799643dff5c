"""The texts of a run and what is held out of each: one, or several of `data.sources`."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tinylm.config import ConfigError, Run
from tinylm.corpus import Corpus, source_name
from tinylm.data import Dataset


class Texts:
    """The texts of a run, each opened once at most, and only if a stage asks for it.

    A resumed run that has its shards reads no text. Together they are a text to train a tokenizer
    on, one after the other, whatever their weights.
    """

    def __init__(self, run: Run, open_text: Callable[[Run], Corpus]) -> None:
        # A run of each text alone.
        self.runs = [
            replace(run, data=replace(run.data, source=text, sources=())) for text in run.data.texts
        ]
        self._several = bool(run.data.sources)
        self._open_text = open_text
        self.open = cache(self._open)

    def _open(self, number: int) -> Corpus:
        with self.naming():
            return self._open_text(self.runs[number])

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Inside, an error of one of several texts names the setting that has them."""
        try:
            yield
        except (ValueError, OSError) as error:
            if self._several:
                error.args = tuple(map(_of_several, error.args))
                if isinstance(error, OSError):
                    error.strerror = _of_several(error.strerror)
            raise

    def all(self) -> "Texts":
        """This object, once all texts are open."""
        for number in range(len(self.runs)):
            self.open(number)
        return self

    @property
    def kind(self) -> str:
        """Whether any of the texts is conversations: chat or text."""
        kinds = {self.open(number).kind for number in range(len(self.runs))}
        return "chat" if "chat" in kinds else "text"

    @property
    def name(self) -> str:
        """The names of the texts, for people."""
        return ", ".join(self.open(number).name for number in range(len(self.runs)))

    def training_texts(self) -> Iterator[str]:
        """Everything to train on, in pieces."""
        for number in range(len(self.runs)):
            yield from self.open(number).training_texts()


def _of_several(word: Any) -> Any:
    """An argument of an error, where a text is the value of `data.source`, as of `data.sources`."""
    if not isinstance(word, str):
        return word
    return word.replace("data.source=", "data.sources: ").replace("data.source ", "data.sources ")


@dataclass(frozen=True)
class Validation:
    """What a run holds out, by the short names of its texts."""

    datasets: dict[str, Dataset]

    @classmethod
    def open(cls, run: Run, shards: tuple[Path, ...]) -> "Validation":
        """The validation splits of the run's folders of shards."""
        names = short_names(run.data.texts)
        found = [Dataset.open(folder, split="val") for folder in shards]
        kinds = {dataset.kind for dataset in found}
        if len(kinds) > 1 and run.data.loss != "all":
            raise ConfigError(
                f"data.sources: some are conversations and some are text, and data.loss="
                f"{run.data.loss} counts the words of conversations alone: set data.loss=all"
            )
        return cls(dict(zip(names, found, strict=True)))

    @property
    def first(self) -> Dataset:
        """The one that samples are taken from."""
        return next(iter(self.datasets.values()))

    @property
    def kind(self) -> str:
        """What the first text is: text or chat."""
        return self.first.kind

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(dataset.n_tokens for dataset in self.datasets.values())


def short_names(texts: tuple[str, ...]) -> list[str]:
    """A short name for each source; of equal ones the later ones end with a number."""
    seen = Counter[str]()
    found = []
    for text in texts:
        name = source_name(text)
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found
