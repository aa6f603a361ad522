// N ← N ± the entries of a sparse delta: each the place of a word in the weights and what both its
// columns move by. No two name the same word, so every thread has its word to itself. Twin:
// device/cpu/delta_apply/mod.rs, `scatter`.

@group(0) @binding(0) var<storage, read_write> weights: array<u32>;
@group(0) @binding(1) var<storage, read> entries: array<vec2<u32>>;
@group(1) @binding(0) var<uniform> params: DeltaSparseParams;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    if i < params.entries {
        let entry = entries[i];
        let n = weights[entry.x];
        weights[entry.x] = select(add_pairs(n, entry.y), subtract_pairs(n, entry.y), params.subtract != 0u);
    }
}
