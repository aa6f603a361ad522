//! A matrix in GPU memory: the integers in parts of whole rows, each within one binding, and the
//! steps.

use wgpu::BufferUsages;

use super::context::{Context, Slice};
use super::recording::Recording;
use crate::lattice::{LANES, LatticeMatrix};
use crate::{Error, Result};

/// Bytes that come back in one submit.
const READ_BYTES: usize = 4 << 20;

/// A resident matrix. Rows are padded with zeros to a multiple of 32 columns, two integers to a
/// u32, as on the CPU.
pub struct GpuMatrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) parts: Vec<Part>,
    /// One f32 a row.
    pub(super) steps: wgpu::Buffer,
}

/// Consecutive rows of a matrix.
pub(super) struct Part {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) integers: wgpu::Buffer,
}

/// Rows of a matrix that one binding holds.
pub(super) fn rows_a_part(context: &Context, cols: usize) -> usize {
    let row_bytes = cols.div_ceil(LANES) * size_of::<[i16; LANES]>();
    usize::try_from(context.max_binding / row_bytes.max(1) as u64).unwrap_or(usize::MAX)
}

impl GpuMatrix {
    /// u32 in one row.
    pub(super) fn row_words(&self) -> usize {
        self.cols.div_ceil(LANES) * LANES / 2
    }

    pub(super) fn upload(context: &Context, matrix: &LatticeMatrix) -> Result<Self> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let row_bytes = matrix.stride() * size_of::<i16>();
        let rows_a_part = rows_a_part(context, cols);
        if rows_a_part == 0 || rows as u64 * 4 > context.max_binding {
            let bytes = row_bytes.max(rows * 4) as u64;
            return Err(Error::DeviceLimit {
                what: format!("a matrix of {rows} × {cols}"),
                bytes,
                limit: context.max_binding,
            });
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let part = |(index, integers): (usize, &[i16])| {
            let bytes: &[u8] = bytemuck::cast_slice(integers);
            let buffer = context.buffer("weights", bytes.len() as u64, usage)?;
            context.write(&buffer, 0, bytes)?;
            Ok(Part {
                first_row: index * rows_a_part,
                rows: bytes.len() / row_bytes,
                integers: buffer,
            })
        };
        let parts = matrix
            .integers()
            .chunks(rows_a_part.saturating_mul(matrix.stride()).max(1))
            .enumerate()
            .map(part);
        let parts = parts.collect::<Result<_>>()?;
        let steps = context.storage("steps", bytemuck::cast_slice(matrix.steps()))?;
        Ok(Self { rows, cols, parts, steps })
    }

    /// Another matrix with the same bits, made where this one lies.
    pub(super) fn copy(&self, context: &Context) -> Result<Self> {
        let mut copies = Recording::default();
        let mut twin = |buffer: &wgpu::Buffer| {
            let copy = context.buffer("weights", buffer.size(), buffer.usage())?;
            copies.copy(Slice::whole(buffer), Slice::whole(&copy));
            Ok::<_, Error>(copy)
        };
        let steps = twin(&self.steps)?;
        let part = |part: &Part| {
            Ok::<_, Error>(Part {
                integers: twin(&part.integers)?,
                first_row: part.first_row,
                rows: part.rows,
            })
        };
        let parts = self.parts.iter().map(part).collect::<Result<_>>()?;
        context.run(copies, &[])?;
        Ok(Self { rows: self.rows, cols: self.cols, parts, steps })
    }

    pub(super) fn read(&self, context: &Context) -> Result<LatticeMatrix> {
        let mut matrix = LatticeMatrix::zeros(self.rows, self.cols);
        let (lanes, steps) = matrix.parts_mut();
        let integers: &mut [u8] = bytemuck::cast_slice_mut(lanes);
        let row_bytes = self.row_words() * 4;
        for part in &self.parts {
            let here = &mut integers[part.first_row * row_bytes..][..part.rows * row_bytes];
            for (at, piece) in (0..).step_by(READ_BYTES).zip(here.chunks_mut(READ_BYTES)) {
                let read = Slice::of(&part.integers, at..at + piece.len() as u64);
                piece.copy_from_slice(&context.run(Recording::default(), &[read])?.bytes);
            }
        }
        let bytes = context.run(Recording::default(), &[Slice::whole(&self.steps)])?.bytes;
        steps.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)[..self.rows]);
        Ok(matrix)
    }

    /// The part that holds a row, and the row's place in it.
    fn place(&self, row: usize) -> (&Part, usize) {
        let part = &self.parts[row / self.parts[0].rows];
        (part, row - part.first_row)
    }
}

/// Copies rows of several matrices, without padding.
pub(super) fn read_rows(
    context: &Context,
    wanted: &[(&GpuMatrix, &[usize])],
) -> Result<Vec<Vec<i16>>> {
    let mut found: Vec<Vec<i16>> =
        wanted.iter().map(|(matrix, rows)| Vec::with_capacity(rows.len() * matrix.cols)).collect();
    let slices = wanted.iter().enumerate().flat_map(|(index, (matrix, rows))| {
        let bytes = matrix.row_words() as u64 * 4;
        rows.iter().map(move |&row| {
            let (part, row) = matrix.place(row);
            (index, Slice::of(&part.integers, row as u64 * bytes..(row as u64 + 1) * bytes))
        })
    });
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut slices = slices.peekable();
    while let Some((index, slice)) = slices.next() {
        bytes += slice.len();
        batch.push((index, slice));
        if bytes < READ_BYTES as u64 && slices.peek().is_some() {
            continue;
        }
        let reads: Vec<_> = batch.iter().map(|(_, slice)| slice.clone()).collect();
        let read = context.run(Recording::default(), &reads)?.bytes;
        let mut rest: &[i16] = bytemuck::cast_slice(&read);
        for (index, _) in batch.drain(..) {
            let matrix = wanted[index].0;
            let (row, after) = rest.split_at(matrix.row_words() * 2);
            found[index].extend_from_slice(&row[..matrix.cols]);
            rest = after;
        }
        bytes = 0;
    }
    Ok(found)
}
