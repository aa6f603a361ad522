//! Bytes of a `tree.toml`, for the fuzzer and the saved inputs.

#![allow(clippy::missing_panics_doc, reason = "only tests run this: it may panic")]

use crate::Result;
use crate::error::TreeDefect;

/// Reads any bytes as the `tree.toml` of a made folder with the adapters `de`, `fr`, `fr/alice`,
/// `fr/alice/best`, `fr/médecine` and `store/med`, and looks at the tree it makes.
///
/// # Errors
/// What [`AdapterTree::open`](crate::tree::AdapterTree::open) says, and [`TreeDefect::Refused`] for
/// the first entry that is refused.
pub fn read_tree_toml_bytes(bytes: &[u8]) -> Result<()> {
    let tree = crate::tree::read_manifest_bytes(bytes)?;
    for id in tree.nodes() {
        assert_eq!(tree.node(tree.name(id))?, id, "a name leads to its node");
        assert_eq!(tree.path_from_root(id).len(), tree.depth(id), "parents lead to the root");
    }
    match tree.refused() {
        [] => Ok(()),
        [entry, ..] => {
            Err(TreeDefect::Refused { name: entry.name.clone(), entry: entry.clone() }.into())
        }
    }
}
