//! `tinylm._rust`: the two Rust cores as seen from Python. Conversion only, no algorithm.

use pyo3::prelude::*;

mod arguments;
mod batches;
mod error;
mod shards;
mod tokenizer;

/// The compiled half of the package.
#[pymodule(name = "_rust", gil_used = false)]
mod rust {
    use pyo3::prelude::*;

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
        super::tokenizer::register(module)?;
        super::shards::register(module)?;
        super::batches::register(module)
    }
}
