//! The steps to disk that a store makes: before every write, sync, rename, new file and removal it
//! asks here.
//!
//! **Invariant:** nothing fails here but what a test asked for: without the feature `testing` a
//! [`Disk`] has no size, and asking it compiles to nothing.

use std::io;

#[cfg(feature = "testing")]
use super::faults::Faults;

/// What a store's steps to disk pass. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    #[cfg(feature = "testing")]
    pub(super) faults: Faults,
}

impl Disk {
    /// Asks before one step.
    ///
    /// # Errors
    /// Where a test lets this step fail.
    #[inline]
    pub(super) fn step(&self) -> io::Result<()> {
        #[cfg(feature = "testing")]
        self.faults.step()?;
        Ok(())
    }

    /// Writes `bytes` by `write`, in one step. A test's failure writes half of them first: a torn
    /// write.
    ///
    /// # Errors
    /// What `write` returns, and as [`Self::step`].
    #[inline]
    pub(super) fn write(
        &self,
        bytes: &[u8],
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        #[cfg(feature = "testing")]
        if let Err(error) = self.step() {
            return write(&bytes[..bytes.len() / 2]).and(Err(error));
        }
        write(bytes)
    }
}
