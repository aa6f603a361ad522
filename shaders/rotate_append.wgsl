// Rotates queries in place, and new keys on their way into their pages; appends the values. Twin:
// device/cpu/rotate_append.rs.
//
// With h = head_dim / 2: x_j, x_{j+h} ← x_j·cos_j − x_{j+h}·sin_j, x_{j+h}·cos_j + x_j·sin_j. One
// invocation takes one such pair of a query, or four neighbours of a key or value. A head in a
// page is padded with zeros to whole vec4.

@group(0) @binding(0) var<storage, read_write> queries: array<f32>;
@group(0) @binding(1) var<storage, read> new_keys: array<f32>;
@group(0) @binding(2) var<storage, read> new_values: array<f32>;
// (rows, head_dim): cosines, then sines.
@group(0) @binding(3) var<storage, read> angles: array<f32>;
// [page][kv_head][head_dim / 4][PAGE]
@group(0) @binding(4) var<storage, read_write> keys: array<vec4<f32>>;
// [page][kv_head][PAGE][head_dim / 4]
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>;
@group(1) @binding(0) var<uniform> params: RotateAppendParams;
@group(1) @binding(1) var<storage, read> rows: array<AppendedRow>;

// Positions in a page.
override PAGE: u32;
override THREADS: u32;

// Element d of a key's head that starts at `first`, rotated.
fn rotated(first: u32, d: u32, angle: u32) -> f32 {
    let half = params.head_dim / 2u;
    if d < half {
        return new_keys[first + d] * angles[angle + d] - new_keys[first + d + half] * angles[angle + d + half];
    }
    return new_keys[first + d] * angles[angle + d - half] + new_keys[first + d - half] * angles[angle + d];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let dim = params.head_dim;
    let half = dim / 2u;
    let fours = (dim + 3u) / 4u;
    let pairs = params.heads * half;
    let a_row = pairs + 2u * params.kv_heads * fours;
    let i = id.y * groups.x * THREADS + id.x;
    let row = i / a_row;
    if row >= params.rows {
        return;
    }
    let angle = row * dim;
    var item = i % a_row;
    if item < pairs {
        let j = item % half;
        let at = (row * params.heads + item / half) * dim + j;
        let a = queries[at];
        let b = queries[at + half];
        let cosine = angles[angle + j];
        let sine = angles[angle + j + half];
        queries[at] = a * cosine - b * sine;
        queries[at + half] = b * cosine + a * sine;
        return;
    }
    item -= pairs;
    let is_key = item < params.kv_heads * fours;
    item %= params.kv_heads * fours;
    let kv_head = item / fours;
    let four = item % fours;
    let to = rows[params.first_row + row];
    let region = (to.page * params.kv_heads + kv_head) * PAGE * fours;
    let first = (row * params.kv_heads + kv_head) * dim;
    var values_of_four = vec4(0.0);
    for (var k = 0u; k < 4u; k++) {
        let d = 4u * four + k;
        if d < dim {
            if is_key {
                values_of_four[k] = rotated(first, d, angle);
            } else {
                values_of_four[k] = new_values[first + d];
            }
        }
    }
    if is_key {
        keys[region + four * PAGE + to.place] = values_of_four;
    } else {
        values[region + to.place * fours + four] = values_of_four;
    }
}
