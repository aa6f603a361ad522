//! What an adapter does less than it claims: nothing is wrong with its files, and somebody should
//! know.
//!
//! **Source:** PEFT 0.21.2, `peft_model.py`, `load_adapter`, warns of "missing adapter keys" when it
//! loads a file that lacks some; it keeps silent about factors of zeros.

use std::fmt;

use serde::Serialize;

use super::PeftAdapter;
use super::module::Module;
use crate::Result;

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

impl AdapterRemark {
    /// Of `selected` modules these are without tensors; none where all have some.
    pub(super) fn missing(selected: usize, mut modules: Vec<String>) -> Option<Self> {
        let count = modules.len();
        modules.truncate(SHOWN);
        (count > 0).then_some(Self::Missing { count, selected, first: modules })
    }
}

impl PeftAdapter {
    /// Modules that change nothing, for an alpha of 0 and for factors of zeros.
    pub(super) fn changes_of_nothing(&self) -> Result<Vec<AdapterRemark>> {
        let (mut silent, mut zeros) = (Vec::new(), Vec::new());
        for module in self.header.modules.values() {
            if module.scaling == 0.0 {
                silent.push(module);
            } else if self.has_zero_factor(module)? {
                zeros.push(module);
            }
        }
        let found = [(silent, true), (zeros, false)].into_iter();
        let found = found.filter(|(modules, _)| !modules.is_empty());
        Ok(found.map(|(modules, alpha)| self.changes_nothing(&modules, alpha)).collect())
    }

    fn changes_nothing(&self, modules: &[&Module], alpha: bool) -> AdapterRemark {
        AdapterRemark::Nothing {
            count: modules.len(),
            modules: self.header.modules.len(),
            first: modules.iter().take(SHOWN).map(|module| module.path.clone()).collect(),
            alpha,
        }
    }

    /// Whether one factor is all zeros.
    fn has_zero_factor(&self, module: &Module) -> Result<bool> {
        // B first: training starts with zeros there, so it is the one that is likely.
        for span in module.change.spans().into_iter().rev() {
            let bytes = self.contents.tensors.tensor_bytes(&span.key)?;
            if bytes.chunks_exact(span.dtype.bitsize() / 8).all(is_zero) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a little-endian float is zero: of F16, BF16, F32 and F64 alike, all bits but the sign
/// are.
fn is_zero(value: &[u8]) -> bool {
    value.split_last().is_none_or(|(top, low)| top & 0x7f == 0 && low.iter().all(|b| *b == 0))
}
