// The likeliest token of each row of logits, the first of equals, one workgroup a row. Twin:
// device/cpu/choose.rs.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
// Of each row: the token, the lowest id whose logit is not finite (or 0xffffffff), that logit.
@group(0) @binding(1) var<storage, read_write> results: array<u32>;
@group(1) @binding(0) var<uniform> params: ChooseParams;

const THREADS = 256u;
const NONE = 0xffffffffu;

var<workgroup> best: array<f32, 256>;
var<workgroup> ids: array<u32, 256>;
var<workgroup> bad: array<u32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= params.rows {
        return;
    }
    let row = index * params.vocab_size;
    var largest = -3.4028234e38;
    var id = NONE;
    var first_bad = NONE;
    for (var i = t; i < params.vocab_size; i += THREADS) {
        let logit = logits[row + i];
        if (bitcast<u32>(logit) & 0x7f800000u) == 0x7f800000u {
            first_bad = min(first_bad, i);
        } else if logit > largest || id == NONE {
            largest = logit;
            id = i;
        }
    }
    best[t] = largest;
    ids[t] = id;
    bad[t] = first_bad;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if t < half {
            let other = best[t + half];
            if other > best[t] || (other == best[t] && ids[t + half] < ids[t]) {
                best[t] = other;
                ids[t] = ids[t + half];
            }
            bad[t] = min(bad[t], bad[t + half]);
        }
    }
    if t == 0u {
        results[3u * index] = ids[0];
        results[3u * index + 1u] = bad[0];
        results[3u * index + 2u] = bitcast<u32>(logits[row + min(bad[0], params.vocab_size - 1u)]);
    }
}
