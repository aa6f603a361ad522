//! The fingerprint of a matrix: a hash of its resident bits.

use rayon::prelude::*;

use crate::lattice::LatticeMatrix;

/// Hashes every matrix; large ones by several threads.
pub(super) fn fingerprint(matrices: &[&LatticeMatrix]) -> Vec<blake3::Hash> {
    matrices.par_iter().map(|matrix| hash(matrix)).collect()
}

fn hash(matrix: &LatticeMatrix) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for side in [matrix.rows(), matrix.cols()] {
        hasher.update(&(side as u64).to_le_bytes());
    }
    if cfg!(target_endian = "little") && matrix.stride() == matrix.cols() {
        hasher.update_rayon(bytemuck::cast_slice(matrix.integers()));
    } else {
        for i in 0..matrix.rows() {
            for n in matrix.row(i) {
                hasher.update(&n.to_le_bytes());
            }
        }
    }
    for step in matrix.steps() {
        hasher.update(&step.to_le_bytes());
    }
    hasher.finalize()
}
