// Parameters of the shaders. Each structure has one of the same name and members in src/device/gpu/params.rs.

struct SiluMulParams {
    // Values.
    len: u32,
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
