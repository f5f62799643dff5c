//! A tokenizer from its parts, which must fit each other.

use std::sync::Mutex;

use crate::added::{AddedToken, AddedTokens};
use crate::edges::Edges;
use crate::encode::Tokenizer;
use crate::model::{Model, ModelSpec};
use crate::stages::{Staged, Stages};
use crate::surfaces::Surfaces;
use crate::vocab::Vocab;
use crate::worker::Worker;
use crate::{Error, Pattern, Tokens};

/// What makes a tokenizer.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The ordinary tokens and their ids.
    pub tokens: Tokens,
    /// How a piece of text becomes ordinary tokens.
    pub model: ModelSpec,
    /// The name of a pattern or a regular expression.
    pub pattern: String,
    /// Special tokens and others that are found before the text is split.
    pub added: Vec<AddedToken>,
}

impl Tokenizer {
    /// From its parts; fails if they contradict each other.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] or [`Error::Pattern`], which names the part.
    pub fn new(spec: Spec) -> Result<Self, Error> {
        Self::with_stages(spec, Stages::default(), &[])
    }

    /// From its parts, with stages between its added tokens and its model, and with what added
    /// tokens ask of the characters around them, by their ids.
    ///
    /// With stages, late tokens are normalised and looked for in normalised text. Bytes that no
    /// token has must be among the missing ones of the stages.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] or [`Error::Pattern`], which names the part.
    pub fn with_stages(spec: Spec, stages: Stages, edges: &[(u32, Edges)]) -> Result<Self, Error> {
        let model = Model::new(&spec.tokens, spec.model, &stages.missing)?;
        let mut made = Self::with_model(&spec.tokens, model, &spec.pattern, spec.added)?;
        if !stages.is_empty() {
            let (early, late) = made.added.without_late()?;
            made.added = early;
            let mut staged = Staged::new(stages, late)?;
            staged.set_edges(edges);
            made.staged = Some(staged);
        }
        made.added.set_edges(edges);
        Ok(made)
    }

    /// From parts with a model made before: the tests bring a model of their own.
    pub(crate) fn with_model(
        tokens: &Tokens,
        model: Model,
        pattern: &str,
        added: Vec<AddedToken>,
    ) -> Result<Self, Error> {
        let added = AddedTokens::new(added)?;
        let twice = added.among(tokens);
        let entries = added.entries().filter(|(_, id)| !twice.contains(id));
        // The first text finds the seed made, which takes 3 ms for 100,000 tokens.
        let workers = Mutex::new(vec![Worker::new(&model)]);
        Ok(Self {
            pattern: Pattern::new(pattern)?,
            model,
            vocab: Vocab::new(tokens.iter().chain(entries))?,
            added,
            staged: None,
            surfaces: None,
            written: None,
            workers,
        })
    }

    /// The same tokenizer, which decodes to other bytes than its tokens are written with.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] for an id that is too large.
    pub fn with_surfaces(mut self, surfaces: Surfaces) -> Result<Self, Error> {
        let mut bytes: Vec<Option<&[u8]>> = (0..self.vocab.len() as u32)
            .map(|id| self.vocab.get(id))
            .collect();
        for (id, surface) in &surfaces.all {
            let at = *id as usize;
            bytes.resize(bytes.len().max(at + 1), None);
            bytes[at] = Some(surface);
        }
        let entries = bytes.iter().zip(0u32..);
        let mut vocab = Vocab::new(entries.filter_map(|(bytes, id)| Some(((*bytes)?, id))))?;
        vocab.expect(surfaces.longest_first());
        self.written = Some(std::mem::replace(&mut self.vocab, vocab));
        self.surfaces = Some(surfaces);
        Ok(self)
    }
}
