//! An array of f32 that starts on a cache line.

use std::ops::{Deref, DerefMut};

use crate::{Error, Result};

/// Values in one cache line of 64 bytes.
const LINE: usize = 16;

/// A fixed number of f32, aligned to 64 bytes.
#[derive(Debug, Default)]
pub struct FloatBuffer {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl FloatBuffer {
    /// `len` zeros; memory is taken from the system when it is first written.
    ///
    /// # Panics
    /// When there is not enough memory; see [`FloatBuffer::try_zeros`].
    pub fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + LINE - 1];
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        Self { values, start, len }
    }

    /// The same, asking first whether there is enough memory.
    ///
    /// # Errors
    /// When the system refuses so much memory.
    pub fn try_zeros(len: usize) -> Result<Self> {
        let padded = len
            .checked_add(LINE)
            .ok_or(())
            .and_then(|len| Vec::<f32>::new().try_reserve_exact(len).map_err(drop));
        match padded {
            Ok(()) => Ok(Self::zeros(len)),
            Err(()) => Err(Error::DeviceMemory { bytes: len.saturating_mul(size_of::<f32>()) }),
        }
    }
}

impl From<&[f32]> for FloatBuffer {
    fn from(values: &[f32]) -> Self {
        let mut buffer = Self::zeros(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl Clone for FloatBuffer {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl Deref for FloatBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for FloatBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}
