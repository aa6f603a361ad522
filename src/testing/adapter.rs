//! Small made PEFT adapters: real files with random factors.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::adapter::{BaseShapes, Limits, PeftAdapter};
use crate::base::WeightInfo;
use crate::{Result, WeightName};

/// One adapted module.
#[derive(Clone, Debug)]
pub struct TinyModule {
    /// Hugging Face module path, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Outputs (rows of an embedding).
    pub out: usize,
    /// Inputs (columns of an embedding).
    pub input: usize,
    /// Rank, if it is not the adapter's.
    pub rank: Option<usize>,
    /// Whether it is written as an embedding.
    pub is_embedding: bool,
}

impl TinyModule {
    /// A linear module of the adapter's rank.
    pub fn linear(module: &str, out: usize, input: usize) -> Self {
        Self { module: module.to_owned(), out, input, rank: None, is_embedding: false }
    }
}

/// A made adapter.
#[derive(Clone, Debug)]
pub struct TinyAdapter {
    /// Its modules.
    pub modules: Vec<TinyModule>,
    /// `r`.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// How the tensors are stored: F32, F16 or BF16.
    pub dtype: Dtype,
    /// The random numbers' seed.
    pub seed: u64,
    /// Keys put into the config, over the usual ones.
    pub config: Map<String, Value>,
}

impl TinyAdapter {
    /// Random factors of rank `rank` in f32 for `modules`, scaling 2.
    pub fn new(modules: Vec<TinyModule>, rank: usize, seed: u64) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "small ranks")]
        let alpha = 2.0 * rank as f64;
        Self { modules, rank, alpha, dtype: Dtype::F32, seed, config: Map::new() }
    }

    /// Sets keys of the config.
    #[must_use]
    pub fn with_config(mut self, keys: Value) -> Self {
        if let Value::Object(keys) = keys {
            self.config.extend(keys);
        }
        self
    }

    /// The bytes of `adapter_config.json`.
    pub fn config_bytes(&self) -> Vec<u8> {
        let mut targets: Vec<&str> =
            self.modules.iter().filter_map(|m| m.module.rsplit('.').next()).collect();
        targets.sort_unstable();
        targets.dedup();
        let mut config = Map::new();
        config.insert("peft_type".into(), json!("LORA"));
        config.insert("base_model_name_or_path".into(), json!("made/tiny"));
        config.insert("r".into(), json!(self.rank));
        config.insert("lora_alpha".into(), json!(self.alpha));
        config.insert("target_modules".into(), json!(targets));
        config.extend(self.config.clone());
        Value::Object(config).to_string().into_bytes()
    }

    /// The tensors' keys, shapes and values, in f32.
    pub fn tensors(&self) -> Vec<(String, [usize; 2], Vec<f32>)> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut values = |shape: [usize; 2]| {
            (0..shape[0] * shape[1]).map(|_| random.random_range(-0.1..0.1)).collect()
        };
        let mut tensors = Vec::new();
        for module in &self.modules {
            let rank = module.rank.unwrap_or(self.rank);
            let (names, a, b) = if module.is_embedding {
                (["lora_embedding_A", "lora_embedding_B"], [rank, module.out], [module.input, rank])
            } else {
                (["lora_A.weight", "lora_B.weight"], [rank, module.input], [module.out, rank])
            };
            for (name, shape) in names.into_iter().zip([a, b]) {
                tensors.push((
                    format!("base_model.model.{}.{name}", module.module),
                    shape,
                    values(shape),
                ));
            }
        }
        tensors
    }

    /// The bytes of `adapter_model.safetensors`.
    pub fn tensor_bytes(&self) -> Vec<u8> {
        serialize(&self.tensors(), self.dtype)
    }

    /// A base that has just its modules.
    pub fn base_shapes(&self) -> BaseShapes {
        let weight = |module: &TinyModule| WeightName::new(format!("{}.weight", module.module));
        let shapes = self.modules.iter().map(|module| (weight(module), [module.out, module.input]));
        base_of(shapes)
    }

    /// Writes both files into the folder `dir`, made if it is not there.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("adapter_config.json"), self.config_bytes())?;
        std::fs::write(dir.join("adapter_model.safetensors"), self.tensor_bytes())
    }
}

/// A safetensors file of matrices.
///
/// # Panics
/// If a shape and its values do not agree.
pub fn serialize(tensors: &[(String, [usize; 2], Vec<f32>)], dtype: Dtype) -> Vec<u8> {
    let bytes = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F16 => {
                values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
            }
            Dtype::BF16 => {
                values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
            }
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    };
    let stored: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let views = tensors.iter().zip(&stored).map(|((key, shape, _), bytes)| {
        (
            key.as_str(),
            TensorView::new(dtype, shape.to_vec(), bytes).expect("shape and values agree"),
        )
    });
    safetensors::serialize(views, None::<HashMap<String, String>>).expect("made tensors are valid")
}

/// Reads any bytes as an adapter and its deltas: a u16 (little-endian) with the config's length,
/// the config, the tensors.
///
/// # Errors
/// What [`PeftAdapter`] says.
pub fn read_adapter_bytes(bytes: &[u8]) -> Result<()> {
    let (length, rest) = bytes.split_first_chunk::<2>().unwrap_or((&[0; 2], &[]));
    let (config, tensors) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let adapter = PeftAdapter::from_bytes(config, tensors.to_vec(), &Limits::default())?;
    adapter.deltas(&own_shapes(&adapter)).map(drop)
}

/// A base that has just what the adapter changes.
pub fn own_shapes(adapter: &PeftAdapter) -> BaseShapes {
    let targets = adapter.header().targets().iter();
    base_of(targets.map(|(weight, module)| (weight.clone(), module.shape)))
}

fn base_of(shapes: impl Iterator<Item = (WeightName, [usize; 2])>) -> BaseShapes {
    let info = |shape: [usize; 2]| WeightInfo { shape: shape.to_vec(), dtype: "F32".into() };
    let weights: Vec<_> = shapes.map(|(weight, shape)| (weight, info(shape))).collect();
    BaseShapes::new("made", weights.iter().map(|(weight, info)| (weight, info)))
}
