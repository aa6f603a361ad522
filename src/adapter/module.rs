//! What every file format reads to before a base is known: modules by the file's own names, their
//! tensors still unread, and what the files say of the whole adapter.
//!
//! **Invariant:** each [`Module`]'s tensors agree with its shape and rank, and its scaling is
//! finite; which weight it changes, and whether a base has that weight, is for `bind.rs`.

use std::fmt;
use std::sync::Arc;

use safetensors::Dtype;

use super::AdapterRemark;
use crate::WeightName;
use crate::error::AdapterDefect;

/// One module that an adapter changes.
#[derive(Clone, Debug)]
pub struct Module {
    /// `[out, in]` of the weight it changes, by the adapter's tensors.
    pub shape: [usize; 2],
    /// Rank of the change.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / √rank` with rsLoRA.
    pub scaling: f64,
    /// The module as the file spells it, with what wrappers put around it: what errors call it.
    pub(super) name: String,
    /// Its path in the model that was adapted, as that model spells it.
    pub(super) path: String,
    pub(super) change: Change,
}

/// How a module's tensors make up its change.
///
/// Another kind of change (LoHa, LoKr, DoRA, IA³) is a variant here, with the tensors it has, and
/// an arm in `lower.rs`.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// `scaling · B · A`.
    Lora {
        /// `(rank, in)`.
        lora_a: TensorSpan,
        /// `(out, rank)`.
        lora_b: TensorSpan,
        /// Whether the weight changes by the product's transpose, as an embedding's does.
        is_transposed: bool,
    },
}

impl Change {
    /// Every tensor it is made of.
    pub(super) fn spans(&self) -> [&TensorSpan; 2] {
        let Self::Lora { lora_a, lora_b, .. } = self;
        [lora_a, lora_b]
    }
}

/// One tensor of the file, unread.
#[derive(Clone, Debug)]
pub(super) struct TensorSpan {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) shape: [usize; 2],
}

/// What an adapter's files say of it as a whole.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// `lora`, or `rslora` where the scaling is `alpha / √rank`.
    pub(super) kind: &'static str,
    /// The base it was made for.
    pub(super) base_model: Option<String>,
    /// Whether the changes to embedding and head are to be one.
    pub(super) is_tied: bool,
    /// Copies of the base's own weights, to be compared with them.
    pub(super) copies: Vec<WeightCopy>,
    /// What the files say and the format ignores.
    pub(super) ignored: Vec<AdapterRemark>,
    /// What else it says that it changes.
    pub(super) claims: Arc<dyn Claims>,
    /// Bytes of all its tensors.
    pub(super) data_bytes: u64,
}

/// A tensor that holds one of the base's own weights.
#[derive(Clone, Debug)]
pub(super) struct WeightCopy {
    pub(super) weight: WeightName,
    pub(super) key: String,
}

/// Modules that an adapter says it changes, whether or not its file holds them.
pub(super) trait Claims: fmt::Debug + Send + Sync {
    /// Whether it says so of the module at `path`, as [`Module::path`] spells it.
    ///
    /// # Errors
    /// [`AdapterDefect::PatternInvalid`] where a pattern takes too long to match.
    fn selects(&self, path: &str, is_embedding: bool) -> Result<bool, AdapterDefect>;
}

/// An adapter as its format reads it, before its modules are given weights' names.
pub(super) struct Unbound {
    /// In the order of their names.
    pub(super) modules: Vec<Module>,
    pub(super) facts: Facts,
}
