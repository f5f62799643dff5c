"""Numbers of blocks: who uses them, which are free, and which hold the beginning of a text.

A block holds the state of `page` tokens. It is in one of three places:

| place  | who has it                                | what it holds                             |
|--------|-------------------------------------------|-------------------------------------------|
| used   | one row or more, counted by `users`       | tokens of theirs                          |
| cached | nobody                                    | `page` tokens of a text that came before  |
| free   | nobody                                    | nothing that counts                       |

A full block of known ids is found by a hash of them and of the hash of the block before, so that
it stands for the whole text up to its end. A cached block becomes free when it is needed, the one
that was let go first. No torch: only the numbers are here. Source: Kwon et al. 2023
(PagedAttention), section 4.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROOT = b""


def digest(parent: bytes, ids: tuple[int, ...]) -> bytes:
    """The hash of a block's ids after the text whose hash is `parent`."""
    return hashlib.blake2b(parent + array("q", ids).tobytes(), digest_size=16).digest()


class Content(NamedTuple):
    """What a block is known to hold: ids, after the text whose hash is `parent`."""

    key: bytes
    parent: bytes
    ids: tuple[int, ...]


class Blocks:
    """`total` blocks of `page` tokens each; the numbers handed out are 0 to total - 1."""

    def __init__(
        self,
        total: int,
        page: int,
        digest: Callable[[bytes, tuple[int, ...]], bytes] = digest,
    ) -> None:
        self.page, self.digest = page, digest
        self.total = total
        # Of the blocks that were taken once. The others take no memory here: they are free, and
        # handed out in order, so that the blocks of a first row follow one another.
        self.users: list[int] = []
        # Free blocks that were taken once; the last is the next.
        self.unused: list[int] = []
        # The first is the one that was let go first.
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.content: dict[int, Content] = {}
        self.known: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """The number of blocks that `take` can give."""
        return self.total - len(self.users) + len(self.unused) + len(self.cached)

    def grow(self, more: int) -> None:
        """Add free blocks, numbered from the old total on."""
        self.total += more

    def take(self) -> int:
        """A block for one user; `IndexError` if none is free."""
        if self.unused:
            block = self.unused.pop()
        elif len(self.users) < self.total:
            block = len(self.users)
            self.users.append(0)
        elif self.cached:
            block, _ = self.cached.popitem(last=False)
            self.forget(block)
        else:
            raise IndexError("no block is free")
        self.users[block] = 1
        return block

    def share(self, block: int) -> None:
        """Count one user more of a used or cached block."""
        self.cached.pop(block, None)
        self.users[block] += 1

    def release(self, block: int) -> None:
        """Count one user less; after the last, the block is cached if its ids are known."""
        self.users[block] -= 1
        if self.users[block]:
            return
        if block in self.content:
            self.cached[block] = None
        else:
            self.unused.append(block)

    def forget(self, block: int) -> None:
        """No longer find the block: what it holds is about to change."""
        content = self.content.pop(block, None)
        if content is not None:
            del self.known[content.key]

    def find(self, ids: Sequence[int]) -> list[int]:
        """The blocks of the longest known beginning of `ids`, in order; nobody uses them yet.

        The ids of a block are compared, not only their hash.
        """
        found: list[int] = []
        parent = ROOT
        for start in range(0, len(ids) - self.page + 1, self.page):
            some = tuple(ids[start : start + self.page])
            key = self.digest(parent, some)
            block = self.known.get(key)
            if block is None or self.content[block] != Content(key, parent, some):
                break
            found.append(block)
            parent = key
        return found

    def note(self, blocks: Sequence[int], ids: Sequence[int]) -> None:
        """The used `blocks`, which are full, hold `ids`, from the beginning of a text.

        A text that another block is already known for stays with that one.
        """
        parent = ROOT
        for number, block in enumerate(blocks):
            if block in self.content:
                parent = self.content[block].key
                continue
            some = tuple(ids[number * self.page : (number + 1) * self.page])
            key = self.digest(parent, some)
            if key not in self.known:
                self.known[key], self.content[block] = block, Content(key, parent, some)
            parent = key
