//! The dataloader as Python sees it.

use pyo3::prelude::*;

/// Adds the classes and functions of this file to `tinylm._rust`.
pub(crate) fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
