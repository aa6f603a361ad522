// out[t][i] = step_i · Σ_j N_ij x[t][j], plus bias_i, plus the old out[t][i], for any number of tokens: prefill.
// Twin: device/cpu/matmul.rs.
//
// A workgroup makes a tile of 64 outputs × 64 tokens from 32 inputs at a time, a thread 4 × 4 of it. Both factors lie in
// workgroup memory as f32, a row of 32 inputs in eight fours; four v of row r is at v ^ (r % 8), so that eight threads which
// read the same v of eight rows meet no bank twice. A token's sum is taken in the same order wherever it lies in a tile.

// Two i16 in each u32; a row takes a multiple of 32 columns.
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
// One for each row of the whole matrix.
@group(0) @binding(1) var<storage, read> steps: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
// (tokens, inputs), once by single values and, if the inputs are a multiple of four, once by fours.
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> x_fours: array<vec4<f32>>;
// (tokens, outputs).
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: MatmulParams;

// Outputs and tokens of a tile.
const TILE: u32 = 64u;

var<workgroup> w_tile: array<vec4<f32>, TILE * 8u>;
var<workgroup> x_tile: array<vec4<f32>, TILE * 8u>;

// Columns j to j + 3 of a token.
fn x_at(token: u32, j: u32) -> vec4<f32> {
    let at = token * params.inputs + j;
    if params.inputs % 4u == 0u {
        return select(vec4<f32>(), x_fours[at / 4u], j < params.inputs);
    }
    let valid = j + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.inputs);
    return select(vec4<f32>(), vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]), valid);
}

// Writes step · sum of one output for one token.
fn finish(token: u32, i: u32, sum: f32) {
    if token < params.rows && i < params.part_outputs {
        let output = params.first_output + i;
        let at = token * params.outputs + output;
        var y = steps[output] * sum;
        if params.has_bias != 0u {
            y += bias[output];
        }
        if params.accumulate != 0u {
            y += out[at];
        }
        out[at] = y;
    }
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_output = (group.z * groups.y + group.y) * TILE;
    let first_token = group.x * TILE;
    // What this thread brings: one four of u32 (eight inputs of one output) and two fours of x (of two tokens).
    // Past the end the last row is read; its sums are not used.
    let w_row = index / 4u;
    let w_four = index % 4u;
    let w_from = min(first_output + w_row, params.part_outputs - 1u) * ((params.inputs + 31u) / 32u * 4u) + w_four;
    let w_at = w_row * 8u + ((w_four * 2u) ^ (w_row % 8u));
    let x_row = index / 8u;
    let x_four = index % 8u;
    let x_at_0 = x_row * 8u + (x_four ^ (x_row % 8u));
    let token_0 = min(first_token + x_row, params.rows - 1u);
    let token_1 = min(first_token + x_row + 32u, params.rows - 1u);
    // What it sums: outputs thread.x + 16 k, tokens 4 thread.y + k.
    let live = first_token + thread.y * 4u < params.rows;
    let swizzle = thread.x % 8u;

    var sums_0 = vec4<f32>();
    var sums_1 = vec4<f32>();
    var sums_2 = vec4<f32>();
    var sums_3 = vec4<f32>();
    for (var j = 0u; j < params.inputs; j += 32u) {
        let w = weights[w_from + j / 8u];
        let low = lows(w);
        let high = highs(w);
        w_tile[w_at] = vec4<f32>(low.x, high.x, low.y, high.y);
        w_tile[w_at ^ 1u] = vec4<f32>(low.z, high.z, low.w, high.w);
        x_tile[x_at_0] = x_at(token_0, j + x_four * 4u);
        x_tile[x_at_0 + 256u] = x_at(token_1, j + x_four * 4u);
        workgroupBarrier();
        if live {
            for (var v = 0u; v < 8u; v++) {
                let at = thread.x * 8u + (v ^ swizzle);
                let w0 = w_tile[at];
                let w1 = w_tile[at + 128u];
                let w2 = w_tile[at + 256u];
                let w3 = w_tile[at + 384u];
                let row = thread.y * 32u;
                let turn = thread.y * 4u % 8u;
                let x0 = x_tile[row + (v ^ turn)];
                sums_0 += vec4<f32>(dot(w0, x0), dot(w1, x0), dot(w2, x0), dot(w3, x0));
                let x1 = x_tile[row + 8u + (v ^ (turn + 1u))];
                sums_1 += vec4<f32>(dot(w0, x1), dot(w1, x1), dot(w2, x1), dot(w3, x1));
                let x2 = x_tile[row + 16u + (v ^ (turn + 2u))];
                sums_2 += vec4<f32>(dot(w0, x2), dot(w1, x2), dot(w2, x2), dot(w3, x2));
                let x3 = x_tile[row + 24u + (v ^ (turn + 3u))];
                sums_3 += vec4<f32>(dot(w0, x3), dot(w1, x3), dot(w2, x3), dot(w3, x3));
            }
        }
        workgroupBarrier();
    }
    let token = first_token + thread.y * 4u;
    for (var k = 0u; k < 4u; k++) {
        let i = first_output + thread.x + 16u * k;
        finish(token, i, sums_0[k]);
        finish(token + 1u, i, sums_1[k]);
        finish(token + 2u, i, sums_2[k]);
        finish(token + 3u, i, sums_3[k]);
    }
}
