//! A first walk over a GGUF header that allocates next to nothing.
//!
//! Why: the parser after it trusts more than it should: an alignment of zero divides by zero, the later of two equal
//! names wins, and a list of bytes takes 32 times its size.
//!
//! **Invariant:** a header that passes is read into at most twice the file's size plus 16 MiB.

use std::collections::HashSet;

use crate::error::GgufDefect;

const MAX_TENSORS: u64 = 100_000;
const MAX_METADATA: u64 = 100_000;
const MAX_NAME_BYTES: u64 = 65_535;
const MAX_TEXT_BYTES: u64 = 16 << 20;
const MAX_DIMS: u32 = 4;
const MAX_DEPTH: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;
/// What one parsed value takes, with the slack of the list that holds it and the allocator's own.
const VALUE_MEMORY: u64 = 64;

/// GGML's numbers of the types that are read: floats, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, BF16.
const TENSOR_TYPES: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];

const U32: u32 = 4;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Walks the header and gives the alignment of the tensors.
pub(super) fn scan(bytes: &[u8]) -> Result<u64, GgufDefect> {
    let limit = (bytes.len() as u64).saturating_mul(2).saturating_add(16 << 20);
    let mut cursor = Cursor { bytes, at: 0, memory: 0, limit };
    if cursor.take(4)? != b"GGUF" {
        return Err(GgufDefect::Magic);
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(GgufDefect::Version { found: version });
    }
    let tensors = cursor.count("a number of tensors", MAX_TENSORS)?;
    let entries = cursor.count("a number of metadata entries", MAX_METADATA)?;
    let mut alignment = DEFAULT_ALIGNMENT;
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
            cursor.value(kind, 0)?;
        }
    }
    seen.clear();
    for _ in 0..tensors {
        let tensor = cursor.name(&mut seen)?;
        let dims = cursor.u32()?;
        if dims > MAX_DIMS {
            let (found, limit) = (dims.into(), MAX_DIMS.into());
            return Err(GgufDefect::TooLarge { what: "a number of dimensions", found, limit });
        }
        cursor.take(u64::from(dims) * 8)?;
        let found = cursor.u32()?;
        if !TENSOR_TYPES.contains(&found) {
            return Err(GgufDefect::TensorType { tensor: tensor.to_owned(), found });
        }
        cursor.take(8)?;
    }
    Ok(alignment)
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
        let taken = taken.ok_or(GgufDefect::BeyondFile { at: self.at, needed, left: rest.len() as u64 })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, GgufDefect> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn u64(&mut self) -> Result<u64, GgufDefect> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, GgufDefect> {
        let found = self.u64()?;
        if found > limit { Err(GgufDefect::TooLarge { what, found, limit }) } else { Ok(found) }
    }

    /// Counts `bytes` that the parser will allocate.
    fn allocate(&mut self, bytes: u64) -> Result<(), GgufDefect> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.limit { Err(GgufDefect::Memory { limit: self.limit }) } else { Ok(()) }
    }

    /// A key or tensor name that was not seen before.
    fn name(&mut self, seen: &mut HashSet<&'a str>) -> Result<&'a str, GgufDefect> {
        let at = self.at;
        let length = self.count("a name's length", MAX_NAME_BYTES)?;
        // The parser cuts zero bytes off and replaces invalid ones, which could make two names one.
        let name = std::str::from_utf8(self.take(length)?).ok().filter(|name| !name.contains('\0'));
        let name = name.ok_or(GgufDefect::Name { at })?;
        // Name, map entry, and what it points to; the set of names here counts, too.
        self.allocate(length + 4 * VALUE_MEMORY)?;
        if !seen.insert(name) {
            return Err(GgufDefect::Duplicate { name: name.to_owned() });
        }
        Ok(name)
    }

    /// Skips one value of type `kind`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<(), GgufDefect> {
        if let Some(size) = fixed_size(kind) {
            return self.take(size).map(drop);
        }
        match kind {
            TEXT => {
                let length = self.count("a text's length", MAX_TEXT_BYTES)?;
                self.take(length)?;
                // Invalid UTF-8 grows to three times its size.
                self.allocate(length.saturating_mul(3))
            }
            LIST if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let length = self.u64()?;
                self.allocate(length.saturating_mul(VALUE_MEMORY))?;
                if let Some(size) = fixed_size(kind) {
                    return self.take(length.saturating_mul(size)).map(drop);
                }
                (0..length).try_for_each(|_| self.value(kind, depth + 1))
            }
            LIST => Err(GgufDefect::TooLarge {
                what: "a nesting of lists",
                found: u64::from(depth) + 1,
                limit: MAX_DEPTH.into(),
            }),
            found => Err(GgufDefect::TooLarge { what: "a value type number", found: found.into(), limit: 12 }),
        }
    }
}

/// Bytes of a value of type `kind`, where all have the same.
fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
