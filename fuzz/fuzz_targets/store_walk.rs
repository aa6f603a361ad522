//! Any bytes as a walk over a store, with failures of the disk: what a model in memory says.

#![no_main]

#[path = "../../tests/common/drawn.rs"]
mod drawn;
#[path = "../../tests/common/stored.rs"]
mod stored;
#[path = "../../tests/common/walk.rs"]
mod walk;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    walk::walk(bytes);
});
