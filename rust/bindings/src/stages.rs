//! The stages of a `tokenizer.json` as Python hands them over: a dictionary for each step.
//!
//! Their keys are those of the file, except that Python has checked them, has translated regular
//! expressions, and has filled in what the file leaves out (`python/tinylm/tokenizer/stages.py`).

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;
use tinylm_tokenizer::{
    Behaviour, Charsmap, Edges, Find, Normalizer, PreTokenizer, Prepend, SentencePiece, Spec,
    Stages, Surfaces, Tokenizer,
};

use crate::arguments::detached;
use crate::error::tokenizer_error;

/// A step of the file.
struct Step<'py>(Bound<'py, PyDict>);

impl<'py> Step<'py> {
    /// The value of a key.
    fn item(&self, key: &str) -> PyResult<Bound<'py, PyAny>> {
        let missing = || PyValueError::new_err(format!("a step lacks the key {key:?}"));
        self.0.get_item(key)?.ok_or_else(missing)
    }

    fn kind(&self) -> PyResult<String> {
        self.text("type")
    }

    fn text(&self, key: &str) -> PyResult<String> {
        self.item(key)?.extract()
    }

    fn char(&self, key: &str) -> PyResult<char> {
        self.item(key)?.extract()
    }

    fn flag(&self, key: &str) -> PyResult<bool> {
        self.item(key)?.extract()
    }

    /// What a step looks for: `{"String": text}` or `{"Regex": expression}`.
    fn find(&self) -> PyResult<Find> {
        let pattern = Step(self.item("pattern")?.cast_into()?);
        let find = if pattern.0.contains("String")? {
            Find::text(&pattern.text("String")?)
        } else {
            Find::regex(&pattern.text("Regex")?)
        };
        find.map_err(tokenizer_error)
    }

    fn behaviour(&self) -> PyResult<Behaviour> {
        Ok(match self.text("behavior")?.as_str() {
            "Isolated" => Behaviour::Isolated,
            "Removed" => Behaviour::Removed,
            "Contiguous" => Behaviour::Contiguous,
            "MergedWithPrevious" => Behaviour::MergedWithPrevious,
            "MergedWithNext" => Behaviour::MergedWithNext,
            other => return Err(unknown("behavior", other)),
        })
    }

    /// The steps that a normaliser of the file stands for.
    fn normalizers(&self) -> PyResult<Vec<Normalizer>> {
        if self.kind()? != "BertNormalizer" {
            return Ok(vec![self.normalizer()?]);
        }
        let accents = [Normalizer::Nfd, Normalizer::StripNonspacing];
        let steps: [(&str, &[Normalizer]); 4] = [
            ("clean_text", &[Normalizer::Clean]),
            ("handle_chinese_chars", &[Normalizer::SpaceChinese]),
            ("strip_accents", &accents),
            ("lowercase", &[Normalizer::Lowercase]),
        ];
        let mut found = Vec::new();
        for (key, steps) in steps {
            if self.flag(key)? {
                found.extend_from_slice(steps);
            }
        }
        Ok(found)
    }

    fn normalizer(&self) -> PyResult<Normalizer> {
        Ok(match self.kind()?.as_str() {
            "NFC" => Normalizer::Nfc,
            "NFD" => Normalizer::Nfd,
            "NFKC" => Normalizer::Nfkc,
            "NFKD" => Normalizer::Nfkd,
            "Lowercase" => Normalizer::Lowercase,
            "Strip" => Normalizer::Strip {
                left: self.flag("strip_left")?,
                right: self.flag("strip_right")?,
            },
            "StripAccents" => Normalizer::StripAccents,
            "Replace" => Normalizer::Replace {
                find: self.find()?,
                content: self.text("content")?,
            },
            "Prepend" => Normalizer::Prepend(self.text("prepend")?),
            "Nmt" => Normalizer::Nmt,
            "ByteLevel" => Normalizer::ByteLevel,
            "Precompiled" => {
                let map: Vec<u8> = self.item("precompiled_charsmap")?.extract()?;
                Normalizer::Precompiled(Charsmap::new(&map).map_err(tokenizer_error)?)
            }
            "SentencePiece" => {
                let map: Vec<u8> = self.item("precompiled_charsmap")?.extract()?;
                let map = (!map.is_empty()).then(|| Charsmap::new(&map)).transpose();
                let spec = SentencePiece {
                    map: map.map_err(tokenizer_error)?,
                    kept: self.item("kept")?.extract()?,
                    prefix: self.flag("add_dummy_prefix")?,
                    suffix: self.flag("treat_whitespace_as_suffix")?,
                    collapse: self.flag("remove_extra_whitespaces")?,
                    escape: self.flag("escape_whitespaces")?,
                };
                spec.into()
            }
            other => return Err(unknown("normalizer", other)),
        })
    }

    fn pre_tokenizer(&self) -> PyResult<PreTokenizer> {
        Ok(match self.kind()?.as_str() {
            "ByteLevel" => PreTokenizer::ByteLevel {
                prefix_space: self.flag("add_prefix_space")?,
                pattern: if self.flag("use_regex")? {
                    Some(Find::regex("gpt2").map_err(tokenizer_error)?)
                } else {
                    None
                },
            },
            "Split" => PreTokenizer::Split {
                find: self.find()?,
                behaviour: self.behaviour()?,
                invert: self.flag("invert")?,
            },
            "Digits" => PreTokenizer::Digits {
                individual: self.flag("individual_digits")?,
            },
            "Punctuation" => PreTokenizer::Punctuation(self.behaviour()?),
            "Whitespace" => PreTokenizer::Whitespace,
            "WhitespaceSplit" => PreTokenizer::WhitespaceSplit,
            "BertPreTokenizer" => PreTokenizer::Bert,
            "Metaspace" => PreTokenizer::Metaspace {
                mark: self.char("replacement")?,
                prepend: match self.text("prepend_scheme")?.as_str() {
                    "first" => Prepend::First,
                    "always" => Prepend::Always,
                    "never" => Prepend::Never,
                    other => return Err(unknown("prepend_scheme", other)),
                },
                split: self.flag("split")?,
            },
            "CharDelimiterSplit" => PreTokenizer::Delimiter(self.char("delimiter")?),
            "UnicodeScripts" => PreTokenizer::Scripts,
            "FixedLength" => PreTokenizer::FixedLength(self.item("length")?.extract()?),
            other => return Err(unknown("pre_tokenizer", other)),
        })
    }
}

fn unknown(what: &str, value: &str) -> PyErr {
    PyValueError::new_err(format!("{what} {value:?} is not supported"))
}

/// The steps of a list.
fn steps<'py, T>(
    found: Vec<Bound<'py, PyDict>>,
    step: impl Fn(&Step<'py>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    found.into_iter().map(|found| step(&Step(found))).collect()
}

/// The stages and edges in Python's (normalizers, pre-tokenizers, chars, missing bytes, edges).
pub(crate) type Given<'py> = (
    Vec<Bound<'py, PyDict>>,
    Vec<Bound<'py, PyDict>>,
    bool,
    Vec<u8>,
    Vec<(u32, bool, bool, bool)>,
);

/// The stages, and what added tokens ask of the characters around them.
///
/// # Errors
///
/// `ValueError` for a step that is not known, and for a regular expression that does not compile.
fn stages_of(
    (normalizers, pre_tokenizers, chars, missing, edges): Given<'_>,
) -> PyResult<(Stages, Vec<(u32, Edges)>)> {
    let stages = Stages {
        normalizers: steps(normalizers, Step::normalizers)?.concat(),
        pre_tokenizers: steps(pre_tokenizers, Step::pre_tokenizer)?,
        chars,
        missing,
    };
    let edges = edges.into_iter().map(|(id, single_word, lstrip, rstrip)| {
        let edges = Edges {
            single_word,
            lstrip,
            rstrip,
        };
        (id, edges)
    });
    Ok((stages, edges.collect()))
}

/// A text after some normalizers, each a step of a tokenizer.json.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
fn normalise(
    py: Python<'_>,
    text: PyBackedStr,
    normalizers: Vec<Bound<'_, PyDict>>,
) -> PyResult<String> {
    let stages = Stages {
        normalizers: steps(normalizers, Step::normalizers)?.concat(),
        ..Stages::default()
    };
    detached(py, |stop| stages.normalise(&text, stop))
}

/// Adds the function of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(normalise, module)?)
}

/// Python's (bytes by id, bytes of a first token by id, a character and how many of it the
/// beginning of a text loses).
pub(crate) type GivenSurfaces = (
    Vec<(u32, Vec<u8>)>,
    Vec<(u32, Vec<u8>)>,
    Option<(char, usize)>,
);

/// The tokenizer of the core.
///
/// # Errors
///
/// `ValueError` if the parts contradict each other.
pub(crate) fn build(
    spec: Spec,
    stages: Option<Given<'_>>,
    surfaces: Option<GivenSurfaces>,
) -> PyResult<Tokenizer> {
    let (stages, edges) = stages.map(stages_of).transpose()?.unwrap_or_default();
    // The tables take a tenth of a second for 200,000 tokens: too short to interrupt.
    let core = Python::attach(|py| {
        py.detach(|| {
            let core = Tokenizer::with_stages(spec, stages, &edges)?;
            match surfaces.map(surfaces_of) {
                Some(surfaces) => core.with_surfaces(surfaces),
                None => Ok(core),
            }
        })
    });
    core.map_err(tokenizer_error)
}

/// How tokens look in a text.
fn surfaces_of((all, first, strip): GivenSurfaces) -> Surfaces {
    Surfaces {
        all,
        first: first.into_iter().collect(),
        strip,
    }
}
