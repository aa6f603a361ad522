//! The model: forward pass over a device, tokenizer, sampling.
