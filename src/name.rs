//! Names of weights: Hugging Face, PEFT and GGUF spellings meet here and nowhere else.

use std::fmt;
use std::sync::Arc;

/// The canonical name of a weight: its Hugging Face parameter name, such as
/// `model.layers.0.self_attn.q_proj.weight`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightName(Arc<str>);

impl WeightName {
    /// Takes a Hugging Face parameter name as it is.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WeightName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
