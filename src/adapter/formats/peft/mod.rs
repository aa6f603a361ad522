//! PEFT's folder: `adapter_config.json`, which says what the tensors mean, and
//! `adapter_model.safetensors`.
//!
//! **Invariant:** the content hash covers exactly the bytes that were parsed; nothing is opened
//! twice, and both files were in the folder together.
//!
//! **Source:** PEFT 0.21.2, `peft_model.py`, `save_pretrained`.

mod config;
mod keys;
mod modules;
mod pattern;
mod selection;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::TensorInfo;
pub use write::{PeftOptions, write_peft};

use self::config::PeftConfig;
use self::keys::weight_copies;
use self::modules::modules;
use super::Contents;
use super::watched::Watched;
use crate::adapter::module::{Facts, Unbound};
use crate::adapter::{AdapterRemark, Limits};
use crate::error::AdapterDefect;
use crate::file::safetensors::{SafeTensorsFile, read_header};
use crate::file::{from_json, read_limited};
use crate::{Error, Result};

/// The config's file name.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file name.
pub(crate) const TENSOR_FILE: &str = "adapter_model.safetensors";

/// The paths of the two files in a folder.
pub(in crate::adapter) struct Files {
    folder: PathBuf,
    config: PathBuf,
    tensors: PathBuf,
}

impl Files {
    /// Where the two are in `folder`, whether or not they are there.
    pub(super) fn in_folder(folder: &Path) -> Self {
        let [config, tensors] = [CONFIG_FILE, TENSOR_FILE].map(|file| folder.join(file));
        Self { folder: folder.to_owned(), config, tensors }
    }

    /// The name of the first that is not there.
    pub(super) fn missing(&self) -> Option<&'static str> {
        match (self.config.exists(), self.tensors.exists()) {
            (false, _) => Some(CONFIG_FILE),
            (true, false) => Some(TENSOR_FILE),
            (true, true) => None,
        }
    }

    /// Reads the config and the header of the tensors' file.
    pub(super) fn header(&self, limits: &Limits) -> Result<Unbound> {
        let config = read_limited(&self.config, limits.config_bytes)?;
        let tensors = read_header(&self.tensors, limits.file_bytes)?;
        unbound(&config, &tensors, limits).map_err(|defect| Error::adapter(&self.folder, defect))
    }

    /// Reads both files whole; `between` runs when one is read and the other is not.
    pub(super) fn read(
        &self,
        limits: &Limits,
        between: impl FnOnce(),
    ) -> Result<(Unbound, Contents)> {
        let config_file = Watched::open(&self.config, CONFIG_FILE, limits.config_bytes)?;
        let tensor_file = Watched::open(&self.tensors, TENSOR_FILE, limits.file_bytes)?;
        let config = config_file.read(limits.config_bytes)?;
        between();
        let tensors = tensor_file.read(limits.file_bytes)?;
        for file in [config_file, tensor_file] {
            file.check_unchanged().map_err(|defect| Error::adapter(&self.folder, defect))?;
        }
        let tensors = SafeTensorsFile::from_bytes(tensors, self.tensors.clone())?;
        parse(&self.folder, &config, tensors, limits)
    }
}

/// Parses both files' bytes; errors name `path`.
pub(in crate::adapter) fn parse(
    path: &Path,
    config: &[u8],
    tensors: SafeTensorsFile,
    limits: &Limits,
) -> Result<(Unbound, Contents)> {
    let unbound = unbound(config, tensors.tensors(), limits)
        .map_err(|defect| Error::adapter(path, defect))?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&(config.len() as u64).to_le_bytes())
        .update(config)
        .update_rayon(tensors.file_bytes());
    let hash = hasher.finalize();
    let others = vec![(CONFIG_FILE, config.to_vec())];
    Ok((unbound, Contents { tensors, tensor_file: TENSOR_FILE, others, hash }))
}

/// Parses a config, and checks it against the tensors of a file.
fn unbound(
    config: &[u8],
    tensors: &BTreeMap<String, TensorInfo>,
    limits: &Limits,
) -> Result<Unbound, AdapterDefect> {
    let config = PeftConfig::parse(config)?;
    let modules = modules(&config, tensors, limits)?;
    let bytes = |info: &TensorInfo| (info.data_offsets.1 - info.data_offsets.0) as u64;
    let facts = Facts {
        kind: if config.rslora { "rslora" } else { "lora" },
        base_model: config.base_model.filter(|name| !name.is_empty()),
        is_tied: config.ensure_weight_tying,
        copies: weight_copies(tensors),
        ignored: config.fan_in_fan_out.then_some(AdapterRemark::FanInFanOut).into_iter().collect(),
        claims: Arc::new(config.selection),
        data_bytes: tensors.values().map(bytes).sum(),
    };
    Ok(Unbound { modules, facts })
}

/// The `base_model_name_or_path` of the config in `folder`. Whether the config is right is for
/// others to say.
pub(crate) fn named_base(folder: &Path, limits: &Limits) -> Option<String> {
    let config = read_limited(&folder.join(CONFIG_FILE), limits.config_bytes).ok()?;
    let config: serde_json::Value = from_json(&config).ok()?;
    config.get("base_model_name_or_path")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod write_tests;
