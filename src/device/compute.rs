//! The tensor operations of a dense transformer, on buffers that stay on the device. A forward pass is
//! a straight sequence of these calls, so a device may record them and run them at once; only
//! [`Compute::read`] waits.
//!
//! A buffer used as a matrix is row-major; a *row* is one token of one sequence. A buffer may be
//! longer than a call needs.
//!
//! **Invariant:** a row's result depends on that row and its own sequence alone, bit for bit,
//! whatever else is in the batch. (A device may have several kernels for different numbers of rows;
//! between them results agree to rounding. The CPU's agree to the bit.)
//!
//! **Unmerged deltas.** The weights may stand above the node of a row. What lies between is then
//! added to the products of that row in factored form, from the very integers that a switch would
//! add: `y_i += u_i · Σ_chunks 2^(−s_i) · Σ_r B'_ir · (Σ_j A'_rj x_j)`. A switch rounds each
//! `Q_ij` to half a step per chunk, this does not, so with exact sums the two differ by at most
//! `u_i · chunks / 2 · Σ_j |x_j|`. Dense and sparse deltas are integers already, and rows of an
//! embedding are summed as integers: these do not differ at all.

use std::ops::Range;

use super::Device;
use crate::Result;
use crate::lattice::MatrixId;

/// One product of [`Compute::matmul`]: `out[t] = W · x[t]`, plus `bias`, plus the old `out[t]` if
/// `accumulate`.
pub struct Product<'a, D: Device + ?Sized> {
    /// `W (out, in)`.
    pub weight: &'a D::Matrix,
    /// Which matrix it is: unmerged deltas are found by it. Two matrices may share one `weight`.
    pub id: MatrixId,
    /// `(out)`, added to every row.
    pub bias: Option<&'a D::Buffer>,
    /// `(rows, out)`.
    pub out: &'a mut D::Buffer,
    /// Whether `out` is added to (a residual) or overwritten.
    pub accumulate: bool,
}

/// A node whose deltas are not merged into the weights, and the rows of a batch that are at it or
/// below it.
pub struct NodeRows<'a, D: Device + ?Sized> {
    /// A range of rows, none empty.
    pub rows: Range<usize>,
    /// The node's deltas.
    pub deltas: &'a D::Deltas,
}

/// Positions in one page of keys and values.
pub const PAGE: usize = 32;

/// The new tokens of one sequence: consecutive rows of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Tokens of the sequence that were appended before: the position of the first new one.
    pub past: usize,
    /// The pages of every layer that hold the sequence, [`PAGE`] positions each, in their order: at
    /// least as many as the past and new tokens need.
    pub pages: Vec<u32>,
}

/// The new tokens of one sequence that go to one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub page: u32,
    /// Their rows in the batch.
    pub rows: Range<usize>,
    /// The place in the page of the first.
    pub first: usize,
}

impl Span {
    /// Its rows, page by page.
    ///
    /// # Panics
    /// When it has fewer pages than its tokens need.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        let end = self.past + self.rows.len();
        (self.past / PAGE..end.div_ceil(PAGE)).map(move |index| {
            let positions = self.past.max(index * PAGE)..end.min((index + 1) * PAGE);
            let row = |position: usize| self.rows.start + position - self.past;
            Piece {
                page: self.pages[index],
                rows: row(positions.start)..row(positions.end),
                first: positions.start - index * PAGE,
            }
        })
    }
}

/// Heads of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `kv_heads`. Query head `h` reads key head
    /// `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values in one head; even.
    pub head_dim: usize,
}

/// What is rotated, and what goes into the pages.
pub struct RotateAppend<'a, D: Compute + ?Sized> {
    /// `(rows, heads × head_dim)`; rotated in place.
    pub queries: &'a mut D::Buffer,
    /// `(rows, kv_heads × head_dim)`; may be rotated in place.
    pub keys: &'a mut D::Buffer,
    /// `(rows, kv_heads × head_dim)`.
    pub values: &'a D::Buffer,
    /// `(rows, head_dim)`: `head_dim / 2` cosines, then as many sines, for the position of every
    /// row.
    pub angles: &'a D::Buffer,
    /// The layer's pages.
    pub cache: &'a mut D::KvLayer,
    /// The heads.
    pub heads: Heads,
}

/// What one attention layer reads and writes.
pub struct Attention<'a, D: Compute + ?Sized> {
    /// `(rows, heads × head_dim)`.
    pub queries: &'a D::Buffer,
    /// The layer's pages, the keys and values of the same rows in them.
    pub cache: &'a D::KvLayer,
    /// The heads.
    pub heads: Heads,
    /// What a query's product with a key is multiplied by: its score.
    pub scale: f32,
    /// A score `s` becomes `cap · tanh(s / cap)`; above 0.
    pub soft_cap: Option<f32>,
    /// How many tokens a query sees, itself included, if limited.
    pub window: Option<usize>,
    /// `(rows, heads × head_dim)`.
    pub out: &'a mut D::Buffer,
}

/// How a token is chosen from one row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Divides the logits; 0 takes the likeliest token, the first of equals.
    pub temperature: f32,
    /// Only this many likeliest tokens; of equals the first.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability, counted among those that
    /// `top_k` leaves.
    pub top_p: Option<f32>,
    /// Of those, only the tokens that are at least this share as likely as the likeliest.
    pub min_p: Option<f32>,
    /// What decides among the tokens that are left: evenly distributed in 0..1.
    pub random: f64,
}

impl Choice {
    /// The likeliest token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: None, top_p: None, min_p: None, random: 0.0 };
}

/// A device that can run a model.
pub trait Compute: Device {
    /// Keys and values of one layer, in pages that sequences share out among them.
    type KvLayer: Send + Sync;
    /// Deltas that are not in the weights, by matrix, ready to be added to the rows of a batch; by
    /// default none.
    type Unmerged<'a>: Default + Send + Sync
    where
        Self: 'a;

    /// Runs `work`, a sequence of calls to this device, as one unit.
    fn submit<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// `(rows, columns)` of a matrix: outputs, inputs.
    fn shape(&self, matrix: &Self::Matrix) -> (usize, usize);

    /// Values in a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;

    /// `pages` pages of one layer, each for [`PAGE`] positions of one sequence. What a page holds
    /// before something is appended to it is not specified.
    ///
    /// # Errors
    /// When the device has no memory left, or the layer does not fit what can be bound at once.
    fn alloc_kv(&self, heads: Heads, pages: usize) -> Result<Self::KvLayer>;

    /// Bytes of one page of one layer.
    fn kv_page_bytes(&self, heads: Heads) -> u64;

    /// Overwrites the start of `out`.
    fn write(&self, values: &[f32], out: &mut Self::Buffer);

    /// Copies `range` of `buffer` to the host, after everything before it is done.
    ///
    /// # Errors
    /// When the device failed since the last read.
    fn read(&self, buffer: &Self::Buffer, range: Range<usize>) -> Result<Vec<f32>>;

    /// Makes ready the deltas of nodes that are not in the weights, for products with the matrices
    /// that `is_used` names and for their embedding. A row gets the deltas of its nodes in the order
    /// of `nodes`: from the top of its path down.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn unmerged<'a>(
        &self,
        nodes: &[NodeRows<'a, Self>],
        is_used: impl Fn(MatrixId) -> bool,
    ) -> Result<Self::Unmerged<'a>>;

    /// `out[t] = table[tokens[t]]`, `(tokens, columns of table)`, with what is unmerged of that
    /// matrix. Every token is below the rows of `table`.
    fn embed(
        &self,
        table: (&Self::Matrix, MatrixId),
        tokens: &[u32],
        unmerged: &Self::Unmerged<'_>,
        out: &mut Self::Buffer,
    );

    /// `out[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight` for `rows` rows as wide as `weight`.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        eps: f32,
        rows: usize,
        out: &mut Self::Buffer,
    );

    /// Multiplies `x (rows, in)` by several matrices at once, with what is unmerged of them for
    /// these rows. All have the same number of inputs.
    fn matmul<const N: usize>(
        &self,
        x: &Self::Buffer,
        rows: usize,
        products: [Product<'_, Self>; N],
        unmerged: &Self::Unmerged<'_>,
    );

    /// Rotates queries and keys, with `h = head_dim / 2`:
    /// `x_j, x_{j+h} ← x_j·cos_j − x_{j+h}·sin_j, x_{j+h}·cos_j + x_j·sin_j`. Writes the keys and
    /// values of every span to its pages. Spans ascend in rows; a page that one of them writes is
    /// no other's, pages that are full before may be several's.
    fn rotate_append(&self, what: RotateAppend<'_, Self>, spans: &[Span]);

    /// Lets every query see the keys up to its own position: softmax of the scores
    /// `scale · q · k`, capped if asked, times the values. The spans are those last appended.
    fn attention(&self, attention: Attention<'_, Self>, spans: &[Span]);

    /// `gate ← gate / (1 + exp(−gate)) · up`, over `len` values.
    fn silu_mul(&self, gate: &mut Self::Buffer, up: &Self::Buffer, len: usize);

    /// `gate ← gate / 2 · (1 + tanh(√(2/π) · (gate + 0.044715 gate³))) · up`, over `len` values.
    fn gelu_mul(&self, gate: &mut Self::Buffer, up: &Self::Buffer, len: usize);

    /// `out[i] = x[rows[i]]`, rows of `width` values.
    fn select_rows(&self, x: &Self::Buffer, rows: &[usize], width: usize, out: &mut Self::Buffer);

    /// Samples a token from each of the first rows of `logits (rows, vocab_size)`, one row a
    /// choice; of a row that is not finite,
    /// [`NonFiniteLogits`](crate::Error::NonFiniteLogits).
    ///
    /// # Errors
    /// When the device failed since the last read.
    fn sample(
        &self,
        logits: &Self::Buffer,
        vocab_size: usize,
        choices: &[Choice],
    ) -> Result<Vec<Result<u32>>>;
}
