//! One node's compiled deltas, and a base's lattice, as bytes: what lies in a segment.
//! docs/format.md draws them.
//!
//! **Invariant:** any bytes decode to deltas whose arrays have the lengths their shapes say, or to
//! a named problem; never a panic, and never more memory than twice the bytes.
//! **Invariant:** equal deltas encode to equal bytes.

use super::bytes::{Problem, Reader, put_array, put_count, put_text};
use crate::WeightName;
use crate::adapter::{BESIDE_FILES, CONFIG_FILE, TENSOR_FILE};
use crate::compile::CompiledNode;
use crate::lattice::{
    BaseLattice, CHUNK_RANK, CompiledDelta, DeltaKind, Factors, Grid, LANES, Lane, SparseRows,
};

const NODE_MAGIC: &[u8; 8] = b"PLCHNODE";
const LATTICE_MAGIC: &[u8; 8] = b"PLCHLATT";
/// As a length of a config it is far too large: versions that know the older layout alone refuse
/// it.
const KEPT_MAGIC: &[u8; 8] = b"PLCHKEPT";
/// Version of these layouts.
pub(super) const BLOB_VERSION: u32 = 1;

const LOW_RANK: u32 = 0;
const DENSE: u32 = 1;
const SPARSE: u32 = 2;

/// Why a blob does not decode.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BlobProblem {
    /// Another version wrote it.
    Version(u32),
    /// It is damaged.
    Damaged(Problem),
}

impl From<Problem> for BlobProblem {
    fn from(problem: Problem) -> Self {
        Self::Damaged(problem)
    }
}

fn header(magic: &[u8; 8], count: usize) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(BLOB_VERSION.to_le_bytes());
    put_count(&mut out, count);
    out
}

/// Checks magic and version; returns what follows and how many entries it has.
fn open<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<(Reader<'a>, usize), BlobProblem> {
    let mut reader = Reader(bytes);
    if reader.bytes(8)? != magic {
        return Err(BlobProblem::Damaged("it does not begin as it should"));
    }
    match reader.u32()? {
        BLOB_VERSION => {}
        found => return Err(BlobProblem::Version(found)),
    }
    let count = reader.count()?;
    Ok((reader, count))
}

/// A node's deltas as bytes.
pub(super) fn encode_node(node: &CompiledNode) -> Vec<u8> {
    let mut out = header(NODE_MAGIC, node.len());
    for (weight, delta) in node {
        put_text(&mut out, weight.as_str());
        put_count(&mut out, delta.rows);
        put_count(&mut out, delta.cols);
        put_array(&mut out, &delta.row_max);
        match &delta.kind {
            DeltaKind::LowRank(chunks) => {
                put_array(&mut out, &[LOW_RANK]);
                put_count(&mut out, chunks.len());
                for factors in chunks {
                    put_count(&mut out, factors.pairs);
                    put_array(&mut out, &factors.a);
                    let b: Vec<i16> = (0..delta.rows).flat_map(|i| factors.b_row(i)).collect();
                    put_array(&mut out, &b);
                    put_array(&mut out, &factors.shift);
                }
            }
            DeltaKind::Dense(lanes) => {
                put_array(&mut out, &[DENSE]);
                put_array(&mut out, lanes);
            }
            DeltaKind::Sparse(sparse) => {
                put_array(&mut out, &[SPARSE]);
                put_count(&mut out, sparse.values.len());
                put_array(&mut out, &sparse.row_start);
                put_array(&mut out, &sparse.cols);
                put_array(&mut out, &sparse.values);
            }
        }
    }
    out
}

/// The deltas that [`encode_node`] wrote.
pub(super) fn decode_node(bytes: &[u8]) -> Result<CompiledNode, BlobProblem> {
    let (mut reader, count) = open(bytes, NODE_MAGIC)?;
    let mut node = CompiledNode::new();
    for _ in 0..count {
        let weight = WeightName::new(reader.text()?);
        if node.last_key_value().is_some_and(|(last, _)| *last >= weight) {
            return Err("its weights are out of order".into());
        }
        node.insert(weight, decode_delta(&mut reader)?);
    }
    reader.end()?;
    Ok(node)
}

fn decode_delta(reader: &mut Reader<'_>) -> Result<CompiledDelta, Problem> {
    const OVERFLOW: Problem = "a shape is too large";
    let (rows, cols) = (reader.count()?, reader.count()?);
    let row_max = reader.array(rows)?;
    let panels = cols.div_ceil(LANES);
    let kind = match reader.u32()? {
        LOW_RANK => {
            let mut chunks = Vec::new();
            for _ in 0..reader.count()? {
                let pairs = reader.count()?;
                if !(1..=CHUNK_RANK / 2).contains(&pairs) || rows == 0 || cols == 0 {
                    return Err("a chunk has a rank that compiling does not make");
                }
                let lanes =
                    panels.checked_mul(pairs).and_then(|n| n.checked_mul(2)).ok_or(OVERFLOW)?;
                let entries =
                    rows.checked_mul(pairs).and_then(|n| n.checked_mul(2)).ok_or(OVERFLOW)?;
                let (a, b, shift): (Vec<Lane>, Vec<i16>, Vec<u8>) =
                    (reader.array(lanes)?, reader.array(entries)?, reader.array(rows)?);
                if shift.iter().any(|&shift| shift > 16) {
                    return Err("a shift is above 16");
                }
                chunks.push(Factors::from_rows(pairs, a, &b, shift));
            }
            DeltaKind::LowRank(chunks)
        }
        DENSE => DeltaKind::Dense(reader.array(rows.checked_mul(panels).ok_or(OVERFLOW)?)?),
        SPARSE => {
            let entries = reader.count()?;
            let sparse = SparseRows {
                row_start: reader.array(rows.checked_add(1).ok_or(OVERFLOW)?)?,
                cols: reader.array(entries)?,
                values: reader.array(entries)?,
            };
            check_sparse(&sparse, cols)?;
            DeltaKind::Sparse(sparse)
        }
        _ => return Err("a delta is of an unknown kind"),
    };
    Ok(CompiledDelta { rows, cols, row_max, kind })
}

fn check_sparse(sparse: &SparseRows, cols: usize) -> Result<(), Problem> {
    let (starts, entries) = (&sparse.row_start, sparse.values.len());
    let ends =
        starts.first() == Some(&0) && starts.last().map(|&last| last as usize) == Some(entries);
    if !ends || !starts.is_sorted() {
        return Err("the rows of a sparse delta do not follow each other");
    }
    let rows = starts.windows(2).map(|row| &sparse.cols[row[0] as usize..row[1] as usize]);
    let good = |row: &[u32]| {
        row.is_sorted_by(|a, b| a < b) && row.last().is_none_or(|&last| (last as usize) < cols)
    };
    if rows.into_iter().all(good) {
        Ok(())
    } else {
        Err("the columns of a sparse delta are out of order")
    }
}

/// A base's lattice as bytes.
pub(super) fn encode_lattice(lattice: &BaseLattice) -> Vec<u8> {
    let mut out = header(LATTICE_MAGIC, lattice.grids().len());
    put_array(&mut out, &[lattice.headroom()]);
    for (weight, grid) in lattice.grids() {
        put_text(&mut out, weight.as_str());
        put_count(&mut out, grid.rows());
        put_count(&mut out, grid.cols);
        put_array(&mut out, &grid.steps);
        put_array(&mut out, &grid.row_max);
    }
    out
}

/// The lattice that [`encode_lattice`] wrote.
pub(super) fn decode_lattice(bytes: &[u8]) -> Result<BaseLattice, BlobProblem> {
    let (mut reader, count) = open(bytes, LATTICE_MAGIC)?;
    let headroom = f32::from_bits(reader.u32()?);
    let mut grids = Vec::new();
    for _ in 0..count {
        let weight = WeightName::new(reader.text()?);
        let (rows, cols) = (reader.count()?, reader.count()?);
        let (steps, row_max): (Vec<f32>, _) = (reader.array(rows)?, reader.array(rows)?);
        if steps.iter().any(|step| !step.is_normal() || *step < 0.0) {
            return Err("a step is not a positive number".into());
        }
        grids.push((weight, Grid { cols, steps, row_max, headroom }));
    }
    reader.end()?;
    Ok(BaseLattice::new(headroom, grids))
}

/// An adapter's files by name as bytes: the two of its own first.
pub(super) fn encode_kept(files: &[(&str, &[u8])]) -> Vec<u8> {
    if let [(_, config), (_, tensors)] = files {
        // As versions wrote it that kept no others.
        return [&(config.len() as u64).to_le_bytes()[..], config, tensors].concat();
    }
    let mut out = header(KEPT_MAGIC, files.len());
    for (name, bytes) in files {
        put_text(&mut out, name);
        put_array(&mut out, &[bytes.len() as u64]);
        out.extend(*bytes);
    }
    out
}

/// The files that [`encode_kept`] wrote. None has a name but those that are kept.
pub(super) fn decode_kept(bytes: &[u8]) -> Result<Vec<(&str, &[u8])>, BlobProblem> {
    if !bytes.starts_with(KEPT_MAGIC) {
        let mut reader = Reader(bytes);
        let config = reader.long()?;
        return Ok(vec![(CONFIG_FILE, config), (TENSOR_FILE, reader.0)]);
    }
    let (mut reader, count) = open(bytes, KEPT_MAGIC)?;
    let mut files: Vec<(&str, &[u8])> = Vec::new();
    for _ in 0..count {
        let name = reader.text()?;
        let is_known = [CONFIG_FILE, TENSOR_FILE].contains(&name) || BESIDE_FILES.contains(&name);
        if !is_known || files.iter().any(|(other, _)| *other == name) {
            return Err("a kept file has a name that none has".into());
        }
        files.push((name, reader.long()?));
    }
    reader.end()?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> CompiledNode {
        let a = |k: i16| Lane(std::array::from_fn(|j| (k * 32 + i16::try_from(j).unwrap()) - 100));
        let b: Vec<i16> = (0..12).collect();
        let low_rank = Factors::from_rows(2, (0..8).map(a).collect(), &b, vec![16, 3, 0]);
        let dense = (0..4).map(|k| Lane([k; 32])).collect();
        let sparse = SparseRows { row_start: vec![0, 2, 2], cols: vec![1, 6], values: vec![-3, 9] };
        CompiledNode::from(
            [
                ("a", 3, 40, DeltaKind::LowRank(vec![low_rank.clone(), low_rank])),
                ("b", 2, 33, DeltaKind::Dense(dense)),
                ("c", 2, 7, DeltaKind::Sparse(sparse)),
                ("d", 0, 0, DeltaKind::LowRank(Vec::new())),
            ]
            .map(|(name, rows, cols, kind)| {
                (WeightName::new(name), CompiledDelta { rows, cols, row_max: vec![7; rows], kind })
            }),
        )
    }

    #[test]
    fn a_node_comes_back_as_it_was() {
        let bytes = encode_node(&sample());
        assert_eq!(decode_node(&bytes), Ok(sample()));
        assert_eq!(decode_node(&encode_node(&CompiledNode::new())), Ok(CompiledNode::new()));
    }

    #[test]
    fn kept_files_come_back_as_they_were_and_by_no_other_name() {
        let two: [(&str, &[u8]); 2] = [(CONFIG_FILE, b"{}"), (TENSOR_FILE, b"tensors")];
        let three = [&two[..], &[("tokenizer.json", b"")]].concat();
        for files in [&two[..], &three] {
            let bytes = encode_kept(files);
            assert_eq!(decode_kept(&bytes), Ok(files.to_vec()));
        }
        let bytes = encode_kept(&three);
        for length in 0..bytes.len() {
            assert!(
                decode_kept(&bytes[..length]).is_err(),
                "{length} of {} bytes decoded",
                bytes.len()
            );
        }
        for name in ["../tokenizer.json", "/etc/passwd", CONFIG_FILE, ""] {
            let files = [&two[..], &[(name, b"")]].concat();
            assert!(decode_kept(&encode_kept(&files)).is_err(), "{name}");
        }
        // What a version makes of it that takes the first bytes for a length.
        assert!(u64::from_le_bytes(*KEPT_MAGIC) > 1 << 60);
    }

    #[test]
    fn a_lattice_comes_back_as_it_was() {
        let grid = |cols| Grid { cols, steps: vec![0.5, 0.25], row_max: vec![1, 2], headroom: 1.5 };
        let lattice = BaseLattice::new(
            1.5,
            [("x", 3), ("y", 4)].map(|(n, cols)| (WeightName::new(n), grid(cols))),
        );
        assert_eq!(decode_lattice(&encode_lattice(&lattice)), Ok(lattice));
    }

    #[test]
    fn every_truncation_and_a_byte_too_many_are_named() {
        let bytes = encode_node(&sample());
        for length in 0..bytes.len() {
            assert!(
                decode_node(&bytes[..length]).is_err(),
                "{length} of {} bytes decoded",
                bytes.len()
            );
        }
        assert!(decode_node(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn counts_larger_than_the_bytes_are_refused_before_anything_is_allocated() {
        let mut out = header(NODE_MAGIC, 1);
        put_text(&mut out, "w");
        put_array(&mut out, &[u32::MAX; 4]);
        assert_eq!(decode_node(&out), Err(BlobProblem::Damaged("it ends too early")));
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let mut bytes = encode_node(&sample());
        bytes[8] = 9;
        assert_eq!(decode_node(&bytes), Err(BlobProblem::Version(9)));
    }

    proptest! {
        #[test]
        fn changed_bytes_decode_or_are_named(at in 0_usize..2000, value: u8) {
            let mut bytes = encode_node(&sample());
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(node) = decode_node(&bytes) {
                for delta in node.values() {
                    for row in 0..delta.rows {
                        let mut sums = vec![0; delta.cols];
                        delta.add_row(row, crate::lattice::Sign::Add, &mut sums);
                    }
                }
            }
        }
    }
}
