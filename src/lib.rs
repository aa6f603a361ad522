//! A hierarchical adapter-tree runtime: one base model, a tree of LoRA adapters, exact
//! [`switch_to(node)`](Runtime::switch_to).
//!
//! The model at a node is the base plus every adapter on its path. The weights are held once, as
//! 16-bit integers, and move from node to node in one pass; integers add exactly, so a node's bits
//! depend on the node alone.
//!
//! ```no_run
//! use pleach::{GenerateOptions, Runtime};
//! use std::ops::ControlFlow::Continue;
//!
//! let base = "SmolLM2-135M-Instruct.Q4_1.gguf";
//! let mut runtime = Runtime::builder().base(base).tree("trees/smollm2").open()?;
//! runtime.switch_to("fr/sysadmin/name-line/alice")?;
//! let prompt = "Commande : mkdir\nNOM :".into();
//! let text = runtime.generate(&prompt, &GenerateOptions::default(), |_| Continue(()))?.text;
//! runtime.switch_to("/")?; // the base again, bit for bit
//! # Ok::<(), pleach::Error>(())
//! ```
//!
//! - **Switch, generate, score, verify**: [`Runtime`], [`RuntimeBuilder`]; step by step:
//!   [`Sequence`].
//! - **Trees**: [`AdapterTree`]; a folder is one. **Stores** of many leaves, changed while they are
//!   served: [`Store`], [`Changes`].
//! - **Errors**: [`Error`]; what each reader refuses is a type of its own in [`error`].
//!
//! The names at this level and [`error`] are the interface. The modules below are open to tools
//! that need a layer by itself (`docs/library.md` has examples), and may change in any version.

/// *Unstable.*
pub mod adapter;
/// *Unstable.*
pub mod arch;
/// *Unstable.*
pub mod base;
/// *Unstable.*
pub mod compile;
mod contain;
/// *Unstable.*
pub mod device;
/// *Unstable.*
pub mod engine;
pub mod error;
/// *Unstable.*
pub mod file;
/// *Unstable.*
pub mod lattice;
/// *Unstable.*
pub mod model;
/// *Unstable.*
pub mod name;
/// *Unstable.*
pub mod nodes;
/// *Unstable.*
pub mod runtime;
/// *Unstable.*
pub mod store;
mod suggest;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
/// *Unstable.*
pub mod tree;
/// *Unstable.*
pub mod weights;

#[doc(inline)]
pub use adapter::{AdapterDeltas, FloatDelta, PeftAdapter, PeftHeader};
#[doc(inline)]
pub use base::BaseModel;
#[doc(inline)]
pub use engine::{Answer, Engine, EngineOptions, Merge, Request};
#[doc(inline)]
pub use error::{Error, Result};
#[doc(inline)]
pub use model::chat::Message;
#[doc(inline)]
pub use model::{GenerateOptions, Sampling, StopReason};
#[doc(inline)]
pub use name::WeightName;
#[doc(inline)]
pub use nodes::{CacheStats, NodeVersion, StalePolicy};
#[doc(inline)]
pub use runtime::{
    DeviceChoice, Generation, NextToken, Prompt, Runtime, RuntimeBuilder, Scores, Sequence, Step,
    SwitchReport, VerifyReport,
};
#[doc(inline)]
pub use store::{Changes, Content, Details, ImportOptions, ImportReport, Store, StoreNode};
#[doc(inline)]
pub use tree::{AdapterTree, NodeId, NodeSource, SwitchPlan, TreeBuilder};

/// Runs the examples of the pages as tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/library.md")]
    mod library {}
}
