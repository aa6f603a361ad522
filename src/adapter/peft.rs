//! A PEFT LoRA adapter, read whole into owned memory: `dW = scaling · B·A` for every weight it targets.
//!
//! **Invariant:** the content hash covers exactly the bytes that were parsed; nothing is opened twice.
//!
//! **Source:** PEFT's `lora/layer.py`, `get_delta_weight`.

use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::header::{PeftHeader, Target, TensorSpan, damaged, open_tensors, read_config, read_limited};
use super::{AdapterDefect, AdapterDeltas, AdapterSummary, BaseShapes, FloatDelta, Limits};
use crate::{Error, Result};

/// A PEFT LoRA adapter with its tensors.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    header: PeftHeader,
    file: Vec<u8>,
    hash: blake3::Hash,
}

impl PeftAdapter {
    /// Reads the adapter in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Adapter`] for everything [`AdapterDefect`] names, [`Error::Io`] if a file cannot be read.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        let (tensors, _) = open_tensors(dir, limits)?;
        let config = read_config(dir, limits)?;
        let tensors = read_limited(dir, super::header::TENSOR_FILE, tensors, limits.file_bytes)?;
        Self::parse(dir, &config, tensors, limits)
    }

    /// Parses the bytes of `adapter_config.json` and of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`Error::Adapter`] for everything [`AdapterDefect`] names.
    pub fn from_bytes(config: &[u8], tensors: Vec<u8>, limits: &Limits) -> Result<Self> {
        Self::parse(Path::new("adapter from memory"), config, tensors, limits)
    }

    fn parse(path: &Path, config: &[u8], file: Vec<u8>, limits: &Limits) -> Result<Self> {
        let wrap = |defect| Error::adapter(path, defect);
        let (header, data) = split_header(&file).map_err(wrap)?;
        let parsed = PeftHeader::parse(path, config, header, data.len(), limits).map_err(wrap)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(config.len() as u64).to_le_bytes()).update(config).update_rayon(&file);
        let hash = hasher.finalize();
        Ok(Self { header: parsed, file, hash })
    }

    /// Its config and the shapes of its tensors.
    pub fn header(&self) -> &PeftHeader {
        &self.header
    }

    /// BLAKE3 of the config's length (u64, little-endian), the config's bytes and the tensor file's bytes.
    pub fn hash(&self) -> blake3::Hash {
        self.hash
    }

    /// What it is, for people and for `--json`.
    pub fn summary(&self) -> AdapterSummary {
        AdapterSummary { hash: Some(self.hash.to_hex().to_string()), ..self.header.summary() }
    }

    /// The float deltas of every weight it changes, checked against `base`.
    ///
    /// # Errors
    /// [`AdapterDefect::NotInBase`], [`AdapterDefect::ShapeMismatch`] and [`AdapterDefect::NotFinite`] inside
    /// [`Error::Adapter`].
    pub fn deltas(&self, base: &BaseShapes) -> Result<AdapterDeltas> {
        self.header.fits(base)?;
        if self.header.config.fan_in_fan_out {
            // PEFT does the same for every layer of this family: they are all `nn.Linear`.
            tracing::warn!(
                adapter = %self.header.path.display(),
                "fan_in_fan_out = true is ignored: the base's layers store their weights as (out, in)"
            );
        }
        let (_, data) = split_header(&self.file).map_err(|defect| Error::adapter(&self.header.path, defect))?;
        let deltas = self.header.targets.par_iter().map(|target| Ok((target.weight.clone(), delta(target, data)?)));
        deltas.collect::<Result<_, AdapterDefect>>().map_err(|defect| Error::adapter(&self.header.path, defect))
    }
}

/// Splits a safetensors file into its header and its data.
fn split_header(file: &[u8]) -> Result<(&[u8], &[u8]), AdapterDefect> {
    let (length, rest) =
        file.split_first_chunk::<8>().ok_or_else(|| damaged("it is shorter than its first 8 bytes"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    rest.split_at_checked(length).ok_or_else(|| damaged("its header is longer than the file"))
}

fn delta(target: &Target, data: &[u8]) -> Result<FloatDelta, AdapterDefect> {
    let (a, b) = (read(&target.lora_a, data)?, read(&target.lora_b, data)?);
    let (lora_a, lora_b) = if target.is_embedding {
        (transpose(&b, target.lora_b.shape), transpose(&a, target.lora_a.shape))
    } else {
        (a, b)
    };
    Ok(FloatDelta::LowRank { rank: target.rank, lora_a, lora_b, scaling: target.scaling })
}

/// The tensor's values as f32; every f16 and bf16 is one.
fn read(span: &TensorSpan, data: &[u8]) -> Result<Vec<f32>, AdapterDefect> {
    let bytes = data.get(span.range.clone()).ok_or_else(|| damaged("a tensor lies outside the file"))?;
    let values: Vec<f32> = match span.dtype {
        Dtype::F16 => pairs(bytes).map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs(bytes).map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect(),
    };
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(AdapterDefect::NotFinite {
            tensor: span.key.clone(),
            row: at / span.shape[1],
            column: at % span.shape[1],
            value: values[at],
        }),
    }
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]])
}

/// `(rows, cols)` to `(cols, rows)`, both row-major.
fn transpose(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}
