//! Makers of small made inputs for tests, benches and examples; not part of the public interface.

pub mod adapter;
