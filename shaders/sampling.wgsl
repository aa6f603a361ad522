// Draws a token from each row of logits, one workgroup a row, where `argmax` has been before. Twin:
// device/cpu/sampling.rs.
//
// Tokens are ranked by `key`, the order of their logits as integers, and among equals by id. The
// tokens that top-k, top-p and min-p keep are those with a key above `threshold`, and of those at
// it the ones up to id `last`. A sort would read and write the vocabulary many times; the
// threshold is found by a search over keys instead, which divides the range by 16 in a pass, so by
// 2^32 in eight. Every sum is made in an order fixed by the vocabulary.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
// The token is the likeliest one before; the rest is left as it is.
@group(0) @binding(1) var<storage, read_write> results: array<RowToken>;
@group(1) @binding(0) var<uniform> params: SamplingParams;
@group(1) @binding(1) var<storage, read> rows: array<RowSampling>;

const THREADS = 256u;
const NONE = 0xffffffffu;
// What is summed: 1 for every token that is kept, its weight, or 1 if its key is the threshold.
const COUNT = 0u;
const WEIGHT = 1u;
const AT_THRESHOLD = 2u;

var<workgroup> scratch: array<f32, 4u * THREADS>;
var<workgroup> sums: array<f32, THREADS>;
var<workgroup> totals: array<f32, 16>;
var<workgroup> picked: u32;

var<private> likeliest: u32;
var<private> t: u32;
var<private> row: u32;
var<private> temperature: f32;
var<private> best: f32;
var<private> best_key: u32;
var<private> threshold: u32;
var<private> last: u32;

// Ascends with the logit; −0 and 0 are equal.
fn key_of(logit: f32) -> u32 {
    let bits = select(bitcast<u32>(logit), 0u, logit == 0.0);
    return select(bits | 0x80000000u, ~bits, bits >> 31u == 1u);
}

// A logit with this key.
fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >> 31u == 1u));
}

// What token `id` adds to a sum.
fn summand(what: u32, id: u32, logit: f32, key: u32) -> f32 {
    if key < threshold || (key == threshold && id > last) || (what == AT_THRESHOLD && key != threshold) {
        return 0.0;
    }
    if what != WEIGHT || logit == best {
        return 1.0;
    }
    return exp((logit - best) / temperature);
}

// The sums over the tokens with a key of at least lowest + step · (1 to 16), in `totals`.
fn sum_from(what: u32, lowest: u32, step: u32) {
    let offsets = vec4(1u, 2u, 3u, 4u);
    var parts = array(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    for (var id = t; id < params.vocab_size; id += THREADS) {
        let logit = logits[row + id];
        let key = key_of(logit);
        let more = vec4(summand(what, id, logit, key));
        parts[0] += select(vec4(0.0), more, vec4(key) >= lowest + step * offsets);
        parts[1] += select(vec4(0.0), more, vec4(key) >= lowest + step * (offsets + 4u));
        parts[2] += select(vec4(0.0), more, vec4(key) >= lowest + step * (offsets + 8u));
        parts[3] += select(vec4(0.0), more, vec4(key) >= lowest + step * (offsets + 12u));
    }
    for (var four = 0u; four < 4u; four++) {
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            scratch[k * THREADS + t] = parts[four][k];
        }
        workgroupBarrier();
        if t < 64u {
            var sum = 0.0;
            for (var i = 0u; i < 16u; i++) {
                sum += scratch[t / 16u * THREADS + t % 16u + 16u * i];
            }
            sums[four * 64u + t] = sum;
        }
    }
    workgroupBarrier();
    if t < 16u {
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) {
            sum += sums[16u * t + i];
        }
        totals[t] = sum;
    }
    workgroupBarrier();
}

// Moves the threshold to the highest key from which on the sum reaches `enough`; returns the sum
// above it.
fn search(what: u32, enough: f32) -> f32 {
    var lowest = 0u;
    var end = best_key + 1u;
    var above = 0.0;
    for (var pass_number = 0u; pass_number < 8u; pass_number++) {
        let step = (end - lowest + 15u) / 16u;
        sum_from(what, lowest, step);
        var reached = 0u;
        for (var i = 0u; i < 16u; i++) {
            if totals[i] >= enough {
                reached = i + 1u;
            } else {
                above = max(above, totals[i]);
            }
        }
        lowest += reached * step;
        end = min(end, lowest + step);
    }
    threshold = lowest;
    return above;
}

// Walks over ids until `share` of the whole sum, plus `more`, is used up; returns the id that uses
// it up, or the last that adds to the sum.
fn walk(what: u32, share: f32, more: f32) -> u32 {
    // Of 64 stretches, each read by 16 neighbours side by side, the one it happens in.
    let stretch_len = (params.vocab_size + 1023u) / 1024u * 16u;
    workgroupBarrier();
    if t == 0u {
        picked = likeliest;
    }
    for (var stretch = t / 16u; stretch < 64u; stretch += 16u) {
        let end = min((stretch + 1u) * stretch_len, params.vocab_size);
        var sum = 0.0;
        for (var id = stretch * stretch_len + t % 16u; id < end; id += 16u) {
            sum += summand(what, id, logits[row + id], key_of(logits[row + id]));
        }
        scratch[stretch * 16u + t % 16u] = sum;
    }
    workgroupBarrier();
    if t < 64u {
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) {
            sum += scratch[16u * t + i];
        }
        sums[t] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < 64u; i++) {
        total += sums[i];
    }
    let stretch = pick(64u, share * total + more);
    // Of 256 pieces of the stretch, the one.
    let piece_len = (stretch_len + THREADS - 1u) / THREADS;
    let first = u32(stretch.x) * stretch_len + t * piece_len;
    let end = min(min(first + piece_len, (u32(stretch.x) + 1u) * stretch_len), params.vocab_size);
    var sum = 0.0;
    for (var id = first; id < end; id++) {
        sum += summand(what, id, logits[row + id], key_of(logits[row + id]));
    }
    workgroupBarrier();
    sums[t] = sum;
    workgroupBarrier();
    let piece = pick(THREADS, stretch.y);
    if t == u32(piece.x) {
        var left = piece.y;
        for (var id = first; id < end; id++) {
            let here = summand(what, id, logits[row + id], key_of(logits[row + id]));
            if here > 0.0 && left >= 0.0 {
                picked = id;
                left -= here;
            }
        }
    }
    workgroupBarrier();
    return picked;
}

// The first of `count` sums that uses up `amount`, or the last that is positive; and what is left
// before it.
fn pick(count: u32, amount: f32) -> vec2<f32> {
    var left = amount;
    var found = vec2(0.0, amount);
    for (var i = 0u; i < count; i++) {
        if sums[i] > 0.0 && left >= 0.0 {
            found = vec2(f32(i), left);
            left -= sums[i];
        }
    }
    return found;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= params.rows {
        return;
    }
    let how = rows[params.first + index];
    temperature = how.temperature;
    if temperature == 0.0 {
        return;
    }
    t = invocation;
    row = index * params.vocab_size;
    likeliest = results[index].token;
    best = logits[row + likeliest];
    best_key = key_of(best);
    threshold = 0u;
    last = NONE;
    if how.top_k != 0u {
        let above = search(COUNT, f32(how.top_k));
        last = walk(AT_THRESHOLD, 0.0, f32(how.top_k) - above - 0.5);
    }
    if how.top_p < 1.0 {
        sum_from(WEIGHT, 0u, 0u);
        let enough = how.top_p * totals[0];
        let kept = threshold;
        let kept_last = last;
        let above = search(WEIGHT, enough);
        last = select(NONE, kept_last, threshold == kept);
        // Equals have one weight: so many of them are needed.
        let each = summand(WEIGHT, 0u, logit_of(threshold), threshold);
        last = walk(AT_THRESHOLD, 0.0, ceil((enough - above) / each) - 0.5);
    }
    if how.min_p > 0.0 {
        let lowest = min(key_of(best + temperature * log(how.min_p)), best_key);
        last = select(last, NONE, lowest > threshold);
        threshold = max(threshold, lowest);
    }
    let token = walk(WEIGHT, how.random, 0.0);
    if t == 0u {
        results[index].token = token;
    }
}
