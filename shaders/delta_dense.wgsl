// N ← N ± D, with D laid out as N is. Eight weights a thread. Twin:
// device/cpu/delta_apply/delta_dense.rs.

@group(0) @binding(0) var<storage, read_write> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> delta: array<vec4<u32>>;
@group(1) @binding(0) var<uniform> params: DeltaDenseParams;

fn moved(n: u32, d: u32) -> u32 {
    return select(add_pairs(n, d), subtract_pairs(n, d), params.subtract != 0u);
}

override THREADS: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * THREADS + id.x;
    if i < params.vecs {
        let n = weights[i];
        let d = delta[i];
        weights[i] = vec4<u32>(moved(n.x, d.x), moved(n.y, d.y), moved(n.z, d.z), moved(n.w, d.w));
    }
}
