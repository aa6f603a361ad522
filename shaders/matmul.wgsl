// out[t][i] = step_i · Σ_j N_ij x[t][j], plus bias_i, plus the old out[t][i], for any number of
// tokens: prefill. Twin: device/cpu/matmul.rs.
//
// A workgroup makes a tile of 64 outputs × TOKENS tokens from 16 inputs at a time: a thread eight
// outputs of every eighth token. Both factors lie in workgroup memory as f32, a row of 16 inputs in
// four fours; four v of row r is at v ^ (r / 2 % 4), so that eight threads which read the same v of
// eight rows meet no bank twice. A token's sum is taken in the same order wherever it lies in a
// tile.

// Two i16 in each u32; a row takes a multiple of 32 columns.
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

// Whether the inputs are a multiple of sixteen.
override ALIGNED: bool = true;
// 16, 32 or 64.
override TOKENS: u32 = 64u;
const OUTPUTS: u32 = 64u;
const THREADS: u32 = 64u;

var<workgroup> w_tile: array<vec4<f32>, OUTPUTS * 4u>;
var<workgroup> x_tile: array<vec4<f32>, TOKENS * 4u>;

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
    return row * 4u + (v ^ (row / 2u % 4u));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_output = (group.z * groups.y + group.y) * OUTPUTS;
    let first_token = group.x * TOKENS;
    let stride = (params.inputs + 31u) / 32u * 4u;
    // This thread's first output and token in the tile.
    let across = thread % 8u;
    let down = thread / 8u;

    var sums: array<array<f32, 8>, 8>;
    for (var j = 0u; j < params.inputs; j += 16u) {
        // Past the end the last row is read; its sums are not used.
        for (var k = thread; k < OUTPUTS * 2u; k += THREADS) {
            let row = k / 2u;
            let w = weights[min(first_output + row, params.part_outputs - 1u) * stride + j / 8u + k % 2u];
            let even = vec4<f32>(lows(w));
            let odd = vec4<f32>(highs(w));
            w_tile[place(row, k % 2u * 2u)] = vec4<f32>(even.x, odd.x, even.y, odd.y);
            w_tile[place(row, k % 2u * 2u + 1u)] = vec4<f32>(even.z, odd.z, even.w, odd.w);
        }
        for (var k = thread; k < TOKENS * 4u; k += THREADS) {
            x_tile[place(k / 4u, k % 4u)] = x_at(min(first_token + k / 4u, params.rows - 1u), j + k % 4u * 4u);
        }
        workgroupBarrier();
        for (var v = 0u; v < 4u; v++) {
            var w: array<vec4<f32>, 8>;
            for (var r = 0u; r < 8u; r++) {
                w[r] = w_tile[place(across + 8u * r, v)];
            }
            for (var t = 0u; t < TOKENS / 8u; t++) {
                let x = x_tile[place(down + 8u * t, v)];
                for (var r = 0u; r < 8u; r++) {
                    sums[t][r] += dot(w[r], x);
                }
            }
        }
        workgroupBarrier();
    }

    for (var t = 0u; t < TOKENS / 8u; t++) {
        let token = first_token + down + 8u * t;
        for (var r = 0u; r < 8u; r++) {
            let i = first_output + across + 8u * r;
            if token < params.rows && i < params.part_outputs {
                let output = params.first_output + i;
                let at = token * params.outputs + output;
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
