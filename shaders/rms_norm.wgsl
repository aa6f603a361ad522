// out[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight, one workgroup a row, its sum by halves. Twin:
// device/cpu/rms_norm.rs. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: RmsNormParams;

// Each takes a few of the hundreds or thousands of values of a row.
const THREADS = 256u;

var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var sum = 0.0;
    for (var i = t; i < params.width; i += THREADS) {
        sum = fma(x[first + i], x[first + i], sum);
    }
    sums[t] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if t < half {
            sums[t] += sums[t + half];
        }
    }
    workgroupBarrier();
    let scale = 1.0 / sqrt(sums[0] / f32(params.width) + params.eps);
    for (var i = t; i < params.width; i += THREADS) {
        out[first + i] = x[first + i] * scale * weight[i];
    }
}
