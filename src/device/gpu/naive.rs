//! The obvious kernels, which the others are measured against.

use super::delta_apply::{Pass, delta_apply};
use super::{Gpu, GpuDeltas, GpuMatrix};
use crate::Result;
use crate::device::PassTimes;
use crate::lattice::Sign;

impl Gpu {
    /// [`Device::delta_apply`](crate::device::Device::delta_apply), with one read and one write of the matrix for every
    /// chunk of every low-rank segment, and every factor read from memory.
    ///
    /// # Errors
    /// When the device fails.
    #[doc(hidden)]
    pub fn delta_apply_naive(&self, matrices: &mut [GpuMatrix], terms: &[(&GpuDeltas, Sign)]) -> Result<PassTimes> {
        delta_apply(&self.context, self.take_pending(), matrices, terms, Pass::Naive)
    }
}
