//! What goes into a forward pass, and what comes out.

use std::ops::Range;

use super::TableId;
use crate::device::{Choice, Device, NodeRows, Span};

/// Which logits of a sequence are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: only keys and values are computed.
    Nothing,
    /// Those after the last new token.
    Last,
    /// Those after every new token.
    All,
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// Its table, which grows by as many pages as the tokens need.
    pub table: TableId,
    /// Names the weights that the sequence goes on with; its table has to have the same owner.
    pub owner: [u8; 32],
    /// The tokens, following those in the table's pages.
    pub tokens: &'a [u32],
    /// Which logits to return.
    pub want: Want,
}

/// A node whose deltas are not merged into the weights.
pub struct UnmergedNode<'a, D: Device> {
    /// The sequences at it or below it: a range of the batch.
    pub sequences: Range<usize>,
    /// Its deltas.
    pub deltas: &'a D::Deltas,
}

/// What one forward pass computes.
pub struct Batch<'a, D: Device> {
    /// The new tokens of every sequence, in any order.
    pub sequences: &'a [NewTokens<'a>],
    /// What lies between the weights and the nodes of the sequences, each node before those below
    /// it.
    pub unmerged: &'a [UnmergedNode<'a, D>],
}

impl<'a, D: Device> Batch<'a, D> {
    /// Sequences that all stand where the weights stand.
    pub fn merged(sequences: &'a [NewTokens<'a>]) -> Self {
        Self { sequences, unmerged: &[] }
    }

    /// The unmerged nodes by rows of the batch.
    pub(super) fn node_rows(&self, spans: &[Span]) -> Vec<NodeRows<'a, D>> {
        let nodes = self.unmerged.iter().map(|node| {
            let spans = &spans[node.sequences.clone()];
            let rows = spans.first().map_or(0, |span| span.rows.start)
                ..spans.last().map_or(0, |span| span.rows.end);
            NodeRows { rows, deltas: node.deltas }
        });
        nodes.collect()
    }
}

/// The same nodes by the wanted rows alone, which ascend.
pub(super) fn among_wanted<'a, D: Device>(
    nodes: &[NodeRows<'a, D>],
    wanted: &[usize],
) -> Vec<NodeRows<'a, D>> {
    let place = |row: usize| wanted.partition_point(|&wanted| wanted < row);
    let among = |node: &NodeRows<'a, D>| NodeRows {
        rows: place(node.rows.start)..place(node.rows.end),
        deltas: node.deltas,
    };
    nodes.iter().map(among).filter(|node| !node.rows.is_empty()).collect()
}

/// What is wanted of a row of logits.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// A token, chosen on the device.
    Token(Choice),
    /// All logits, to choose from here.
    Logits,
}

/// What was wanted of a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub enum Picked {
    /// The token.
    Token(u32),
    /// The logits, `(vocab_size)`.
    Logits(Vec<f32>),
}

/// The wanted logits, in the order of the batch: a row of `vocab_size` per wanted position.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
    sequences: Vec<Range<usize>>,
}

impl Logits {
    /// The rows of every sequence among `values (rows, vocab_size)`.
    pub(super) fn new(values: Vec<f32>, vocab_size: usize, sequences: Vec<Range<usize>>) -> Self {
        Self { values, vocab_size, sequences }
    }

    /// All rows in order.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &[f32]> + ExactSizeIterator {
        self.values.chunks_exact(self.vocab_size)
    }

    /// The rows of sequence `index` of the batch.
    pub fn sequence(
        &self,
        index: usize,
    ) -> impl DoubleEndedIterator<Item = &[f32]> + ExactSizeIterator {
        let Range { start, end } = self.sequences[index].clone();
        self.values[start * self.vocab_size..end * self.vocab_size].chunks_exact(self.vocab_size)
    }

    /// The last row, if any was wanted.
    pub fn last(&self) -> Option<&[f32]> {
        self.rows().next_back()
    }
}

/// The batch rows whose logits are wanted, and which of them belong to each sequence.
pub(super) fn wanted_rows<D: Device>(
    batch: &Batch<'_, D>,
    spans: &[Span],
) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut wanted = Vec::new();
    let sequences = batch.sequences.iter().zip(spans).map(|(sequence, span)| {
        let start = wanted.len();
        match sequence.want {
            Want::Nothing => {}
            Want::Last => wanted.push(span.rows.end - 1),
            Want::All => wanted.extend(span.rows.clone()),
        }
        start..wanted.len()
    });
    let sequences = sequences.collect();
    (wanted, sequences)
}
