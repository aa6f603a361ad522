//! A matrix in GPU memory: the integers in parts of whole rows, each within one binding, and the steps.

use wgpu::BufferUsages;

use super::context::{Context, Slice};
use super::steps::Steps;
use crate::lattice::{LANES, LatticeMatrix};
use crate::{Error, Result};

/// A resident matrix. Rows are padded with zeros to a multiple of 32 columns, two integers to a u32, as on the CPU.
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
            Ok(Part { first_row: index * rows_a_part, rows: bytes.len() / row_bytes, integers: buffer })
        };
        let parts = matrix.integers().chunks(rows_a_part.saturating_mul(matrix.stride()).max(1)).enumerate().map(part);
        let parts = parts.collect::<Result<_>>()?;
        let steps = context.storage("steps", bytemuck::cast_slice(matrix.steps()))?;
        Ok(Self { rows, cols, parts, steps })
    }

    pub(super) fn read(&self, context: &Context) -> Result<LatticeMatrix> {
        let mut matrix = LatticeMatrix::zeros(self.rows, self.cols);
        let (lanes, steps) = matrix.parts_mut();
        let mut integers: &mut [u8] = bytemuck::cast_slice_mut(lanes);
        for part in &self.parts {
            let bytes = part.rows * self.row_words() * 4;
            let (here, rest) = integers.split_at_mut(bytes);
            here.copy_from_slice(&context.run(Steps::default(), &[Slice::whole(&part.integers)])?.bytes[..bytes]);
            integers = rest;
        }
        let bytes = context.run(Steps::default(), &[Slice::whole(&self.steps)])?.bytes;
        steps.copy_from_slice(bytemuck::cast_slice(&bytes[..self.rows * 4]));
        Ok(matrix)
    }

    /// The part that holds a row, and the row's place in it.
    fn place(&self, row: usize) -> (&Part, usize) {
        let part = &self.parts[row / self.parts[0].rows];
        (part, row - part.first_row)
    }
}

/// Copies rows of several matrices, without padding, all in one submit.
pub(super) fn read_rows(context: &Context, wanted: &[(&GpuMatrix, &[usize])]) -> Result<Vec<Vec<i16>>> {
    let slices = wanted.iter().flat_map(|(matrix, rows)| {
        let bytes = matrix.row_words() as u64 * 4;
        rows.iter().map(move |&row| {
            let (part, row) = matrix.place(row);
            Slice::of(&part.integers, row as u64 * bytes..(row as u64 + 1) * bytes)
        })
    });
    let bytes = context.run(Steps::default(), &slices.collect::<Vec<_>>())?.bytes;
    let mut rest: &[i16] = bytemuck::cast_slice(&bytes);
    let rows_of = |(matrix, rows): &(&GpuMatrix, &[usize])| {
        let (here, after) = rest.split_at(rows.len() * matrix.row_words() * 2);
        rest = after;
        let row = |row: &[i16]| row[..matrix.cols].to_vec();
        here.chunks_exact((matrix.row_words() * 2).max(1)).flat_map(row).collect()
    };
    Ok(wanted.iter().map(rows_of).collect())
}
