// out[t][i] = step_i · Σ_j N_ij x[t][j], plus bias_i, plus the old out[t][i], for any number of
// tokens: prefill. Twin: device/cpu/matmul.rs.
//
// A workgroup makes a tile of OUTPUTS outputs × TOKENS tokens from INPUTS inputs at a time: a thread
// every eighth output of every eighth token, so that both factors of eight products by eight come
// from sixteen reads of workgroup memory. Both lie there as f32, a row of INPUTS in fours; four v of
// row r is at v ^ (r / 2 % 4), so that eight threads which read the same v of eight rows meet no
// bank twice. A token's sum is taken in the same order wherever it lies in a tile.

// Two i16 in each u32; a row takes `row_words`.
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
// One for each row of the whole matrix.
@group(0) @binding(1) var<storage, read> steps: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
// (tokens, inputs), by single values and, if ALIGNED, by fours.
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> x_fours: array<vec4<f32>>;
// (tokens, outputs).
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: MatmulParams;

// Whether all inputs are a multiple of INPUTS.
override ALIGNED: bool;
// A multiple of 8, at most MOST times that.
override TOKENS: u32;
override OUTPUTS: u32;
override INPUTS: u32;
// Threads across the outputs, and down the tokens.
const SIDE = 8u;
// Outputs, and tokens at most, of one thread.
const MOST = 8u;
override THREADS: u32 = SIDE * SIDE;
// Fours of inputs.
override FOURS: u32 = INPUTS / 4u;

var<workgroup> w_tile: array<vec4<f32>, OUTPUTS * FOURS>;
var<workgroup> x_tile: array<vec4<f32>, TOKENS * FOURS>;

// Columns j to j + 3 of a token; zeros past its end.
fn x_at(token: u32, j: u32) -> vec4<f32> {
    let at = token * params.inputs + j;
    if ALIGNED {
        return x_fours[at / 4u];
    }
    let valid = j + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.inputs);
    return select(vec4<f32>(), vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]), valid);
}

// Where four v of a row lies in a tile.
fn place(row: u32, v: u32) -> u32 {
    return row * FOURS + (v ^ (row / 2u % FOURS));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_output = (group.z * groups.y + group.y) * OUTPUTS;
    let first_token = group.x * TOKENS;
    let stride = row_words(params.inputs) / 4u;
    // This thread's first output and token in the tile.
    let across = thread % SIDE;
    let down = thread / SIDE;

    var sums: array<array<f32, MOST>, MOST>;
    for (var j = 0u; j < params.inputs; j += INPUTS) {
        // Past the end the last row is read; its sums are not used. A vector holds two fours.
        for (var k = thread; k < OUTPUTS * FOURS / 2u; k += THREADS) {
            let row = k / (FOURS / 2u);
            let vec = k % (FOURS / 2u);
            let w = weights[min(first_output + row, params.part_outputs - 1u) * stride + j / 8u + vec];
            let even = vec4<f32>(lows(w));
            let odd = vec4<f32>(highs(w));
            w_tile[place(row, vec * 2u)] = vec4<f32>(even.x, odd.x, even.y, odd.y);
            w_tile[place(row, vec * 2u + 1u)] = vec4<f32>(even.z, odd.z, even.w, odd.w);
        }
        for (var k = thread; k < TOKENS * FOURS; k += THREADS) {
            let token = params.first_row + min(first_token + k / FOURS, params.rows - 1u);
            x_tile[place(k / FOURS, k % FOURS)] = x_at(token, j + k % FOURS * 4u);
        }
        workgroupBarrier();
        for (var v = 0u; v < FOURS; v++) {
            var w: array<vec4<f32>, MOST>;
            for (var r = 0u; r < MOST; r++) {
                w[r] = w_tile[place(across + SIDE * r, v)];
            }
            for (var t = 0u; t < TOKENS / SIDE; t++) {
                let x = x_tile[place(down + SIDE * t, v)];
                for (var r = 0u; r < MOST; r++) {
                    sums[t][r] += dot(w[r], x);
                }
            }
        }
        workgroupBarrier();
    }

    for (var t = 0u; t < TOKENS / SIDE; t++) {
        let token = first_token + down + SIDE * t;
        for (var r = 0u; r < MOST; r++) {
            let i = first_output + across + SIDE * r;
            if token < params.rows && i < params.part_outputs {
                let output = params.first_output + i;
                let at = (params.first_row + token) * params.outputs + output;
                var y = steps[output] * sums[t][r];
                if params.has_bias != 0u {
                    y += bias[output];
                }
                if params.accumulate != 0u {
                    y += out[at];
                }
                out[at] = y;
            }
        }
    }
}
