//! What can be wrong with a store of compiled deltas, or with what is asked of it: each defect
//! named.

use super::{RefusedEntry, refusals};

/// Why a store or a request to it is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreDefect {
    /// The folder holds something else.
    #[error("this is not a store: it has no {missing}; `pleach store import` makes one")]
    NotAStore {
        /// The file that is not there.
        missing: &'static str,
    },
    /// There is something where a store is to be made.
    #[error("there is something here already; name a folder that does not exist or is empty")]
    Exists,
    /// The empty folder where a store is to be made cannot be replaced by it.
    #[error(
        "this folder cannot be replaced by a store ({problem}); name a folder in it that does not exist yet"
    )]
    NotReplaceable {
        /// What the operating system said.
        problem: String,
    },
    /// A part was written by another version of this program.
    #[error(
        "{part} has format version {found}, this program reads version {expected}; use the program that wrote it"
    )]
    FormatVersion {
        /// Which part.
        part: &'static str,
        /// The version read here.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// Bytes that are not what was written.
    #[error(
        "{part} is damaged: {problem}; run `pleach store verify`, and bring the store back from a copy"
    )]
    Damaged {
        /// Which part.
        part: String,
        /// What shows it.
        problem: String,
    },
    /// The catalogue could not be read or written.
    #[error("the catalogue failed: {problem}; try again")]
    Catalogue {
        /// What the database said.
        problem: String,
    },
    /// Another program holds the catalogue in a way that excludes this one.
    #[error("the catalogue is open in another program that does not share it; close that program")]
    Locked,
    /// Another program holds a lock for longer than was to be waited for.
    #[error(
        "{holder} has the store locked, and {seconds} s were not enough to wait for it; try again, or with a longer \
         --timeout"
    )]
    Busy {
        /// Who holds it, in words.
        holder: String,
        /// How long was waited.
        seconds: f64,
    },
    /// The folder holds other files than when the store was opened.
    #[error(
        "the store's files were replaced or removed while it was open, and nothing was changed in those that are there \
         now; open the store again"
    )]
    Replaced,
    /// The store may be read, not written.
    #[error("the store may not be written here: its files, or the disk they lie on, are read-only")]
    ReadOnly,
    /// A program that wrote ended in the middle, and what it left cannot be tidied up without
    /// writing.
    #[error(
        "a program ended while it had the store open to write, which must be tidied up first: open the store once where it may \
         be written, for example with `pleach store stat`"
    )]
    Unfinished,
    /// The last step of a change failed.
    #[error(
        "the change was written but its end was not confirmed ({problem}): {}",
        unconfirmed(*settled)
    )]
    Unconfirmed {
        /// What the database said.
        problem: String,
        /// Whether it is settled by now: what is there is what stays.
        settled: bool,
    },
    /// The store was compiled for another base.
    #[error(
        "the store was compiled for the base {name} with BLAKE3 {expected}; this one's is {found}. Open that base, or \
         import the adapters again for this one"
    )]
    WrongBase {
        /// What the store calls its base.
        name: String,
        /// Its hash.
        expected: String,
        /// The hash of the base at hand.
        found: String,
    },
    /// The same base, on another lattice.
    #[error(
        "the store was compiled for a headroom of {expected}, but {found} was asked for; leave the headroom out, or \
         import the adapters again with it"
    )]
    Headroom {
        /// The store's.
        expected: f32,
        /// What was asked for.
        found: f32,
    },
    /// The same base and headroom, but other steps: another version of the quantisation.
    #[error(
        "the store's steps are not those this program computes for the base (BLAKE3 {expected} expected, {found} found); \
         import the adapters again"
    )]
    Lattice {
        /// The store's.
        expected: String,
        /// What the base has.
        found: String,
    },
    /// The root was given where a node of the store is needed.
    #[error("the root is the base itself: it cannot be {done}")]
    Root {
        /// What was to be done to it.
        done: &'static str,
    },
    /// A node of that name is there.
    #[error(
        "there is a node {name} already, in generation {generation}; replace it instead (--replace)"
    )]
    NodeExists {
        /// Its name.
        name: String,
        /// Its generation.
        generation: u64,
    },
    /// The parent a node was to hang under is not there.
    #[error("the parent {parent} of {node} is not in the store; publish it first")]
    UnknownParent {
        /// The node.
        node: String,
        /// The parent.
        parent: String,
    },
    /// A node with children was to be removed alone.
    #[error("{name} has {children}; remove them with it (--recursive), or first")]
    HasChildren {
        /// The node.
        name: String,
        /// How many, in words.
        children: String,
    },
    /// A node was to be moved below itself.
    #[error("{name} cannot be moved to {target}: that is where it is, or below it")]
    BelowItself {
        /// The node.
        name: String,
        /// Where to.
        target: String,
    },
    /// Somebody else changed the node first.
    #[error(
        "{name} is {}: it was changed meanwhile; look at it, then try again",
        if *found == 0 {
            format!("not there, though generation {expected} was expected")
        } else {
            format!("in generation {found}, not {expected}")
        }
    )]
    GenerationMismatch {
        /// The node.
        name: String,
        /// The generation the caller knows.
        expected: u64,
        /// The node's; 0 where there is none.
        found: u64,
    },
    /// There is no such version to go back to.
    #[error(
        "{name} has no generation {generation} to go back to; it has {}. `compact` drops old ones",
        generations(known)
    )]
    UnknownGeneration {
        /// The node.
        name: String,
        /// What was asked for.
        generation: u64,
        /// What there is.
        known: Vec<u64>,
    },
    /// A node's labels are too many or too long.
    #[error(
        "{name}: {problem}; a node holds up to {count} labels, keys of 1 to 128 bytes, 4 KiB in all"
    )]
    Labels {
        /// The node.
        name: String,
        /// What is wrong.
        problem: String,
        /// Most labels.
        count: usize,
    },
    /// A node was trained on another version of an ancestor than the one there is now.
    #[error("{}", stale(name, parent, trained_under.as_deref(), *trained_on, *found))]
    Stale {
        /// The node.
        name: String,
        /// Its parent.
        parent: String,
        /// The node it was trained under, `/` the base, if that is another one and still known.
        trained_under: Option<String>,
        /// Content generation it was trained on; 0 is the base.
        trained_on: u64,
        /// The parent's content generation.
        found: u64,
    },
    /// A node cannot have been trained on content that is yet to come.
    #[error(
        "{name} cannot have been trained on content {trained_on}: the store's last generation is {last}; \
         `pleach store list` shows the parent's content generation"
    )]
    TrainedOn {
        /// The node.
        name: String,
        /// The content generation given.
        trained_on: u64,
        /// The store's last generation.
        last: u64,
    },
    /// Other nodes would not fit the lattice any more.
    #[error(
        "this change of {name} leaves {count} {} below it that no switch can reach: {}; the first: {problem}. Change those \
         first, or make the change all the same (--accept-unreachable)",
        if *count == 1 { "node" } else { "nodes" },
        some(nodes, *count)
    )]
    Unreachable {
        /// The node that was to be changed.
        name: String,
        /// Nodes that would not fit, the first 100.
        nodes: Vec<String>,
        /// How many there are.
        count: u64,
        /// What a switch to the first would run into.
        problem: String,
    },
    /// An adapter that can only be checked against its base.
    #[error("{}: it holds a copy of the embedding or head, to be compared with the base's; name the base (--base)", adapter.display())]
    NeedsBase {
        /// The adapter.
        adapter: std::path::PathBuf,
    },
    /// Entries of a tree that cannot be in a store.
    #[error(
        "no store was made, since {} refused; mend what is wrong, pass it over in tree.toml ([tree] skip), or make a store \
         of the rest with --skip-refused:{}",
        if let [_] = refused[..] { "an entry of the tree is".to_owned() } else { format!("{} entries of the tree are", refused.len()) },
        refusals(refused)
    )]
    Refused {
        /// All of them, each with its reason.
        refused: Vec<RefusedEntry>,
    },
    /// A node's deltas are too large for one segment.
    #[error("{name} takes {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The node.
        name: String,
        /// Its bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// What is known of a change whose end was not confirmed, and what to do.
fn unconfirmed(settled: bool) -> &'static str {
    if settled {
        "it is settled by now whether it was made: look at the node, and try again if it was not"
    } else {
        "it may or may not have been made, and may still appear when the store is next changed: once the disk works, \
         open the store again and change something in it, then look at the node"
    }
}

fn stale(
    name: &str,
    parent: &str,
    trained_under: Option<&str>,
    trained_on: u64,
    found: u64,
) -> String {
    let what_to_do = "or accept it (--stale accept)";
    match (trained_under, parent) {
        (Some("/"), _) => format!(
            "{name} was trained on the base itself, but hangs under {parent}, which has content {found}; move it back, \
             publish it again, {what_to_do}"
        ),
        (Some(under), _) => format!(
            "{name} was trained under {under}, on its content {trained_on}, but hangs under {parent}; move it back, \
             publish it again, {what_to_do}"
        ),
        // The base has but one content.
        (None, "/") => format!(
            "{name} was trained on content {trained_on} of a node that is not there any more, but hangs under /; publish \
             it again, {what_to_do}"
        ),
        (None, _) => format!(
            "{name} was trained on content {trained_on} of {parent}, which now has content {found}; publish it again, roll \
             {parent} back, {what_to_do}"
        ),
    }
}

/// The first names of `count`.
fn some(names: &[String], count: u64) -> String {
    let shown = &names[..names.len().min(5)];
    format!("{}{}", shown.join(", "), if count > shown.len() as u64 { ", …" } else { "" })
}

fn generations(known: &[u64]) -> String {
    match known {
        [] => "none".to_owned(),
        _ => {
            let shown: Vec<String> = known.iter().rev().take(8).map(u64::to_string).collect();
            let more = if known.len() > 8 { ", …" } else { "" };
            format!("{}{more}", shown.join(", "))
        }
    }
}
