//! Files: safetensors and GGUF, mapped or read into memory, and the hub they may come from.
//!
//! **Invariant:** `mmap.rs` is the only place that maps a file. Every size in a file is checked
//! against the file's own length before it is used, and no file makes the reader take more than
//! twice its size plus 16 MiB.
//! **Invariant:** only regular files are opened: a named pipe would wait for a writer that never
//! comes, a device has no end.

mod cache;
pub mod gguf;
pub mod hub;
mod json;
mod mmap;
mod regular;
pub mod safetensors;
mod sniff;

use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::Path;

pub(crate) use cache::{cache_folder, folder_variable};
use half::{bf16, f16};
pub(crate) use json::from_json;
pub(crate) use regular::open_regular;
pub(crate) use sniff::{sniff, sniff_file};

use crate::{Error, Result};

/// The bytes of one file: mapped, or owned.
pub(crate) enum FileBytes {
    /// Mapped from a file that is only read.
    Mapped(memmap2::Mmap),
    /// Read into memory, or made there.
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps `path`.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        mmap::map(path).map(Self::Mapped)
    }

    /// Maps an open file, which lies at `path`, of which small parts are read all over: the system
    /// reads only what [`Self::will_need`] asks for, and not some megabytes around each.
    pub(crate) fn map_scattered(file: &File, path: &Path) -> Result<Self> {
        let map = mmap::map_open(file, path)?;
        // Advice alone: what comes of it changes no byte.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Random);
        Ok(Self::Mapped(map))
    }

    /// Asks the system to read `length` bytes from `offset` on at once, not page by page.
    pub(crate) fn will_need(&self, offset: usize, length: usize) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            let _ = map.advise_range(memmap2::Advice::WillNeed, offset, length);
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Makes the names in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    // Windows has no such thing as opening a folder to sync it.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Reads a whole file of at most `max_bytes` into memory.
///
/// # Errors
/// [`Error::Io`], [`Error::NotAFile`], or [`Error::FileTooLarge`] before more than `max_bytes` are
/// read.
pub fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let (file, _) = open_limited(path, max_bytes)?;
    read_open(&file, path, max_bytes)
}

/// Reads the rest of an open file, at most `max_bytes`.
pub(crate) fn read_open(file: &File, path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let found = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(found.min(max_bytes)).unwrap_or(0));
    // One byte more than allowed separates a file that is too large, or that grows, from one that
    // fits.
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    let found = bytes.len() as u64;
    if found > max_bytes {
        return Err(Error::FileTooLarge { path: path.to_owned(), bytes: found, limit: max_bytes });
    }
    Ok(bytes)
}

/// Opens a regular file of at most `max_bytes` and returns it with its length.
pub(crate) fn open_limited(path: &Path, max_bytes: u64) -> Result<(File, u64)> {
    let (file, bytes) = open_regular(path)?;
    if bytes > max_bytes {
        return Err(Error::FileTooLarge { path: path.to_owned(), bytes, limit: max_bytes });
    }
    Ok((file, bytes))
}

/// A plain float type, little-endian in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatType {
    F64,
    F32,
    F16,
    BF16,
}

impl FloatType {
    /// Bytes of one element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Converts `out.len()` elements from `bytes`, which need no alignment.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *value = convert(*raw);
            }
        }
        match self {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "rounded to the nearest f32, infinity where none is near"
            )]
            Self::F64 => each(bytes, out, |raw| f64::from_le_bytes(raw) as f32),
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F16 => each(bytes, out, |raw| f16::from_le_bytes(raw).to_f32()),
            Self::BF16 => each(bytes, out, |raw| bf16::from_le_bytes(raw).to_f32()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_over_the_limit_is_refused_and_at_the_limit_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read_limited(&path, 100).unwrap(), [7; 100]);
        let error = read_limited(&path, 99).unwrap_err();
        assert!(matches!(error, Error::FileTooLarge { bytes: 100, limit: 99, .. }), "{error}");
    }

    #[test]
    fn floats_of_every_type_decode_exactly() {
        let mut out = [0.0; 2];
        FloatType::F32.decode(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0x80], &mut out);
        assert_eq!(out.map(f32::to_bits), [1.0f32.to_bits(), (-0.0f32).to_bits()]);
        FloatType::F16.decode(&[0x00, 0x3c, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        FloatType::BF16.decode(&[0x80, 0x3f, 0x20, 0xc1], &mut out);
        assert_eq!(out, [1.0, -10.0]);
        // 0.1 is rounded to its own f32; beyond the largest f32 is infinity.
        FloatType::F64.decode(&[0.1f64.to_le_bytes(), 1e39f64.to_le_bytes()].concat(), &mut out);
        assert_eq!(out, [0.1, f32::INFINITY]);
    }
}
