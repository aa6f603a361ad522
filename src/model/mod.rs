//! The model: forward pass over a device, tokenizer, sampling.

pub mod chat;
pub mod tokenizer;
