"""Documents that came before, letter by letter or nearly: the first one stays.

Exact: 16 bytes of a hash per document, in a table of bytes (`Seen`). Near: MinHash, as
`tinylm.reference.duplicates` defines it in loops; the band keys of the documents that stay are
remembered, 8 bytes each, and a document with a key that is known is dropped. So each document that
is dropped has one like it that stays, and the answer depends on the order of documents alone.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Words in a row that are one shingle.
WORDS = 5
# A letter of a script that is written without blanks is a word of its own.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W{_ALONE}]+|[{_ALONE}]")
# Words whose hash is remembered: most of a text are among a few hundred thousand.
_KNOWN = 1 << 20
# Shingles that are hashed at once: with 112 hashes, 1 MiB of numbers stay in the cache.
_AT_ONCE = 2048


class Seen:
    """A set of keys of `width` bytes in one table, of 1.5 to 3 times their size.

    Python's own set takes about 100 bytes per key of 16. The keys must be hashes: where one stands
    is its first bytes.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._free = bytes(width)
        self._count = 0
        self._mask = (1 << 12) - 1
        self._table = bytearray(width << 12)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        at = self._place(key)
        return self._table[at : at + self._width] == key

    def add(self, key: bytes) -> bool:
        """Put it in; whether it was not there."""
        at = self._place(key)
        if self._table[at : at + self._width] == key:
            return False
        self._table[at : at + self._width] = key
        self._count += 1
        # Two thirds full, a search takes two looks in the mean.
        if 3 * self._count > 2 * self._mask:
            self._grow()
        return True

    def _place(self, key: bytes) -> int:
        """Where the key stands, or the free place where it belongs."""
        table, width, free = self._table, self._width, self._free
        if key == free:
            raise ValueError("a key of zeros is no hash")
        slot = int.from_bytes(key[:8], "little") & self._mask
        while True:
            at = slot * width
            found = table[at : at + width]
            if found in (key, free):
                return at
            slot = (slot + 1) & self._mask

    def _grow(self) -> None:
        old, width = self._table, self._width
        self._mask = 2 * self._mask + 1
        self._table = bytearray((self._mask + 1) * width)
        for at in range(0, len(old), width):
            key = bytes(old[at : at + width])
            if key != self._free:
                place = self._place(key)
                self._table[place : place + width] = key


class Exact:
    """Whether a text was given before."""

    def __init__(self) -> None:
        self._seen = Seen(16)

    def __call__(self, text: str) -> bool:
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return not self._seen.add(key)


class Near:
    """Whether a text resembles an earlier one that this did not say of."""

    def __init__(self, bands: int = 14, rows: int = 8) -> None:
        # Imported here: reading text needs no numpy.
        import numpy as np

        self._np, self._bands, self._rows = np, bands, rows
        numbers = np.arange(1, bands * rows + 1, dtype=np.uint64)
        numbers *= np.uint64(0x9E3779B97F4A7C15)
        self._mix(numbers)
        self._flips = (numbers >> np.uint64(32)).astype(np.uint32)[:, None]
        self._factors = numbers.astype(np.uint32)[:, None] | np.uint32(1)
        self._seen = Seen(8)
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> bool:
        keys = self._keys(text)
        if any(key in self._seen for key in keys):
            return True
        for key in keys:
            self._seen.add(key)
        return False

    def signature(self, text: str) -> "NDArray[Any]":
        """The least hash of a shingle under each hash function, uint32 (bands * rows,)."""
        shingles = self._shingles(text)
        least = self._np.full(len(self._flips), 2**32 - 1, self._np.uint32)
        for at in range(0, len(shingles), _AT_ONCE):
            hashes = shingles[at : at + _AT_ONCE] ^ self._flips
            hashes *= self._factors
            self._np.minimum(least, hashes.min(axis=1), out=least)
        return least

    def _keys(self, text: str) -> list[bytes]:
        """8 bytes for each band, which are another band's with a chance of 2^-64."""
        data = self.signature(text).tobytes()
        size = 4 * self._rows
        return [
            hashlib.blake2b(
                data[band * size : (band + 1) * size], digest_size=8, salt=b"%d" % band
            ).digest()
            for band in range(self._bands)
        ]

    def _shingles(self, text: str) -> "NDArray[Any]":
        """32 bits for each five words in a row, uint32 (shingles,)."""
        np, known = self._np, self._known
        numbers = []
        for word in _WORD.findall(text.lower()) or [text]:
            number = known.get(word)
            if number is None:
                if len(known) >= _KNOWN:
                    known.clear()
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                number = known[word] = int.from_bytes(digest, "little")
            numbers.append(number)
        array = np.array(numbers, np.uint64)
        n = min(WORDS, len(array))
        count = len(array) - n + 1
        total = np.zeros(count, np.uint64)
        for k in range(n):
            total += array[k : k + count]
            self._mix(total)
        upper: NDArray[Any] = (total >> np.uint64(32)).astype(np.uint32)
        return upper

    def _mix(self, numbers: "NDArray[Any]") -> None:
        """Each number, uint64, in place to one of which all bits depend on all of its."""
        np = self._np
        numbers ^= numbers >> np.uint64(30)
        numbers *= np.uint64(0xBF58476D1CE4E5B9)
        numbers ^= numbers >> np.uint64(27)
        numbers *= np.uint64(0x94D049BB133111EB)
        numbers ^= numbers >> np.uint64(31)
