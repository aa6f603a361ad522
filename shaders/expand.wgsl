// out[t][i] += step_i · 2^(−s_i) · Σ_r B'_ir · s[t][r] for every chunk of factors that is not in the
// weights and row t has, from the sums of shrink.wgsl. Twin: device/cpu/expand.rs.
//
// A workgroup makes THREADS outputs, one a thread, of a block of ROWS rows: it goes through the
// terms of its block from the top of the tree down, and every word of B' (two ranks of one output)
// serves all the rows that the term is for. Each term is added to the output itself, so where a list
// of terms is cut changes no bit.

@group(0) @binding(0) var<storage, read> factors: array<u32>;
// By chunk and row, the pairs of its ranks.
@group(0) @binding(1) var<storage, read> shrunk: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> steps: array<f32>;
// (tokens, outputs).
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: ExpandParams;
@group(1) @binding(1) var<storage, read> terms: array<ExpandTerm>;

// At most MOST.
override ROWS: u32;
override THREADS: u32;
// Arrays of a thread are sized by constants alone.
const MOST = 8u;

// 2^(−shift), of a byte of the shifts.
fn power(shifts: u32, i: u32) -> f32 {
    let shift = (factors[shifts + i / 4u] >> (8u * (i % 4u))) & 0xffu;
    return bitcast<f32>((127u - shift) << 23u);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) ids: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = id.y * ids.x + id.x;
    let block = index / params.tiles;
    let i = index % params.tiles * THREADS + thread;
    if block >= params.blocks || i >= params.outputs {
        return;
    }
    let first = terms[params.first_term + block];
    let first_row = first.block_row;
    var y: array<f32, MOST>;
    for (var t = 0u; t < ROWS; t++) {
        y[t] = out[min(first_row + t, params.rows - 1u) * params.outputs + i];
    }
    for (var k = 0u; k <= first.more; k++) {
        let term = terms[params.first_term + select(first.next + k - 1u, block, k == 0u)];
        let b = term.b + b_row(i, term.pairs);
        // Rows that the term is not for take another's sums, and do not use them.
        var places: array<u32, MOST>;
        for (var t = 0u; t < ROWS; t++) {
            let row = clamp(first_row + t, term.first_row, term.end_row - 1u);
            places[t] = term.sums + (row - term.first_row) * term.pairs;
        }
        var sums: array<f32, MOST>;
        for (var p = 0u; p < term.pairs; p++) {
            let both = factors[b + p * PANEL_ROWS];
            let weights = vec2<f32>(f32(low(both)), f32(high(both)));
            for (var t = 0u; t < ROWS; t++) {
                sums[t] += dot(weights, shrunk[places[t] + p]);
            }
        }
        let scale = steps[i] * power(term.shifts, i);
        for (var t = 0u; t < ROWS; t++) {
            let row = first_row + t;
            if row >= term.first_row && row < term.end_row {
                y[t] += scale * sums[t];
            }
        }
    }
    for (var t = 0u; t < ROWS; t++) {
        if first_row + t < params.rows {
            out[(first_row + t) * params.outputs + i] = y[t];
        }
    }
}
