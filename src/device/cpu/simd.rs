//! The instruction sets the kernels are written for, and the few vector operations a float kernel
//! is made of. A kernel is written once over the trait `Simd`; `SimdLevel::run` compiles it for
//! each instruction set.
//!
//! **Invariant:** every level gives the same integers; floats agree to rounding, and are a function
//! of the level alone.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

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

    /// Runs `kernel` compiled for this level, or for the widest one below it that the machine has.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        #[cfg(target_arch = "x86_64")]
        {
            if self == Self::Avx512
                && let Some(simd) = avx512::Avx512::detect()
            {
                return simd.run(kernel);
            }
            if self >= Self::Avx2
                && let Some(simd) = avx2::Avx2::detect()
            {
                return simd.run(kernel);
            }
        }
        kernel.run(scalar::Scalar);
    }
}

/// 16 values: the unit all float kernels work in.
pub(crate) const CHUNK: usize = 16;

/// Code to be compiled once per instruction set. `run` must be `#[inline(always)]`, and so must all
/// it calls.
pub(crate) trait Kernel {
    /// Does the work with the operations of `simd`.
    fn run<S: Simd>(self, simd: S);
}

/// The vector operations of one instruction set. A chunk of 16 values is `PARTS` vectors.
pub(crate) trait Simd: Copy {
    /// A vector of f32.
    type V: Copy;
    /// Vectors in one chunk.
    const PARTS: usize;
    /// Tokens for which 4 rows of sums fit the registers; at most 6.
    const TOKENS: usize;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::V;
    /// Vector `part` of `chunk`.
    fn load(self, chunk: &[f32; CHUNK], part: usize) -> Self::V;
    /// Vector `part` of `chunk`, converted.
    fn load_i16(self, chunk: &[i16; CHUNK], part: usize) -> Self::V;
    /// Writes vector `part` of `chunk`.
    fn store(self, value: Self::V, chunk: &mut [f32; CHUNK], part: usize);
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, fused where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of the lanes of each vector, each by the same tree of additions.
    fn sum4(self, vectors: [Self::V; 4]) -> [f32; 4];
    /// Asks for the cache line `ahead` values after the start of `chunk`.
    fn prefetch(self, chunk: &[i16; CHUNK], ahead: usize);
    /// `a · b + c` for single values, rounded as [`Simd::fma`] rounds.
    fn fma1(self, a: f32, b: f32, c: f32) -> f32;

    /// The sum of the lanes.
    #[inline(always)]
    fn sum(self, vector: Self::V) -> f32 {
        let zero = self.splat(0.0);
        self.sum4([vector, zero, zero, zero])[0]
    }
}
