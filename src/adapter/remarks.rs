//! What an adapter does less than it claims: nothing is wrong with its files, and somebody should
//! know.
//!
//! **Source:** PEFT warns of "missing adapter keys" when it loads a file that lacks some; it keeps
//! silent about factors of zeros.

use std::fmt;

use serde::Serialize;

use super::{BaseShapes, PeftAdapter, PeftHeader, Target};
use crate::error::AdapterDefect;
use crate::name::{EMBEDDING, peft_module};
use crate::{Error, Result, WeightName};

/// Names shown of a list.
const SHOWN: usize = 3;

/// One thing that an adapter does less, or otherwise, than it claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "remark", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdapterRemark {
    /// The config selects modules that the base has and the file has no tensors for.
    Missing {
        /// How many.
        count: usize,
        /// How many it selects.
        selected: usize,
        /// The first of them, as the file spells modules.
        first: Vec<String>,
    },
    /// Modules whose change is zero: a factor of zeros, or an alpha of 0.
    Nothing {
        /// How many.
        count: usize,
        /// How many modules it has.
        modules: usize,
        /// The first of them.
        first: Vec<String>,
        /// Whether it is for an alpha of 0.
        alpha: bool,
    },
    /// `fan_in_fan_out` is ignored, as PEFT ignores it for linear modules: they store their weights
    /// as (out, in).
    FanInFanOut,
}

impl fmt::Display for AdapterRemark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, first) = match self {
            Self::Missing { count, selected, first } => {
                write!(
                    f,
                    "{count} of the {selected} modules that its config selects have no tensors in the file: "
                )?;
                (count, first)
            }
            Self::Nothing { count, modules, first, alpha } => {
                let why = if *alpha { "alpha is 0" } else { "a factor is all zeros" };
                write!(f, "{count} of its {modules} modules change nothing, since {why}: ")?;
                (count, first)
            }
            Self::FanInFanOut => {
                return f
                    .write_str("fan_in_fan_out = true is ignored: the base's layers store their weights as (out, in)");
            }
        };
        write!(f, "{}{}", first.join(", "), if *count > first.len() { ", …" } else { "" })
    }
}

impl PeftHeader {
    /// Modules of `base` that the config selects and the file has no tensors for.
    fn missing(&self, base: &BaseShapes) -> Result<Option<AdapterRemark>, AdapterDefect> {
        let (mut selected, mut missing) = (0, Vec::new());
        for weight in base.names() {
            let Some(module) = self.spelled(weight) else { continue };
            let here = self.targets.binary_search_by(|target| target.weight.cmp(weight)).is_ok();
            let is_embedding = weight.as_str() == EMBEDDING;
            if here || self.config.targets.selects(&module, is_embedding)? {
                selected += 1;
                if !here {
                    missing.push(module);
                }
            }
        }
        let count = missing.len();
        missing.truncate(SHOWN);
        Ok((count > 0).then_some(AdapterRemark::Missing { count, selected, first: missing }))
    }

    /// The module of a weight as this file would spell it: what stands before `layers` in its own
    /// keys goes there.
    fn spelled(&self, weight: &WeightName) -> Option<String> {
        let module = weight.as_str().strip_suffix(".weight")?;
        let Some(rest) = module.strip_prefix("model.") else { return Some(module.to_owned()) };
        let prefix = self.targets.iter().find_map(|target| {
            let own = target.weight.as_str().strip_prefix("model.")?.strip_suffix(".weight")?;
            peft_module(&target.module).strip_suffix(own).map(str::to_owned)
        });
        Some(prefix.unwrap_or_else(|| "model.".to_owned()) + rest)
    }
}

impl PeftAdapter {
    /// What it does less than it claims. A module that its config names and the base lacks, or a
    /// layer that `layers_to_transform` leaves out, is no such thing.
    ///
    /// # Errors
    /// [`AdapterDefect::PatternInvalid`] inside [`Error::Adapter`] where a pattern takes too long.
    pub fn remarks(&self, base: &BaseShapes) -> Result<Vec<AdapterRemark>> {
        let header = self.header();
        let missing =
            header.missing(base).map_err(|defect| Error::adapter(&header.path, defect))?;
        let ignored = header.config.fan_in_fan_out.then_some(AdapterRemark::FanInFanOut);
        let mut remarks: Vec<_> = ignored.into_iter().chain(missing).collect();
        let (mut silent, mut zeros) = (Vec::new(), Vec::new());
        for target in header.targets() {
            match target.scaling == 0.0 {
                true => silent.push(target),
                false if self.is_zero(target)? => zeros.push(target),
                false => {}
            }
        }
        for (targets, alpha) in [(silent, true), (zeros, false)] {
            if !targets.is_empty() {
                let first =
                    targets.iter().take(SHOWN).map(|target| peft_module(&target.module)).collect();
                let (count, modules) = (targets.len(), header.targets().len());
                remarks.push(AdapterRemark::Nothing { count, modules, first, alpha });
            }
        }
        Ok(remarks)
    }

    /// Whether one factor is all zeros.
    fn is_zero(&self, target: &Target) -> Result<bool> {
        for span in [&target.lora_b, &target.lora_a] {
            // Of F16, BF16, F32 and F64 alike, a zero is all zero bits but the sign.
            let width = span.dtype.bitsize() / 8;
            let bytes = self.tensor_bytes(span)?;
            let zero = |value: &[u8]| {
                value
                    .split_last()
                    .is_none_or(|(top, low)| top & 0x7f == 0 && low.iter().all(|b| *b == 0))
            };
            if bytes.chunks_exact(width).all(zero) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
