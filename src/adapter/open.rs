//! An adapter on disk or in memory, opened: its header alone, or whole.
//!
//! **Invariant:** the content hash covers exactly the bytes that were parsed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::formats::{Contents, Format, TENSOR_FILE, parse_peft};
use super::module::{Facts, Module, Unbound};
use super::{AdapterSummary, Limits};
use crate::file::safetensors::SafeTensorsFile;
use crate::{Result, WeightName};

/// What an adapter's files say of it; no tensor is read.
#[derive(Clone, Debug)]
pub struct PeftHeader {
    pub(super) path: PathBuf,
    pub(super) modules: BTreeMap<WeightName, Module>,
    pub(super) facts: Facts,
}

impl PeftHeader {
    /// Reads the config and the header of the tensor file in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Adapter`](crate::Error::Adapter) for everything
    /// [`AdapterDefect`](crate::error::AdapterDefect) names,
    /// [`Error::SafeTensors`](crate::Error::SafeTensors) for a damaged tensor header,
    /// [`Error::FileTooLarge`](crate::Error::FileTooLarge), and
    /// [`Error::Io`](crate::Error::Io) if a file cannot be read.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        Self::new(dir, Format::of(dir)?.header(limits)?)
    }

    /// The folder the adapter was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The modules it changes, by their weights.
    pub fn targets(&self) -> &BTreeMap<WeightName, Module> {
        &self.modules
    }

    /// How many weights (elements) of the base it changes.
    pub fn touched_weights(&self) -> u64 {
        self.modules.values().map(|module| module.shape[0] as u64 * module.shape[1] as u64).sum()
    }

    /// The base that the config names (`base_model_name_or_path`).
    pub fn base_model(&self) -> Option<&str> {
        self.facts.base_model.as_deref()
    }
}

/// An adapter with its tensors, read whole into owned memory.
pub struct PeftAdapter {
    pub(super) header: PeftHeader,
    pub(super) contents: Contents,
}

impl PeftAdapter {
    /// Reads the adapter in the folder `dir`.
    ///
    /// # Errors
    /// As [`PeftHeader::open`].
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        Self::new(dir, Format::of(dir)?.read(limits)?)
    }

    /// Parses the bytes of PEFT's `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// As [`PeftHeader::open`], but for what comes of reading files.
    pub fn from_bytes(config: &[u8], tensors: Vec<u8>, limits: &Limits) -> Result<Self> {
        let path = Path::new("from memory");
        let tensors = SafeTensorsFile::from_bytes(tensors, TENSOR_FILE)?;
        Self::new(path, parse_peft(path, config, tensors, limits)?)
    }

    fn new(path: &Path, (unbound, contents): (Unbound, Contents)) -> Result<Self> {
        let adapter = Self { header: PeftHeader::new(path, unbound)?, contents };
        adapter.check_tied()?;
        Ok(adapter)
    }

    /// What its files say of it.
    pub fn header(&self) -> &PeftHeader {
        &self.header
    }

    /// BLAKE3 of its files' bytes; of PEFT's the config's length (u64, little-endian), the config
    /// and the tensor file.
    pub fn hash(&self) -> blake3::Hash {
        self.contents.hash
    }

    /// Whether it holds a copy of the embedding or head, to be compared with the base's.
    pub fn has_copies(&self) -> bool {
        !self.header.facts.copies.is_empty()
    }

    /// The bytes of its files, by their names.
    pub(crate) fn files(&self) -> Vec<(&'static str, &[u8])> {
        self.contents.files()
    }

    /// What it is, for people and for `--json`.
    pub fn summary(&self) -> AdapterSummary {
        AdapterSummary {
            hash: Some(self.contents.hash.to_hex().to_string()),
            ..self.header.summary()
        }
    }
}

impl fmt::Debug for PeftAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeftAdapter")
            .field("path", &self.header.path)
            .field("hash", &self.contents.hash)
            .finish_non_exhaustive()
    }
}
