//! Text to tokens and back.
#![forbid(unsafe_code)]
