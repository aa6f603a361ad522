//! Any bytes as an adapter's two files: read or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::testing::adapter::read_adapter_bytes(
    bytes
)));
