//! Regular expressions of users and of files, and the engine that runs each.
//!
//! Almost all expressions by which tokenizers split are run by an [`Automaton`]. The rest (a look
//! at several characters, references to groups) is left to `fancy-regex`, which backtracks, with a
//! limit: a text that passes it is an error.
//!
//! Defined by the `regex` module of Python, see `split` in `python/tinylm/reference/patterns.py`;
//! held to it by the rungs `expressions`, `split by classes`, `split by dollars`, `split by sight`.

use fancy_regex::Regex;

use crate::Error;
use crate::automaton::Automaton;

/// A regular expression in the dialect of `fancy-regex`.
#[derive(Debug, Clone)]
pub struct Expression {
    source: String,
    engine: Engine,
}

#[derive(Debug, Clone)]
enum Engine {
    Automaton(Automaton),
    Backtracking(Regex),
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for one that does not compile.
    pub fn new(source: &str) -> Result<Self, Error> {
        // Both engines have one parser, and this one says what is wrong.
        let regex = Regex::new(source).map_err(|e| Error::Pattern {
            pattern: source.into(),
            // The engine's message has several lines with a marker under the place; ours has one.
            reason: format!("not a name and not a regular expression: {e}")
                .lines()
                .map(str::trim)
                .collect::<Vec<_>>()
                .join(" "),
        })?;
        let engine = Automaton::new(source).map(Engine::Automaton);
        Ok(Self {
            source: source.into(),
            engine: engine.unwrap_or(Engine::Backtracking(regex)),
        })
    }

    /// The expression as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether every text takes time linear in its length, and none is refused.
    pub fn is_linear(&self) -> bool {
        matches!(self.engine, Engine::Automaton(_))
    }

    /// Whether the empty text is a match.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`].
    pub(crate) fn matches_empty(&self) -> Result<bool, Error> {
        match &self.engine {
            Engine::Automaton(automaton) => Ok(automaton.matches_empty()),
            Engine::Backtracking(regex) => regex.is_match("").map_err(|e| self.gave_up(&e)),
        }
    }

    /// Calls `each(start, end)` for the matches of `text`, in order and without overlap.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`] from the engine that backtracks, and what `each` returns.
    pub(crate) fn matches(
        &self,
        text: &str,
        mut each: impl FnMut(usize, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let regex = match &self.engine {
            Engine::Automaton(automaton) => return automaton.matches(text.as_bytes(), each),
            Engine::Backtracking(regex) => regex,
        };
        for found in regex.find_iter(text) {
            let found = found.map_err(|e| self.gave_up(&e))?;
            each(found.start(), found.end())?;
        }
        Ok(())
    }

    fn gave_up(&self, error: &fancy_regex::Error) -> Error {
        Error::PatternGaveUp {
            pattern: self.source.clone(),
            reason: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_published_files_are_linear() {
        for expression in [
            // DeepSeek, BLOOM, Mistral's Nemo, Kimi K2, CLIP, and GPT-4 in the form of a file.
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
            " ?[^(\\s|[.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c}])]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
            r"\b\w+\b|(?<=\d)\D|^#.*(?m:$)",
        ] {
            assert!(
                Expression::new(expression).unwrap().is_linear(),
                "{expression}"
            );
        }
        assert!(!Expression::new(r"(?=(\d{3})+(?!\d))").unwrap().is_linear());
    }
}
