// N ← N ± Q for one chunk, two weights a thread, every factor read from memory where it is needed:
// what delta_apply.wgsl is measured against. Same bindings, parameters and slots.

@group(0) @binding(0) var<storage, read_write> weights: array<u32>;
@group(0) @binding(1) var<storage, read> factors: array<u32>;
@group(1) @binding(0) var<uniform> params: DeltaApplyParams;
@group(1) @binding(1) var<storage, read> words: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    let row = i / (4u * params.row_vecs);
    let column = i % (4u * params.row_vecs);
    if row >= params.rows {
        return;
    }
    let slot = params.first_slot;
    let pairs = words[slot + 2u] & 0xffu;
    let end = words[slot + 4u * (params.slots - 1u) + 2u] >> 8u;
    let byte = params.first_row + row;
    let shift = (factors[words[slot + 3u] + byte / 4u] >> (8u * (byte % 4u))) & 0xffu;
    let half = i32((1u << shift) >> 1u);
    var even = half;
    var odd = half;
    for (var p = 0u; p < params.slots; p++) {
        let a = words[slot] + ((column / 16u) * pairs + p) * 32u + column % 16u;
        let b = factors[words[slot + 1u] + byte * pairs + p];
        even += low(factors[a]) * low(b) + high(factors[a]) * high(b);
        odd += low(factors[a + 16u]) * low(b) + high(factors[a + 16u]) * high(b);
    }
    let q = pack(even >> shift, odd >> shift);
    weights[i] = select(subtract_pairs(weights[i], q), add_pairs(weights[i], q), end == 1u);
}
