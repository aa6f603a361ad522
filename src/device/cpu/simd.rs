//! The instruction sets the kernels are written for, and the few operations a kernel is made of. A
//! kernel is written once over the trait `Simd`; `SimdLevel::run` compiles it for each instruction
//! set, and is the only way to instructions found at run time. Another instruction set is another
//! file here, and a line in `detect` and `run`.
//!
//! **Invariant:** every level makes the same integers; floats agree to rounding, and are a function
//! of the level alone.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use super::delta_apply::{ByKind, RowBlock, delta_tiles};

/// An instruction set, ordered by width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimdLevel {
    /// Plain Rust, on any machine.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

impl SimdLevel {
    /// Every level, narrowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The widest level this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::Avx512::detect().is_some() {
                return Self::Avx512;
            }
            if avx2::Avx2::detect().is_some() {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// Every level this machine has, narrowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let widest = Self::detect();
        Self::ALL.into_iter().filter(move |&level| level <= widest)
    }

    /// Runs `kernel` compiled for this level.
    ///
    /// # Panics
    /// When this machine lacks it.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Scalar => kernel.run(scalar::Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::Avx2::detect().expect("this machine has AVX2").run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::detect().expect("this machine has AVX-512").run(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            other => panic!("this machine has no {other:?}"),
        }
    }
}

/// 16 values: the unit all float kernels work in. One vector of AVX-512, two of AVX2 and four of
/// plain Rust, so that code written over it leaves no part of any of them idle.
pub(crate) const CHUNK: usize = 16;

/// Code to be compiled once per instruction set. `run` must be `#[inline(always)]`, and so must all
/// it calls.
pub(crate) trait Kernel {
    /// Does the work with the operations of `simd`.
    fn run<S: Simd>(self, simd: S);
}

/// The vector operations of one instruction set. A chunk of 16 values is `PARTS` vectors.
#[cfg_attr(
    not(feature = "measure"),
    allow(dead_code, reason = "single pairs are multiplied for the ceilings alone")
)]
pub(crate) trait Simd: Copy {
    /// A vector of f32.
    type V: Copy;
    /// A vector of pairs of i16, or of as many i32.
    type I: Copy;
    /// Vectors of f32 in one chunk.
    const PARTS: usize;
    /// Pairs in a vector.
    const PAIRS: usize;
    /// Tokens for which 4 rows of sums fit the registers; at most 6.
    const TOKENS: usize;

    /// All elements `value`.
    fn splat(self, value: f32) -> Self::V;
    /// Vector `part` of `chunk`.
    fn load(self, chunk: &[f32; CHUNK], part: usize) -> Self::V;
    /// Vector `part` of `chunk`, converted.
    fn load_i16(self, chunk: &[i16; CHUNK], part: usize) -> Self::V;
    /// Vector `part` of the first and of the second members of 16 pairs, converted.
    fn load_pairs(self, pairs: &[i16; 2 * CHUNK], part: usize) -> [Self::V; 2];
    /// Writes vector `part` of `chunk`.
    fn store(self, value: Self::V, chunk: &mut [f32; CHUNK], part: usize);
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, fused where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of the elements of each vector, each by the same tree of additions.
    fn sum4(self, vectors: [Self::V; 4]) -> [f32; 4];
    /// Asks for the cache line `ahead` values after the start of `chunk`.
    fn prefetch<T>(self, chunk: &[T; CHUNK], ahead: usize);
    /// `a · b + c` for single values, rounded as [`Simd::fma`] rounds.
    fn fma1(self, a: f32, b: f32, c: f32) -> f32;
    /// All pairs `pair`.
    fn splat_pair(self, pair: [i16; 2]) -> Self::I;
    /// `sum + a₀ · b₀ + a₁ · b₁` in i32 for every pair, modulo 2^32.
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// Adds and subtracts the factored and dense deltas of a block of rows: the switch's tiles, in
    /// plain Rust where an instruction set has none of its own. The tile's shape and the order of
    /// its registers are an instruction set's own, so it is no generic kernel.
    #[inline(always)]
    fn delta_tiles(self, block: &mut RowBlock, deltas: &ByKind) {
        delta_tiles(block, deltas);
    }

    /// The sum of the elements.
    #[inline(always)]
    fn sum(self, vector: Self::V) -> f32 {
        let zero = self.splat(0.0);
        self.sum4([vector, zero, zero, zero])[0]
    }
}
