//! Compiled deltas of nodes: what a switch needs beside the weights.

mod cache;
mod deltas;

pub use cache::{CacheStats, DeltaCache};
pub use deltas::{MatrixId, NodeDeltas};
