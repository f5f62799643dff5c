"""Conversations that need no file: small tasks over the standard library's names, with answers.

    How many letters has json?  ->  4
    Sort: re, os, abc           ->  abc, os, re

There are eight kinds (`KINDS`). Every instance is made of its kind and a number alone, and a hash
of it chooses its split, so no question of the validation part is ever trained on, whatever the
seed. The seed decides how instances are put together to conversations of one to three turns, and
their order.
"""

import builtins
import hashlib
import itertools
import json
import keyword
import math
import os
import random
import string
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from tinylm.corpus.chats import document
from tinylm.corpus.documents import Corpus, Parts, Section, in_validation
from tinylm.corpus.reading import Reading

SOURCE = "tasks"
# Instances of a kind, less those that come twice: enough that a small model must learn the rule.
DRAWS = 2400
# Numbers above this would need a longer run than the few minutes that the set is for.
LARGEST = 30
LONGEST = 8


class Task(NamedTuple):
    """One question with its only right answer."""

    kind: str
    question: str
    answer: str


@cache
def names() -> tuple[str, ...]:
    """Lower-case names of the standard library of this Python, of 2 to 8 letters, sorted."""
    found = {*sys.stdlib_module_names, *keyword.kwlist, *dir(builtins)}
    for home in (str, list, dict, set, bytes, int, math, os, os.path, string, itertools, random):
        found |= {*dir(home)}
    fits = (n for n in found if n.isascii() and n.isalpha() and n.islower())
    return tuple(sorted(name for name in fits if 2 <= len(name) <= LONGEST))


def _add(draw: random.Random) -> tuple[str, str]:
    a, b = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
    return f"What is {a} + {b}?", str(a + b)


def _subtract(draw: random.Random) -> tuple[str, str]:
    a = draw.randint(0, LARGEST)
    b = draw.randint(0, a)
    return f"What is {a} - {b}?", str(a - b)


def _upper(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(names())
    return f"Write {name} in capitals.", name.upper()


def _reverse(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(names())
    return f"Spell {name} backwards.", name[::-1]


def _length(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(names())
    return f"How many letters has {name}?", str(len(name))


def _count(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(names())
    # Of three letters two are in the name: "0" must not be the best guess.
    letter = draw.choice([draw.choice(name), draw.choice(name), draw.choice("aeinorst")])
    return f"How often is {letter} in {name}?", str(name.count(letter))


def _sort(draw: random.Random) -> tuple[str, str]:
    some = draw.sample(names(), 3)
    return f"Sort: {', '.join(some)}", ", ".join(sorted(some))


def _item(draw: random.Random) -> tuple[str, str]:
    some = draw.sample(names(), 4)
    number = draw.randint(1, 4)
    return f"Name number {number} of: {', '.join(some)}", some[number - 1]


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "subtract": _subtract,
    "upper": _upper,
    "reverse": _reverse,
    "length": _length,
    "count": _count,
    "sort": _sort,
    "item": _item,
}


@cache
def every() -> tuple[Task, ...]:
    """Every task, kind by kind, each once, in the order in which they are drawn."""
    found: dict[str, Task] = {}
    for kind, make in KINDS.items():
        for number in range(DRAWS):
            # A string, because a seed of numbers would give the kinds related draws.
            question, answer = make(random.Random(f"{kind} {number}"))
            found.setdefault(question, Task(kind, question, answer))
    return tuple(found.values())


def instances(validation: bool, val_fraction: float) -> list[Task]:
    """The tasks of one split, in the order of `every`."""
    return [
        task
        for task in every()
        if in_validation(task.question.encode(), val_fraction) == validation
    ]


def conversations(validation: bool, val_fraction: float, seed: int = 0) -> Iterator[str]:
    """The documents of one split (`chats.document`): one to three tasks each, in any order."""
    draw = random.Random(f"{SOURCE} {seed} {validation}")
    tasks = instances(validation, val_fraction)
    draw.shuffle(tasks)
    while tasks:
        some = [tasks.pop() for _ in range(min(draw.randint(1, 3), len(tasks)))]
        turns = []
        for task in some:
            turns.append({"role": "user", "content": task.question})
            turns.append({"role": "assistant", "content": task.answer})
        yield document(turns)


def corpus(how: Reading, seed: int = 0) -> Corpus:
    """The set as a corpus; it differs between versions of Python whose libraries differ."""
    digest, size = hashlib.sha256(), 0
    for validation in (False, True):
        for text in conversations(validation, how.val_fraction, seed):
            size += len(text)
            digest.update(text.encode() + b"\n")

    def documents() -> Iterator[tuple[bool, Parts]]:
        for validation in (False, True):
            for text in conversations(validation, how.val_fraction, seed):
                yield validation, [text.encode()]

    sections = (Section(size, documents),)
    return Corpus(SOURCE, SOURCE, 0, size, digest.hexdigest(), how, sections, kind="chat")


def rows(validation: bool, val_fraction: float, seed: int = 0) -> Iterator[str]:
    """The same as lines of a `.jsonl`, with the field `messages`."""
    for text in conversations(validation, val_fraction, seed):
        yield json.dumps({"messages": json.loads(text)}, ensure_ascii=False) + "\n"
