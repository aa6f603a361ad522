//! Parameters of the shaders: each structure here has one of the same name and members in `shaders/shared/params.wgsl`,
//! and a test compares them member by member.

use bytemuck::{Pod, Zeroable};

/// Declares structures of four-byte members, and a table of them for the comparison with WGSL.
macro_rules! params {
    ($($(#[$about:meta])* $name:ident { $($(#[$member_about:meta])* $member:ident: $kind:ty),* $(,)? })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, Pod, Zeroable)]
            #[repr(C)]
            pub(super) struct $name { $($(#[$member_about])* pub(super) $member: $kind),* }
        )*

        /// Name, size, and every member's name, type and offset.
        #[cfg(test)]
        pub(super) const LAYOUTS: &[(&str, usize, &[(&str, &str, usize)])] = &[$((
            stringify!($name),
            size_of::<$name>(),
            &[$((stringify!($member), stringify!($kind), std::mem::offset_of!($name, $member))),*],
        )),*];
    };
}

params! {
    /// `silu_mul.wgsl`.
    SiluMulParams {
        /// Values.
        len: u32,
    }

    /// `delta_apply.wgsl`.
    DeltaApplyParams {
        /// Rows of the part.
        rows: u32,
        /// Where the part starts in the matrix.
        first_row: u32,
        /// Vectors of eight weights in a row.
        row_vecs: u32,
        /// Tiles beside each other.
        column_tiles: u32,
        /// Where the slots start in the words.
        first_slot: u32,
        /// Slots: pairs of ranks.
        slots: u32,
    }

    /// `delta_dense.wgsl`.
    DeltaDenseParams {
        /// Vectors of eight weights.
        vecs: u32,
        /// 0 to add, 1 to subtract.
        subtract: u32,
    }

    /// `delta_sparse.wgsl`.
    DeltaSparseParams {
        /// Words that change.
        entries: u32,
        /// 0 to add, 1 to subtract.
        subtract: u32,
    }

    /// `fingerprint.wgsl`.
    FingerprintParams {
        /// Rows of the matrix.
        rows: u32,
        /// Columns without padding.
        cols: u32,
        /// Words in a row.
        row_words: u32,
        /// Where the first part bound starts, in rows.
        first_row: u32,
        /// Where the second part bound starts, in rows.
        second_row: u32,
        /// Chunks of the whole matrix; values to be merged.
        count: u32,
        /// The first workgroup's number among those of all parts.
        first_group: u32,
        /// Workgroups of this dispatch.
        groups: u32,
        /// Where the values to be merged start.
        source: u32,
        /// Where the results go: one for each workgroup.
        result: u32,
    }
}
