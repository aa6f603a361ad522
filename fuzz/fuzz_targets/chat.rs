//! Any bytes as a chat template, or as a tokenizer_config.json that has one: rendered or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::testing::read_chat_bytes(bytes)));
