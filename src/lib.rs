//! A hierarchical adapter-tree runtime: one base model, a tree of adapters, exact
//! `switch_to(node)`.
//!
#![doc = include_str!("../README.md")]

pub mod adapter;
pub mod arch;
pub mod base;
pub mod compile;
mod contain;
pub mod device;
pub mod error;
pub mod file;
pub mod lattice;
pub mod model;
pub mod name;
pub mod nodes;
pub mod runtime;
pub mod store;
mod suggest;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
pub mod tree;
pub mod weights;

/// Runs the examples of that page as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
mod library_page {}

pub use error::{Error, Result};
pub use name::WeightName;
pub use runtime::Runtime;
