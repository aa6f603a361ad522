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

    /// `matvec.wgsl`, `matmul.wgsl` and their plain versions, for one part of a matrix.
    MatmulParams {
        /// Tokens.
        rows: u32,
        /// Columns of the matrix.
        inputs: u32,
        /// Rows of the whole matrix: values between two tokens of the output.
        outputs: u32,
        /// Its rows in this part.
        part_outputs: u32,
        /// The first of them.
        first_output: u32,
        /// 1 if there is a bias to add.
        has_bias: u32,
        /// 1 if the output is added to.
        accumulate: u32,
    }

    /// `embed.wgsl`, for one part of the table.
    EmbedParams {
        /// Values: tokens × width.
        len: u32,
        /// Columns of the table.
        width: u32,
        /// Where the tokens start in the words.
        tokens: u32,
        /// The first row of this part of the table.
        first_row: u32,
        /// Its rows.
        part_rows: u32,
    }
}
