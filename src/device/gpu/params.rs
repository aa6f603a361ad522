//! Parameters of the shaders: each structure here has one of the same name and members in
//! `shaders/shared/params.wgsl`, and a test compares them member by member. So have the records that
//! a dispatch reads beside them, from the words of the work, and those that it leaves.

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
    #[cfg(feature = "measure")]
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
    /// `gelu_mul.wgsl`.
    GeluMulParams {
        /// Values.
        len: u32,
    }
    /// `rms_norm.wgsl`.
    RmsNormParams {
        rows: u32,
        /// Values in a row.
        width: u32,
        eps: f32,
    }
    /// Where the keys and values of a row go.
    AppendedRow {
        page: u32,
        /// Its place in the page.
        place: u32,
    }
    /// `rotate_append.wgsl`.
    RotateAppendParams {
        /// The first [`AppendedRow`].
        first_row: u32,
        rows: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
    }
    /// Four queries of one span that read the same keys.
    AttentionQuad {
        /// The word with the sequence's first page.
        pages: u32,
        /// Position of the span's first token.
        past: u32,
        /// Its row.
        row: u32,
        /// The first query.
        first: u32,
        /// One past the span's last.
        end: u32,
    }
    /// `attention.wgsl`.
    AttentionParams {
        /// The first [`AttentionQuad`].
        first_quad: u32,
        quads: u32,
        /// Workgroups that share the positions of a quad.
        parts: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        /// Tokens that a query sees.
        window: u32,
        /// What a query's product with a key is multiplied by.
        scale: f32,
        /// What scores are capped at, where they are.
        soft_cap: f32,
    }
    /// `argmax.wgsl` and `sampling.wgsl`.
    SamplingParams {
        /// The first row's [`RowSampling`].
        first: u32,
        rows: u32,
        vocab_size: u32,
    }
    /// How `sampling.wgsl` draws the token of one row.
    RowSampling {
        /// 0: the likeliest.
        temperature: f32,
        /// 0: all.
        top_k: u32,
        /// 1: all.
        top_p: f32,
        /// 0: all.
        min_p: f32,
        /// Evenly distributed in 0..1.
        random: f32,
    }
    /// What `argmax.wgsl` and `sampling.wgsl` return for one row.
    RowToken {
        token: u32,
        /// The lowest id whose logit is not finite, or `u32::MAX`.
        non_finite: u32,
        /// The bits of that logit: as a float a NaN might lose some.
        logit_bits: u32,
    }

    /// `matvec.wgsl`, `matmul.wgsl` and their naive versions, for one part of a matrix.
    MatmulParams {
        /// The first token.
        first_row: u32,
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

    /// `embed.wgsl`, for one part of the table, or of a delta on it.
    EmbedParams {
        /// The first token.
        first_token: u32,
        /// Values: tokens × width.
        len: u32,
        /// Columns of the table.
        width: u32,
        /// Where the tokens of the batch start in the words.
        tokens: u32,
        /// The first row of this part of the table.
        first_row: u32,
        /// Its rows.
        part_rows: u32,
        /// What is bound of it: 0 nothing, 1 its integers, 2 entries of a sparse delta.
        source: u32,
        /// Those entries.
        entries: u32,
        /// Where the lists of factors start in the words, two words a token of the batch: how many,
        /// and the place of the first.
        lists: u32,
        /// 1 if there are such lists.
        has_lists: u32,
        /// 1 if the integers there are added to.
        accumulate: u32,
        /// 1 if the sum leaves as a number, 0 if as an integer that is added to.
        finish: u32,
    }

    /// Rows and pairs of ranks that a workgroup of `shrink.wgsl` sums; places are in words of the
    /// factors.
    ShrinkGroup {
        /// The first row.
        first_row: u32,
        rows: u32,
        /// `A'` of the first pair in panel 0.
        a: u32,
        pairs: u32,
        /// Pairs of its chunk.
        chunk_pairs: u32,
        /// Where the sums of the first pair of the first row go.
        sums: u32,
    }
    /// `shrink.wgsl`.
    ShrinkParams {
        /// The first [`ShrinkGroup`].
        first_group: u32,
        groups: u32,
        /// Values in a row of x.
        inputs: u32,
    }
    /// A chunk of factors for some rows of a block of `expand.wgsl`; places are in words of the
    /// factors.
    ExpandTerm {
        /// The first row of the block.
        block_row: u32,
        /// The rows that it is for, in the block and outside.
        first_row: u32,
        end_row: u32,
        /// `B'` in row 0.
        b: u32,
        /// The shifts of the chunk.
        shifts: u32,
        pairs: u32,
        /// The sums of the first pair of its first row.
        sums: u32,
        /// Of a block's first: how many more it has, and where these lie, counted from the first of
        /// all.
        more: u32,
        next: u32,
    }
    /// `expand.wgsl`.
    ExpandParams {
        /// Rows of the batch.
        rows: u32,
        outputs: u32,
        /// The first [`ExpandTerm`]: those of every block come first.
        first_term: u32,
        blocks: u32,
        /// Workgroups beside each other over the outputs.
        tiles: u32,
    }
    /// `expand_sparse.wgsl`, for one part of a matrix, or less.
    ExpandSparseParams {
        /// The first row of the batch.
        first_row: u32,
        /// Values: rows × part_outputs.
        len: u32,
        inputs: u32,
        /// Rows of the whole matrix: values between two rows of the output.
        outputs: u32,
        /// Its rows in this part.
        part_outputs: u32,
        /// The first of them.
        first_output: u32,
        /// Words with entries.
        entries: u32,
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
        /// The first [`RankPair`].
        first_pair: u32,
        /// Pairs of ranks, of all deltas together.
        pairs: u32,
    }
    /// A pair of ranks of one chunk, as `delta_apply.wgsl` goes through them; places are in words of
    /// the factors.
    RankPair {
        /// Its `A'` in panel 0.
        a: u32,
        /// Its `B'` in row 0.
        b: u32,
        /// The shifts of its chunk.
        shifts: u32,
        /// Pairs of its chunk.
        chunk_pairs: u32,
        /// What is done with the chunk's sums after it: 1 they are added, −1 subtracted, 0 nothing,
        /// since the chunk goes on.
        ends: i32,
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
    /// A word of the weights and what both its columns change by.
    SparseWord {
        /// Its place in the part.
        place: u32,
        /// The even column's integer in the lower half, the odd one's in the upper.
        change: u32,
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
