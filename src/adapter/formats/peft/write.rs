//! Deltas → a standard PEFT folder that PEFT, vLLM and llama.cpp's converter load.
//!
//! Every module's scaling is 1 (`lora_alpha == r`): a scaling lies in `lora_A`, since some readers
//! drop `alpha_pattern`.
//!
//! **Invariant:** what is written is read as the same changes to the same weights.
//!
//! **Source:** PEFT 0.21.2, `peft_model.py`, `save_pretrained`.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use super::{CONFIG_FILE, TENSOR_FILE};
use crate::adapter::write::{check_free, write_files};
use crate::adapter::{AdapterDeltas, FloatDelta, flatten, transpose};
use crate::error::AdapterDefect;
use crate::name::EMBEDDING;
use crate::{Error, Result, WeightName};

/// What the written adapter says beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeftOptions {
    /// `base_model_name_or_path`: a name on the hub or a folder. Without it a reader has to name
    /// the base.
    pub base_model: Option<String>,
    /// Fills every module up to the largest rank with zeros, so that the config needs no patterns:
    /// for readers that ignore `alpha_pattern`, such as llama.cpp's converter, which would scale
    /// modules of smaller ranks wrongly.
    pub uniform_rank: bool,
}

/// Writes `deltas` as a PEFT LoRA adapter in F32 into the folder `dir`, which is made. A scaling
/// other than 1 is multiplied into `lora_A`, rounded once to f32.
///
/// The files are written into a folder beside `dir`, named `.NAME.PROCESS-NUMBER.part`, and moved;
/// a crash leaves that one at most.
///
/// # Errors
/// Inside [`Error::Adapter`]: [`AdapterDefect::FolderNotEmpty`] where `dir` holds something,
/// [`AdapterDefect::NothingToWrite`] without any change, [`AdapterDefect::NotLowRank`] for a dense
/// or sparse delta, [`AdapterDefect::NotAModule`] for a weight that PEFT cannot name,
/// [`AdapterDefect::NotFinite`]. [`Error::DeltaShape`] when factors do not agree in shape, and
/// [`Error::Io`].
pub fn write_peft(dir: &Path, deltas: &AdapterDeltas, options: &PeftOptions) -> Result<()> {
    let wrap = |defect| Error::adapter(dir, defect);
    check_free(dir)?;
    let modules: Vec<Factors> = flatten(&[deltas])?
        .into_iter()
        .map(|(weight, delta)| Factors::new(&weight, delta))
        .collect::<Result<_, _>>()
        .map_err(wrap)?;
    let Some(rank) = modules.iter().map(|module| module.rank).max() else {
        return Err(wrap(AdapterDefect::NothingToWrite));
    };
    let modules: Vec<Factors> = if options.uniform_rank {
        modules.into_iter().map(|m| m.padded(rank)).collect()
    } else {
        modules
    };
    let config = config(&modules, rank, options);
    let tensors = tensor_file(&modules).map_err(wrap)?;
    write_files(dir, &[(CONFIG_FILE, &config), (TENSOR_FILE, &tensors)])
}

/// One module's factors: `lora_a (rank, in)`, `lora_b (out, rank)`.
struct Factors {
    name: String,
    is_embedding: bool,
    rank: usize,
    lora_a: Vec<f32>,
    lora_b: Vec<f32>,
}

impl Factors {
    fn new(weight: &WeightName, delta: FloatDelta) -> Result<Self, AdapterDefect> {
        let name = weight.as_str().strip_suffix(".weight").unwrap_or_default().to_owned();
        // What is written has to be read as the same weight.
        if name.is_empty() || WeightName::from_peft_module(&prefixed(&name)) != *weight {
            return Err(AdapterDefect::NotAModule { weight: weight.to_string() });
        }
        let FloatDelta::LowRank { rank, lora_a, lora_b, .. } = delta else {
            unreachable!("`flatten` returns no other")
        };
        Ok(Self { is_embedding: weight.as_str() == EMBEDDING, name, rank, lora_a, lora_b })
    }

    /// The same change at a larger rank.
    fn padded(self, rank: usize) -> Self {
        let padding = vec![0_f32; rank - self.rank];
        let cols = self.lora_a.len() / self.rank;
        let lora_b = self
            .lora_b
            .chunks_exact(self.rank)
            .flat_map(|row| row.iter().chain(&padding))
            .copied()
            .collect();
        let mut lora_a = self.lora_a;
        lora_a.resize(rank * cols, 0.0);
        Self { rank, lora_a, lora_b, ..self }
    }

    /// The two tensors as PEFT stores them.
    fn tensors(&self) -> [Tensor; 2] {
        let (rank, cols, rows) =
            (self.rank, self.lora_a.len() / self.rank, self.lora_b.len() / self.rank);
        let tensor = |part: &str, shape, values| Tensor {
            key: format!("{}.{part}", prefixed(&self.name)),
            shape,
            values,
        };
        if self.is_embedding {
            // An embedding's change is (B·A)ᵀ: A is (rank, vocab), B is (dim, rank), the weight
            // (vocab, dim).
            let (a, b) =
                (transpose(&self.lora_b, [rows, rank]), transpose(&self.lora_a, [rank, cols]));
            [
                tensor("lora_embedding_A", [rank, rows], a),
                tensor("lora_embedding_B", [cols, rank], b),
            ]
        } else {
            [
                tensor("lora_A.weight", [rank, cols], self.lora_a.clone()),
                tensor("lora_B.weight", [rows, rank], self.lora_b.clone()),
            ]
        }
    }
}

/// One tensor of the file, row-major.
struct Tensor {
    key: String,
    shape: [usize; 2],
    values: Vec<f32>,
}

impl Tensor {
    /// Refuses a value that is NaN or infinite.
    fn check_finite(&self) -> Result<(), AdapterDefect> {
        let Some(at) = self.values.iter().position(|value| !value.is_finite()) else {
            return Ok(());
        };
        let cols = self.shape[1];
        let (tensor, row, column) = (self.key.clone(), at / cols, at % cols);
        Err(AdapterDefect::NotFinite { tensor, row, column, value: self.values[at] })
    }

    fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

fn prefixed(module: &str) -> String {
    format!("base_model.model.{module}")
}

/// The bytes of `adapter_config.json`: the keys that PEFT itself writes, where they mean something
/// without its defaults.
fn config(modules: &[Factors], rank: usize, options: &PeftOptions) -> Vec<u8> {
    let names: Vec<&str> = modules.iter().map(|module| &module.name[..]).collect();
    // PEFT matches `(.*\.)?(KEY)$`; without the backslashes a dot would match anything.
    let ranks: Map<String, Value> = modules
        .iter()
        .filter(|module| module.rank != rank)
        .map(|module| (module.name.replace('.', r"\."), module.rank.into()))
        .collect();
    let config = json!({
        "alpha_pattern": ranks,
        "base_model_name_or_path": options.base_model,
        "bias": "none",
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": rank,
        "lora_bias": false,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "revision": null,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{config:#}\n").into_bytes()
}

/// The bytes of `adapter_model.safetensors`.
fn tensor_file(modules: &[Factors]) -> Result<Vec<u8>, AdapterDefect> {
    let tensors: Vec<Tensor> = modules.iter().flat_map(Factors::tensors).collect();
    tensors.iter().try_for_each(Tensor::check_finite)?;
    let stored: Vec<Vec<u8>> = tensors.iter().map(Tensor::bytes).collect();
    let views = tensors.iter().zip(&stored).map(|(tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.to_vec(), bytes);
        (&tensor.key, view.expect("shape and values agree"))
    });
    // Older readers refuse a file that does not say which framework's layout it has.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))
        .expect("the tensors are valid and their names differ"))
}
