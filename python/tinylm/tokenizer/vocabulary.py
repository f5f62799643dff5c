"""What a tokenizer knows of its tokens: their bytes, their merges, and what they are for."""

from tinylm import _rust
from tinylm.tokenizer import contents as parts
from tinylm.tokenizer.beside import NAMES
from tinylm.tokenizer.contents import Contents


class Vocabulary:
    """The properties of a `Tokenizer`, which adds what it does with texts."""

    __slots__ = ("_contents", "_core", "_missing_ids", "_sha256")

    _contents: Contents
    _core: _rust.Tokenizer
    # Both are made on first use.
    _sha256: str | None
    _missing_ids: tuple[int, ...] | None

    @property
    def vocab(self) -> dict[int, bytes]:
        """The bytes of each id, special and other added tokens included."""
        contents = self._contents
        vocab = {token.id: token.content.encode() for token in contents.added_tokens}
        vocab |= {id: token for token, id in contents.tokens.items()}
        if contents.surfaces:
            vocab |= contents.surfaces.all
        return dict(sorted(vocab.items()))

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pairs of tokens that merge, in order; from ranks, the pair that makes each token."""
        return parts.merges_of(self._contents)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens and their ids."""
        return self._contents.special_tokens

    @property
    def roles(self) -> dict[str, str]:
        """The tokens of `eos_id`, `bos_id` and `pad_id` that there are, by their keys "eos_token",
        "bos_token" and "pad_token" in tokenizer_config.json."""
        texts = {token.id: token.content for token in self._contents.added_tokens}
        roles = {key: self._id_of(key) for key in NAMES}
        stated = self._contents.roles
        return {key: stated.get(key) or texts[id] for key, id in roles.items() if id is not None}

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text; found as `eos_id` is."""
        return self._id_of("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text, or None.

        It is the one that `with_eos` or the files of the tokenizer name. If they name none, it is
        the first special token of these: `<|endoftext|>`, `<|end_of_text|>`, `</s>`, `<eos>`,
        `<|eos|>`, `[EOS]`.
        """
        return self._id_of("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The id of the token that fills up a batch; found as `eos_id` is."""
        return self._id_of("pad_token")

    def _id_of(self, role: str) -> int | None:
        stated = self._contents.roles.get(role)
        return self._by_name(role) if stated is None else self._contents.id_of(stated)

    def _by_name(self, role: str) -> int | None:
        special = self._contents.special_tokens
        return next((special[name] for name in NAMES[role] if name in special), None)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; ids without a token (`missing_ids`) count too."""
        return self._core.vocab_size

    @property
    def missing_ids(self) -> tuple[int, ...]:
        """The ids below `vocab_size` that no token has, in order; cl100k_base has 16 of them.

        `decode` raises KeyError for them, so a model must not be asked to draw one.
        """
        if self._missing_ids is None:
            contents = self._contents
            taken = {*contents.tokens.values(), *(token.id for token in contents.added_tokens)}
            taken |= {*contents.inert.values()}
            self._missing_ids = tuple(sorted({*range(self.vocab_size)} - taken))
        return self._missing_ids

    @property
    def prefix_ids(self) -> tuple[int, ...] | None:
        """The ids that its tokenizer.json has put before a text (`encode` adds none).

        Llama 3's are `<|begin_of_text|>`, GPT-2's none; None if no such file has a say.
        """
        return parts.prefix_ids(self._contents)

    @property
    def pattern(self) -> str:
        """What text is split by: gpt2, gpt4, o200k, llama3, qwen2 or a regular expression;
        character, word and whole for the kinds char, whitespace and byte."""
        return self._core.pattern

    @property
    def sha256(self) -> str:
        """A hash of all that decides the ids of a text and of its end, equal for equal ones."""
        if self._sha256 is None:
            other = self.eos_id != self._by_name("eos_token")
            self._sha256 = parts.digest(self._contents, {"eos": self.eos_id} if other else {})
        return self._sha256

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)
