"""Right answers counted: a model that chats against the tasks of `data.source=tasks`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from tinylm.config import SampleConfig
from tinylm.corpus.tasks import Task

if TYPE_CHECKING:
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer

# More tokens than any answer has, in bytes.
LONGEST = 40


@dataclass(frozen=True)
class Exact:
    """The result of `asked` tasks of one kind, `right` of them answered letter by letter.

    `guess` is the share that the commonest answer would have had.
    """

    kind: str
    right: int
    asked: int
    guess: float

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.asked


def exact_match(
    model: "Model", tokenizer: "Tokenizer", tasks: Sequence[Task], *, limit: int | None = None
) -> list[Exact]:
    """The first `limit` tasks of each kind, each asked by itself; the likeliest answer counts.

    Spaces around an answer do not count. The last entry is of all kinds together.
    """
    from tinylm.sample.chat import replies

    tasks = sorted(tasks, key=lambda task: task.kind)
    some = [task for _, group in groupby(tasks, lambda t: t.kind) for task in [*group][:limit]]
    if not some:
        raise ValueError("no tasks to ask")
    asked = [[{"role": "user", "content": task.question}] for task in some]
    config = SampleConfig(temperature=0, max_tokens=LONGEST)
    answers = replies(model, tokenizer, asked, config)
    pairs = [(t, a.strip() == t.answer) for t, a in zip(some, answers, strict=True)]
    kinds = [*dict.fromkeys(task.kind for task in some)]
    found = [_count(kind, [pair for pair in pairs if pair[0].kind == kind]) for kind in kinds]
    return [*found, _total(found)]


def _count(kind: str, pairs: Sequence[tuple[Task, bool]]) -> Exact:
    ((_, commonest),) = Counter(task.answer for task, _ in pairs).most_common(1)
    return Exact(kind, sum(right for _, right in pairs), len(pairs), commonest / len(pairs))


def _total(parts: Sequence[Exact]) -> Exact:
    asked = sum(part.asked for part in parts)
    guess = sum(part.guess * part.asked for part in parts) / asked
    return Exact("all", sum(part.right for part in parts), asked, guess)
