// The token with the largest logit of each row, the first of equals, one workgroup a row. Twin:
// device/cpu/argmax.rs.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> results: array<RowToken>;
@group(1) @binding(0) var<uniform> params: SamplingParams;

// A vocabulary is a few hundred logits for each.
const THREADS = 256u;
const NONE = 0xffffffffu;

var<workgroup> best: array<f32, THREADS>;
var<workgroup> ids: array<u32, THREADS>;
var<workgroup> bad: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
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
        let at = row + min(bad[0], params.vocab_size - 1u);
        results[index] = RowToken(ids[0], bad[0], bitcast<u32>(logits[at]));
    }
}
