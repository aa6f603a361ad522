//! A GGUF header: metadata and the tensors' places.
//!
//! **Invariant:** a header is read into at most twice the file's size plus 16 MiB, and no name
//! occurs twice.

use std::collections::{HashMap, HashSet};

use candle_core::quantized::gguf_file::Value;

use super::types::GgufType;
use crate::error::GgufDefect;
use crate::file::sniff;

const MAX_TENSORS: u64 = 100_000;
const MAX_METADATA: u64 = 100_000;
const MAX_NAME_BYTES: u64 = 65_535;
const MAX_TEXT_BYTES: u64 = 16 << 20;
const MAX_DIMS: u32 = 4;
const MAX_DEPTH: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;
/// What one parsed value takes, with the slack of the list that holds it and the allocator's own.
const VALUE_MEMORY: u64 = 64;

const U32: u32 = 4;

/// What a file's header says.
pub(super) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
    /// What every tensor's offset is a multiple of.
    pub(super) alignment: u64,
    /// Where the tensors' data begin.
    pub(super) data: u64,
}

/// One tensor by the header.
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// Rows first.
    pub(super) shape: Vec<u64>,
    pub(super) dtype: GgufType,
    /// From the start of the data.
    pub(super) offset: u64,
}

/// Reads the header.
pub(super) fn read(bytes: &[u8]) -> Result<Header, GgufDefect> {
    let limit = (bytes.len() as u64).saturating_mul(2).saturating_add(16 << 20);
    let mut cursor = Cursor { bytes, at: 0, memory: 0, limit };
    if !bytes.starts_with(b"GGUF") {
        return Err(sniff(bytes).map_or(GgufDefect::Magic, |found| GgufDefect::OtherFile { found }));
    }
    cursor.take(4)?;
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        let swapped = matches!(version.swap_bytes(), 2 | 3);
        return Err(if swapped {
            GgufDefect::BigEndian
        } else {
            GgufDefect::Version { found: version }
        });
    }
    let tensors = cursor.count("a number of tensors", MAX_TENSORS)?;
    let entries = cursor.count("a number of metadata entries", MAX_METADATA)?;
    let (mut metadata, mut alignment) = (HashMap::new(), DEFAULT_ALIGNMENT);
    let mut seen = HashSet::new();
    for _ in 0..entries {
        let key = cursor.name(&mut seen)?;
        let kind = cursor.u32()?;
        if key == "general.alignment" {
            let value = if kind == U32 { u64::from(cursor.u32()?) } else { 0 };
            if !value.is_power_of_two() || !(8..=65_536).contains(&value) {
                return Err(GgufDefect::Alignment);
            }
            alignment = value;
        } else {
            metadata.insert(key.to_owned(), cursor.value(kind, 0)?);
        }
    }
    seen.clear();
    let tensors = (0..tensors).map(|_| cursor.tensor(&mut seen)).collect::<Result<_, _>>()?;
    Ok(Header {
        metadata,
        tensors,
        alignment,
        data: (cursor.at as u64).next_multiple_of(alignment),
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    memory: u64,
    limit: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, needed: u64) -> Result<&'a [u8], GgufDefect> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(needed).ok().and_then(|length| rest.get(..length));
        let taken =
            taken.ok_or(GgufDefect::BeyondFile { at: self.at, needed, left: rest.len() as u64 })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufDefect> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, GgufDefect> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufDefect> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, GgufDefect> {
        let found = self.u64()?;
        if found > limit { Err(GgufDefect::TooLarge { what, found, limit }) } else { Ok(found) }
    }

    /// Counts `bytes` that will be allocated.
    fn allocate(&mut self, bytes: u64) -> Result<(), GgufDefect> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.limit {
            Err(GgufDefect::Memory { limit: self.limit })
        } else {
            Ok(())
        }
    }

    /// A key or tensor name that was not seen before.
    fn name(&mut self, seen: &mut HashSet<&'a str>) -> Result<&'a str, GgufDefect> {
        let at = self.at;
        let length = self.count("a name's length", MAX_NAME_BYTES)?;
        let name = std::str::from_utf8(self.take(length)?).ok().filter(|name| !name.contains('\0'));
        let name = name.ok_or(GgufDefect::Name { at })?;
        // Name, map entry, and what it points to; the set of names here counts, too.
        self.allocate(length + 4 * VALUE_MEMORY)?;
        if !seen.insert(name) {
            return Err(GgufDefect::Duplicate { name: name.to_owned() });
        }
        Ok(name)
    }

    fn tensor(&mut self, seen: &mut HashSet<&'a str>) -> Result<TensorInfo, GgufDefect> {
        let name = self.name(seen)?.to_owned();
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            let (found, limit) = (dims.into(), MAX_DIMS.into());
            return Err(GgufDefect::TooLarge { what: "a number of dimensions", found, limit });
        }
        let mut shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let found = self.u32()?;
        let Some(dtype) = GgufType::from_number(found) else {
            return Err(GgufDefect::TensorType { tensor: name, found });
        };
        Ok(TensorInfo { name, shape, dtype, offset: self.u64()? })
    }

    /// One value of type `kind`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, GgufDefect> {
        Ok(match kind {
            0 => Value::U8(self.array().map(u8::from_le_bytes)?),
            1 => Value::I8(self.array().map(i8::from_le_bytes)?),
            2 => Value::U16(self.array().map(u16::from_le_bytes)?),
            3 => Value::I16(self.array().map(i16::from_le_bytes)?),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(self.array().map(i32::from_le_bytes)?),
            6 => Value::F32(self.array().map(f32::from_le_bytes)?),
            7 => match self.array()? {
                [value @ (0 | 1)] => Value::Bool(value == 1),
                [found] => {
                    return Err(GgufDefect::TooLarge {
                        what: "a truth value",
                        found: found.into(),
                        limit: 1,
                    });
                }
            },
            8 => Value::String(self.text()?),
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let length = self.u64()?;
                self.allocate(length.saturating_mul(VALUE_MEMORY))?;
                Value::Array(
                    (0..length).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>()?,
                )
            }
            9 => {
                let found = u64::from(depth) + 1;
                return Err(GgufDefect::TooLarge {
                    what: "a nesting of lists",
                    found,
                    limit: MAX_DEPTH.into(),
                });
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(self.array().map(i64::from_le_bytes)?),
            12 => Value::F64(self.array().map(f64::from_le_bytes)?),
            found => {
                return Err(GgufDefect::TooLarge {
                    what: "a value type number",
                    found: found.into(),
                    limit: 12,
                });
            }
        })
    }

    /// A text, without the zero bytes that some writers end it with.
    fn text(&mut self) -> Result<String, GgufDefect> {
        let length = self.count("a text's length", MAX_TEXT_BYTES)?;
        let text = self.take(length)?;
        // Invalid UTF-8 grows to three times its size.
        self.allocate(length.saturating_mul(3))?;
        let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}
