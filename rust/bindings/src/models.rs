//! The kinds of model that make a tokenizer: what its vocabulary is beside the tokens.
//!
//! Held to `python/tinylm/reference` by the rungs of `tests/rungs/models.py`.

use pyo3::prelude::*;
use tinylm_tokenizer::{CharBpeSpec, ModelSpec};

/// Adds the class of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Model>()
}

/// How pieces become tokens; a tokenizer is made of it and of the tokens.
#[pyclass(frozen, module = "tinylm._rust")]
pub(crate) struct Model {
    spec: ModelSpec,
}

impl Model {
    /// A copy for one tokenizer.
    pub(crate) fn spec(&self) -> ModelSpec {
        self.spec.clone()
    }
}

#[pymethods]
impl Model {
    /// BPE over bytes: merges of ids in order, or None for tiktoken's rule.
    #[staticmethod]
    #[pyo3(signature = (merges, *, whole_pieces))]
    fn bpe(merges: Option<Vec<(u32, u32)>>, whole_pieces: bool) -> Self {
        let spec = ModelSpec::Bpe {
            merges,
            whole_pieces,
        };
        Self { spec }
    }

    /// BPE over characters: merges of ids in order, or None for the rule by `scores`, which are in
    /// the order of the tokens.
    #[staticmethod]
    #[pyo3(signature = (
        merges, *, scores=None, unknown=None, fuse_unknown=false, byte_fallback=false,
        whole_pieces=false, prefix="", suffix="", frozen=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "named in Python")]
    fn char_bpe(
        merges: Option<Vec<(u32, u32)>>,
        scores: Option<Vec<f32>>,
        unknown: Option<u32>,
        fuse_unknown: bool,
        byte_fallback: bool,
        whole_pieces: bool,
        prefix: &str,
        suffix: &str,
        frozen: Option<Vec<u32>>,
    ) -> Self {
        let spec = ModelSpec::CharBpe(CharBpeSpec {
            merges,
            scores: scores.unwrap_or_default(),
            unknown,
            fuse_unknown,
            byte_fallback,
            whole_pieces,
            prefix: prefix.into(),
            suffix: suffix.into(),
            frozen: frozen.unwrap_or_default(),
        });
        Self { spec }
    }

    /// Unigram: log probabilities in the order of the tokens.
    #[staticmethod]
    ///
    /// With `float32` sums are those of sentencepiece, from the beginning of a text.
    #[pyo3(signature = (scores, *, unknown=None, byte_fallback=false, float32=false))]
    fn unigram(scores: Vec<f64>, unknown: Option<u32>, byte_fallback: bool, float32: bool) -> Self {
        let spec = ModelSpec::Unigram {
            scores,
            unknown,
            byte_fallback,
            float32,
        };
        Self { spec }
    }

    /// `WordPiece`: words of over `longest` characters are `unknown`.
    #[staticmethod]
    #[pyo3(signature = (*, unknown, prefix="##", longest=100))]
    fn wordpiece(unknown: u32, prefix: &str, longest: usize) -> Self {
        let spec = ModelSpec::WordPiece {
            unknown,
            prefix: prefix.into(),
            longest,
        };
        Self { spec }
    }
}
