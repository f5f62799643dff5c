"""The tokens of a file and their ids, as a mapping that is made when somebody looks into it."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from functools import cached_property

from tinylm import _rust


class TokenMap(Mapping[bytes, int]):
    """Ids by the bytes of their tokens, read in Rust; immutable.

    A tokenizer is made of `read`. A dict of 100,000 takes 15 ms, a quarter of the time to load, so
    it is made when it is first needed. A copy or pickle is that dict.
    """

    def __init__(self, read: _rust.TokenIds) -> None:
        self.read = read

    @cached_property
    def _dict(self) -> dict[bytes, int]:
        return self.read.dict()

    def __getitem__(self, token: bytes) -> int:
        return self._dict[token]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._dict)

    def __len__(self) -> int:
        return len(self.read)

    # Those of `Mapping` look up token by token.
    def keys(self) -> KeysView[bytes]:
        """The tokens."""
        return self._dict.keys()

    def values(self) -> ValuesView[int]:
        """The ids."""
        return self._dict.values()

    def items(self) -> ItemsView[bytes, int]:
        """Tokens and ids."""
        return self._dict.items()

    def __reduce__(self) -> tuple[type[dict[bytes, int]], tuple[dict[bytes, int]]]:
        return dict, (self._dict,)


def given(tokens: Mapping[bytes, int]) -> dict[bytes, int] | _rust.TokenIds:
    """Tokens as the functions in Rust take them."""
    return tokens.read if isinstance(tokens, TokenMap) else dict(tokens)
