//! Which bases the adapters of a tree name: what they agree on, and what to say where they do not.

use std::collections::BTreeMap;

use super::{AdapterTree, NodeSource};
use crate::adapter::{Limits, named_base};
use crate::base::{BaseModel, base_key, is_published};

/// Most adapters that are asked.
const MAX_ASKED: usize = 10_000;

impl AdapterTree {
    /// Published names of bases (`ORG/NAME`) that the adapters' configs name, and how many adapters
    /// name each.
    pub fn named_bases(&self, limits: &Limits) -> BTreeMap<String, usize> {
        let mut named = BTreeMap::new();
        let folders = self.nodes().filter_map(|node| match self.source(node) {
            Some(NodeSource::Folder(folder)) => Some(folder),
            _ => None,
        });
        let names = folders.take(MAX_ASKED).filter_map(|folder| named_base(folder, limits));
        for name in names.filter(|name| is_published(name)) {
            *named.entry(name).or_default() += 1;
        }
        named
    }

    /// The published name of the base that most adapters name, if all mean the same one.
    pub(crate) fn agreed_base(&self, limits: &Limits) -> Option<String> {
        let named = self.named_bases(limits);
        let keys = || named.keys().map(|name| base_key(name));
        let first = keys().next()?;
        if keys().any(|key| key != first) {
            return None;
        }
        named.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
    }

    /// What there is to say where the adapters, `tree.toml` and the files of `base` name different
    /// bases. Paths and titles are no names.
    pub fn conflicting_bases(&self, base: &BaseModel, limits: &Limits) -> Option<String> {
        let named = self.named_bases(limits);
        let pin = self.base().and_then(|pin| pin.name.as_deref()).filter(|name| is_published(name));
        let own = base.published_names();
        let names = || named.keys().map(String::as_str).chain(pin);
        let first = base_key(names().next()?);
        let agree = names().all(|name| base_key(name) == first);
        if agree && (own.is_empty() || names().any(|name| base.is_called(name))) {
            return None;
        }
        let adapters = named.iter().map(|(name, count)| match count {
            1 => format!("1 adapter says {name}"),
            _ => format!("{count} adapters say {name}"),
        });
        let pin = pin.map(|name| format!("tree.toml says {name}"));
        let own = (!own.is_empty()).then(|| format!("the base calls itself {}", own.join(" or ")));
        let said = adapters.chain(pin).chain(own).collect::<Vec<_>>().join(", ");
        Some(format!(
            "different bases are named: {said}; an adapter means something on the base that it was trained on alone"
        ))
    }
}
