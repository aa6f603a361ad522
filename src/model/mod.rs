//! The model: forward pass over a device, tokenizer, chat template, sampling.

mod batch;
pub mod chat;
mod generate;
mod kv_pages;
mod kv_pool;
mod rope;
mod sampling;
mod special;
mod stop;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tokenizer;
mod transformer;

pub use crate::device::cpu::argmax;
pub use batch::{Batch, Logits, NewTokens, Pick, Picked, UnmergedNode, Want};
pub use generate::{Decoding, Forward, GenerateOptions, OneSequence, StopReason, prefill};
pub(crate) use generate::{PREFILL, check_prompt};
pub use kv_pages::{KvPages, TableId};
pub use kv_pool::KvPool;
pub use rope::RopeTable;
pub use sampling::{History, Logprobs, Sampler, Sampling, log_softmax_top};
pub use stop::StopTexts;
pub use transformer::Transformer;
