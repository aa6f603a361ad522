//! The fingerprint of matrices, computed where they lie. Twin: `device/cpu/fingerprint.rs`.

use super::context::Context;
use super::matrix::GpuMatrix;
use crate::Result;

pub(super) fn fingerprint(_context: &Context, _matrices: &[&GpuMatrix]) -> Result<Vec<blake3::Hash>> {
    Ok(Vec::new())
}
