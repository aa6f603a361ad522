//! Safetensors files: base models are mapped, adapters are read into memory.
//!
//! **Invariant:** once a file is open, every tensor lies inside it, no two tensors share a byte,
//! and shape, type and byte range agree.
//!
//! **Source:** the format's README: a little-endian `u64`, that many bytes of JSON, then the
//! tensors without gaps.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{FileKind, SafeTensorsDefect};
use crate::file::{FileBytes, FloatType, open_limited, read_limited, sniff, sniff_file};
use crate::{Error, Result};

/// Longest JSON header that is read.
pub const MAX_HEADER_BYTES: u64 = 8 << 20;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 100_000;
const MAX_DIMS: usize = 8;
const LENGTH_BYTES: usize = 8;

/// An open safetensors file.
pub struct SafeTensorsFile {
    path: PathBuf,
    bytes: FileBytes,
    data: usize,
    tensors: BTreeMap<String, TensorInfo>,
}

impl SafeTensorsFile {
    /// Maps a base model's file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::SafeTensors`].
    pub fn open_mapped(path: &Path) -> Result<Self> {
        Self::new(FileBytes::map(path)?, path.to_owned())
    }

    /// Reads an adapter's file of at most `max_bytes` into memory: it may be replaced on disk at
    /// any time.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::FileTooLarge`] or [`Error::SafeTensors`].
    pub fn read_owned(path: &Path, max_bytes: u64) -> Result<Self> {
        Self::from_bytes(read_limited(path, max_bytes)?, path)
    }

    /// Reads the bytes of a file; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::SafeTensors`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl Into<PathBuf>) -> Result<Self> {
        Self::new(FileBytes::Owned(bytes), name.into())
    }

    fn new(bytes: FileBytes, path: PathBuf) -> Result<Self> {
        match parse(&bytes) {
            Ok((data, tensors)) => Ok(Self { path, bytes, data, tensors }),
            Err(defect) => Err(Error::SafeTensors {
                path,
                defect: other_kind(sniff(&bytes)).unwrap_or(defect),
            }),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shape, type and place of every tensor, by name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Every tensor's name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape and type of one tensor.
    ///
    /// # Errors
    /// [`Error::SafeTensors`] when there is none of that name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.error(SafeTensorsDefect::NoTensor { tensor: name.to_owned() }))
    }

    /// One tensor's bytes, as they lie in the file.
    ///
    /// # Errors
    /// [`Error::SafeTensors`] when there is none of that name.
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let (start, end) = self.info(name)?.data_offsets;
        Ok(&self.bytes[self.data..][start..end])
    }

    /// A whole tensor, converted to f32.
    ///
    /// # Errors
    /// [`Error::SafeTensors`] when there is none of that name or its type is no float.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (float, elements) = self.float(name)?;
        let mut out = vec![0.0; elements];
        float.decode(self.tensor_bytes(name)?, &mut out);
        Ok(out)
    }

    /// Converts `elements` of a tensor (row-major) to f32 into `out`, which is as long.
    ///
    /// # Errors
    /// [`Error::SafeTensors`] when there is no such tensor, its type is no float, or the range does
    /// not fit.
    pub fn read_f32(&self, name: &str, elements: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (float, count) = self.float(name)?;
        let Range { start, end } = elements;
        if start > end || end > count || out.len() != end - start {
            let (tensor, out) = (name.to_owned(), out.len());
            return Err(self.error(SafeTensorsDefect::Range {
                tensor,
                start,
                end,
                out,
                elements: count,
            }));
        }
        float.decode(&self.tensor_bytes(name)?[start * float.size()..end * float.size()], out);
        Ok(())
    }

    /// All bytes of the file, for its hash.
    pub(crate) fn file_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn float(&self, name: &str) -> Result<(FloatType, usize)> {
        let info = self.info(name)?;
        let float = match info.dtype {
            Dtype::F64 => FloatType::F64,
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::BF16,
            found => {
                return Err(
                    self.error(SafeTensorsDefect::NotFloat { tensor: name.to_owned(), found })
                );
            }
        };
        Ok((float, (info.data_offsets.1 - info.data_offsets.0) / float.size()))
    }

    fn error(&self, defect: SafeTensorsDefect) -> Error {
        Error::SafeTensors { path: self.path.clone(), defect }
    }
}

/// Reads and checks the header; returns the start of the data and the tensors.
fn parse(bytes: &[u8]) -> Result<(usize, BTreeMap<String, TensorInfo>), SafeTensorsDefect> {
    let file = bytes.len() as u64;
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(SafeTensorsDefect::HeaderBeyondFile { needed: LENGTH_BYTES as u64, file });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(SafeTensorsDefect::HeaderTooLarge { bytes: length, limit: MAX_HEADER_BYTES });
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        return Err(SafeTensorsDefect::HeaderBeyondFile {
            needed: length + LENGTH_BYTES as u64,
            file,
        });
    };
    let tensors = parse_header(header, rest.len() - header.len())?;
    Ok((LENGTH_BYTES + header.len(), tensors))
}

/// What to say of a file that the header's checks refuse and that is something else altogether.
fn other_kind(found: Option<FileKind>) -> Option<SafeTensorsDefect> {
    found
        .filter(|kind| *kind != FileKind::SafeTensors)
        .map(|found| SafeTensorsDefect::OtherFile { found })
}

/// Reads the header of the file at `path`, of at most `max_bytes`, and nothing else.
pub(crate) fn read_header(path: &Path, max_bytes: u64) -> Result<BTreeMap<String, TensorInfo>> {
    let (mut file, bytes) = open_limited(path, max_bytes)?;
    let wrap = |defect| {
        let defect = other_kind(sniff_file(path)).unwrap_or(defect);
        Error::SafeTensors { path: path.to_owned(), defect }
    };
    let Some(rest) = bytes.checked_sub(LENGTH_BYTES as u64) else {
        return Err(wrap(SafeTensorsDefect::HeaderBeyondFile {
            needed: LENGTH_BYTES as u64,
            file: bytes,
        }));
    };
    let mut length = [0; LENGTH_BYTES];
    file.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(wrap(SafeTensorsDefect::HeaderTooLarge {
            bytes: length,
            limit: MAX_HEADER_BYTES,
        }));
    }
    let Some(data) = rest.checked_sub(length) else {
        return Err(wrap(SafeTensorsDefect::HeaderBeyondFile {
            needed: length + LENGTH_BYTES as u64,
            file: bytes,
        }));
    };
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|e| Error::io(path, e))?;
    parse_header(&header, usize::try_from(data).unwrap_or(usize::MAX)).map_err(wrap)
}

/// Checks a header that `data` bytes of tensors follow.
fn parse_header(
    header: &[u8],
    data: usize,
) -> Result<BTreeMap<String, TensorInfo>, SafeTensorsDefect> {
    let Header(mut tensors) =
        serde_json::from_slice(header).map_err(|reason| SafeTensorsDefect::Header { reason })?;
    if tensors.len() > MAX_TENSORS {
        return Err(SafeTensorsDefect::TooManyTensors { found: tensors.len(), limit: MAX_TENSORS });
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let end = check_layout(&tensors)?;
    if end != data {
        return Err(SafeTensorsDefect::DataLength { expected: end, found: data });
    }
    let mut by_name = BTreeMap::new();
    for (tensor, info) in tensors {
        if by_name.contains_key(&tensor) {
            return Err(SafeTensorsDefect::DuplicateTensor { tensor });
        }
        by_name.insert(tensor, info);
    }
    Ok(by_name)
}

/// Checks that the tensors, sorted by offset, follow each other without a gap; returns the end of
/// the last.
fn check_layout(tensors: &[(String, TensorInfo)]) -> Result<usize, SafeTensorsDefect> {
    let mut end = 0;
    for (tensor, info) in tensors {
        let (start, stop) = info.data_offsets;
        if start != end {
            return Err(SafeTensorsDefect::Offset {
                tensor: tensor.clone(),
                expected: end,
                found: start,
            });
        }
        let elements = info.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
        let bytes = stop.checked_sub(start);
        if bits.is_none_or(|bits| bits % 8 != 0 || Some(bits / 8) != bytes) {
            return Err(SafeTensorsDefect::Size {
                tensor: tensor.clone(),
                shape: info.shape.clone(),
                dtype: info.dtype,
                bytes: bytes.unwrap_or(0),
            });
        }
        end = stop;
    }
    Ok(end)
}

/// The JSON header's tensors, in the file's order. serde's own maps would drop one of two equal
/// names.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let Entry { dtype, shape: Shape(shape), data_offsets } = map.next_value()?;
            tensors.push((name, TensorInfo { dtype, shape, data_offsets }));
        }
        Ok(Header(tensors))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// A shape of at most [`MAX_DIMS`] dimensions: longer ones would take more memory than the file.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_DIMS} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if shape.len() == MAX_DIMS {
                return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
            }
            shape.push(dim);
        }
        Ok(Shape(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Result<SafeTensorsFile> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        SafeTensorsFile::from_bytes(bytes, "test.safetensors")
    }

    fn defect(header: &str, data: &[u8]) -> SafeTensorsDefect {
        match file(header, data).err().expect("must be refused") {
            Error::SafeTensors { defect, .. } => defect,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn part_of_a_tensor_is_converted_in_place() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let file =
            file(header, &[0, 0, 0x80, 0x3f, 0x80, 0x3f, 0, 0x40, 0x40, 0x40, 0x80, 0x40]).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.info("b").unwrap().shape, [2, 2]);
        assert_eq!(file.to_f32("a").unwrap(), [1.0]);
        let mut out = [0.0; 2];
        file.read_f32("b", 1..3, &mut out).unwrap();
        assert_eq!(out, [2.0, 3.0]);
        for range in [3..5, 0..1, 4..6] {
            assert!(file.read_f32("b", range, &mut out).is_err());
        }
    }

    #[test]
    fn two_tensors_of_one_name_are_refused() {
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(
            matches!(defect(header, &[0; 2]), SafeTensorsDefect::DuplicateTensor { tensor } if tensor == "a")
        );
    }

    #[test]
    fn tensors_that_overlap_or_leave_a_gap_are_refused() {
        for second in ["[1,3]", "[3,5]"] {
            let header = format!(
                r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{second}}}}}"#
            );
            assert!(
                matches!(defect(&header, &[0; 5]), SafeTensorsDefect::Offset { tensor, expected: 2, .. } if tensor == "b")
            );
        }
    }

    #[test]
    fn shapes_that_wrap_or_disagree_with_their_bytes_are_refused() {
        for (shape, offsets) in [
            ("[4294967296,4294967296]", "[0,0]"),
            ("[18446744073709551615,2]", "[0,2]"),
            ("[3]", "[0,2]"),
            ("[1]", "[0,18446744073709551615]"),
        ] {
            let header =
                format!(r#"{{"a":{{"dtype":"I8","shape":{shape},"data_offsets":{offsets}}}}}"#);
            assert!(matches!(defect(&header, &[0; 2]), SafeTensorsDefect::Size { .. }), "{shape}");
        }
    }

    #[test]
    fn headers_that_are_too_long_cut_or_not_json_are_refused() {
        let open = |bytes: &[u8]| match SafeTensorsFile::from_bytes(bytes.to_vec(), "x") {
            Err(Error::SafeTensors { defect, .. }) => defect,
            _ => panic!("must be refused"),
        };
        assert!(matches!(open(&[]), SafeTensorsDefect::OtherFile { found: FileKind::Empty }));
        assert!(matches!(open(&u64::MAX.to_le_bytes()), SafeTensorsDefect::HeaderTooLarge { .. }));
        assert!(matches!(
            open(&[9, 0, 0, 0, 0, 0, 0, 0, b'{']),
            SafeTensorsDefect::HeaderBeyondFile { needed: 17, .. }
        ));
        assert!(matches!(defect("{", &[]), SafeTensorsDefect::Header { .. }));
        assert!(matches!(
            defect("{}", &[1]),
            SafeTensorsDefect::DataLength { expected: 0, found: 1 }
        ));
        let many_dims = r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#;
        assert!(matches!(defect(many_dims, &[0]), SafeTensorsDefect::Header { .. }));
    }

    #[test]
    fn integer_tensor_is_not_read_as_floats() {
        let file =
            file(r#"{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]).unwrap();
        assert!(matches!(
            file.to_f32("a"),
            Err(Error::SafeTensors {
                defect: SafeTensorsDefect::NotFloat { found: Dtype::I32, .. },
                ..
            })
        ));
    }
}
