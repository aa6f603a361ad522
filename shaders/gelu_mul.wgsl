// gate ← gate / 2 · (1 + tanh(√(2/π) · (gate + 0.044715 gate³))) · up. Twin: device/cpu/gelu_mul.rs.

@group(0) @binding(0) var<storage, read_write> gate: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(1) @binding(0) var<uniform> params: GeluMulParams;

const SQRT_2_OVER_PI = 0.7978846;

override THREADS: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * THREADS + id.x;
    if i < params.len {
        let x = gate[i];
        let inner = SQRT_2_OVER_PI * fma(0.044715 * x * x, x, x);
        gate[i] = 0.5 * x * (1.0 + tanh4(vec4(inner)).x) * up[i];
    }
}
