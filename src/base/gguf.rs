//! The hyper-parameters of a base that is a GGUF file.
//!
//! **Source:** llama.cpp's GGUF keys.

use super::end_tokens;
use crate::arch::{self, Biases, Family, ModelConfig, RopeScaling, default_head_dim, wrong};
use crate::error::ConfigDefect;
use crate::file::gguf::GgufFile;
use crate::{Error, Result};

/// Per-frequency divisors of the rotary embedding (Llama 3.1 and later).
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// Reads the hyper-parameters from the metadata.
pub(super) fn read_config(file: &GgufFile) -> Result<(ModelConfig, Biases)> {
    if let Some(found) = file.text("general.type")?.filter(|kind| *kind != "model") {
        let adapter = "; adapters are read as PEFT folders, in a tree";
        let advice = if found == "adapter" { adapter } else { "" };
        return Err(error(file, ConfigDefect::GgufKind { found: found.to_owned(), advice }));
    }
    let arch = file.text("general.architecture")?.unwrap_or_default();
    let family = arch::of_gguf(arch).map_err(|defect| error(file, defect))?;
    let config = Metadata { file, arch }.config(family)?;
    config.check().map_err(|defect| error(file, defect))?;
    let has_bias = |module: &str| file.info(&format!("blk.0.{module}.bias")).is_ok();
    let biases =
        Biases { qkv: has_bias("attn_q"), o: has_bias("attn_output"), mlp: has_bias("ffn_gate") };
    Ok((config, biases))
}

/// The metadata of one architecture: keys start with its name.
struct Metadata<'a> {
    file: &'a GgufFile,
    arch: &'a str,
}

impl Metadata<'_> {
    fn config(&self, family: &Family) -> Result<ModelConfig> {
        let file = self.file;
        self.refuse_unsupported()?;
        let hidden_size = self.required("embedding_length")?;
        let num_hidden_layers = self.required("block_count")?;
        let of_a_layer = |key: &str| self.of_a_layer(key, num_hidden_layers);
        let num_attention_heads =
            self.needed("attention.head_count", of_a_layer("attention.head_count")?)?;
        let head_dim = match self.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => default_head_dim(hidden_size, num_attention_heads)
                .map_err(|defect| error(file, defect))?,
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.size(key)?.filter(|found| *found != head_dim) {
                return Err(error(
                    file,
                    wrong(&self.key(key), found, format!("the head's width, {head_dim}")),
                ));
            }
        }
        // llama.cpp reads this key for other architectures and lets every layer of these attend to
        // everything.
        let context = self.required("context_length")?;
        if let Some(window) =
            self.size("attention.sliding_window")?.filter(|window| (1..context).contains(window))
        {
            let path = file.path().display();
            tracing::warn!(
                "{path}: its attention window of {window} tokens is not used, as in llama.cpp"
            );
        }
        Ok(ModelConfig {
            architecture: family.class.to_owned(),
            block: family.block,
            hidden_size,
            intermediate_size: self
                .needed("feed_forward_length", of_a_layer("feed_forward_length")?)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: of_a_layer("attention.head_count_kv")?
                .unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: file.info("token_embd.weight")?.rows(),
            rms_norm_eps: self.float("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
                error(
                    file,
                    ConfigDefect::Missing { key: self.key("attention.layer_norm_rms_epsilon") },
                )
            })?,
            rope_theta: self.float("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
            rope_scaling: self.rope_scaling()?,
            max_position_embeddings: context,
            sliding_window: None,
            tie_word_embeddings: file.info("output.weight").is_err(),
            eos_token_ids: end_tokens::of_gguf(file)?,
            bos_token_id: file
                .signed("tokenizer.ggml.bos_token_id")?
                .and_then(end_tokens::token_id),
        })
    }

    fn refuse_unsupported(&self) -> Result<()> {
        if let Some(experts) = self.size("expert_count")?.filter(|experts| *experts > 0) {
            let (key, found) = (self.key("expert_count"), experts.to_string());
            let expected = "none: mixtures of experts are not run";
            return Err(error(self.file, ConfigDefect::Unsupported { key, found, expected }));
        }
        Ok(())
    }

    /// As llama.cpp reads it: a factor without a type is linear, `none` scales nothing, and
    /// explicit divisors come on top.
    fn rope_scaling(&self) -> Result<RopeScaling> {
        let file = self.file;
        let unsupported = |key: &str, found: String, expected| {
            error(file, ConfigDefect::Unsupported { key: self.key(key), found, expected })
        };
        // Older converters wrote the linear factor under another key.
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.float("rope.scale_linear")?,
        };
        let factor = match (file.text(&self.key("rope.scaling.type"))?, factor) {
            (Some("none"), _) => 1.0,
            // Zero stands for none there.
            (None | Some("linear"), factor) => {
                factor.filter(|factor| *factor != 0.0).unwrap_or(1.0)
            }
            (Some(found), _) => {
                return Err(unsupported("rope.scaling.type", found.to_owned(), "none or linear"));
            }
        };
        if let Some(found) = self.float("rope.scaling.attn_factor")?.filter(|found| *found != 1.0) {
            return Err(unsupported("rope.scaling.attn_factor", found.to_string(), "1"));
        }
        let Ok(tensor) = file.info(ROPE_FACTORS) else {
            return Ok(if factor == 1.0 {
                RopeScaling::None
            } else {
                RopeScaling::Linear { factor }
            });
        };
        let rows = tensor.rows();
        let mut divisors = vec![0.0; rows * tensor.cols()];
        file.read_rows(ROPE_FACTORS, 0..rows, &mut divisors)?;
        #[allow(clippy::cast_possible_truncation, reason = "the file has it as an f32")]
        let factor = factor as f32;
        Ok(RopeScaling::Factors(divisors.into_iter().map(|divisor| divisor * factor).collect()))
    }

    /// A size that some converters write once for each layer. All have to have the same.
    fn of_a_layer(&self, key: &str, layers: usize) -> Result<Option<usize>> {
        let name = self.key(key);
        let Ok(Some(list)) = self.file.integers(&name) else { return self.size(key) };
        if list.len() != layers {
            let found = format!("a list of {} values", list.len());
            return Err(error(
                self.file,
                wrong(&name, found, format!("one for each of {layers} layers")),
            ));
        }
        if let Some(pair) = list.windows(2).find(|pair| pair[0] != pair[1]) {
            let (found, expected) =
                (format!("{} and {}", pair[0], pair[1]), "the same value for all layers");
            return Err(error(self.file, ConfigDefect::Unsupported { key: name, found, expected }));
        }
        let one = |value: &u64| {
            usize::try_from(*value).map_err(|_| wrong(&name, value, "a size that fits memory"))
        };
        list.first().map(one).transpose().map_err(|defect| error(self.file, defect))
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.needed(key, self.size(key)?)
    }

    fn needed(&self, key: &str, value: Option<usize>) -> Result<usize> {
        value.ok_or_else(|| error(self.file, ConfigDefect::Missing { key: self.key(key) }))
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(found) = self.file.integer(&key)? else { return Ok(None) };
        usize::try_from(found)
            .map(Some)
            .map_err(|_| error(self.file, wrong(&key, found, "a size that fits memory")))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        self.file.float(&self.key(key))
    }
}

fn error(file: &GgufFile, defect: ConfigDefect) -> Error {
    Error::Config { path: file.path().to_owned(), defect }
}
