// out[t][i] = step_i · Σ_j N_ij x[t][j], plus bias_i, plus the old out[t][i], for up to TOKENS rows of x: decode.
// Twin: device/cpu/matmul.rs.
//
// TEAM threads read four rows of weights side by side, eight columns a thread at a time, so every weight is read once and
// an x serves four of them; the team's sums meet in workgroup memory behind the one barrier. A token's sum is taken in the
// same order whichever place it has among the tokens.

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

override TOKENS: u32 = 8u;
const THREADS: u32 = 64u;
const TEAM: u32 = 16u;
const TEAMS: u32 = THREADS / TEAM;

// Sums over a thread's columns for four outputs, by token and thread.
var<workgroup> partial: array<vec4<f32>, TOKENS * THREADS>;

// Columns j to j + 3 of a token.
fn x_at(token: u32, j: u32) -> vec4<f32> {
    let at = token * params.inputs + j;
    if params.inputs % 4u == 0u {
        return select(vec4<f32>(), x_fours[at / 4u], j < params.inputs);
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
    let first = (group.z * groups.y + group.y) * TEAMS * 4u;
    let row = first + thread / TEAM * 4u;
    // Past the end the last row is read; its sums are not used.
    let rows = min(row + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.part_outputs - 1u));
    let starts = rows * ((params.inputs + 31u) / 32u * 4u);

    var sums: array<vec4<f32>, 8>;
    for (var chunk = thread % TEAM; chunk * 8u < params.inputs; chunk += TEAM) {
        let w0 = weights[starts.x + chunk];
        let w1 = weights[starts.y + chunk];
        let w2 = weights[starts.z + chunk];
        let w3 = weights[starts.w + chunk];
        for (var token = 0u; token < TOKENS; token++) {
            let t = min(token, params.rows - 1u);
            let a = x_at(t, chunk * 8u);
            let b = x_at(t, chunk * 8u + 4u);
            let even = vec4<f32>(a.xz, b.xz);
            let odd = vec4<f32>(a.yw, b.yw);
            sums[token] += vec4<f32>(
                dot(lows(w0), even) + dot(highs(w0), odd),
                dot(lows(w1), even) + dot(highs(w1), odd),
                dot(lows(w2), even) + dot(highs(w2), odd),
                dot(lows(w3), even) + dot(highs(w3), odd),
            );
        }
    }
    for (var token = 0u; token < TOKENS; token++) {
        partial[token * THREADS + thread] = sums[token];
    }
    workgroupBarrier();

    for (var k = thread; k < TEAMS * 4u * TOKENS; k += THREADS) {
        let token = k / (TEAMS * 4u);
        let here = k % (TEAMS * 4u);
        let i = first + here;
        if i < params.part_outputs && token < params.rows {
            var sum = 0.0;
            for (var member = 0u; member < TEAM; member++) {
                sum += partial[token * THREADS + here / 4u * TEAM + member][here % 4u];
            }
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
}
