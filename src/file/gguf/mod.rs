//! GGUF files, in one piece or in several: rows are dequantised straight from the mapped bytes.
//!
//! **Invariant:** once a file is open, every tensor lies inside it, aligned, sharing no byte with
//! another, its rows whole blocks of its type. No whole-tensor copy is ever made.
//!
//! **Source:** GGUF's specification (ggml, `docs/gguf.md`); shapes are given rows first, the file
//! has them reversed.

mod header;
mod split;
mod types;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use header::TensorInfo;
pub use types::GgufType;
use types::dequantise;

use crate::error::GgufDefect;
use crate::file::FileBytes;
use crate::{Error, Result};

/// Floats that are dequantised at a time.
const CHUNK: usize = 1 << 16;

/// Shape, type and place of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Rows first: `[out, in]` or `[len]`.
    pub shape: Vec<usize>,
    /// GGML's type.
    pub dtype: GgufType,
    /// Which of the parts it is in.
    part: usize,
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

/// An open GGUF file, with its other parts if the model is split.
pub struct GgufFile {
    /// At least one; the metadata are the first one's.
    parts: Vec<Part>,
    tensors: BTreeMap<String, GgufTensor>,
}

/// One file.
struct Part {
    path: PathBuf,
    bytes: FileBytes,
    metadata: HashMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl Part {
    fn map(path: &Path) -> Result<Self> {
        Self::new(FileBytes::map(path)?, path.to_owned())
    }

    fn new(bytes: FileBytes, path: PathBuf) -> Result<Self> {
        match parse(&bytes) {
            Ok((metadata, tensors)) => Ok(Self { path, bytes, metadata, tensors }),
            Err(defect) => Err(Error::Gguf { path, defect }),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number", integer)
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let defect = || GgufDefect::Metadata { key: key.to_owned(), expected };
        convert(value)
            .map(Some)
            .ok_or_else(|| Error::Gguf { path: self.path.clone(), defect: defect() })
    }
}

impl GgufFile {
    /// Maps a base model's file; of a model in parts the first one is given and all are mapped.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Gguf`].
    pub fn open_mapped(path: &Path) -> Result<Self> {
        let first = Part::map(path)?;
        let others = split::open_others(&first)?;
        Self::join(first, others)
    }

    /// Reads the bytes of a file; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Gguf`], also for a part of a split model.
    pub fn from_bytes(bytes: Vec<u8>, name: impl Into<PathBuf>) -> Result<Self> {
        let part = Part::new(FileBytes::Owned(bytes), name.into())?;
        match part.number()? {
            (_, 0 | 1) => Self::join(part, Vec::new()),
            (no, count) => {
                let defect = GgufDefect::PartName { part: no.saturating_add(1), count };
                Err(Error::Gguf { path: part.path, defect })
            }
        }
    }

    fn join(first: Part, others: Vec<Part>) -> Result<Self> {
        let mut file = Self { parts: Vec::new(), tensors: BTreeMap::new() };
        for (index, mut part) in [first].into_iter().chain(others).enumerate() {
            for (name, tensor) in std::mem::take(&mut part.tensors) {
                if file.tensors.contains_key(&name) {
                    return Err(Error::Gguf {
                        path: part.path,
                        defect: GgufDefect::Duplicate { name },
                    });
                }
                file.tensors.insert(name, GgufTensor { part: index, ..tensor });
            }
            file.parts.push(part);
        }
        Ok(file)
    }

    /// The file's path; of a model in parts, the first one's.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
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
        self.tensors
            .get(name)
            .ok_or_else(|| self.error(GgufDefect::NoTensor { tensor: name.to_owned() }))
    }

    /// Dequantises `rows` of a tensor into `out` (`rows.len() × cols`, row-major), in the file's
    /// order.
    ///
    /// # Errors
    /// [`Error::Gguf`] when there is no such tensor or the range does not fit.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let tensor = self.info(name)?;
        let (count, cols, Range { start, end }) = (tensor.rows(), tensor.cols(), rows);
        if start > end || end > count || out.len() != (end - start) * cols {
            let (tensor, out) = (name.to_owned(), out.len());
            return Err(self.error(GgufDefect::Range {
                tensor,
                start,
                end,
                out,
                rows: count,
                cols,
            }));
        }
        let row_bytes = tensor.bytes / count;
        let mut raw = &self.parts[tensor.part].bytes
            [tensor.start + start * row_bytes..tensor.start + end * row_bytes];
        let chunk_rows = (CHUNK / cols).max(1);
        for out in out.chunks_mut(chunk_rows * cols) {
            let (head, tail) = raw.split_at(out.len() / cols * row_bytes);
            dequantise(tensor.dtype, head, cols, out).map_err(|reason| self.parse_error(reason))?;
            raw = tail;
        }
        Ok(())
    }

    /// Path and bytes of every part, for their hash.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.parts.iter().map(|part| (part.path.as_path(), &part.bytes[..]))
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
            value
                .to_vec()
                .ok()?
                .iter()
                .map(|item| item.to_string().ok().map(String::as_str))
                .collect()
        })
    }

    /// A list of whole numbers in the metadata.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the value is of another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.get(key, "a list of whole numbers", |value| {
            value.to_vec().ok()?.iter().map(integer).collect()
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.parts[0].get(key, expected, convert)
    }

    fn parse_error(&self, reason: candle_core::Error) -> Error {
        self.error(GgufDefect::Parse { reason: Box::new(reason) })
    }

    fn error(&self, defect: GgufDefect) -> Error {
        Error::Gguf { path: self.path().to_owned(), defect }
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

type Parsed = (HashMap<String, Value>, BTreeMap<String, GgufTensor>);

fn parse(bytes: &[u8]) -> Result<Parsed, GgufDefect> {
    let header = header::read(bytes)?;
    let mut tensors = BTreeMap::new();
    for info in header.tensors {
        let tensor = place(&info, header.data, bytes.len() as u64, header.alignment)?;
        tensors.insert(info.name, tensor);
    }
    let mut by_start: Vec<_> =
        tensors.iter().map(|(name, tensor)| (tensor.start, tensor.bytes, name)).collect();
    by_start.sort_unstable();
    for pair in by_start.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            return Err(GgufDefect::Offset { tensor: pair[1].2.clone(), start: pair[1].0 as u64 });
        }
    }
    Ok((header.metadata, tensors))
}

/// Where a tensor lies, all of it inside the file.
fn place(
    info: &TensorInfo,
    data: u64,
    file: u64,
    alignment: u64,
) -> Result<GgufTensor, GgufDefect> {
    let tensor = || info.name.clone();
    let shape: Vec<usize> =
        info.shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX)).collect();
    let wrong_shape = || GgufDefect::Shape { tensor: tensor(), shape: shape.clone() };
    let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let cols = shape.last().copied().unwrap_or(0);
    let (block, block_bytes) = info.dtype.block();
    let elements = elements
        .filter(|&n| n > 0 && cols > 0 && cols.is_multiple_of(block))
        .ok_or_else(wrong_shape)?;
    let bytes = (elements / block).checked_mul(block_bytes).ok_or_else(wrong_shape)?;
    let start = data.saturating_add(info.offset);
    if start.saturating_add(bytes as u64) > file {
        return Err(GgufDefect::TensorBeyondFile {
            tensor: tensor(),
            start,
            bytes: bytes as u64,
            file,
        });
    }
    let in_memory = usize::try_from(start).ok().filter(|_| info.offset.is_multiple_of(alignment));
    let start = in_memory.ok_or_else(|| GgufDefect::Offset { tensor: tensor(), start })?;
    Ok(GgufTensor { shape, dtype: info.dtype, part: 0, start, bytes })
}

#[cfg(test)]
mod tests;
