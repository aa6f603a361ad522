//! Any bytes as a tree's `tree.toml`: a tree, or refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(pleach::testing::tree::read_tree_toml_bytes(
    bytes
)));
