//! What a tree's folder holds and the tree does not: entries that are refused, and folders that are
//! passed over.

use std::path::PathBuf;

use serde::Serialize;
use serde::ser::SerializeStruct;

use super::{AdapterTree, shown};
use crate::Error;
use crate::error::{PassedOverWhy, RefusedEntry, TreeDefect};

/// A folder that was not entered, though there may be adapters in it. As JSON
/// `{folder, why, adapters}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Its path from the tree's folder.
    pub folder: String,
    /// Why.
    pub why: PassedOverWhy,
    /// Folders with an adapter, itself among them; of a link none are counted.
    pub adapters: usize,
    pub(super) path: PathBuf,
}

impl Serialize for PassedOver {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut folder = serializer.serialize_struct("PassedOver", 3)?;
        folder.serialize_field("folder", &self.folder)?;
        folder.serialize_field("why", &self.why.to_string())?;
        folder.serialize_field("adapters", &self.adapters)?;
        folder.end()
    }
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let adapters = match self.adapters {
            1 => "1 adapter".to_owned(),
            adapters => format!("{adapters} adapters"),
        };
        write!(f, "{}: {}, {adapters}", self.folder, self.why)
    }
}

impl AdapterTree {
    /// The entries of its folder that are not served, each with the reason, in the order of their
    /// names. The others are.
    pub fn refused(&self) -> &[RefusedEntry] {
        &self.refused
    }

    /// The folders that were not entered, in the order of their names.
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.passed_over
    }

    /// Why there is no node called `name`.
    pub(super) fn unknown(&self, name: &str) -> Error {
        let is_above = |above: &str| {
            name.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // The deepest says most.
        if let Some(entry) =
            self.refused.iter().filter(|entry| is_above(&entry.name)).max_by_key(|e| e.name.len())
        {
            return TreeDefect::Refused { name: shown(name), entry: entry.clone() }.into();
        }
        if let Some(PassedOver { folder, why, .. }) =
            self.passed_over.iter().find(|passed| is_above(&passed.folder))
        {
            let (folder, why) = (folder.clone(), why.clone());
            return TreeDefect::PassedOver { name: shown(name), folder, why }.into();
        }
        TreeDefect::UnknownNode { name: shown(name), nearest: self.nearest_names(name) }.into()
    }

    /// Warns of what is refused: once, where the tree is taken into use.
    pub(crate) fn warn_of_refused(&self) {
        const LISTED: usize = 8;
        for entry in self.refused.iter().take(LISTED) {
            tracing::warn!("not served: {entry}");
        }
        if let more @ 1.. = self.refused.len().saturating_sub(LISTED) {
            tracing::warn!(
                "{more} more entries of the tree are not served; `pleach tree` lists them"
            );
        }
    }
}
