// Parameters of the shaders, and records that they read and write. Each structure has one of the
// same name and members in src/device/gpu/params.rs.

struct CeilingParams {
    // Vectors of four words in the buffer.
    count: u32,
    // Steps of one invocation.
    per_invocation: u32,
}

struct SiluMulParams {
    // Values.
    len: u32,
}

struct GeluMulParams {
    // Values.
    len: u32,
}

struct RmsNormParams {
    rows: u32,
    // Values in a row.
    width: u32,
    eps: f32,
}

// Where the keys and values of a row go.
struct AppendedRow {
    page: u32,
    // Its place in the page.
    place: u32,
}

struct RotateAppendParams {
    // The first AppendedRow.
    first_row: u32,
    rows: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
}

// Four queries of one span that read the same keys; query i is head i % group of token i / group.
struct AttentionQuad {
    // The word with the sequence's first page.
    pages: u32,
    // Position of the span's first token, and its row.
    past: u32,
    row: u32,
    // The first query, and one past the span's last.
    first: u32,
    end: u32,
}

struct AttentionParams {
    // The first AttentionQuad.
    first_quad: u32,
    quads: u32,
    // Workgroups that share the positions of a quad.
    parts: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // Tokens that a query sees.
    window: u32,
    // What a query's product with a key is multiplied by.
    scale: f32,
    // A score s becomes soft_cap · tanh(s / soft_cap), where the pipeline caps.
    soft_cap: f32,
}

// Of argmax and sampling.
struct SamplingParams {
    // The first row's RowSampling.
    first: u32,
    rows: u32,
    vocab_size: u32,
}

// How the token of one row is drawn.
struct RowSampling {
    // 0: the likeliest.
    temperature: f32,
    // 0: all.
    top_k: u32,
    // 1: all.
    top_p: f32,
    // 0: all.
    min_p: f32,
    // Evenly distributed in 0..1.
    random: f32,
}

// What comes back for one row.
struct RowToken {
    token: u32,
    // The lowest id whose logit is not finite, or 0xffffffff.
    non_finite: u32,
    // The bits of that logit: as a float a NaN might lose some.
    logit_bits: u32,
}

// Of matvec, matmul and their naive versions, for one part of a matrix.
struct MatmulParams {
    // Tokens.
    rows: u32,
    // Columns of the matrix.
    inputs: u32,
    // Rows of the whole matrix: values between two tokens of the output.
    outputs: u32,
    // Its rows in this part.
    part_outputs: u32,
    // The first of them.
    first_output: u32,
    // 1 if there is a bias to add.
    has_bias: u32,
    // 1 if the output is added to.
    accumulate: u32,
}

struct EmbedParams {
    // Values: tokens × width.
    len: u32,
    // Columns of the table.
    width: u32,
    // Where the tokens start in the words.
    tokens: u32,
    // The first row of this part of the table.
    first_row: u32,
    // Its rows.
    part_rows: u32,
}

struct DeltaApplyParams {
    // Rows of the part.
    rows: u32,
    // Where the part starts in the matrix.
    first_row: u32,
    // Vectors of eight weights in a row.
    row_vecs: u32,
    // Tiles beside each other.
    column_tiles: u32,
    // The first RankPair.
    first_pair: u32,
    // Pairs of ranks, of all deltas together.
    pairs: u32,
}

// A pair of ranks of one chunk; places are in words of the factors.
struct RankPair {
    // Its A' in panel 0.
    a: u32,
    // Its B' in row 0.
    b: u32,
    // The shifts of its chunk.
    shifts: u32,
    // Pairs of its chunk.
    chunk_pairs: u32,
    // What is done with the chunk's sums after it: 1 they are added, −1 subtracted, 0 nothing, since
    // the chunk goes on.
    ends: i32,
}

struct DeltaDenseParams {
    // Vectors of eight weights.
    vecs: u32,
    // 0 to add, 1 to subtract.
    subtract: u32,
}

struct DeltaSparseParams {
    // Words that change.
    entries: u32,
    // 0 to add, 1 to subtract.
    subtract: u32,
}

// A word of the weights and what both its columns change by.
struct SparseWord {
    // Its place in the part.
    place: u32,
    // The even column's integer in the lower half, the odd one's in the upper.
    change: u32,
}

struct FingerprintParams {
    // Rows of the matrix.
    rows: u32,
    // Columns without padding.
    cols: u32,
    // Words in a row.
    row_words: u32,
    // Where the first part bound starts, in rows.
    first_row: u32,
    // Where the second part bound starts, in rows.
    second_row: u32,
    // Chunks of the whole matrix; values to be merged.
    count: u32,
    // The first workgroup's number among those of all parts.
    first_group: u32,
    // Workgroups of this dispatch.
    groups: u32,
    // Where the values to be merged start.
    source: u32,
    // Where the results go: one for each workgroup.
    result: u32,
}
