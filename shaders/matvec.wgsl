// out[t][i] = step_i · Σ_j N_ij x[t][j], plus bias_i, plus the old out[t][i], for up to TOKENS
// tokens: decode. Twin: device/cpu/matmul.rs.
//
// TEAM threads read ROWS rows of weights side by side, eight columns of each at a time: every
// weight is read once, and every x serves all the rows. The team's sums meet in workgroup memory
// behind the one barrier. A token's sum is taken in the same order whichever place it has among the
// tokens.

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

// Whether x can be read by fours, eight inputs at a time.
override ALIGNED: bool;
// At most MOST, as are the rows.
override TOKENS: u32;
override ROWS: u32;
// Divides THREADS.
override TEAM: u32;
override THREADS: u32;
// Arrays of a thread are sized by constants alone.
const MOST = 8u;

// Sums over a thread's columns, by token, row of its team, and thread; one value between two rows
// turns the banks.
var<workgroup> partial: array<f32, TOKENS * ROWS * (THREADS + 1u)>;

// Columns j to j + 3 of a token; zeros past its end.
fn x_at(token: u32, j: u32) -> vec4<f32> {
    let at = token * params.inputs + j;
    if ALIGNED {
        return x_fours[at / 4u];
    }
    let valid = j + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.inputs);
    return select(vec4<f32>(), vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]), valid);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let outputs = THREADS / TEAM * ROWS;
    let first_output = (group.z * groups.y + group.y) * outputs;
    // Past the end the last row is read; its sums are not used.
    var starts: array<u32, MOST>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(first_output + thread / TEAM * ROWS + r, params.part_outputs - 1u);
        starts[r] = row * (row_words(params.inputs) / 4u);
    }

    var sums: array<array<f32, MOST>, MOST>;
    for (var chunk = thread % TEAM; chunk * 8u < params.inputs; chunk += TEAM) {
        var w: array<vec4<u32>, MOST>;
        for (var r = 0u; r < ROWS; r++) {
            w[r] = weights[starts[r] + chunk];
        }
        for (var t = 0u; t < TOKENS; t++) {
            let token = params.first_row + min(t, params.rows - 1u);
            let a = x_at(token, chunk * 8u);
            let b = x_at(token, chunk * 8u + 4u);
            let even = vec4<f32>(a.xz, b.xz);
            let odd = vec4<f32>(a.yw, b.yw);
            for (var r = 0u; r < ROWS; r++) {
                sums[t][r] += dot(vec4<f32>(lows(w[r])), even) + dot(vec4<f32>(highs(w[r])), odd);
            }
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        for (var r = 0u; r < ROWS; r++) {
            partial[(t * ROWS + r) * (THREADS + 1u) + thread] = sums[t][r];
        }
    }
    workgroupBarrier();

    for (var k = thread; k < TOKENS * outputs; k += THREADS) {
        let token = k / outputs;
        let i = k % outputs;
        if first_output + i < params.part_outputs && token < params.rows {
            let team = (token * ROWS + i % ROWS) * (THREADS + 1u) + i / ROWS * TEAM;
            var sum = 0.0;
            for (var member = 0u; member < TEAM; member++) {
                sum += partial[team + member];
            }
            let output = params.first_output + first_output + i;
            let at = (params.first_row + token) * params.outputs + output;
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
}
