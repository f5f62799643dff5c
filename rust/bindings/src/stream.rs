//! Decoding one token at a time, as Python sees it.
//!
//! Held to `python/tinylm/reference/byte_bpe.py` by the rung `stream`.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use tinylm_tokenizer as core;

use crate::arguments::id_of;
use crate::error::tokenizer_error;
use crate::tokenizer::Tokenizer;

/// Adds the class of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DecodeStream>()
}

/// Tokens to text one at a time, never half a character.
#[pyclass(frozen, module = "tinylm._rust")]
struct DecodeStream {
    tokenizer: Py<Tokenizer>,
    core: Mutex<core::DecodeStream>,
    /// Where the text begins, if tokens look otherwise there.
    opening: Mutex<Option<core::Opening>>,
}

#[pymethods]
impl DecodeStream {
    /// A stream for the tokens of `tokenizer`, empty at first.
    #[new]
    fn new(tokenizer: Py<Tokenizer>) -> Self {
        let opening = tokenizer.get().core.surfaces().map(core::Surfaces::opening);
        Self {
            tokenizer,
            core: Mutex::default(),
            opening: Mutex::new(opening),
        }
    }

    /// The text that this id completes: perhaps none, perhaps several characters.
    fn push(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        let tokenizer = &self.tokenizer.get().core;
        let id = id_of(id)?;
        // Looked up here: the core's stream takes bytes and knows no ids.
        let mut token = tokenizer.token(id).ok_or_else(|| {
            let vocab_size = tokenizer.vocab_size();
            tokenizer_error(core::Error::UnknownId {
                id: i64::from(id),
                vocab_size,
            })
        })?;
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(opening), Some(surfaces)) = (opening.as_mut(), tokenizer.surfaces()) {
            token = surfaces.next(opening, id, token);
        }
        Ok(self
            .core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(token))
    }

    /// What is left: nothing, or U+FFFD for a character cut short.
    fn finish(&self) -> String {
        self.core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish()
    }
}
