//! A delta with its sign: the one type for a term of the sum by which a switch moves weights,
//! whatever it is a delta of.
//!
//! **Invariant:** terms commute, and a term undoes its inverse: integers modulo 2^16 are a group.

use super::{CompiledDelta, MatrixId, NodeDeltas};

/// Whether a delta is added or subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// On the way down.
    Add,
    /// On the way up.
    Subtract,
}

impl Sign {
    /// `n + q` or `n − q`, modulo 2^16: sums may wrap on the way, since the last one fits.
    #[inline(always)]
    pub fn apply(self, n: i16, q: i16) -> i16 {
        match self {
            Self::Add => n.wrapping_add(q),
            Self::Subtract => n.wrapping_sub(q),
        }
    }
}

/// A delta and whether it is added or subtracted. `D` is `&CompiledDelta` (of one matrix),
/// `&NodeDeltas` (of a node), what a device made of these, or their factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedDelta<D> {
    /// The delta.
    pub delta: D,
    /// Added or subtracted.
    pub sign: Sign,
}

impl<D> SignedDelta<D> {
    /// `+ delta`.
    pub fn added(delta: D) -> Self {
        Self { delta, sign: Sign::Add }
    }

    /// `− delta`.
    pub fn subtracted(delta: D) -> Self {
        Self { delta, sign: Sign::Subtract }
    }

    /// What undoes it.
    pub fn inverse(self) -> Self {
        let sign = match self.sign {
            Sign::Add => Sign::Subtract,
            Sign::Subtract => Sign::Add,
        };
        Self { sign, ..self }
    }

    /// Another form of the same delta, with the same sign.
    pub fn with<E>(&self, delta: E) -> SignedDelta<E> {
        SignedDelta { delta, sign: self.sign }
    }
}

impl<'a> SignedDelta<&'a NodeDeltas> {
    /// What the node does to one matrix, if it touches it.
    pub fn on(&self, id: MatrixId) -> Option<SignedDelta<&'a CompiledDelta>> {
        self.delta.delta(id).map(|delta| self.with(delta))
    }
}
