//! Names of weights: Hugging Face, PEFT and GGUF spellings meet here and nowhere else.
//!
//! **Invariant:** two spellings of one parameter give the same [`WeightName`].
//!
//! **Source:** the tensor name map of llama.cpp's GGUF writer; PEFT's `save_pretrained` keys and
//! the wrappers (FSDP, `torch.compile`, DDP, vision-language models) that put words in front of
//! them.

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

/// GGUF's and Hugging Face's names of the modules inside one decoder layer.
const LAYER_MODULES: [(&str, &str); 9] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];

/// GGUF's and Hugging Face's names of the modules outside the layers.
const OUTER_MODULES: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

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

    /// Translates a GGUF tensor name; `None` for a name the Llama family does not have.
    ///
    /// ```
    /// use pleach::WeightName;
    /// let name = WeightName::from_gguf("blk.7.attn_q.weight").unwrap();
    /// assert_eq!(name.as_str(), "model.layers.7.self_attn.q_proj.weight");
    /// assert_eq!(WeightName::from_gguf("blk.7.ssm_a"), None);
    /// ```
    pub fn from_gguf(name: &str) -> Option<Self> {
        let (module, kind) =
            name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let Some(rest) = module.strip_prefix("blk.") else {
            return Some(Self::new(format!("{}.{kind}", lookup(&OUTER_MODULES, module)?)));
        };
        let (layer, module) = rest.split_once('.')?;
        // One spelling a layer: `blk.007` or `blk.+7` would meet `blk.7` under one name.
        let layer = layer.parse::<u32>().ok().filter(|number| number.to_string() == layer)?;
        Some(Self::new(format!("model.layers.{layer}.{}.{kind}", lookup(&LAYER_MODULES, module)?)))
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

fn lookup<'a>(table: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    table.iter().find(|(gguf, _)| *gguf == key).map(|(_, hf)| *hf)
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
    fn every_gguf_spelling_of_the_family_is_known() {
        for (gguf, hf) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
            ("blk.11.ffn_norm.weight", "model.layers.11.post_attention_layernorm.weight"),
            ("blk.2.attn_k.bias", "model.layers.2.self_attn.k_proj.bias"),
            ("blk.2.attn_output.weight", "model.layers.2.self_attn.o_proj.weight"),
            ("blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"),
        ] {
            assert_eq!(WeightName::from_gguf(gguf), Some(WeightName::new(hf)), "{gguf}");
        }
    }

    #[test]
    fn foreign_gguf_names_are_not_guessed() {
        for name in [
            "",
            ".",
            "blk.",
            "blk.0",
            "blk.x.attn_q.weight",
            "blk.007.attn_q.weight",
            "blk.+7.attn_q.weight",
            "blk.0.attn_q.scale",
            "rope_freqs.weight",
        ] {
            assert_eq!(WeightName::from_gguf(name), None, "{name}");
        }
    }

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
