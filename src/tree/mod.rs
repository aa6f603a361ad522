//! The tree of adapters.
