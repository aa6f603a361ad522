//! A PEFT LoRA adapter, read whole into owned memory: `dW = scaling · B·A` for every weight it
//! targets.
//!
//! **Invariant:** the content hash covers exactly the bytes that were parsed; nothing is opened
//! twice, and both files were in the folder together.
//!
//! **Source:** PEFT's `lora/layer.py`, `get_delta_weight`.

use std::fmt;
use std::path::Path;

use rayon::prelude::*;

use super::header::{CONFIG_FILE, PeftHeader, TENSOR_FILE, Target, TensorSpan, files};
use super::watched::Watched;
use super::{AdapterDeltas, AdapterSummary, BaseShapes, FloatDelta, Limits};
use crate::base::BaseModel;
use crate::error::AdapterDefect;
use crate::file::safetensors::SafeTensorsFile;
use crate::name::{EMBEDDING, HEAD};
use crate::{Error, Result, WeightName};

/// A PEFT LoRA adapter with its tensors.
pub struct PeftAdapter {
    header: PeftHeader,
    config: Vec<u8>,
    file: SafeTensorsFile,
    hash: blake3::Hash,
}

impl PeftAdapter {
    /// Reads the adapter in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Adapter`] for everything [`AdapterDefect`] names, [`Error::SafeTensors`] for a
    /// damaged tensor file, [`Error::FileTooLarge`], and [`Error::Io`] if a file cannot be read.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        Self::open_with(dir, limits, || ())
    }

    /// The same; `between` runs when one file is read and the other is not.
    pub(super) fn open_with(dir: &Path, limits: &Limits, between: impl FnOnce()) -> Result<Self> {
        let (config, tensors) = files(dir)?;
        let config_file = Watched::open(&config, CONFIG_FILE, limits.config_bytes)?;
        let tensor_file = Watched::open(&tensors, TENSOR_FILE, limits.file_bytes)?;
        let config_bytes = config_file.read(limits.config_bytes)?;
        between();
        let tensor_bytes = tensor_file.read(limits.file_bytes)?;
        for file in [config_file, tensor_file] {
            file.check_unchanged().map_err(|defect| Error::adapter(dir, defect))?;
        }
        Self::parse(dir, &config_bytes, SafeTensorsFile::from_bytes(tensor_bytes, tensors)?, limits)
    }

    /// Parses the bytes of `adapter_config.json` and of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`Error::Adapter`] for everything [`AdapterDefect`] names, [`Error::SafeTensors`] for a
    /// damaged tensor file.
    pub fn from_bytes(config: &[u8], tensors: Vec<u8>, limits: &Limits) -> Result<Self> {
        let file = SafeTensorsFile::from_bytes(tensors, TENSOR_FILE)?;
        Self::parse(Path::new("from memory"), config, file, limits)
    }

    fn parse(path: &Path, config: &[u8], file: SafeTensorsFile, limits: &Limits) -> Result<Self> {
        let data_bytes = file
            .tensors()
            .values()
            .map(|info| (info.data_offsets.1 - info.data_offsets.0) as u64)
            .sum();
        let header = PeftHeader::parse(path, config, file.tensors(), data_bytes, limits)?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&(config.len() as u64).to_le_bytes())
            .update(config)
            .update_rayon(file.file_bytes());
        let adapter = Self { header, config: config.to_vec(), file, hash: hasher.finalize() };
        adapter.check_tied_factors()?;
        Ok(adapter)
    }

    /// With `ensure_weight_tying` PEFT loads one pair of factors for embedding and head: the file's
    /// two must be that pair.
    fn check_tied_factors(&self) -> Result<()> {
        let find =
            |name: &str| self.header.targets.iter().find(|target| target.weight.as_str() == name);
        let both = find(EMBEDDING).zip(find(HEAD));
        let Some((embedding, head)) = both.filter(|_| self.header.config.ensure_weight_tying)
        else {
            return Ok(());
        };
        if self.delta(embedding)? == self.delta(head)? {
            return Ok(());
        }
        Err(Error::adapter(&self.header.path, AdapterDefect::TiedFactorsDiffer))
    }

    /// Its config and the shapes of its tensors.
    pub fn header(&self) -> &PeftHeader {
        &self.header
    }

    /// BLAKE3 of the config's length (u64, little-endian), the config's bytes and the tensor file's
    /// bytes.
    pub fn hash(&self) -> blake3::Hash {
        self.hash
    }

    /// Whether it holds a copy of the embedding or head, to be compared with the base's.
    pub fn has_copies(&self) -> bool {
        !self.header.copies.is_empty()
    }

    /// The bytes of its config and of its tensor file.
    pub(crate) fn files(&self) -> [(&'static str, &[u8]); 2] {
        [(CONFIG_FILE, &self.config), (TENSOR_FILE, self.file.file_bytes())]
    }

    /// What it is, for people and for `--json`.
    pub fn summary(&self) -> AdapterSummary {
        AdapterSummary { hash: Some(self.hash.to_hex().to_string()), ..self.header.summary() }
    }

    /// The float deltas of every weight it changes, checked against `base`.
    ///
    /// # Errors
    /// [`AdapterDefect::NotInBase`], [`AdapterDefect::ShapeMismatch`] and
    /// [`AdapterDefect::NotFinite`] inside [`Error::Adapter`].
    pub fn deltas(&self, base: &BaseShapes) -> Result<AdapterDeltas> {
        self.header.fits(base)?;
        let delta = |target: &Target| Ok((target.weight.clone(), self.delta(target)?));
        self.header.targets.par_iter().map(delta).collect()
    }

    /// Checks that the embedding or head that PEFT saved beside a change to it is the base's own,
    /// to the rounding of bfloat16: another one would have to replace the base's.
    ///
    /// # Errors
    /// [`AdapterDefect::CopyDiffers`] inside [`Error::Adapter`], and what reading the base returns.
    pub fn check_copies(&self, base: &BaseModel) -> Result<()> {
        for (weight, key) in &self.header.copies {
            let tied = base.config().tie_word_embeddings && weight.as_str() == HEAD;
            let source = if tied { &WeightName::new(EMBEDDING) } else { weight };
            let info = base.weight(source)?;
            let copy = self.file.to_f32(key)?;
            let differs = |row: usize| {
                let defect = AdapterDefect::CopyDiffers { tensor: key.clone(), row };
                Err(Error::adapter(&self.header.path, defect))
            };
            if self.file.info(key)?.shape != info.shape {
                return differs(0);
            }
            copy.par_chunks(info.cols()).enumerate().try_for_each(|(row, copy)| {
                let mut own = vec![0_f32; copy.len()];
                base.read_rows(source, row..row + 1, &mut own)?;
                let same =
                    own.iter().zip(copy).all(|(own, copy)| (own - copy).abs() <= own.abs() / 256.0);
                if same { Ok(()) } else { differs(row) }
            })?;
        }
        Ok(())
    }

    fn delta(&self, target: &Target) -> Result<FloatDelta> {
        let (a, b) = (self.read(&target.lora_a)?, self.read(&target.lora_b)?);
        let (lora_a, lora_b) = if target.is_embedding {
            (transpose(&b, target.lora_b.shape), transpose(&a, target.lora_a.shape))
        } else {
            (a, b)
        };
        Ok(FloatDelta::LowRank { rank: target.rank, lora_a, lora_b, scaling: target.scaling })
    }

    /// A tensor's bytes, little-endian.
    pub(super) fn tensor_bytes(&self, span: &TensorSpan) -> Result<&[u8]> {
        self.file.tensor_bytes(&span.key)
    }

    fn read(&self, span: &TensorSpan) -> Result<Vec<f32>> {
        let values = self.file.to_f32(&span.key)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let (tensor, row, column) =
                    (span.key.clone(), at / span.shape[1], at % span.shape[1]);
                let defect = AdapterDefect::NotFinite { tensor, row, column, value: values[at] };
                Err(Error::adapter(&self.header.path, defect))
            }
        }
    }
}

impl fmt::Debug for PeftAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeftAdapter")
            .field("path", &self.header.path)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// `(rows, cols)` to `(cols, rows)`, both row-major.
pub(super) fn transpose(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}
