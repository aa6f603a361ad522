//! Weights as integers on a lattice: `W_ij = N_ij · u_i`, one step `u_i` per row of each matrix.
//!
//! A switch adds and subtracts integers only, so it is exact, order-free and reversible (a
//! ℤ-module): the bits at a node depend on the node, never on the route.
//!
//! `quantise.rs` puts a base on it, `compile.rs` a delta, `decompile.rs` takes a delta off it
//! again. `fits.rs` says whether a path stays on it, `kept.rs` what share of a change it keeps,
//! and `reference.rs` has the obvious loops that judge every kernel. Rows are padded with zeros to
//! 32 columns, one cache line.
//!
//! **Invariant:** no float appears between reading compiled factors and writing `N`.

mod base_lattice;
mod compile;
mod decompile;
mod delta;
mod fits;
mod kept;
mod matrix;
mod node_deltas;
mod quantise;
pub mod reference;
mod signed_delta;

pub use base_lattice::BaseLattice;
pub use compile::{CHUNK_RANK, compile};
pub(crate) use compile::{exponent, headroom_for, power_of_two};
pub use decompile::decompile;
pub(crate) use delta::largest_magnitude;
pub use delta::{CompiledDelta, DeltaKind, Factors, PANEL_ROWS, SparseRows, reach};
pub(crate) use fits::{base_rows, check_rows, check_shape, close_rows, guess_rows};
pub use kept::{KEPT_ENOUGH, Kept, Squares, change_row, percent, row_squares};
pub use matrix::{LANES, Lane, LatticeMatrix};
pub use node_deltas::{MatrixId, NodeDeltas};
pub use quantise::{DEFAULT_HEADROOM, Grid, quantise};
pub use signed_delta::{Sign, SignedDelta};

/// The largest magnitude an integer weight may reach. −32768 is left out: bounds are counted as
/// magnitudes, and so one bound holds for both signs, for adding and for subtracting.
pub const LIMIT: u32 = i16::MAX as u32;
