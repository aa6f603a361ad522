//! Any bytes as a tokenizer.json, with a tokenizer_config.json behind a zero byte: read or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::testing::read_tokenizer_bytes(bytes)));
