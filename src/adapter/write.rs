//! Deltas → a standard PEFT folder that PEFT, vLLM and llama.cpp's converter load: `peft.rs`
//! backwards.
//!
//! Every module's scaling is 1 (`lora_alpha == r`): a scaling lies in `lora_A`, since some readers
//! drop `alpha_pattern`.
//!
//! **Invariant:** the folder appears whole or not at all, and nothing that was there is
//! overwritten.
//!
//! **Source:** PEFT's `save_pretrained`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use super::peft::transpose;
use super::{AdapterDeltas, CONFIG_FILE, FloatDelta, TENSOR_FILE, flatten};
use crate::error::AdapterDefect;
use crate::file::sync_folder;
use crate::{Error, Result, WeightName};

/// What the written adapter says beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeftOptions {
    /// `base_model_name_or_path`: a name on the hub or a folder. Without it a reader has to be told
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
    let modules: Vec<Module> = flatten(&[deltas])?
        .into_iter()
        .map(|(weight, delta)| Module::new(&weight, delta))
        .collect::<Result<_, _>>()
        .map_err(wrap)?;
    let Some(rank) = modules.iter().map(|module| module.rank).max() else {
        return Err(wrap(AdapterDefect::NothingToWrite));
    };
    let modules: Vec<Module> = if options.uniform_rank {
        modules.into_iter().map(|m| m.padded(rank)).collect()
    } else {
        modules
    };
    let config = config(&modules, rank, options);
    let tensors = tensor_file(&modules).map_err(wrap)?;
    publish(dir, &[(CONFIG_FILE, &config), (TENSOR_FILE, &tensors)])
}

/// Writes an adapter's files, by their names, as they are into the folder `dir`, as [`write_peft`]
/// does.
///
/// # Errors
/// [`AdapterDefect::FolderNotEmpty`] inside [`Error::Adapter`], and [`Error::Io`].
pub(crate) fn write_files(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    check_free(dir)?;
    publish(dir, files)
}

/// One module and its factors: `lora_a (rank, in)`, `lora_b (out, rank)`.
struct Module {
    name: String,
    is_embedding: bool,
    rank: usize,
    lora_a: Vec<f32>,
    lora_b: Vec<f32>,
}

impl Module {
    fn new(weight: &WeightName, delta: FloatDelta) -> Result<Self, AdapterDefect> {
        let name = weight.as_str().strip_suffix(".weight").unwrap_or_default().to_owned();
        // What is written has to be read as the same weight.
        if name.is_empty() || WeightName::from_peft_module(&prefixed(&name)) != *weight {
            return Err(AdapterDefect::NotAModule { weight: weight.to_string() });
        }
        let FloatDelta::LowRank { rank, lora_a, lora_b, .. } = delta else {
            unreachable!("`flatten` gives no other")
        };
        Ok(Self { is_embedding: name == "model.embed_tokens", name, rank, lora_a, lora_b })
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

    /// Keys, shapes and values as PEFT stores them.
    fn tensors(&self) -> [(String, [usize; 2], Vec<f32>); 2] {
        let (rank, cols, rows) =
            (self.rank, self.lora_a.len() / self.rank, self.lora_b.len() / self.rank);
        let key = |part: &str| format!("{}.{part}", prefixed(&self.name));
        if self.is_embedding {
            // An embedding's change is (B·A)ᵀ: A is (rank, vocab), B is (dim, rank), the weight
            // (vocab, dim).
            [
                (key("lora_embedding_A"), [rank, rows], transpose(&self.lora_b, [rows, rank])),
                (key("lora_embedding_B"), [cols, rank], transpose(&self.lora_a, [rank, cols])),
            ]
        } else {
            [
                (key("lora_A.weight"), [rank, cols], self.lora_a.clone()),
                (key("lora_B.weight"), [rows, rank], self.lora_b.clone()),
            ]
        }
    }
}

fn prefixed(module: &str) -> String {
    format!("base_model.model.{module}")
}

/// The bytes of `adapter_config.json`: the keys that PEFT itself writes, where they mean something
/// without its defaults.
fn config(modules: &[Module], rank: usize, options: &PeftOptions) -> Vec<u8> {
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
fn tensor_file(modules: &[Module]) -> Result<Vec<u8>, AdapterDefect> {
    let mut stored: Vec<(String, [usize; 2], Vec<u8>)> = Vec::with_capacity(modules.len() * 2);
    for (tensor, shape, values) in modules.iter().flat_map(Module::tensors) {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, column, value) = (at / shape[1], at % shape[1], values[at]);
            return Err(AdapterDefect::NotFinite { tensor, row, column, value });
        }
        stored.push((tensor, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect()));
    }
    let views = stored.iter().map(|(key, shape, bytes)| {
        (key, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("shape and values agree"))
    });
    // Older readers refuse a file that does not say which framework's layout it has.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))
        .expect("the tensors are valid and their names differ"))
}

/// Refuses a folder that holds something.
fn check_free(dir: &Path) -> Result<()> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::adapter(dir, AdapterDefect::FolderNotEmpty)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(dir, error)),
    }
}

/// Makes the folder `dir` with `files` at once.
fn publish(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => dir,
    };
    fs::create_dir_all(parent).map_err(|source| Error::io(parent, source))?;
    let part = part_folder(parent, dir)?;
    let moved = fill(&part, files).and_then(|()| {
        // A rename onto an empty folder is not possible everywhere. One that has filled meanwhile
        // stays.
        match fs::remove_dir(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(taken(dir, error)),
            _ => fs::rename(&part, dir).map_err(|source| taken(dir, source))?,
        }
        sync_folder(parent).map_err(|source| Error::io(parent, source))
    });
    if moved.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&part);
    }
    moved
}

/// Makes an empty folder beside `dir` that nobody else writes to.
fn part_folder(parent: &Path, dir: &Path) -> Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = dir.file_name() else {
        return Err(Error::io(
            dir,
            io::Error::new(ErrorKind::InvalidInput, "give a folder by its name"),
        ));
    };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part =
        parent.join(format!(".{}.{}-{number}.part", name.to_string_lossy(), std::process::id()));
    fs::create_dir(&part).map_err(|source| Error::io(&part, source))?;
    Ok(part)
}

/// Writes the files and sees them onto the disk.
fn fill(folder: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|source| Error::io(&path, source))?;
    }
    sync_folder(folder).map_err(|source| Error::io(folder, source))
}

/// What it means that `dir` could not be taken: systems differ in what they say of a folder that
/// has filled.
fn taken(dir: &Path, error: io::Error) -> Error {
    check_free(dir).err().unwrap_or_else(|| Error::io(dir, error))
}
