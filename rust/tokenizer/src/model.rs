//! The last stage: the bytes of one piece to the ids of tokens.
//!
//! What a variant must provide:
//!
//! - A variant of [`ModelSpec`] with all that it needs beside the tokens, and its own checks of
//!   both. That every byte is a token, for example, is a demand of [`Bpe`], not of the tokenizer.
//! - Ids that depend on the bytes of the piece alone, since a cache keeps them from piece to piece.
//! - Time linear in the piece, or `n log n`, with a call of the interrupt every few milliseconds:
//!   a piece may be a megabyte long.
//! - Its reusable memory in [`Scratch`].
//!
//! The stages before it, the cache, the threads and decoding then need no change. The tests hold
//! this with a model that looks for the longest match.

use crate::bpe::Bpe;
use crate::cache::Cache;
use crate::char_bpe::{self, CharBpe, CharBpeSpec};
use crate::merge;
use crate::unigram::{self, Unigram};
use crate::unigram_float;
use crate::wordpiece::WordPiece;
use crate::{Error, Interrupt, Tokens};

/// How pieces become tokens.
///
/// ```
/// use tinylm_tokenizer::ModelSpec;
///
/// // The rule of tiktoken's vocabularies, and one with a list of merges.
/// let ranks = ModelSpec::Bpe { merges: None, whole_pieces: true };
/// let listed = ModelSpec::Bpe { merges: Some(vec![(97, 98)]), whole_pieces: false };
/// # let _ = (ranks, listed);
/// ```
#[derive(Debug, Clone)]
pub enum ModelSpec {
    /// Byte-level BPE; all 256 bytes must be among the tokens.
    Bpe {
        /// Pairs of ids in the order in which they merge. None: tiktoken's rule, by which any
        /// two neighbours merge whose bytes are a token, the lowest id first.
        merges: Option<Vec<(u32, u32)>>,
        /// Whether a piece that is a token stays whole even if no merges lead there; tiktoken's
        /// rule implies it.
        whole_pieces: bool,
    },
    /// BPE over characters: the tokens are UTF-8 as their file writes them.
    CharBpe(CharBpeSpec),
    /// The tokens with the highest sum of scores.
    Unigram {
        /// Log probabilities in the order of the tokens; no text becomes one with minus infinity.
        scores: Vec<f64>,
        /// The id of unknown characters; not needed if all 256 bytes are tokens.
        unknown: Option<u32>,
        /// Whether unknown characters are the tokens of their bytes, `<0x00>` to `<0xFF>`.
        byte_fallback: bool,
        /// Whether sums are those of sentencepiece: in float32, from the beginning of a text.
        float32: bool,
    },
    /// The longest tokens from the left, as BERT encodes.
    WordPiece {
        /// The id of a word that the tokens cannot say.
        unknown: u32,
        /// What tokens inside a word begin with, `##`.
        prefix: Vec<u8>,
        /// Words of more characters are unknown.
        longest: usize,
    },
}

/// A model made ready to encode.
///
/// An enum and not a trait object: the call for each piece is a branch that always goes the same
/// way, and can be inlined.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one model a tokenizer")]
pub(crate) enum Model {
    Bpe(Bpe),
    CharBpe(CharBpe),
    Unigram(Unigram),
    /// With the sums of sentencepiece.
    Float32(Unigram),
    WordPiece(WordPiece),
    // Only in tests: it shows that the enum is the one place that a new model changes.
    #[cfg(test)]
    Longest(tests::Longest),
}

/// Memory that models reuse from piece to piece.
///
/// One for each thread, so a piece that fits what was allocated before allocates nothing.
#[derive(Default)]
pub(crate) struct Scratch {
    // A field for each model, which costs nothing while it is empty.
    bpe: merge::Scratch,
    char_bpe: char_bpe::Scratch,
    unigram: unigram::Scratch,
    float32: unigram_float::Scratch,
}

impl Scratch {
    /// A text begins, at this place of its bytes.
    pub(crate) fn begin(&mut self, at: usize) {
        self.float32.begin(at);
    }
}

impl Model {
    /// From the ordinary tokens and their ids; fails if they do not fit the model.
    ///
    /// No piece has one of the bytes that are `missing`, so they need no token.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`], which names the token or merge.
    pub(crate) fn new(tokens: &Tokens, spec: ModelSpec, missing: &[u8]) -> Result<Self, Error> {
        match spec {
            ModelSpec::Bpe {
                merges,
                whole_pieces,
            } => {
                // By tiktoken's rule a piece that is a token always stays whole.
                let whole_pieces = whole_pieces || merges.is_none();
                Bpe::new(tokens, merges.as_deref(), whole_pieces, missing).map(Self::Bpe)
            }
            ModelSpec::CharBpe(spec) => CharBpe::new(tokens, spec).map(Self::CharBpe),
            ModelSpec::Unigram {
                scores,
                unknown,
                byte_fallback,
                float32,
            } => {
                let model = Unigram::new(tokens, &scores, unknown, byte_fallback)?;
                Ok(if float32 {
                    Self::Float32(model.rounded())
                } else {
                    Self::Unigram(model)
                })
            }
            ModelSpec::WordPiece {
                unknown,
                prefix,
                longest,
            } => WordPiece::new(tokens, unknown, &prefix, longest).map(Self::WordPiece),
        }
    }

    /// What each cache begins with; [`Model::encode`] is never asked for these pieces.
    pub(crate) fn seed(&self) -> Cache {
        match self {
            Self::Bpe(bpe) => bpe.seed(),
            _ => Cache::default(),
        }
    }

    /// The end of the part of `piece` at `from` that has the same tokens alone as in the piece.
    pub(crate) fn part(&self, piece: &[u8], from: usize) -> usize {
        match self {
            Self::Bpe(bpe) => bpe.part(piece, from),
            _ => piece.len(),
        }
    }

    /// Appends the tokens of the piece `text[from..to]`, each with the bytes of it that it covers.
    /// Of [`Bpe`], whose tokens are the bytes of the piece, nothing is appended: their lengths say
    /// it.
    ///
    /// # Errors
    ///
    /// What `interrupt` returns.
    pub(crate) fn places(
        &self,
        text: &[u8],
        (from, to): (usize, usize),
        scratch: &mut Scratch,
        out: &mut Vec<(u32, (usize, usize))>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let piece = &text[from..to];
        match self {
            Self::Float32(model) => {
                let each = |id, place| out.push((id, place));
                let scratch = &mut scratch.float32;
                unigram_float::encode(model, text, (from, to), scratch, each, interrupt)?;
                Ok(())
            }
            Self::Bpe(_) => Ok(()),
            Self::CharBpe(bpe) => bpe.places(piece, &mut scratch.char_bpe, out, interrupt),
            Self::Unigram(model) => model.places(piece, &mut scratch.unigram, out, interrupt),
            Self::WordPiece(model) => {
                model.places(piece, out);
                Ok(())
            }
            #[cfg(test)]
            Self::Longest(_) => Ok(()),
        }
    }

    /// Appends the tokens of the piece `text[from..to]`; returns whether they depend on it alone.
    ///
    /// # Errors
    ///
    /// What `interrupt` returns.
    #[inline]
    pub(crate) fn encode_in(
        &self,
        text: &[u8],
        (from, to): (usize, usize),
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<bool, Error> {
        if let Self::Float32(model) = self {
            let place = (from, to);
            let each = |id, _| out.push(id);
            return unigram_float::encode(
                model,
                text,
                place,
                &mut scratch.float32,
                each,
                interrupt,
            );
        }
        self.encode(&text[from..to], scratch, out, interrupt)?;
        Ok(true)
    }

    /// Appends the tokens of `piece`.
    ///
    /// # Errors
    ///
    /// What `interrupt` returns.
    #[inline]
    pub(crate) fn encode(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        match self {
            Self::Bpe(bpe) => bpe.encode(piece, &mut scratch.bpe, out, interrupt),
            Self::CharBpe(bpe) => bpe.encode(piece, &mut scratch.char_bpe, out, interrupt),
            Self::Unigram(model) | Self::Float32(model) => {
                model.encode(piece, &mut scratch.unigram, out, interrupt)
            }
            Self::WordPiece(model) => {
                model.encode(piece, out);
                Ok(())
            }
            #[cfg(test)]
            Self::Longest(model) => {
                model.encode(piece, out);
                Ok(())
            }
        }
    }
}

/// A second model: it proves that nothing around the models is made for BPE.
#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    /// From the left, the longest token that stands there; without bytes for what it lacks.
    #[derive(Debug)]
    pub(crate) struct Longest {
        pub(crate) ids: HashMap<Vec<u8>, u32>,
        pub(crate) unknown: u32,
    }

    impl Longest {
        pub(crate) fn encode(&self, mut piece: &[u8], out: &mut Vec<u32>) {
            while !piece.is_empty() {
                let length = (1..=piece.len())
                    .rev()
                    .find(|&length| self.ids.contains_key(&piece[..length]));
                out.push(length.map_or(self.unknown, |length| self.ids[&piece[..length]]));
                piece = &piece[length.unwrap_or(1)..];
            }
        }
    }
}
