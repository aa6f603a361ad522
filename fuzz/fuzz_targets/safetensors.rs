//! Any bytes as a safetensors file: read or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::testing::read_safetensors_bytes(
    bytes.to_vec()
)));
