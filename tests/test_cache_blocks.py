"""The numbers of blocks: nobody else's, never lost, and found again by the ids that they hold."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tinylm.cache.blocks import Blocks, digest

PAGE, TOTAL = 2, 7


def constant(parent, ids):
    """A digest that tells no text from another."""
    return b"same"


class Rows(RuleBasedStateMachine):
    """Rows that grow, share, are noted and end, beside a model of who should have what."""

    digest = staticmethod(digest)

    def __init__(self):
        super().__init__()
        self.blocks = Blocks(TOTAL, PAGE, self.digest)
        self.rows, self.texts = [], []
        # What was computed into each block.
        self.memory = {}

    def grow(self, ids):
        """A row of full blocks of `ids`: those that are known, and new ones."""
        held = self.blocks.find(ids)
        for place, block in enumerate(held):
            # Everything up to here, and not only these ids, is what the block was computed from.
            assert self.memory[block] == tuple(ids[: (place + 1) * PAGE])
            self.blocks.share(block)
        row = [*held]
        while len(row) * PAGE < len(ids) and self.blocks.free:
            block = self.blocks.take()
            assert all(block not in other for other in [*self.rows, row])
            row.append(block)
            self.memory[block] = tuple(ids[: len(row) * PAGE])
        self.rows.append(row)
        self.texts.append(ids[: len(row) * PAGE])

    @rule(ids=st.lists(st.integers(0, 1), min_size=PAGE, max_size=4 * PAGE))
    def begin(self, ids):
        self.grow(ids[: len(ids) // PAGE * PAGE])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def note(self, data):
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.blocks.note(self.rows[row], self.texts[row])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fork(self, data):
        row = data.draw(st.integers(0, len(self.rows) - 1))
        for block in self.rows[row]:
            self.blocks.share(block)
        self.rows.append([*self.rows[row]])
        self.texts.append(self.texts[row])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def end(self, data):
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.texts.pop(row)
        for block in reversed(self.rows.pop(row)):
            self.blocks.release(block)

    @rule(more=st.integers(1, 2))
    @precondition(lambda self: self.blocks.total < 2 * TOTAL)
    def more(self, more):
        self.blocks.grow(more)

    @invariant()
    def every_block_is_in_one_place_and_counted(self):
        blocks = self.blocks
        used = {block for row in self.rows for block in row}
        untouched = range(len(blocks.users), blocks.total)
        unused, cached = [*blocks.unused, *untouched], [*blocks.cached]
        assert sorted([*used, *unused, *cached]) == list(range(blocks.total))
        for block, users in enumerate(blocks.users):
            assert users == sum(block in row for row in self.rows)
        assert blocks.free == len(unused) + len(cached)
        assert set(cached) <= set(blocks.content)
        assert {c.key: b for b, c in blocks.content.items()} == blocks.known

    @invariant()
    def what_a_row_has_is_what_was_computed_for_it(self):
        for row, ids in zip(self.rows, self.texts, strict=True):
            for place, block in enumerate(row):
                assert self.memory[block] == tuple(ids[: (place + 1) * PAGE])


class Collisions(Rows):
    """The same where all hashes are equal: the ids decide."""

    digest = staticmethod(constant)


for machine in (Rows, Collisions):
    machine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestRows, TestCollisions = Rows.TestCase, Collisions.TestCase


def test_the_block_that_was_let_go_first_is_the_first_to_be_needed():
    blocks = Blocks(3, PAGE)
    rows = {name: blocks.take() for name in "abc"}
    for name, block in rows.items():
        blocks.note([block], [ord(name), 0])
    for name in "bac":
        blocks.release(rows[name])
    # Found again, it is no longer the oldest.
    (found,) = blocks.find([ord("b"), 0])
    blocks.share(found)
    blocks.release(found)
    assert [blocks.take() for _ in range(3)] == [rows["a"], rows["c"], rows["b"]]
    with pytest.raises(IndexError, match="no block is free"):
        blocks.take()


def test_256_requests_waste_at_most_4_percent_of_their_places():
    draw, page = random.Random(0), 16
    blocks = Blocks(256 * 128, page)
    rows = [[draw.randint(100, 1024), draw.randint(100, 1024), []] for _ in range(256)]
    waste = []
    # Each reads its prompt and grows by a token per step; one that ends gives its blocks back.
    for step in range(1025):
        for prompt, new, own in rows:
            if step == new:
                while own:
                    blocks.release(own.pop())
            elif step < new:
                while len(own) * page < prompt + step:
                    own.append(blocks.take())
        tokens = sum(prompt + step for prompt, new, _ in rows if step < new)
        places = sum(len(own) for *_, own in rows) * page
        waste.append((places - tokens, places))
    empty, places = (sum(each) for each in zip(*waste, strict=True))
    assert 0 < empty / places <= 0.04
    assert blocks.free == blocks.total
