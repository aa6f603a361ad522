// Parameters of the shaders. Each structure has one of the same name and members in src/device/gpu/params.rs.

struct SiluMulParams {
    // Values.
    len: u32,
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
    // Where the slots start in the words.
    first_slot: u32,
    // Slots: pairs of ranks.
    slots: u32,
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
