//! Text to tokens and back: byte-level BPE, trained, encoded and decoded.
//!
//! The way of a text has three stages: `added tokens -> split -> model`. It is cut at its special
//! and other [`AddedToken`]s, the stretches between them are split into pieces by a [`Pattern`],
//! and a model, named by [`ModelSpec`], makes ids of the bytes of each piece. A `tokenizer.json`
//! may ask for [`Stages`] in between, which normalise a stretch and split it in several steps.
//! Every stage costs time linear in the text, or `n log n` for a single piece of n bytes, whatever
//! the input.
//!
//! Each stage is a module. `added`, `split` (with `scan`, `window`, `masks` and `unicode`; other
//! expressions with `expression`, `automaton`, `states`, `syntax` and `symbols`) and `model` (with
//! `bpe`, `borders`, `merge`, `long` and `pairs`; `unigram` with `unigram_float`) are the stages in
//! their order; `stages` runs
//! those of a `tokenizer.json`, which are in `normalizer` (with `charsmap`), `pretokenizer` (with
//! `find` and `alphabet`) and `property`; `offsets` says where tokens stand in a text, through
//! stages by `align`. `build` puts a tokenizer together, `encode` and `worker`
//! run it, `cache` remembers results, `jobs` and `parallel` spread them over threads. `count` (with
//! `table` and `words`), `goal`, `train` (with `units`, `cells`, `occurrences` and `heap`),
//! `count_file`, `characters` and `frequent`
//! make vocabularies; `decode` (with `vocab` and `surfaces`) and `stream` give text back; `ranks`
//! reads files of tiktoken; `sample` (with `draws`, `dropout` and `unigram_sample`) draws segmentations.
//! `memory` has two hints to the machine.
//!
//! What is guaranteed: decoding gives back the bytes that were encoded, any bytes; the ids do not
//! depend on the number of threads or on earlier calls. The slow definitions are in
//! `python/tinylm/reference`, and the ladder's tests compare both.
//!
//! ```
//! use tinylm_tokenizer::{
//!     AddedToken, Goal, ModelSpec, Policy, Spec, Tokenizer, WordCounts, no_interrupt, train_bpe,
//! };
//!
//! let mut counts = WordCounts::new("gpt4", &["<|end|>".into()], 1)?;
//! counts.add(&[b"low lower lowest".as_slice()], &mut no_interrupt)?;
//! let room = counts.room(260)?;
//! let words = counts.words()?;
//! let trained = train_bpe(&words, Goal::new(room), &mut |_, _| Ok(()))?;
//! let spec = Spec {
//!     tokens: trained.tokens.into_iter().zip(0..).collect(),
//!     model: ModelSpec::Bpe { merges: Some(trained.merges), whole_pieces: false },
//!     pattern: "gpt4".into(),
//!     added: vec![AddedToken { content: "<|end|>".into(), id: 259, special: true, late: false }],
//! };
//! let tokenizer = Tokenizer::new(spec)?;
//! let ids = tokenizer.encode(b"lowest", &Policy::Raise, &mut no_interrupt)?;
//! assert_eq!(tokenizer.decode(&ids)?, b"lowest");
//! # Ok::<(), tinylm_tokenizer::Error>(())
//! ```
//!
//! The crate knows nothing of Python. What may take long has an [`Interrupt`] argument, called
//! at least every few milliseconds; an error from it ends the work and is handed on.
#![deny(unsafe_code)]

// No two modules import each other.
mod added;
mod align;
mod alphabet;
mod automaton;
mod borders;
mod bpe;
mod build;
mod cache;
mod cells;
mod char_bpe;
mod char_merges;
mod characters;
mod charsmap;
mod count;
mod count_file;
mod decode;
mod draws;
mod dropout;
mod edges;
mod encode;
mod error;
mod expression;
mod fallback;
mod find;
mod frequent;
mod goal;
mod heap;
mod jobs;
mod json_merges;
mod logs;
mod long;
mod masks;
mod memory;
mod merge;
mod model;
mod narrow;
mod normalizer;
mod occurrences;
mod offsets;
mod pairs;
mod parallel;
mod pretokenizer;
mod property;
mod ranks;
mod sample;
mod scan;
mod script_runs;
mod scripts;
mod seeds;
mod sentencepiece;
mod split;
mod splits;
mod stages;
mod states;
mod stream;
mod surfaces;
mod symbols;
mod syntax;
mod table;
mod tokens;
mod train;
mod trie;
mod unicode;
mod unigram;
mod unigram_float;
mod unigram_sample;
mod unigram_train;
mod units;
mod utf8;
mod vocab;
mod window;
mod wordpiece;
mod words;
mod worker;

pub use added::{AddedToken, Policy};
pub use alphabet::bytes_of_chars;
pub use build::Spec;
pub use char_bpe::CharBpeSpec;
pub use characters::{Characters, within};
pub use charsmap::Charsmap;
pub use count::WordCounts;
pub use count_file::{Counted, join_counts, note_of};
pub use edges::Edges;
pub use encode::{Id, Tokenizer};
pub use error::Error;
pub use expression::Expression;
pub use find::{Behaviour, Find};
pub use frequent::most_frequent;
pub use goal::{Blocked, Goal, Ties, Trained};
pub use json_merges::{JsonMerges, read_json_merges};
pub use memory::{large_pages, prefetch_at};
pub use model::ModelSpec;
pub use narrow::narrow;
pub use normalizer::Normalizer;
pub use offsets::Placed;
pub use pretokenizer::{PreTokenizer, Prepend};
pub use ranks::read_ranks;
pub use sample::Sampling;
pub use scripts::is_one_script;
pub use sentencepiece::{Normalise, SentencePiece};
pub use split::Pattern;
pub use splits::every_split;
pub use stages::Stages;
pub use stream::DecodeStream;
pub use surfaces::{Opening, Surfaces};
pub use tokens::Tokens;
pub use train::bpe as train_bpe;
pub use unigram_train::{TrainedUnigram, UnigramTraining, unigram as train_unigram};
pub use utf8::{Character, Width, unfinished, widen};
pub use words::Words;

/// Called now and then during long work; an error ends the work.
///
/// It decides itself how much to do: calls come every few milliseconds, so an expensive check
/// should look at the clock first.
pub type Interrupt<'a> = dyn FnMut() -> Result<(), Error> + 'a;

/// The [`Interrupt`] that never interrupts.
pub fn no_interrupt() -> Result<(), Error> {
    Ok(())
}
