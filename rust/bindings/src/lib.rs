//! `tinylm._rust`: the three Rust cores as seen from Python. Conversion only, no algorithm.
//!
//! One rule holds in every file: work that may take long runs without the GIL and looks for Ctrl-C
//! every few milliseconds. Types and docstrings for Python are in `python/tinylm/_rust.pyi`.

use pyo3::prelude::*;

mod arguments;
mod batches;
mod error;
mod files;
mod ids;
mod inference;
mod layout;
mod lists;
mod models;
mod objects;
mod plans;
mod shards;
mod slots;
mod stages;
mod stream;
mod tokenizer;
mod training;
mod unigram;

/// The compiled half of the package.
#[pymodule(name = "_rust", gil_used = false)]
mod rust {
    use pyo3::prelude::*;

    /// Adds everything that Python sees, each file its own part.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add(
            // Benchmarks ask for it, and refuse a build without optimisation.
            "build_profile",
            if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
        )?;
        // Each file registers its classes, so that a new class changes one file.
        super::tokenizer::register(module)?;
        super::files::register(module)?;
        super::stages::register(module)?;
        super::stream::register(module)?;
        super::training::register(module)?;
        super::models::register(module)?;
        super::unigram::register(module)?;
        super::shards::register(module)?;
        super::batches::register(module)?;
        super::inference::register(module)
    }
}
