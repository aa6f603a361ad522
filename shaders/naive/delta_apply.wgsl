// N ← N ± Q for one chunk, two weights a thread, every factor read from memory where it is needed:
// what delta_apply.wgsl is measured against. Same bindings, parameters and pairs.

@group(0) @binding(0) var<storage, read_write> weights: array<u32>;
@group(0) @binding(1) var<storage, read> factors: array<u32>;
@group(1) @binding(0) var<uniform> params: DeltaApplyParams;
@group(1) @binding(1) var<storage, read> pairs: array<RankPair>;

override THREADS: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * THREADS + id.x;
    let row = i / (4u * params.row_vecs);
    let column = i % (4u * params.row_vecs);
    if row >= params.rows {
        return;
    }
    // The pairs are those of one chunk.
    let chunk = pairs[params.first_pair];
    let ends = pairs[params.first_pair + params.pairs - 1u].ends;
    let byte = params.first_row + row;
    let shift = (factors[chunk.shifts + byte / 4u] >> (8u * (byte % 4u))) & 0xffu;
    let half_panel = ROW_ALIGNMENT / 2u;
    let half = i32((1u << shift) >> 1u);
    var even = half;
    var odd = half;
    for (var p = 0u; p < params.pairs; p++) {
        let panel = chunk.a + ((column / half_panel) * chunk.chunk_pairs + p) * ROW_ALIGNMENT;
        let a = panel + column % half_panel;
        let b = factors[chunk.b + b_row(byte, chunk.chunk_pairs) + p * PANEL_ROWS];
        even += low(factors[a]) * low(b) + high(factors[a]) * high(b);
        odd += low(factors[a + half_panel]) * low(b) + high(factors[a + half_panel]) * high(b);
    }
    let q = pack(even >> shift, odd >> shift);
    weights[i] = select(subtract_pairs(weights[i], q), add_pairs(weights[i], q), ends == 1);
}
