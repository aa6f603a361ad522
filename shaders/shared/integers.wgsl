// Two i16 in a u32: the even column in the lower half, the odd one in the upper.

// Columns that every row is padded with zeros to a multiple of: `LANES` of src/lattice/matrix.rs.
override ROW_ALIGNMENT: u32;

// Words that a row of so many columns takes.
fn row_words(columns: u32) -> u32 {
    return (columns + ROW_ALIGNMENT - 1u) / ROW_ALIGNMENT * (ROW_ALIGNMENT / 2u);
}

// Rows in one panel of B': `PANEL_ROWS` of src/lattice/delta.rs. For each pair of ranks a panel has a
// word of each row.
override PANEL_ROWS: u32 = ROW_ALIGNMENT / 2u;

// Where in the words of B' of a chunk of so many pairs a row's first pair lies; the next ones follow
// every PANEL_ROWS.
fn b_row(row: u32, pairs: u32) -> u32 {
    return row / PANEL_ROWS * PANEL_ROWS * pairs + row % PANEL_ROWS;
}

fn low(pair: u32) -> i32 {
    return bitcast<i32>(pair << 16u) >> 16u;
}

fn high(pair: u32) -> i32 {
    return bitcast<i32>(pair) >> 16u;
}

// The even or the odd column of a pair, as column j of a row is.
fn column(pair: u32, j: u32) -> i32 {
    return select(low(pair), high(pair), j % 2u == 1u);
}

// The even columns of four pairs, and the odd ones.
fn lows(pairs: vec4<u32>) -> vec4<i32> {
    return bitcast<vec4<i32>>(pairs << vec4<u32>(16u)) >> vec4<u32>(16u);
}

fn highs(pairs: vec4<u32>) -> vec4<i32> {
    return bitcast<vec4<i32>>(pairs) >> vec4<u32>(16u);
}

// Both halves, each modulo 2^16.
fn pack(even: i32, odd: i32) -> u32 {
    return (bitcast<u32>(even) & 0xffffu) | (bitcast<u32>(odd) << 16u);
}

// Adds two pairs, half by half, modulo 2^16.
fn add_pairs(a: u32, b: u32) -> u32 {
    return ((a & 0x7fff7fffu) + (b & 0x7fff7fffu)) ^ ((a ^ b) & 0x80008000u);
}

// Subtracts two pairs, half by half, modulo 2^16.
fn subtract_pairs(a: u32, b: u32) -> u32 {
    return ((a | 0x80008000u) - (b & 0x7fff7fffu)) ^ ((a ^ ~b) & 0x80008000u);
}
