//! Any bytes as a segment with one blob: read or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::store::read_segment_bytes(bytes)));
