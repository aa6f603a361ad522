//! Factors of many nodes side by side, in as few buffers as bindings allow, so that one dispatch
//! reaches all of them. A node's factors are copied when it is first asked for and stay while there
//! is space: from token to token the nodes of a batch are mostly the same.
//!
//! **Invariant:** a page that somebody's pass reads is not written where that pass reads.

use std::collections::HashMap;
use std::sync::Arc;

use wgpu::BufferUsages;

use super::context::{Context, Slice};
use super::deltas::Store;
use super::recording::Recording;
use crate::Result;

/// The pages and what lies in them.
#[derive(Default)]
pub(super) struct Gathered {
    pages: Vec<Page>,
    /// By the serial number of the store.
    places: HashMap<u64, Place>,
}

struct Page {
    /// Held by everyone whose pass reads it, too.
    buffer: Arc<wgpu::Buffer>,
    used: u64,
}

/// Where the contents of a store lie: page, and first byte in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) page: usize,
    pub(super) at: u64,
}

impl Gathered {
    /// Sees to it that these stores lie in pages, and appends the copies that this takes to
    /// `recording`.
    ///
    /// # Errors
    /// When there is no memory; nothing is gathered then.
    pub(super) fn gather(
        &mut self,
        context: &Context,
        stores: &[&Store],
        recording: &mut Recording,
    ) -> Result<()> {
        let missing = |store: &&&Store| !self.places.contains_key(&store.serial);
        let missing: Vec<&Store> = stores.iter().filter(missing).copied().collect();
        if self.append(&missing, recording) {
            return Ok(());
        }
        self.make_pages(context, stores)?;
        assert!(self.append(stores, recording), "pages of these very stores hold them");
        Ok(())
    }

    /// Where a store lies that was asked for.
    pub(super) fn place(&self, store: &Store) -> Place {
        self.places[&store.serial]
    }

    /// All pages in order.
    pub(super) fn pages(&self) -> Vec<Arc<wgpu::Buffer>> {
        self.pages.iter().map(|page| page.buffer.clone()).collect()
    }

    /// Appends the stores to the pages there are, if there is space for all.
    fn append(&mut self, stores: &[&Store], recording: &mut Recording) -> bool {
        let sizes: Vec<u64> = self.pages.iter().map(|page| page.buffer.size()).collect();
        let mut used: Vec<u64> = self.pages.iter().map(|page| page.used).collect();
        let places = stores.iter().map(|store| first_fit(&sizes, &mut used, store.buffer.size()));
        let Some(places) = places.collect::<Option<Vec<_>>>() else { return false };
        for (store, place) in stores.iter().zip(places) {
            let bytes = place.at..place.at + store.buffer.size();
            let to = Slice::of(&self.pages[place.page].buffer, bytes);
            recording.copy(Slice::whole(&store.buffer), to);
            self.places.insert(store.serial, place);
        }
        self.pages.iter_mut().zip(used).for_each(|(page, used)| page.used = used);
        true
    }

    /// Empty pages with space for these stores and some more. Old ones are used again where no pass
    /// reads them; the others go before new ones are made.
    fn make_pages(&mut self, context: &Context, stores: &[&Store]) -> Result<()> {
        let limit = context.max_binding;
        let mut needed: Vec<u64> = Vec::new();
        for store in stores {
            let bytes = store.buffer.size();
            if first_fit(&vec![limit; needed.len()], &mut needed, bytes).is_none() {
                needed.push(bytes);
            }
        }
        self.places.clear();
        let mut free: Vec<_> = self.pages.drain(..).map(|page| page.buffer).collect();
        free.retain(|buffer| Arc::strong_count(buffer) == 1);
        let mut again = |bytes: u64| {
            let fits = free.iter().position(|buffer| buffer.size() >= bytes)?;
            Some(free.swap_remove(fits))
        };
        let again: Vec<_> = needed.iter().map(|&bytes| again(bytes)).collect();
        drop(free);
        for (bytes, again) in needed.into_iter().zip(again) {
            let buffer = match again {
                Some(buffer) => buffer,
                None => {
                    let bytes_with_slack =
                        (bytes + bytes / 4).next_multiple_of(4).min(limit).max(bytes);
                    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
                    Arc::new(context.buffer("factors side by side", bytes_with_slack, usage)?)
                }
            };
            self.pages.push(Page { buffer, used: 0 });
        }
        Ok(())
    }
}

/// A place for so many bytes in the first page that has space, which is then used.
fn first_fit(sizes: &[u64], used: &mut [u64], bytes: u64) -> Option<Place> {
    let page = sizes.iter().zip(&*used).position(|(size, used)| used + bytes <= *size)?;
    let at = used[page];
    used[page] += bytes;
    Some(Place { page, at })
}
