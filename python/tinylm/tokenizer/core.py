"""The compiled tokenizer of some contents."""

from tinylm import _rust
from tinylm.tokenizer.contents import Contents, late_tokens
from tinylm.tokenizer.token_map import given


def core_of(contents: Contents) -> _rust.Tokenizer:
    """Makes the tokenizer in Rust; ValueError if the contents contradict each other."""
    stages, added, surfaces = contents.stages, contents.added_tokens, contents.surfaces
    late = late_tokens(added)
    if stages.normalizers:
        # They are looked for in another text than the rest.
        late = frozenset(token.content for token in added if token.normalized)
    return _rust.Tokenizer(
        given(contents.tokens),
        contents.model.core(),
        contents.pattern,
        [(token.content, token.id, token.special, token.content in late) for token in added],
        (
            stages.normalizers,
            stages.pre_tokenizers,
            stages.chars,
            stages.missing,
            [(token.id, *token.edges) for token in added if True in token.edges],
        ),
        surfaces and ([*surfaces.all.items()], [*surfaces.first.items()], surfaces.strip),
    )
