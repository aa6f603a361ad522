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
    /// `ceiling.wgsl`.
    CeilingParams {
        /// Vectors of four words in the buffer.
        count: u32,
        /// Steps of one invocation.
        per_invocation: u32,
    }
    /// `silu_mul.wgsl`.
    SiluMulParams {
        /// Values.
        len: u32,
    }
}
