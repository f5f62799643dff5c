//! The shard file: llm.c's header of 256 little-endian `int32`, then the tokens and nothing else.
//!
//! llm.c insists on the exact file size, so there is no trailer. The slots that its readers ignore
//! carry what is ours. Document lengths lie in a file of their own (`.doc`), hashes in the
//! manifest.
//!
//! | slot | what it holds |
//! |---|---|
//! | 0, 1, 2 | magic, version, tokens: what llm.c reads |
//! | 3, 4 | [`SIGNATURE`], [`VERSION`] |
//! | 5, 6 | documents that begin here, leading tokens of an earlier one |
//! | 7, 8 | size of the vocabulary, id that ends a document |
//! | 9 to 16 | SHA-256 of the tokenizer |
//!
//! Defined by `python/tinylm/reference/shards.py`, held to it by the rungs `shards written` and
//! `shards read`.

use std::fmt::Debug;
use std::path::Path;

use crate::memory::with_wide_registers;
use crate::{Error, Result};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 1024;
/// Bytes of payload under one hash: 1 MiB.
///
/// It is also what is read from the disk at once. Larger blocks would read more for a single row,
/// smaller ones would need more hashes in the manifest (8 bytes each) and more reads.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Slot 3 of a shard of ours: `TLM1` in ASCII.
pub const SIGNATURE: i32 = i32::from_le_bytes(*b"TLM1");
/// Slot 4: the version of what the slots after it mean.
pub const VERSION: i32 = 1;
/// The most tokens of one shard: llm.c counts them in an `int32`.
///
/// With it a shard has at most 8 GiB of tokens, so no product of a count and a width overflows.
pub const MAX_SHARD_TOKENS: u64 = i32::MAX as u64;

/// How wide a token is on disk.
///
/// ```
/// use tinylm_dataloader::format::Width;
///
/// assert_eq!(Width::of_vocabulary(50_257), Width::Two);
/// assert_eq!(Width::of_vocabulary(65_537).bytes(), 4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `uint16`, magic 20240520.
    Two,
    /// `uint32`, magic 20240801.
    Four,
}

impl Width {
    /// The narrowest width that holds every id below `vocab_size`.
    pub fn of_vocabulary(vocab_size: u64) -> Self {
        // The size and not the largest id: 65,536 ids end at 65,535, which still fits.
        if vocab_size <= 1 << 16 {
            Self::Two
        } else {
            Self::Four
        }
    }

    /// Bytes of a token.
    pub fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// The first two slots: magic and version.
    fn magic(self) -> (i32, i32) {
        match self {
            // Fixed by llm.c, whose readers for GPT-2 and for Llama 3 check them.
            Self::Two => (20_240_520, 1),
            Self::Four => (20_240_801, 7),
        }
    }
}

/// What the header of a shard says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a token.
    pub width: Width,
    /// Tokens in the shard.
    pub tokens: u64,
    /// Documents that begin in the shard.
    pub documents: u64,
    /// Leading tokens that end a document begun in an earlier shard.
    pub carried: u64,
    /// Ids are below this.
    pub vocab_size: u64,
    /// The id that ends every document.
    pub eos_id: u32,
    /// Hash of the tokenizer that made the ids.
    pub tokenizer_sha256: [u8; 32],
}

impl Header {
    /// The header's 1024 bytes.
    ///
    /// Slots after those of the table above are 0.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (magic, version) = self.width.magic();
        let mut slots = vec![
            // In the order of the table at the top of this file.
            magic,
            version,
            // No cast loses anything: `MAX_SHARD_TOKENS` bounds counts and ids.
            self.tokens as i32,
            SIGNATURE,
            VERSION,
            self.documents as i32,
            self.carried as i32,
            self.vocab_size as i32,
            self.eos_id as i32,
        ];
        // 32 bytes are eight slots, kept in their order.
        slots.extend(self.tokenizer_sha256.chunks_exact(4).map(le_i32));
        slots.resize(HEADER_BYTES / 4, 0);
        slots.iter().flat_map(|slot| slot.to_le_bytes()).collect()
    }

    /// Checks the fields that every llm.c shard has: (width, tokens).
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for fewer than 12 bytes, an unknown magic number and a negative count.
    /// `path` is only named in the message.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<(Width, u64)> {
        // Only what llm.c defines: its other slots may hold anything, and ours are under a hash.
        let slots: Vec<i32> = bytes.chunks_exact(4).take(3).map(le_i32).collect();
        let &[magic, version, tokens] = slots.as_slice() else {
            return Err(Error::corrupt(
                path,
                bytes.len() as u64,
                "expected a header of 1024 bytes",
            ));
        };
        let width = [Width::Two, Width::Four]
            .into_iter()
            .find(|width| width.magic() == (magic, version))
            .ok_or_else(|| {
                let problem = format!(
                    "expected magic 20240520 version 1 or 20240801 version 7, found {magic} version {version}"
                );
                Error::corrupt(path, 0, problem)
            })?;
        let tokens = u64::try_from(tokens).map_err(|_| {
            Error::corrupt(
                path,
                8,
                format!("expected a count of tokens, found {tokens}"),
            )
        })?;
        Ok((width, tokens))
    }
}

/// A little-endian integer of at most four bytes.
fn le_i32(bytes: &[u8]) -> i32 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | i32::from(byte))
}

/// The xxh3 (64 bits) of some bytes: a header, or one block.
///
/// It finds damage, not forgery: anyone can make a file with a given xxh3. A block of 1 MiB takes
/// 34 us, half of what reading it from the page cache takes.
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// An integer that a batch may be made of.
///
/// Batches are made of `i32` or `i64`, or of `u16`, in which [`IGNORED`](crate::batch::IGNORED) is
/// 65,436: that is for vocabularies without such an id. `u32` serves to read tokens as they lie on
/// disk.
pub trait Element: Copy + Debug + Default + PartialEq + Send + Sync + 'static {
    /// The value in this type of an id, or of the target that a loss leaves out.
    fn from_id(id: i64) -> Self;
    /// Fills `out` with tokens as they lie on disk, as far as both go.
    fn convert(out: &mut [Self], bytes: &[u8], width: Width);
}

// A macro, because the standard library has no trait for lossy casts between integers.
macro_rules! element {
    ($type:ty) => {
        impl Element for $type {
            #[inline]
            fn from_id(id: i64) -> Self {
                id as Self
            }

            #[inline]
            #[allow(clippy::cast_lossless, reason = "one macro for narrow and wide types")]
            fn convert(out: &mut [Self], bytes: &[u8], width: Width) {
                with_wide_registers(
                    #[inline(always)]
                    || match width {
                        Width::Two => {
                            for (to, from) in out.iter_mut().zip(bytes.as_chunks().0) {
                                *to = u16::from_le_bytes(*from) as Self;
                            }
                        }
                        Width::Four => {
                            for (to, from) in out.iter_mut().zip(bytes.as_chunks().0) {
                                *to = u32::from_le_bytes(*from) as Self;
                            }
                        }
                    },
                );
            }
        }
    };
}
element!(u16);
element!(u32);
element!(i32);
element!(i64);
