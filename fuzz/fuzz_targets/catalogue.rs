//! Any bytes as a store's catalogue, or behind a zero as one of its records: read or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::store::read_catalogue_bytes(bytes)));
