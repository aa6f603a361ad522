//! Modules put on a base: which weight each one changes, whether the base has it in that shape, and
//! whether what the file holds of the base is the base's own.
//!
//! **Invariant:** a weight is changed by one module at most, and only where the base has it in the
//! module's shape.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::module::{Module, Unbound, WeightCopy};
use super::{AdapterDeltas, AdapterRemark, PeftAdapter, PeftHeader};
use crate::base::{BaseModel, WeightInfo, plain_twin};
use crate::error::AdapterDefect;
use crate::name::{EMBEDDING, HEAD};
use crate::suggest::nearest;
use crate::{Error, Result, WeightName};

/// Names and shapes of a base's matrices, to check adapters against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseShapes {
    name: String,
    matrices: BTreeMap<WeightName, [usize; 2]>,
}

impl BaseShapes {
    /// Takes the matrices among a base's weights; `name` is what errors call the base.
    pub fn new<'a>(
        name: impl Into<String>,
        weights: impl Iterator<Item = (&'a WeightName, &'a WeightInfo)>,
    ) -> Self {
        let matrices = weights.filter_map(|(weight, info)| match *info.shape {
            [rows, cols] => Some((weight.clone(), [rows, cols])),
            _ => None,
        });
        Self { name: name.into(), matrices: matrices.collect() }
    }

    /// `[out, in]` of a matrix, if the base has it.
    pub fn get(&self, weight: &WeightName) -> Option<[usize; 2]> {
        self.matrices.get(weight).copied()
    }
}

impl PeftHeader {
    /// Gives every module its weight's name.
    ///
    /// # Errors
    /// [`AdapterDefect::DuplicateTarget`] inside [`Error::Adapter`].
    pub(super) fn new(path: &Path, unbound: Unbound) -> Result<Self> {
        let mut modules: BTreeMap<WeightName, Module> = BTreeMap::new();
        for module in unbound.modules {
            let weight = WeightName::of_module(&module.path);
            if let Some(other) = modules.get(&weight) {
                let defect = AdapterDefect::DuplicateTarget {
                    weight: weight.to_string(),
                    first: other.name.clone(),
                    second: module.name,
                };
                return Err(Error::adapter(path, defect));
            }
            modules.insert(weight, module);
        }
        Ok(Self { path: path.to_owned(), modules, facts: unbound.facts })
    }

    /// Checks that every weight it changes is in `base` with the same shape.
    ///
    /// # Errors
    /// [`AdapterDefect::NotInBase`] and [`AdapterDefect::ShapeMismatch`] inside [`Error::Adapter`].
    pub fn fits(&self, base: &BaseShapes) -> Result<()> {
        match self.not_in(base).or_else(|| self.mismatch(base)) {
            Some(defect) => Err(Error::adapter(&self.path, defect)),
            None => Ok(()),
        }
    }

    /// What is wrong where the base lacks a weight.
    fn not_in(&self, base: &BaseShapes) -> Option<AdapterDefect> {
        let missing: Vec<&WeightName> =
            self.modules.keys().filter(|weight| base.get(weight).is_none()).collect();
        let names = base.matrices.keys().map(WeightName::as_str);
        Some(AdapterDefect::NotInBase {
            nearest: nearest(missing.first()?.as_str(), '\n', names),
            count: missing.len(),
            total: self.modules.len(),
            first: missing.iter().take(3).map(ToString::to_string).collect(),
            base: base.name.clone(),
            made_for: self.made_for(),
        })
    }

    /// What is wrong where a weight of the base has another shape.
    fn mismatch(&self, base: &BaseShapes) -> Option<AdapterDefect> {
        let differs = |(weight, module): &(&WeightName, &Module)| {
            base.get(weight).is_some_and(|found| found != module.shape)
        };
        let mut differing = self.modules.iter().filter(differs);
        let (weight, module) = differing.next()?;
        Some(AdapterDefect::ShapeMismatch {
            weight: weight.to_string(),
            adapter: module.shape,
            found: base.get(weight)?,
            count: 1 + differing.count(),
            total: self.modules.len(),
            base: base.name.clone(),
            made_for: self.made_for(),
        })
    }

    /// The base that the adapter names, for errors; of a quantised twin with the plain one's name
    /// beside it, whose weights are what can be loaded here.
    fn made_for(&self) -> String {
        let Some(name) = self.base_model() else { return "a base it does not name".to_owned() };
        match plain_twin(name) {
            Some(plain) => format!("{name}, quantised from {plain}"),
            None => name.to_owned(),
        }
    }

    /// Modules of `base` that the adapter says it changes and its file has no tensors for.
    fn missing(&self, base: &BaseShapes) -> Result<Option<AdapterRemark>, AdapterDefect> {
        let (mut selected, mut missing) = (0, Vec::new());
        for weight in base.matrices.keys() {
            let Some(path) = self.spelled(weight) else { continue };
            let is_here = self.modules.contains_key(weight);
            let is_embedding = weight.as_str() == EMBEDDING;
            if is_here || self.facts.claims.selects(&path, is_embedding)? {
                selected += 1;
                if !is_here {
                    missing.push(path);
                }
            }
        }
        Ok(AdapterRemark::missing(selected, missing))
    }

    /// The module of a weight as this file would spell it: what stands before `layers` in its own
    /// paths goes there.
    fn spelled(&self, weight: &WeightName) -> Option<String> {
        let module = weight.as_str().strip_suffix(".weight")?;
        let Some(rest) = module.strip_prefix("model.") else { return Some(module.to_owned()) };
        let prefix = self.modules.iter().find_map(|(weight, module)| {
            let own = weight.as_str().strip_prefix("model.")?.strip_suffix(".weight")?;
            module.path.strip_suffix(own)
        });
        Some(prefix.unwrap_or("model.").to_owned() + rest)
    }
}

impl PeftAdapter {
    /// The float deltas of every weight it changes, checked against `base`.
    ///
    /// # Errors
    /// [`AdapterDefect::NotInBase`], [`AdapterDefect::ShapeMismatch`] and
    /// [`AdapterDefect::NotFinite`] inside [`Error::Adapter`].
    pub fn deltas(&self, base: &BaseShapes) -> Result<AdapterDeltas> {
        self.header.fits(base)?;
        let modules = self.header.modules.par_iter();
        modules.map(|(weight, module)| Ok((weight.clone(), self.lower(module)?))).collect()
    }

    /// What it does less than it claims. A module that its config names and the base lacks, or a
    /// layer that `layers_to_transform` leaves out, is no such thing.
    ///
    /// # Errors
    /// [`AdapterDefect::PatternInvalid`] inside [`Error::Adapter`] where a pattern takes too long.
    pub fn remarks(&self, base: &BaseShapes) -> Result<Vec<AdapterRemark>> {
        let missing = self.header.missing(base);
        let missing = missing.map_err(|defect| Error::adapter(&self.header.path, defect))?;
        let mut remarks = self.header.facts.ignored.clone();
        remarks.extend(missing);
        remarks.extend(self.changes_of_nothing()?);
        Ok(remarks)
    }

    /// Checks that what is tied has one change: of embedding and head, where the files say so, PEFT
    /// loads one pair of factors, and the file's two must be that pair.
    ///
    /// # Errors
    /// [`AdapterDefect::TiedFactorsDiffer`] inside [`Error::Adapter`].
    pub(super) fn check_tied(&self) -> Result<()> {
        let find = |name: &str| self.header.modules.get(&WeightName::new(name));
        let both = find(EMBEDDING).zip(find(HEAD)).filter(|_| self.header.facts.is_tied);
        match both {
            Some((embedding, head)) if self.lower(embedding)? != self.lower(head)? => {
                Err(Error::adapter(&self.header.path, AdapterDefect::TiedFactorsDiffer))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the embedding or head that PEFT saved beside a change to it is the base's own,
    /// to the rounding of bfloat16: another one would have to replace the base's.
    ///
    /// # Errors
    /// [`AdapterDefect::CopyDiffers`] inside [`Error::Adapter`], and what reading the base returns.
    pub fn check_copies(&self, base: &BaseModel) -> Result<()> {
        self.header.facts.copies.iter().try_for_each(|copy| self.check_copy(copy, base))
    }

    fn check_copy(&self, WeightCopy { weight, key }: &WeightCopy, base: &BaseModel) -> Result<()> {
        let is_tied = base.config().tie_word_embeddings && weight.as_str() == HEAD;
        let source = if is_tied { &WeightName::new(EMBEDDING) } else { weight };
        let info = base.weight(source)?;
        let copy = self.contents.tensors.to_f32(key)?;
        if self.contents.tensors.info(key)?.shape != info.shape {
            return Err(self.copy_differs(key, 0));
        }
        copy.par_chunks(info.cols()).enumerate().try_for_each(|(row, copy)| {
            let mut own = vec![0_f32; copy.len()];
            base.read_rows(source, row..row + 1, &mut own)?;
            if is_near(copy, &own) { Ok(()) } else { Err(self.copy_differs(key, row)) }
        })
    }

    fn copy_differs(&self, key: &str, row: usize) -> Error {
        let defect = AdapterDefect::CopyDiffers { tensor: key.to_owned(), row };
        Error::adapter(&self.header.path, defect)
    }
}

/// Whether every value is the base's own to the rounding of bfloat16, whose fractions have 8 bits.
fn is_near(copy: &[f32], own: &[f32]) -> bool {
    own.iter().zip(copy).all(|(own, copy)| (own - copy).abs() <= own.abs() / 256.0)
}
