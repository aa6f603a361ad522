//! Names of weights: Hugging Face's and PEFT's spellings meet here and nowhere else; GGUF's are in
//! the tables of [`crate::arch`].
//!
//! **Invariant:** two spellings of one parameter make the same [`WeightName`].
//!
//! **Source:** PEFT's `save_pretrained` keys and the wrappers (FSDP, `torch.compile`, DDP,
//! vision-language models) that put words in front of them.

use std::fmt;
use std::sync::Arc;

/// The canonical name of a weight: its Hugging Face parameter name, such as
/// `model.layers.0.self_attn.q_proj.weight`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightName(Arc<str>);

/// The embedding's weight.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head's weight; a tied base has none of its own.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Segments that wrappers put anywhere into a module path.
const WRAPPER_SEGMENTS: [&str; 3] =
    ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"];

impl WeightName {
    /// Takes a Hugging Face parameter name as it is.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Translates a PEFT module path (a tensor's key without its `.lora_A.weight`) to the name of
    /// the weight it adapts.
    ///
    /// ```
    /// use pleach::WeightName;
    /// let name = WeightName::from_peft_module("base_model.model.model.layers.0.mlp.up_proj");
    /// assert_eq!(name.as_str(), "model.layers.0.mlp.up_proj.weight");
    /// ```
    pub fn from_peft_module(path: &str) -> Self {
        Self::of_module(&peft_module(path))
    }

    /// The weight of the module at `path` in the model that was adapted: a path that no wrapper has
    /// words in.
    pub(crate) fn of_module(path: &str) -> Self {
        Self::new(format!("{}.weight", canonical_module(path)))
    }
}

/// The path of a module in the model that PEFT was given: what its rules look at. Only what
/// wrappers and PEFT put into a key is taken out; the model's own spelling stays.
pub(crate) fn peft_module(path: &str) -> String {
    let segments: Vec<&str> =
        path.split('.').filter(|segment| !WRAPPER_SEGMENTS.contains(segment)).collect();
    let joined = segments.join(".");
    let mut module = joined.as_str();
    // DDP wraps the whole, before or after PEFT did.
    module = module.strip_prefix("module.").unwrap_or(module);
    module = module.strip_prefix("base_model.model.").unwrap_or(module);
    module = module.strip_prefix("module.").unwrap_or(module);
    module.strip_suffix(".default").unwrap_or(module).to_owned()
}

/// The Hugging Face module path in the language model, without what a vision-language model or a
/// bare decoder calls it.
fn canonical_module(path: &str) -> String {
    let mut module = path;
    for prefix in ["model.language_model.model.", "model.language_model.", "language_model.model."]
    {
        if let Some(rest) = module.strip_prefix(prefix) {
            return format!("model.{rest}");
        }
    }
    module = module.strip_prefix("language_model.").unwrap_or(module);
    // An adapter of the bare decoder (`AutoModel`), which has no `model.` in front.
    if module.starts_with("layers.") || matches!(module, "embed_tokens" | "norm") {
        return format!("model.{module}");
    }
    module.to_owned()
}

impl fmt::Display for WeightName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrapper_around_a_peft_module_gives_the_same_weight() {
        for path in [
            "base_model.model.model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.q_proj",
            "base_model.model.layers.0.self_attn.q_proj",
            "layers.0.self_attn.q_proj",
            "module.base_model.model.model.layers.0.self_attn.q_proj",
            "base_model.model.module.model.layers.0.self_attn.q_proj",
            "base_model.model._orig_mod.model.layers.0.self_attn.q_proj",
            "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj",
            "base_model.model.model.language_model.layers.0.self_attn.q_proj",
            "base_model.model.language_model.model.layers.0.self_attn.q_proj",
            "base_model.model.model.layers.0.self_attn.q_proj.default",
            "base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj",
        ] {
            let name = WeightName::from_peft_module(path);
            assert_eq!(name.as_str(), "model.layers.0.self_attn.q_proj.weight", "{path}");
        }
        assert_eq!(
            WeightName::from_peft_module("base_model.model.lm_head").as_str(),
            "lm_head.weight"
        );
        assert_eq!(
            WeightName::from_peft_module("base_model.model.model.embed_tokens").as_str(),
            "model.embed_tokens.weight"
        );
    }
}
