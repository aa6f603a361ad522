//! Any bytes as an adapter's two files: read or refused, never a panic. The saved inputs also run as a plain test.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pleach::testing::adapter::read_any(data));
