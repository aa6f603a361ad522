//! The weights of a base an adapter can land on: names and shapes, no values.

use std::collections::BTreeMap;

use super::PeftHeader;
use crate::WeightName;
use crate::base::{WeightInfo, plain_twin};
use crate::error::AdapterDefect;
use crate::suggest::nearest;

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

    /// Names of the matrices, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &WeightName> {
        self.matrices.keys()
    }

    /// Checks that every target of `adapter` is here with the same shape.
    pub(super) fn accepts(&self, adapter: &PeftHeader) -> Result<(), AdapterDefect> {
        let targets = adapter.targets();
        let (base, total) = (self.name.clone(), targets.len());
        let made_for =
            || adapter.base_model().map_or("a base it does not name".to_owned(), with_plain_twin);
        let missing: Vec<&WeightName> = targets
            .iter()
            .map(|target| &target.weight)
            .filter(|weight| self.get(weight).is_none())
            .collect();
        if let Some(first) = missing.first() {
            return Err(AdapterDefect::NotInBase {
                count: missing.len(),
                total,
                nearest: nearest(
                    first.as_str(),
                    '\n',
                    self.matrices.keys().map(WeightName::as_str),
                ),
                first: missing.iter().take(3).map(ToString::to_string).collect(),
                base,
                made_for: made_for(),
            });
        }
        let differing =
            || targets.iter().filter(|target| self.get(&target.weight) != Some(target.shape));
        let Some(first) = differing().next() else { return Ok(()) };
        Err(AdapterDefect::ShapeMismatch {
            weight: first.weight.to_string(),
            adapter: first.shape,
            found: self.get(&first.weight).unwrap_or_default(),
            count: differing().count(),
            total,
            base,
            made_for: made_for(),
        })
    }
}

/// A base's name; that of a quantised twin with the plain one's beside it, whose weights are what
/// can be loaded here.
fn with_plain_twin(name: &str) -> String {
    match plain_twin(name) {
        Some(plain) => format!("{name}, quantised from {plain}"),
        None => name.to_owned(),
    }
}
