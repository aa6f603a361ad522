// What the device could do at best: memory passes and multiply-adds with nothing else in them.
// Twin: device/cpu/ceiling.rs. Every entry point writes what it made, or
// seems to, so that nothing is left out.

@group(0) @binding(0) var<storage, read_write> words_of: array<vec4<u32>>;
@group(1) @binding(0) var<uniform> params: CeilingParams;

override THREADS: u32;

fn index(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.y * groups.x * THREADS + id.x;
}

// Changes one bit of every word; a second run changes it back.
@compute @workgroup_size(THREADS)
fn read_modify_write(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = index(id, groups);
    if i < params.count {
        words_of[i] = words_of[i] ^ vec4<u32>(1u);
    }
}

// Every invocation reads `per_invocation` vectors, a workgroup's side by side.
@compute @workgroup_size(THREADS)
fn read(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let first = (group.y * groups.x + group.x) * THREADS * params.per_invocation + local;
    var sum = vec4<u32>();
    for (var k = 0u; k < params.per_invocation; k++) {
        let i = first + k * THREADS;
        if i < params.count {
            sum += words_of[i];
        }
    }
    if all(sum == vec4<u32>(0x9e3779b9u)) {
        words_of[0] = sum;
    }
}

// 16 products a step.
@compute @workgroup_size(THREADS)
fn integers(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = bitcast<i32>(id.x | 1u);
    var a = vec4<i32>(x, x + 1, x + 2, x + 3);
    var b = a + 4;
    var c = a + 8;
    var d = a + 12;
    for (var k = 0u; k < params.per_invocation; k++) {
        a = a * x + b;
        b = b * x + c;
        c = c * x + d;
        d = d * x + a;
    }
    if all(a + b + c + d == vec4<i32>(0x1234567)) {
        words_of[0] = vec4<u32>(id.x);
    }
}

// 16 products a step.
@compute @workgroup_size(THREADS)
fn floats(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = 1.0 / f32(id.x + 2u);
    var a = vec4<f32>(x, x + 1.0, x + 2.0, x + 3.0);
    var b = a + 4.0;
    var c = a + 8.0;
    var d = a + 12.0;
    for (var k = 0u; k < params.per_invocation; k++) {
        a = a * x + b;
        b = b * x + c;
        c = c * x + d;
        d = d * x + a;
    }
    if all(a + b + c + d == vec4<f32>(-1.0)) {
        words_of[0] = vec4<u32>(id.x);
    }
}
