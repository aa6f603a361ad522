//! GGUF files: the header through candle, rows dequantised straight from the mapped bytes.
//!
//! **Invariant:** once a file is open, every tensor lies inside it, aligned, sharing no byte with another, its rows
//! whole blocks of its type. No whole-tensor copy is ever made.
//!
//! **Source:** GGUF's specification (ggml, `docs/gguf.md`); shapes are given rows first, the file has them reversed.

mod scan;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use crate::error::GgufDefect;
use crate::file::{FileBytes, FloatType};
use crate::{Error, Result};

/// Floats that are dequantised at a time.
const CHUNK: usize = 1 << 16;

/// Shape, type and place of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Rows first: `[out, in]` or `[len]`.
    pub shape: Vec<usize>,
    /// GGML's type.
    pub dtype: GgmlDType,
    start: usize,
    bytes: usize,
}

impl GgufTensor {
    /// Length of one row; a vector is one row.
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Rows, over all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }
}

/// An open GGUF file.
pub struct GgufFile {
    path: PathBuf,
    bytes: FileBytes,
    metadata: HashMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Maps a base model's file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Gguf`].
    pub fn open_mapped(path: &Path) -> Result<Self> {
        Self::new(FileBytes::map(path)?, path.to_owned())
    }

    /// Reads the bytes of a file; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Gguf`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl Into<PathBuf>) -> Result<Self> {
        Self::new(FileBytes::Owned(bytes), name.into())
    }

    fn new(bytes: FileBytes, path: PathBuf) -> Result<Self> {
        match parse(&bytes) {
            Ok((metadata, tensors)) => Ok(Self { path, bytes, metadata, tensors }),
            Err(defect) => Err(Error::Gguf { path, defect }),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor with its name, in order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Shape, type and place of one tensor.
    ///
    /// # Errors
    /// [`Error::Gguf`] when there is none of that name.
    pub fn info(&self, name: &str) -> Result<&GgufTensor> {
        self.tensors.get(name).ok_or_else(|| self.error(GgufDefect::NoTensor { tensor: name.to_owned() }))
    }

    /// Dequantises `rows` of a tensor into `out` (`rows.len() × cols`, row-major), in the file's order.
    ///
    /// # Errors
    /// [`Error::Gguf`] when there is no such tensor or the range does not fit.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let tensor = self.info(name)?;
        let (count, cols, Range { start, end }) = (tensor.rows(), tensor.cols(), rows);
        if start > end || end > count || out.len() != (end - start) * cols {
            let (tensor, out) = (name.to_owned(), out.len());
            return Err(self.error(GgufDefect::Range { tensor, start, end, out, rows: count, cols }));
        }
        let row_bytes = tensor.bytes / count;
        let mut raw = &self.bytes[tensor.start + start * row_bytes..tensor.start + end * row_bytes];
        let chunk_rows = (CHUNK / cols).max(1);
        for out in out.chunks_mut(chunk_rows * cols) {
            let (head, tail) = raw.split_at(out.len() / cols * row_bytes);
            dequantise(tensor.dtype, head, cols, out).map_err(|reason| self.parse_error(reason))?;
            raw = tail;
        }
        Ok(())
    }

    /// All bytes of the file, for its hash.
    pub(crate) fn file_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A text in the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a string", |value| value.to_string().ok().map(String::as_str))
    }

    /// A whole number in the metadata, of any width.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type or negative.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number", integer)
    }

    /// A whole number in the metadata that may be negative, of any width.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type or beyond an `i64`.
    pub fn signed(&self, key: &str) -> Result<Option<i64>> {
        self.get(key, "a whole number", |value| match *value {
            Value::I8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::I64(v) => Some(v),
            ref other => integer(other).and_then(|v| v.try_into().ok()),
        })
    }

    /// A float in the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a float", |value| match *value {
            Value::F32(v) => Some(f64::from(v)),
            Value::F64(v) => Some(v),
            _ => None,
        })
    }

    /// A truth value in the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| value.to_bool().ok())
    }

    /// A list of texts in the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.get(key, "a list of strings", |value| {
            value.to_vec().ok()?.iter().map(|item| item.to_string().ok().map(String::as_str)).collect()
        })
    }

    /// A list of whole numbers in the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.get(key, "a list of whole numbers", |value| value.to_vec().ok()?.iter().map(integer).collect())
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let wrong = || self.error(GgufDefect::Metadata { key: key.to_owned(), expected });
        convert(value).map(Some).ok_or_else(wrong)
    }

    fn parse_error(&self, reason: candle_core::Error) -> Error {
        self.error(GgufDefect::Parse { reason: Box::new(reason) })
    }

    fn error(&self, defect: GgufDefect) -> Error {
        Error::Gguf { path: self.path.clone(), defect }
    }
}

fn integer(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::U64(v) => Some(v),
        Value::I8(v) => v.try_into().ok(),
        Value::I16(v) => v.try_into().ok(),
        Value::I32(v) => v.try_into().ok(),
        Value::I64(v) => v.try_into().ok(),
        _ => None,
    }
}

/// Dequantises whole rows of `cols` elements from `raw` into `out`.
fn dequantise(dtype: GgmlDType, raw: &[u8], cols: usize, out: &mut [f32]) -> Result<(), candle_core::Error> {
    let float = match dtype {
        GgmlDType::F32 => FloatType::F32,
        GgmlDType::F16 => FloatType::F16,
        GgmlDType::BF16 => FloatType::BF16,
        _ => {
            // candle reads the blocks in place, and they start with an f16. A mapped file's are aligned.
            let mut aligned: Vec<u64>;
            let raw = if raw.as_ptr().addr().is_multiple_of(2) {
                raw
            } else {
                aligned = vec![0; raw.len().div_ceil(8)];
                let copy = &mut bytemuck::cast_slice_mut(&mut aligned)[..raw.len()];
                copy.copy_from_slice(raw);
                copy
            };
            let tensor = qtensor_from_ggml(dtype, raw, vec![out.len() / cols, cols], &Device::Cpu)?;
            let values = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            out.copy_from_slice(&values);
            return Ok(());
        }
    };
    float.decode(raw, out);
    Ok(())
}

type Parsed = (HashMap<String, Value>, BTreeMap<String, GgufTensor>);

fn parse(bytes: &[u8]) -> Result<Parsed, GgufDefect> {
    let alignment = scan::scan(bytes)?;
    let content =
        Content::read(&mut Cursor::new(bytes)).map_err(|reason| GgufDefect::Parse { reason: Box::new(reason) })?;
    let mut tensors = BTreeMap::new();
    for (name, info) in content.tensor_infos {
        let tensor = place(&name, &info, content.tensor_data_offset, bytes.len() as u64, alignment)?;
        tensors.insert(name, tensor);
    }
    let mut by_start: Vec<_> = tensors.iter().map(|(name, tensor)| (tensor.start, tensor.bytes, name)).collect();
    by_start.sort_unstable();
    for pair in by_start.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            return Err(GgufDefect::Offset { tensor: pair[1].2.clone(), start: pair[1].0 as u64 });
        }
    }
    Ok((content.metadata, tensors))
}

/// Where a tensor lies, all of it inside the file.
fn place(name: &str, info: &TensorInfo, data: u64, file: u64, alignment: u64) -> Result<GgufTensor, GgufDefect> {
    let shape = info.shape.dims().to_vec();
    let wrong_shape = || GgufDefect::Shape { tensor: name.to_owned(), shape: shape.clone() };
    let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let cols = shape.last().copied().unwrap_or(0);
    let block = info.ggml_dtype.block_size();
    let elements = elements.filter(|&n| n > 0 && cols > 0 && cols.is_multiple_of(block)).ok_or_else(wrong_shape)?;
    let bytes = (elements / block).checked_mul(info.ggml_dtype.type_size()).ok_or_else(wrong_shape)?;
    let start = data.saturating_add(info.offset);
    if start.saturating_add(bytes as u64) > file {
        return Err(GgufDefect::TensorBeyondFile { tensor: name.to_owned(), start, bytes: bytes as u64, file });
    }
    let in_memory = usize::try_from(start).ok().filter(|_| info.offset.is_multiple_of(alignment));
    let start = in_memory.ok_or_else(|| GgufDefect::Offset { tensor: name.to_owned(), start })?;
    Ok(GgufTensor { shape, dtype: info.ggml_dtype, start, bytes })
}

#[cfg(test)]
mod tests;
