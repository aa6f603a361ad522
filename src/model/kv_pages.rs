//! Which page of a pool holds what: a table of pages a sequence, and the full pages that the next
//! sequence with the same beginning need not compute. No device is known here: a page is a number.
//!
//! A full page has a key: BLAKE3 over the key of the page before it, or of its owner and salt, and
//! over its tokens. So equal keys mean the same owner and salt and the same tokens from the first
//! on. A released page is found by its key until its place is needed; then the page that was not
//! used for longest goes, of those that no other page continues.
//!
//! **Invariant:** a page that is not full is in one table alone; a page in several is full, and all of
//! them have the tokens it was made from.
//! **Invariant:** a table holds, of each of its full pages, the one that its key finds. So what a page continues is held as long as the page is, and all that no table holds can
//! be dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::PAGE;
use crate::{Error, Result};

/// The key of a full page, or that before the first.
type Key = [u8; 32];

/// Names one sequence's table; no other table of the process has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(u64);

/// The pages of one sequence.
#[derive(Debug)]
struct Table {
    owner: [u8; 32],
    /// In the order of positions.
    pages: Vec<u32>,
    /// Tokens that are in them.
    len: usize,
    /// The key before the first page.
    seed: Key,
    /// The key of the last full page.
    key: Key,
    /// Tokens behind that.
    rest: Vec<u32>,
}

/// What is known of one page.
#[derive(Clone, Debug, Default)]
struct Page {
    /// Tables that hold it.
    holders: usize,
    /// When a table last held it.
    last_used: u64,
    /// What it can be found by.
    entry: Option<Entry>,
}

/// A full page that can be found.
#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    /// The page that it continues.
    before: Option<u32>,
    /// Pages with an entry that continue it.
    continued: usize,
}

/// The pages of a pool, and the tables of the sequences that hold them.
#[derive(Debug)]
pub struct KvPages {
    pages: Vec<Page>,
    /// Those that hold nothing.
    free: Vec<u32>,
    /// Pages that no table holds, but that can be found.
    kept: usize,
    /// Those of them that no page continues, the longest unused first.
    droppable: BTreeSet<(u64, u32)>,
    by_key: HashMap<Key, u32>,
    tables: BTreeMap<TableId, Table>,
    clock: u64,
}

impl KvPages {
    /// So many pages, all free.
    ///
    /// # Panics
    /// When there are more than 2^32.
    pub(super) fn new(pages: usize) -> Self {
        let count = u32::try_from(pages).expect("a page's number has 32 bits");
        Self {
            pages: vec![Page::default(); pages],
            free: (0..count).rev().collect(),
            kept: 0,
            droppable: BTreeSet::new(),
            by_key: HashMap::new(),
            tables: BTreeMap::new(),
            clock: 0,
        }
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that no table holds; those that can still be found among them.
    pub fn free(&self) -> usize {
        self.free.len() + self.kept
    }

    /// Opens a table for a sequence whose keys and values are computed with the weights `owner`.
    /// Its full pages are found by others that are opened for the same owner with an empty salt.
    pub fn open(&mut self, owner: [u8; 32]) -> TableId {
        self.open_behind(owner, &[], &[])
    }

    /// The same for the sequence of a prompt: the full pages of its beginning that are there
    /// already are in the table at once, and [`Self::len`] says how many tokens these are. At least
    /// the last token is left to be run. Only tables of the same owner and salt share pages.
    pub fn open_behind(&mut self, owner: [u8; 32], salt: &[u8], prompt: &[u32]) -> TableId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = TableId(NEXT.fetch_add(1, Ordering::Relaxed));
        let seed = seed(&owner, salt);
        let (pages, key) = self.find(seed, prompt);
        pages.iter().for_each(|&page| self.hold(page));
        let (len, rest) = (pages.len() * PAGE, Vec::new());
        self.tables.insert(id, Table { owner, pages, len, seed, key, rest });
        id
    }

    /// How many tokens of a prompt a table would have at once that is opened for it.
    #[cfg(test)]
    fn prefix(&self, owner: [u8; 32], salt: &[u8], prompt: &[u32]) -> usize {
        self.find(seed(&owner, salt), prompt).0.len() * PAGE
    }

    /// Whether the table is there.
    pub fn is_open(&self, table: TableId) -> bool {
        self.tables.contains_key(&table)
    }

    /// Names the weights that the table's keys and values were computed with.
    ///
    /// # Panics
    /// When the table was released, or is another pool's.
    pub fn owner(&self, table: TableId) -> [u8; 32] {
        self.table(table).owner
    }

    /// Tokens whose keys and values the table's pages hold.
    ///
    /// # Panics
    /// As [`Self::owner`].
    pub fn len(&self, table: TableId) -> usize {
        self.table(table).len
    }

    /// The table's pages in the order of positions.
    ///
    /// # Panics
    /// As [`Self::owner`].
    pub fn pages(&self, table: TableId) -> &[u32] {
        &self.table(table).pages
    }

    /// Gives a table's pages back. Full ones can be found until their place is needed. A table that
    /// is not there is no error.
    pub fn release(&mut self, table: TableId) {
        if let Some(table) = self.tables.remove(&table) {
            self.let_go(table.pages);
        }
    }

    /// Gives a table's pages back, but keeps it open: for a sequence that is run again from its
    /// first token.
    ///
    /// # Panics
    /// As [`Self::owner`].
    pub fn clear(&mut self, table: TableId) {
        let table = self.table_mut(table);
        (table.len, table.key) = (0, table.seed);
        table.rest.clear();
        let pages = std::mem::take(&mut table.pages);
        self.let_go(pages);
    }

    /// Gives a table pages until it holds as many as `pages`.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] when there are not as many; the table is as before.
    ///
    /// # Panics
    /// As [`Self::owner`].
    pub fn reserve(&mut self, table: TableId, pages: usize) -> Result<()> {
        let (len, held) = (self.len(table), self.pages(table).len());
        self.grow([(table, (pages.max(held) * PAGE).saturating_sub(len))].into_iter())
    }

    /// Gives every one of some tables, each named once, pages enough for so many tokens more.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] when there are not as many; no table is changed.
    ///
    /// # Panics
    /// As [`Self::owner`].
    pub(super) fn grow(
        &mut self,
        tables: impl Iterator<Item = (TableId, usize)> + Clone,
    ) -> Result<()> {
        let missing = |pages: &Self, (id, tokens): (TableId, usize)| {
            let table = pages.table(id);
            (table.len + tokens).div_ceil(PAGE).saturating_sub(table.pages.len())
        };
        let needed = tables.clone().map(|grown| missing(self, grown)).sum();
        if needed > self.free() {
            let (free, pages) = (self.free(), self.total());
            return Err(Error::OutOfPages { needed, free, pages });
        }
        for grown in tables {
            for _ in 0..missing(self, grown) {
                let page = self.take();
                self.pages[page as usize].holders = 1;
                self.table_mut(grown.0).pages.push(page);
            }
        }
        Ok(())
    }

    /// Takes back what [`Self::grow`] gave and nothing was written to: the table holds `pages` pages,
    /// as before.
    ///
    /// # Panics
    /// As [`Self::owner`], and when it holds fewer.
    pub(super) fn shrink(&mut self, table: TableId, pages: usize) {
        let unused = self.table_mut(table).pages.split_off(pages);
        self.let_go(unused);
    }

    /// Says that the keys and values of `tokens` were computed and stand in the table's pages.
    /// Where a page that is full by now was made by another table, too, that one takes its place:
    /// on a device whose results depend on the number of rows, the same up to rounding.
    ///
    /// # Panics
    /// As [`Self::owner`], and when the table has too few pages.
    pub(super) fn append(&mut self, id: TableId, tokens: &[u32]) {
        let table = self.tables.get_mut(&id).expect("an open table");
        let first = table.len / PAGE;
        table.len += tokens.len();
        table.rest.extend_from_slice(tokens);
        assert!(table.pages.len() * PAGE >= table.len, "more tokens than the pages hold");
        let rest = table.rest.split_off(table.rest.len() / PAGE * PAGE);
        let full = std::mem::replace(&mut table.rest, rest);
        for (index, tokens) in (first..).zip(full.chunks_exact(PAGE)) {
            self.file(id, index, tokens);
        }
    }

    /// Lets the full page `index` of a table be found, or changes it for the one that is.
    fn file(&mut self, id: TableId, index: usize, tokens: &[u32]) {
        let table = self.table_mut(id);
        table.key = key(&table.key, tokens);
        let (key, page) = (table.key, table.pages[index]);
        let before = index.checked_sub(1).map(|before| table.pages[before]);
        if let Some(&there) = self.by_key.get(&key) {
            self.table_mut(id).pages[index] = there;
            self.hold(there);
            self.let_go(vec![page]);
            return;
        }
        self.by_key.insert(key, page);
        self.pages[page as usize].entry = Some(Entry { key, before, continued: 0 });
        if let Some(before) = before {
            self.entry_mut(before).continued += 1;
        }
    }

    /// The pages that hold the beginning of `prompt`, all of it but the last token at most, and the
    /// key of the last of them.
    fn find(&self, seed: Key, prompt: &[u32]) -> (Vec<u32>, Key) {
        let (mut pages, mut last) = (Vec::new(), seed);
        for tokens in prompt[..prompt.len().saturating_sub(1)].chunks_exact(PAGE) {
            let key = key(&last, tokens);
            let Some(&page) = self.by_key.get(&key) else { break };
            pages.push(page);
            last = key;
        }
        (pages, last)
    }

    /// Counts one more table that holds a page with an entry.
    fn hold(&mut self, number: u32) {
        let page = &mut self.pages[number as usize];
        if page.holders == 0 {
            self.kept -= 1;
            self.droppable.remove(&(page.last_used, number));
        }
        page.holders += 1;
    }

    /// Counts one table less for each of `pages`.
    fn let_go(&mut self, pages: Vec<u32>) {
        self.clock += 1;
        for number in pages {
            let page = &mut self.pages[number as usize];
            page.holders -= 1;
            page.last_used = self.clock;
            if page.holders > 0 {
                continue;
            }
            match &page.entry {
                None => self.free.push(number),
                Some(entry) => {
                    self.kept += 1;
                    if entry.continued == 0 {
                        self.droppable.insert((self.clock, number));
                    }
                }
            }
        }
    }

    /// A page that holds nothing, by dropping one if need be. There has to be one.
    fn take(&mut self) -> u32 {
        if let Some(page) = self.free.pop() {
            return page;
        }
        let (_, number) = self.droppable.pop_first().expect("a page that no table holds");
        self.kept -= 1;
        let entry = self.pages[number as usize].entry.take().expect("a page that can be found");
        self.by_key.remove(&entry.key);
        if let Some(before) = entry.before {
            let left = self.entry_mut(before);
            left.continued -= 1;
            let is_last = left.continued == 0;
            let page = &self.pages[before as usize];
            if is_last && page.holders == 0 {
                self.droppable.insert((page.last_used, before));
            }
        }
        number
    }

    /// The entry of a page that another with one continues.
    fn entry_mut(&mut self, page: u32) -> &mut Entry {
        self.pages[page as usize].entry.as_mut().expect("what a page continues can be found")
    }

    fn table(&self, table: TableId) -> &Table {
        self.tables.get(&table).expect("an open table")
    }

    fn table_mut(&mut self, table: TableId) -> &mut Table {
        self.tables.get_mut(&table).expect("an open table")
    }
}

/// The key before the first page of an owner's sequence.
fn seed(owner: &[u8; 32], salt: &[u8]) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key("pleach: pages of an owner and a salt");
    *hasher.update(owner).update(salt).finalize().as_bytes()
}

/// The key of the page that continues that of key `before` by `tokens`.
fn key(before: &Key, tokens: &[u32]) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key("pleach: a page that continues another");
    hasher.update(before);
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
#[path = "kv_pages_tests.rs"]
mod tests;
