//! Any bytes as a GGUF base with tokenizer and chat template: read or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::testing::read_gguf_bytes(bytes.to_vec())));
