// Grouped-query attention over pages, softmax(cap(scale·q·k))·v. Twin: device/cpu/attention.rs.
//
// A workgroup takes four queries that read the same keys ("a quad": heads of one token, or of
// neighbouring tokens) and goes over blocks of THREADS positions. Each block leaves for each query
// the largest score, the sum of exp(score − largest) and the values weighed by it; `merge` joins
// two blocks, as in FlashAttention (arXiv 2205.14135). With one part a workgroup merges its blocks
// itself; with more, each block is a workgroup's, and `combine` merges what they left in
// `partials`, in the same order to the same bits: the split over keys of Flash-Decoding (Dao,
// Haziza, Massa, Sizov, 2023).

@group(0) @binding(0) var<storage, read> queries: array<f32>;
// [page][kv_head][head_dim / 4][PAGE]
@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>;
// [page][kv_head][PAGE][head_dim / 4]
@group(0) @binding(2) var<storage, read> values: array<vec4<f32>>;
// [part][quad][kv_head][query][head_dim / 4 + 1]: weighed values, then (largest, sum).
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: AttentionParams;
// Each sequence's pages, by position; the quads, five words each.
@group(1) @binding(1) var<storage, read> words: array<u32>;

// Invocations of a workgroup, and positions of a block.
override THREADS: u32;
// Positions in a page, a whole number of times in a block.
override PAGE: u32;
// Values in the longest head.
override LONGEST_HEAD: u32;
// Whether scores are capped: a pipeline of its own, so that others pay nothing for it.
override SOFT_CAP: bool;
// Invocations that share out a reduction over a block: few enough that every invocation may reduce
// what they leave, which saves a barrier.
const REDUCERS = 16u;
// Most invocations that share the positions of a block.
const MOST_SHARING = 32u;
// Below every score: that of a position that a query does not see.
const LOWEST = -3.0e38;

// By dimension: the four queries' values.
var<workgroup> input: array<vec4<f32>, LONGEST_HEAD>;
// By position: the four queries' scores, then weights.
var<workgroup> weights: array<vec4<f32>, THREADS>;
// By query and invocation.
var<workgroup> mixed: array<vec4<f32>, 4u * THREADS>;
var<workgroup> reduced: array<vec4<f32>, MOST_SHARING>;
// By page of the block: where its keys and its values begin.
var<workgroup> regions: array<u32, THREADS / PAGE>;

struct State {
    largest: f32,
    sum: f32,
    mixed: vec4<f32>,
}

fn merge(a: State, b: State) -> State {
    let largest = max(a.largest, b.largest);
    let of_a = exp(a.largest - largest);
    let of_b = exp(b.largest - largest);
    return State(largest, fma(b.sum, of_b, a.sum * of_a), fma(b.mixed, vec4(of_b), a.mixed * of_a));
}

struct Quad {
    index: u32,
    kv_head: u32,
    at: AttentionQuad,
    // Of each query: its position, and the first it sees.
    positions: vec4<u32>,
    lowest: vec4<u32>,
}

fn quad_of(number: u32) -> Quad {
    let index = number / params.kv_heads % params.quads;
    let first = 5u * (params.first_quad + index);
    let at = AttentionQuad(words[first], words[first + 1u], words[first + 2u], words[first + 3u], words[first + 4u]);
    let queries = min(at.first + vec4(0u, 1u, 2u, 3u), vec4(at.end - 1u));
    let positions = at.past + queries / (params.heads / params.kv_heads);
    let lowest = positions + 1u - min(positions + 1u, vec4(params.window));
    return Quad(index, number % params.kv_heads, at, positions, lowest);
}

// Start of query i among (rows, heads × head_dim).
fn place(quad: Quad, i: u32) -> u32 {
    let group = params.heads / params.kv_heads;
    let query = quad.at.first + i;
    return ((quad.at.row + query / group) * params.heads + quad.kv_head * group + query % group) * params.head_dim;
}

fn partial(quad: Quad, part: u32, query: u32, fours: u32) -> u32 {
    return (((part * params.quads + quad.index) * params.kv_heads + quad.kv_head) * 4u + query) * (fours + 1u);
}

fn finish(quad: Quad, query: u32, four: u32, state: State) {
    let result = state.mixed / state.sum;
    let at = place(quad, query) + 4u * four;
    for (var k = 0u; k < min(4u, params.head_dim - 4u * four); k++) {
        out[at + k] = result[k];
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let number = group.y * groups.x + group.x;
    let part = number / (params.kv_heads * params.quads);
    if part >= params.parts {
        return;
    }
    let quad = quad_of(number);
    let end = quad.positions.w + 1u;
    let first_block = quad.lowest.x / THREADS + part;
    let end_block = select((end + THREADS - 1u) / THREADS, first_block + 1u, params.parts > 1u);
    if first_block * THREADS >= end {
        return;
    }
    let fours = (params.head_dim + 3u) / 4u;
    for (var d = t; d < 4u * fours; d += THREADS) {
        var query = vec4(0.0);
        for (var i = 0u; i < 4u; i++) {
            if d < params.head_dim && quad.at.first + i < quad.at.end {
                query[i] = queries[place(quad, i) + d];
            }
        }
        input[d] = query * params.scale;
    }
    // Groups of invocations share the positions of a block, each invocation four dimensions of the
    // head.
    let sharing = min(THREADS / fours, MOST_SHARING);
    let share = t / fours;
    let four = t % fours;
    // Of each of the (query, four) that this invocation finishes: THREADS apart, 4 · 64 at most.
    var states = array(State(LOWEST, 0.0, vec4(0.0)), State(LOWEST, 0.0, vec4(0.0)));
    workgroupBarrier();

    for (var block = first_block; block < end_block; block++) {
        let position = block * THREADS + t;
        var score = vec4(0.0);
        if position < end {
            let region = (words[quad.at.pages + position / PAGE] * params.kv_heads + quad.kv_head) * PAGE * fours;
            if t % PAGE == 0u {
                regions[t / PAGE] = region;
            }
            let at = region + position % PAGE;
            for (var d = 0u; d < fours; d++) {
                let key = keys[at + PAGE * d];
                score = fma(input[4u * d], vec4(key.x), score);
                score = fma(input[4u * d + 1u], vec4(key.y), score);
                score = fma(input[4u * d + 2u], vec4(key.z), score);
                score = fma(input[4u * d + 3u], vec4(key.w), score);
            }
        }
        if SOFT_CAP {
            score = params.soft_cap * tanh4(score / params.soft_cap);
        }
        let seen = (vec4(position) >= quad.lowest) & (vec4(position) <= quad.positions);
        weights[t] = select(vec4(LOWEST), score, seen);
        workgroupBarrier();
        if t < REDUCERS {
            var largest = weights[t];
            for (var i = 1u; i < THREADS / REDUCERS; i++) {
                largest = max(largest, weights[t + REDUCERS * i]);
            }
            reduced[t] = largest;
        }
        workgroupBarrier();
        var largest = reduced[0];
        for (var i = 1u; i < REDUCERS; i++) {
            largest = max(largest, reduced[i]);
        }
        weights[t] = select(vec4(0.0), exp(score - largest), seen);
        workgroupBarrier();

        if share < sharing {
            var sums = array(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
            var total = vec4(0.0);
            let count = min(THREADS, end - block * THREADS);
            for (var i = share; i < count; i += sharing) {
                let value = values[regions[i / PAGE] + i % PAGE * fours + four];
                let weight = weights[i];
                sums[0] = fma(value, vec4(weight.x), sums[0]);
                sums[1] = fma(value, vec4(weight.y), sums[1]);
                sums[2] = fma(value, vec4(weight.z), sums[2]);
                sums[3] = fma(value, vec4(weight.w), sums[3]);
                total += weight;
            }
            for (var i = 0u; i < 4u; i++) {
                mixed[i * THREADS + t] = sums[i];
            }
            if four == 0u {
                reduced[share] = total;
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 2u; k++) {
            let item = t + k * THREADS;
            if item < 4u * fours {
                let query = item / fours;
                var here = State(largest[query], 0.0, vec4(0.0));
                for (var i = 0u; i < sharing; i++) {
                    here.sum += reduced[i][query];
                    here.mixed += mixed[query * THREADS + i * fours + item % fours];
                }
                states[k] = merge(states[k], here);
            }
        }
    }

    for (var k = 0u; k < 2u; k++) {
        let query = (t + k * THREADS) / fours;
        let four = (t + k * THREADS) % fours;
        if query < 4u && quad.at.first + query < quad.at.end {
            if params.parts == 1u {
                finish(quad, query, four, states[k]);
            } else {
                let at = partial(quad, part, query, fours);
                partials[at + four] = states[k].mixed;
                if four == 0u {
                    partials[at + fours] = vec4(states[k].largest, states[k].sum, 0.0, 0.0);
                }
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let number = group.y * groups.x + group.x;
    if number >= params.quads * params.kv_heads {
        return;
    }
    let quad = quad_of(number);
    let fours = (params.head_dim + 3u) / 4u;
    let parts = quad.positions.w / THREADS - quad.lowest.x / THREADS + 1u;
    for (var item = t; item < 4u * fours; item += THREADS) {
        let query = item / fours;
        if quad.at.first + query < quad.at.end {
            var state = State(LOWEST, 0.0, vec4(0.0));
            for (var part = 0u; part < parts; part++) {
                let at = partial(quad, part, query, fours);
                let about = partials[at + fours];
                state = merge(state, State(about.x, about.y, partials[at + item % fours]));
            }
            finish(quad, query, item % fours, state);
        }
    }
}
