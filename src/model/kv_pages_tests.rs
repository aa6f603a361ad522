//! A page was handed to two sequences, or found by another adapter's prompt: others' worst
//! failures. Here every step is compared with sequences that are vectors of tokens, and with what a device
//! would have written to each place of each page.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const PAGES: usize = 12;

/// Whose a sequence is: its owner and its salt.
type Whose = (u8, u8);

fn owner((owner, _): Whose) -> [u8; 32] {
    [owner; 32]
}

/// Runs of one token each, so that beginnings are often the same.
type Runs = Vec<(u32, usize)>;

fn tokens(runs: &Runs) -> Vec<u32> {
    runs.iter().flat_map(|&(token, count)| std::iter::repeat_n(token, count)).collect()
}

#[derive(Clone, Debug)]
enum Action {
    /// Opens a table for a prompt, and runs the prompt.
    Open {
        whose: Whose,
        prompt: Runs,
    },
    /// Runs new tokens of some sequences at once.
    Run(Vec<(usize, Runs)>),
    /// A pass over one sequence that writes, but fails.
    Fail(usize, usize),
    Clear(usize),
    Release(usize),
}

fn runs() -> impl Strategy<Value = Runs> {
    vec((0..2u32, prop_oneof![Just(1), Just(7), Just(32), Just(33), Just(64)]), 1..4)
}

fn action() -> impl Strategy<Value = Action> {
    let whose = || (0..2u8, 0..2u8);
    prop_oneof![
        4 => (whose(), runs()).prop_map(|(whose, prompt)| Action::Open { whose, prompt }),
        4 => vec((0..6usize, runs()), 1..4).prop_map(Action::Run),
        1 => (0..6usize, 1..200usize).prop_map(|(which, count)| Action::Fail(which, count)),
        1 => (0..6usize).prop_map(Action::Clear),
        4 => (0..6usize).prop_map(Action::Release),
    ]
}

struct Sequence {
    table: TableId,
    whose: Whose,
    tokens: Vec<u32>,
}

/// What a device wrote to one place: for which sequence's beginning.
type Written = Option<(Whose, Vec<u32>)>;

struct Model {
    pages: KvPages,
    sequences: Vec<Sequence>,
    written: Vec<Vec<Written>>,
}

impl Model {
    fn new() -> Self {
        let written = vec![vec![None; PAGE]; PAGES];
        Self { pages: KvPages::new(PAGES), sequences: Vec::new(), written }
    }

    fn held(&self) -> BTreeSet<u32> {
        let tables = self.sequences.iter().map(|sequence| self.pages.pages(sequence.table));
        tables.flatten().copied().collect()
    }

    /// Writes to the places behind a sequence's tokens, which must be no other's.
    fn write(&mut self, which: usize, count: usize, written: impl Fn(usize) -> Written) {
        let Sequence { table, tokens, .. } = &self.sequences[which];
        let own = self.pages.pages(*table);
        for position in tokens.len()..tokens.len() + count {
            let page = own[position / PAGE];
            let others = self.sequences.iter().filter(|other| other.table != *table);
            for other in others {
                assert!(
                    !self.pages.pages(other.table).contains(&page),
                    "another's page is written"
                );
            }
            self.written[page as usize][position % PAGE] = written(position);
        }
    }

    fn run(&mut self, new: &[(usize, Runs)]) {
        let mut batch: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        if !self.sequences.is_empty() {
            batch.extend(
                new.iter().map(|(which, runs)| (which % self.sequences.len(), tokens(runs))),
            );
        }
        let pages_of = |len: usize| len.div_ceil(PAGE);
        let needed = batch.iter().map(|(&which, new)| {
            let len = self.sequences[which].tokens.len();
            pages_of(len + new.len()) - pages_of(len)
        });
        let (needed, free) = (needed.sum::<usize>(), PAGES - self.held().len());
        let grown = batch.iter().map(|(&which, new)| (self.sequences[which].table, new.len()));
        match self.pages.grow(grown.collect::<Vec<_>>().into_iter()) {
            Ok(()) => assert!(needed <= free),
            Err(Error::OutOfPages { needed: n, free: f, pages: PAGES }) => {
                assert!((n, f) == (needed, free) && needed > free);
                return;
            }
            Err(error) => panic!("{error}"),
        }
        for (&which, new) in &batch {
            let whole = [&self.sequences[which].tokens[..], new].concat();
            let whose = self.sequences[which].whose;
            self.write(which, new.len(), |position| Some((whose, whole[..=position].to_vec())));
        }
        for (which, new) in batch {
            let sequence = &mut self.sequences[which];
            self.pages.append(sequence.table, &new);
            sequence.tokens.extend(new);
        }
    }

    /// Opens a table and finds at least what open ones of the same owner and salt hold.
    fn open(&mut self, whose: Whose, prompt: &Runs) {
        let prompt = tokens(prompt);
        let in_common = |other: &Sequence| {
            let same = other.tokens.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
            same.min(prompt.len() - 1) / PAGE * PAGE
        };
        let open = self.sequences.iter();
        let open = open.filter(|other| other.whose == whose);
        let least = open.map(in_common).max().unwrap_or(0);
        let prefix = self.pages.prefix(owner(whose), &[whose.1], &prompt);
        let table = self.pages.open_behind(owner(whose), &[whose.1], &prompt);
        let len = self.pages.len(table);
        assert!(len == prefix && len >= least && len < prompt.len() && len.is_multiple_of(PAGE));
        let tokens = prompt[..len].to_vec();
        self.sequences.push(Sequence { table, whose, tokens });
        let (which, rest) = (self.sequences.len() - 1, &prompt[len..]);
        self.run(&[(which, rest.iter().map(|&token| (token, 1)).collect())]);
    }

    fn fail(&mut self, which: usize, count: usize) {
        let table = self.sequences[which].table;
        let before = self.pages.pages(table).len();
        if self.pages.grow([(table, count)].into_iter()).is_ok() {
            self.write(which, count, |_| None);
            self.pages.shrink(table, before);
        }
    }

    fn act(&mut self, action: &Action) {
        let count = self.sequences.len();
        match action {
            Action::Open { whose, prompt } => self.open(*whose, prompt),
            Action::Run(new) => self.run(new),
            Action::Fail(which, tokens) if count > 0 => self.fail(which % count, *tokens),
            Action::Clear(which) if count > 0 => {
                let sequence = &mut self.sequences[which % count];
                self.pages.clear(sequence.table);
                sequence.tokens.clear();
            }
            Action::Release(which) if count > 0 => {
                let sequence = self.sequences.swap_remove(which % count);
                self.pages.release(sequence.table);
                assert!(!self.pages.is_open(sequence.table));
            }
            _ => {}
        }
    }

    fn check(&self) {
        let mut holders: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
        for (which, Sequence { table, whose, tokens, .. }) in self.sequences.iter().enumerate() {
            let pages = self.pages.pages(*table);
            assert_eq!(self.pages.owner(*table), owner(*whose));
            assert_eq!(self.pages.len(*table), tokens.len());
            assert_eq!(pages.len(), tokens.len().div_ceil(PAGE));
            for position in 0..tokens.len() {
                let written = &self.written[pages[position / PAGE] as usize][position % PAGE];
                let expected = (*whose, tokens[..=position].to_vec());
                assert_eq!(written.as_ref(), Some(&expected), "position {position}");
            }
            let pages = pages.iter().enumerate();
            pages.for_each(|(at, &page)| holders.entry(page).or_default().push((which, at)));
        }
        for holders in holders.values().filter(|holders| holders.len() > 1) {
            for &(which, at) in holders {
                let is_full = self.sequences[which].tokens.len() >= (at + 1) * PAGE;
                assert!(is_full && at == holders[0].1, "a page in several tables");
            }
        }
        assert_eq!(self.pages.free(), PAGES - holders.len());
        assert_eq!(self.pages.total(), PAGES);
    }
}

proptest! {
    #[test]
    fn pages_hold_their_own_sequence_and_are_shared_as_equal_full_beginnings_alone(
        actions in vec(action(), 1..60)
    ) {
        let mut model = Model::new();
        for action in &actions {
            model.act(action);
            model.check();
        }
        for sequence in std::mem::take(&mut model.sequences) {
            model.pages.release(sequence.table);
        }
        prop_assert_eq!(model.pages.free(), PAGES);
        let table = model.pages.open([9; 32]);
        prop_assert!(model.pages.grow([(table, PAGES * PAGE)].into_iter()).is_ok());
        prop_assert_eq!(model.pages.free(), 0);
        prop_assert!(model.pages.by_key.is_empty() && model.pages.droppable.is_empty());
    }
}

const OWNER: [u8; 32] = [7; 32];

/// A table of so many equal tokens.
fn filled(pages: &mut KvPages, token: u32, count: usize) -> TableId {
    let new = vec![token; count];
    let table = pages.open_behind(OWNER, &[], &new);
    let rest = &new[pages.len(table)..];
    pages.grow([(table, rest.len())].into_iter()).unwrap();
    pages.append(table, rest);
    table
}

fn found(pages: &KvPages, token: u32) -> usize {
    pages.prefix(OWNER, &[], &[token; 10 * PAGE])
}

#[test]
fn page_longest_unused_is_dropped_first_and_none_before_what_continues_it() {
    let mut pages = KvPages::new(5);
    let (first, second) = (filled(&mut pages, 1, 2 * PAGE), filled(&mut pages, 2, 2 * PAGE));
    pages.release(first);
    pages.release(second);
    // Used again, but for its first page alone: with the second sequence's it is the last used.
    let again = pages.open_behind(OWNER, &[], &[1; PAGE + 1]);
    pages.release(again);
    let mut left = Vec::new();
    for count in 1..=5 {
        let table = filled(&mut pages, 3, count * PAGE - 1);
        left.push((found(&pages, 1) / PAGE, found(&pages, 2) / PAGE));
        pages.release(table);
    }
    assert_eq!(left, [(2, 2), (1, 2), (1, 1), (1, 0), (0, 0)]);
}

#[test]
fn page_that_a_table_holds_is_not_dropped() {
    let mut pages = KvPages::new(4);
    let whole = filled(&mut pages, 1, 3 * PAGE);
    let part = pages.open_behind(OWNER, &[], &[1; 2 * PAGE + 1]);
    pages.release(whole);
    assert_eq!((pages.free(), found(&pages, 1)), (2, 3 * PAGE));
    let other = filled(&mut pages, 2, 2 * PAGE);
    assert_eq!((pages.free(), found(&pages, 1)), (0, 2 * PAGE));
    let refused = pages.grow([(part, 1), (other, 1)].into_iter());
    assert!(matches!(refused, Err(Error::OutOfPages { needed: 2, free: 0, pages: 4 })));
    assert_eq!([part, other].map(|table| pages.pages(table).len()), [2, 2]);
}

#[test]
fn equal_pages_that_were_computed_twice_become_one() {
    let mut pages = KvPages::new(4);
    let tables = [(); 2].map(|()| pages.open(OWNER));
    pages.grow(tables.map(|table| (table, 40)).into_iter()).unwrap();
    assert_eq!(pages.free(), 0);
    tables.iter().for_each(|&table| pages.append(table, &[1; 40]));
    let [first, second] = tables.map(|table| pages.pages(table).to_vec());
    assert!(first[0] == second[0] && first[1] != second[1]);
    assert_eq!(pages.free(), 1);
}

#[test]
fn pages_are_found_by_their_owner_and_salt_alone() {
    let mut pages = KvPages::new(4);
    let table = filled(&mut pages, 1, PAGE);
    let prompt = [1; 2 * PAGE];
    assert_eq!(pages.prefix(OWNER, &[], &prompt), PAGE);
    assert_eq!(pages.prefix(OWNER, &[], &prompt[..PAGE]), 0, "its last token is left to be run");
    assert_eq!(pages.prefix([8; 32], &[], &prompt), 0);
    assert_eq!(pages.prefix(OWNER, &[0], &prompt), 0);
    pages.release(table);
    assert_eq!((pages.prefix(OWNER, &[], &prompt), pages.free()), (PAGE, 4));
}
