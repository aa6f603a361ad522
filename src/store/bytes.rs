//! Plain little-endian numbers and arrays in and out of bytes.
//!
//! **Invariant:** a length is compared with the bytes that are left before anything is allocated
//! for it.

use bytemuck::{AnyBitPattern, NoUninit};

// Arrays are copied as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the store's files are little-endian");

/// Why bytes cannot be what they are taken for.
pub(super) type Problem = &'static str;

const SHORT: Problem = "it ends too early";

/// Takes numbers and arrays from the front of some bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Problem> {
        Ok(u16::from_le_bytes(self.bytes(2)?.try_into().expect("two bytes")))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }

    /// A u32 that counts or indexes something in memory.
    pub(super) fn count(&mut self) -> Result<usize, Problem> {
        Ok(self.u32()? as usize)
    }

    /// Bytes behind their length as a u64.
    pub(super) fn long(&mut self) -> Result<&'a [u8], Problem> {
        let length = u64::from_le_bytes(self.bytes(8)?.try_into().expect("eight bytes"));
        self.bytes(usize::try_from(length).map_err(|_| SHORT)?)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Problem> {
        let length = self.u16()?;
        std::str::from_utf8(self.bytes(length.into())?).map_err(|_| "a name is not UTF-8")
    }

    /// `count` values.
    pub(super) fn array<T: AnyBitPattern + NoUninit>(
        &mut self,
        count: usize,
    ) -> Result<Vec<T>, Problem> {
        let length = count.checked_mul(size_of::<T>()).ok_or(SHORT)?;
        Ok(bytemuck::pod_collect_to_vec(self.bytes(length)?))
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err("it goes on after its end") }
    }
}

/// Appends what [`Reader::text`] reads.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names of weights are short");
    out.extend(length.to_le_bytes());
    out.extend(text.as_bytes());
}

/// Appends what [`Reader::count`] reads.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).expect("counts of a matrix fit 32 bits").to_le_bytes());
}

/// Appends what [`Reader::array`] reads.
pub(super) fn put_array<T: NoUninit>(out: &mut Vec<u8>, values: &[T]) {
    out.extend(bytemuck::cast_slice::<T, u8>(values));
}
