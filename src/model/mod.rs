//! The model: forward pass over a device, tokenizer, sampling.

mod batch;
mod generate;
mod kv_cache;
mod llama;
mod rope;
mod sampling;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Logits, Sequence, Want};
pub use generate::{GenerateOptions, Generation, StopReason, generate};
pub use kv_cache::KvCache;
pub use llama::Llama;
pub use rope::RopeTable;
pub use sampling::{Sampler, Sampling, greedy, log_softmax_top};
