//! The numbers of a base, and how large its files are.

use rayon::prelude::*;

use super::{BaseModel, Files, Weight};
use crate::file::safetensors::SafeTensorsFile;
use crate::{Error, Result, WeightName};

/// Elements that are read at a time.
const PART: usize = 1 << 20;

impl BaseModel {
    /// Reads every weight once and looks for a NaN or an infinity, which no weight may be.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for the first one by name and place; what reading returns.
    pub fn check_values(&self) -> Result<()> {
        let weights: Vec<_> = self.weights.iter().collect();
        let checks: Vec<_> =
            weights.into_par_iter().map(|(name, weight)| self.check_weight(name, weight)).collect();
        checks.into_iter().collect()
    }

    fn check_weight(&self, name: &WeightName, weight: &Weight) -> Result<()> {
        let (rows, cols) = (weight.info.rows(), weight.info.cols());
        let step = (PART / cols).clamp(1, rows);
        let mut values = vec![0.0; step * cols];
        for start in (0..rows).step_by(step) {
            let end = rows.min(start + step);
            let values = &mut values[..(end - start) * cols];
            self.read_rows(name, start..end, values)?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (tensor, index, value) = (name.to_string(), start * cols + at, values[at]);
                return Err(Error::NonFinite { tensor, index, value });
            }
        }
        Ok(())
    }

    /// Bytes of all its weight files.
    pub fn file_bytes(&self) -> u64 {
        match &self.files {
            Files::Made => 0,
            Files::Gguf(file) => file.files().map(|(_, bytes)| bytes.len() as u64).sum(),
            Files::SafeTensors(files) => {
                files.iter().map(SafeTensorsFile::file_bytes).map(|file| file.len() as u64).sum()
            }
        }
    }
}
