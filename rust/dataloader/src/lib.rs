//! Token shards to training batches.
#![forbid(unsafe_code)]
