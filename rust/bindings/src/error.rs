//! From the errors of the two cores to Python's exceptions, each in one exhaustive `match`.
