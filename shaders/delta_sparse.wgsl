// N ← N ± the entries of a sparse delta, by words. No two name the same word, so every thread has
// its word to itself. Twin: device/cpu/delta_apply/delta_sparse.rs.

@group(0) @binding(0) var<storage, read_write> weights: array<u32>;
@group(0) @binding(1) var<storage, read> entries: array<SparseWord>;
@group(1) @binding(0) var<uniform> params: DeltaSparseParams;

override THREADS: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * THREADS + id.x;
    if i < params.entries {
        let entry = entries[i];
        let n = weights[entry.place];
        let added = add_pairs(n, entry.change);
        let subtracted = subtract_pairs(n, entry.change);
        weights[entry.place] = select(added, subtracted, params.subtract != 0u);
    }
}
