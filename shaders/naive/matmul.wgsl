// The naive version of matmul.wgsl, to compare with: one thread an element of the output, nothing
// shared.

@group(0) @binding(0) var<storage, read> weights: array<u32>;
@group(0) @binding(1) var<storage, read> steps: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> unused: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: MatmulParams;

// Outputs, and tokens, of a workgroup.
override SIDE: u32;

@compute @workgroup_size(SIDE, SIDE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
) {
    let i = (group.z * groups.y + group.y) * SIDE + thread.x;
    let token = group.x * SIDE + thread.y;
    if i >= params.part_outputs || token >= params.rows {
        return;
    }
    let start = i * row_words(params.inputs);
    var sum = 0.0;
    for (var j = 0u; j < params.inputs; j++) {
        let pair = weights[start + j / 2u];
        sum += f32(column(pair, j)) * x[(params.first_row + token) * params.inputs + j];
    }
    let output = params.first_output + i;
    let at = (params.first_row + token) * params.outputs + output;
    out[at] = steps[output] * sum + select(0.0, bias[output], params.has_bias != 0u)
        + select(0.0, out[at], params.accumulate != 0u);
}
