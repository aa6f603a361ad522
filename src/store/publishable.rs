//! From an adapter to what is published.

use std::path::Path;

use super::Store;
use super::blob::encode_kept;
use super::change::Content;
use crate::Result;
use crate::adapter::{AdapterDeltas, Limits, PeftAdapter, beside, files_beside, names_beside};
use crate::base::{BaseModel, base_key, is_published};
use crate::compile::compile_node;
use crate::error::StoreDefect;

impl Store {
    /// Compiles float deltas for this store's base.
    ///
    /// # Errors
    /// As [`compile_node`].
    pub fn compile(&self, deltas: &AdapterDeltas) -> Result<Content> {
        let lattice = self.lattice()?;
        let (node, kept) = compile_node(deltas, |name| lattice.grid(name))?;
        let mut content = Content::new(&node, self.inner.header.lattice_hash.into());
        content.kept = Some(kept);
        Ok(content)
    }

    /// Reads the PEFT adapter in `folder` and compiles it for this store's base. An adapter that
    /// holds a copy of the embedding or head needs the base to compare it with. With `keep_files`
    /// the store keeps the files, too, and those of a tokenizer beside them that are not the base's
    /// byte for byte.
    ///
    /// # Errors
    /// [`Error::Adapter`](crate::Error::Adapter) for an adapter that is refused,
    /// [`StoreDefect::NeedsBase`], what reading files to be kept returns, and as [`Self::compile`].
    pub fn compile_adapter(
        &self,
        folder: &Path,
        base: Option<&BaseModel>,
        limits: &Limits,
        keep_files: bool,
    ) -> Result<Content> {
        let adapter = PeftAdapter::open(folder, limits)?;
        let mut content = self.compile_opened(&adapter, base, keep_files)?;
        content.remarks.extend(self.other_base(&adapter, base));
        Ok(content)
    }

    /// What there is to say where an adapter names another base than the store does. Paths and
    /// titles are no names.
    fn other_base(&self, adapter: &PeftAdapter, base: Option<&BaseModel>) -> Option<String> {
        let named = adapter.header().base_model().filter(|name| is_published(name))?;
        let own = &self.inner.header.base_name;
        let same =
            base_key(named) == base_key(own) || base.is_some_and(|base| base.is_called(named));
        (is_published(own) && !same).then(|| {
            format!(
                "it names the base {named}, the store {own}; an adapter means something on the base that it was trained on \
                 alone"
            )
        })
    }

    /// The same without a word on bases: an import has one for all its adapters.
    pub(super) fn compile_opened(
        &self,
        adapter: &PeftAdapter,
        base: Option<&BaseModel>,
        keep_files: bool,
    ) -> Result<Content> {
        let folder = adapter.header().path();
        match base {
            Some(base) => {
                self.check_base(base)?;
                adapter.check_copies(base)?;
            }
            None if adapter.has_copies() => {
                return Err(self.defect(StoreDefect::NeedsBase { adapter: folder.to_owned() }));
            }
            None => {}
        }
        let shapes = self.lattice()?.shapes(&self.inner.header.base_name);
        let mut content = self.compile(&adapter.deltas(&shapes)?)?;
        content.adapter_hash = adapter.hash().into();
        content.remarks = adapter.remarks(&shapes)?.iter().map(ToString::to_string).collect();
        content.remarks.extend(
            content.kept.as_ref().filter(|kept| kept.is_low()).map(|kept| kept.warning(true)),
        );
        let others = match base {
            Some(base) => beside(folder, base),
            None if keep_files => Vec::new(),
            None => names_beside(folder).map(str::to_owned).collect(),
        };
        if !others.is_empty() {
            let others = others.join(", and ");
            content.remarks.push(match (base, keep_files) {
                (_, true) => {
                    format!("beside the adapter lies {others}; it is kept, to be exported, and the base's is used")
                }
                (Some(_), false) => format!("beside the adapter lies {others}; it is not kept (--keep-files)"),
                (None, false) => {
                    format!("beside the adapter lies {others}: not kept (--keep-files), and not compared (--base)")
                }
            });
        }
        if keep_files {
            let beside = files_beside(folder, base)?;
            let beside = beside.iter().map(|(name, bytes)| (*name, &bytes[..]));
            content.original =
                Some(encode_kept(&adapter.files().into_iter().chain(beside).collect::<Vec<_>>()));
        }
        Ok(content)
    }
}
