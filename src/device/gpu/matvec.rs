//! `out[t][i] = step_i · Σ_j N_ij x[t][j]` for few tokens. Twin: `device/cpu/matmul.rs`.

use super::matmul::{Tiling, kernel};

/// Most tokens: `MOST` of the shader, whose arrays are sized by constants alone.
pub(super) const MOST_TOKENS: usize = 8;
/// Threads in a workgroup.
const THREADS: usize = 64;
/// A team that walks longer over a row than this many inputs gets more members: it would keep too
/// few reads under way.
const LONG: usize = 2048;

/// The kernel for so many tokens of so many inputs.
pub(super) fn tiling(tokens: usize, inputs: usize) -> Tiling {
    let tokens = tokens.next_power_of_two();
    // Sums of eight rows for more tokens do not fit the registers of every GPU.
    let rows = if tokens <= 2 { 8 } else { 4 };
    let team = if inputs < LONG { 16 } else { 32 };
    let constants = [("TOKENS", tokens), ("ROWS", rows), ("TEAM", team), ("THREADS", THREADS)];
    Tiling { kernel: kernel("matvec", inputs, &constants), outputs: THREADS / team * rows, tokens }
}
