// Parameters of the shaders. Each structure has one of the same name and members in src/device/gpu/params.rs.

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

struct RmsNormParams {
    rows: u32,
    // Values in a row.
    width: u32,
    eps: f32,
}

struct RotateAppendParams {
    // Place of the rows' slots and positions.
    words: u32,
    rows: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // Positions of one slot.
    capacity: u32,
}

struct AttentionParams {
    // Place of the quads: slot, position and row of the span's first token, first query, queries of the span.
    words: u32,
    quads: u32,
    // Workgroups that share the positions of a quad.
    parts: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // Positions of one slot.
    capacity: u32,
    // Tokens that a query sees.
    window: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
}

// Of likeliest and choose.
struct ChooseParams {
    // Place of the rows' choices.
    words: u32,
    rows: u32,
    vocab_size: u32,
}

// Of matvec, matmul and their plain versions, for one part of a matrix.
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
