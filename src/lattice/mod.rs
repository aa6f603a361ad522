//! Weights as integers on a lattice: `W_ij = N_ij · u_i`, one step `u_i` per row.

mod matrix;

pub use matrix::{LANES, Lane, LatticeMatrix};
