//! Compiled deltas of nodes: what a switch needs beside the weights.

mod cache;

pub use cache::{CacheStats, DeltaCache};
