// out[t] = step · N[token], for the tokens whose rows lie in this part of the table. Twin:
// device/cpu/embed.rs.

// Two i16 in each u32; a row takes `row_words`.
@group(0) @binding(0) var<storage, read> table: array<u32>;
// One for each row of the whole table.
@group(0) @binding(1) var<storage, read> steps: array<f32>;
// (tokens, width).
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: EmbedParams;
@group(1) @binding(1) var<storage, read> words: array<u32>;

override THREADS: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * THREADS + id.x;
    if i >= params.len {
        return;
    }
    let token = words[params.tokens + i / params.width];
    let row = token - params.first_row;
    if row < params.part_rows {
        let j = i % params.width;
        let pair = table[row * row_words(params.width) + j / 2u];
        out[i] = f32(column(pair, j)) * steps[token];
    }
}
