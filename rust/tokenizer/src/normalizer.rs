//! The first stage: the text that the other stages see.
//!
//! Today every text stays as it is, borrowed and not copied. A normaliser that changes a text
//! (NFC is the next one) has to keep three things:
//!
//! - Offsets are those of the text that the caller gave: the position in [`Error::SpecialToken`]
//!   and the place that `cut` returns have to be mapped back, and `cut` may return a place only
//!   if no character before it combines with one after it.
//! - Added tokens that are not late are looked for in the text as given, so they come before this
//!   stage; late ones (`normalized` in a `tokenizer.json`) are normalised themselves and come
//!   after it. With the identity the order of the two does not matter, and this stage is first.
//! - Training counts what encoding will see, so both go through here, with the same value.
//!
//! [`Error::SpecialToken`]: crate::Error::SpecialToken

use std::borrow::Cow;

/// What a text becomes before added tokens are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Normalizer {
    /// The text as it is.
    Identity,
}

impl Normalizer {
    /// The text for the stages that follow.
    #[inline]
    pub(crate) fn normalise(self, text: &[u8]) -> Cow<'_, [u8]> {
        // Borrowed: the stage costs nothing today.
        match self {
            Self::Identity => Cow::Borrowed(text),
        }
    }
}
