// Grouped-query attention over the cache: softmax(q · k / sqrt(head_dim)) · v. Twin:
// device/cpu/attention.rs.
//
// A workgroup takes four queries that read the same keys ("a quad": heads of one token, or of
// neighbouring tokens) and goes over blocks of 128 positions. Each block gives for each query the
// largest score, the sum of exp(score − largest) and the values weighed by it; `merge` joins two
// blocks. With one part a workgroup merges its blocks itself; with more, each block is a
// workgroup's, and `combine` merges what they left in `partials`, in the same order to the same
// bits.

@group(0) @binding(0) var<storage, read> queries: array<f32>;
// [slot][kv_head][position / 32][head_dim / 4][32]
@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>;
// [slot][kv_head][position][head_dim / 4]
@group(0) @binding(2) var<storage, read> values: array<vec4<f32>>;
// [part][quad][kv_head][query][head_dim / 4 + 1]: weighed values, then (largest, sum).
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: AttentionParams;
@group(1) @binding(1) var<storage, read> words: array<u32>;

// Invocations of a workgroup, and positions of a block.
const THREADS = 128u;
// Below every score: that of a position that a query does not see.
const LOWEST = -3.0e38;

// By dimension: the four queries' values.
var<workgroup> input: array<vec4<f32>, 256>;
// By position: the four queries' scores, then weights.
var<workgroup> weights: array<vec4<f32>, 128>;
// By query and invocation.
var<workgroup> mixed: array<vec4<f32>, 512>;
var<workgroup> reduced: array<vec4<f32>, 32>;

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
    slot: u32,
    // Row of the span's first token, and its position.
    row: u32,
    past: u32,
    // First query, and one past the span's last; query i is head i % group of token i / group.
    first: u32,
    end: u32,
    // Of each query: its position, and the first it sees.
    positions: vec4<u32>,
    lowest: vec4<u32>,
}

fn quad_of(number: u32) -> Quad {
    let index = number / params.kv_heads % params.quads;
    let at = params.words + 5u * index;
    let first = words[at + 3u];
    let end = words[at + 4u];
    let past = words[at + 1u];
    let group = params.heads / params.kv_heads;
    let positions = past + min(first + vec4(0u, 1u, 2u, 3u), vec4(end - 1u)) / group;
    let lowest = positions + 1u - min(positions + 1u, vec4(params.window));
    return Quad(index, number % params.kv_heads, words[at], words[at + 2u], past, first, end, positions, lowest);
}

// Start of query i among (rows, heads × head_dim).
fn place(quad: Quad, i: u32) -> u32 {
    let group = params.heads / params.kv_heads;
    let query = quad.first + i;
    return ((quad.row + query / group) * params.heads + quad.kv_head * group + query % group) * params.head_dim;
}

fn partial(quad: Quad, part: u32, query: u32, quarters: u32) -> u32 {
    return (((part * params.quads + quad.index) * params.kv_heads + quad.kv_head) * 4u + query) * (quarters + 1u);
}

fn finish(quad: Quad, query: u32, quarter: u32, state: State) {
    let result = state.mixed / state.sum;
    let at = place(quad, query) + 4u * quarter;
    for (var k = 0u; k < min(4u, params.head_dim - 4u * quarter); k++) {
        out[at + k] = result[k];
    }
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
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
    let quarters = (params.head_dim + 3u) / 4u;
    for (var d = t; d < 4u * quarters; d += THREADS) {
        var four = vec4(0.0);
        for (var i = 0u; i < 4u; i++) {
            if d < params.head_dim && quad.first + i < quad.end {
                four[i] = queries[place(quad, i) + d];
            }
        }
        input[d] = four * params.scale;
    }
    let region = (quad.slot * params.kv_heads + quad.kv_head) * params.capacity;
    // Groups of invocations share the positions of a block, each invocation a quarter of the head.
    let sharing = min(THREADS / quarters, 32u);
    let share = t / quarters;
    let quarter = t % quarters;
    var states = array(State(LOWEST, 0.0, vec4(0.0)), State(LOWEST, 0.0, vec4(0.0)));
    workgroupBarrier();

    for (var block = first_block; block < end_block; block++) {
        let position = block * THREADS + t;
        var score = vec4(0.0);
        if position < end {
            let at = (region + position / 32u * 32u) * quarters + position % 32u;
            for (var d = 0u; d < quarters; d++) {
                let key = keys[at + 32u * d];
                score = fma(input[4u * d], vec4(key.x), score);
                score = fma(input[4u * d + 1u], vec4(key.y), score);
                score = fma(input[4u * d + 2u], vec4(key.z), score);
                score = fma(input[4u * d + 3u], vec4(key.w), score);
            }
        }
        let seen = (vec4(position) >= quad.lowest) & (vec4(position) <= quad.positions);
        weights[t] = select(vec4(LOWEST), score, seen);
        workgroupBarrier();
        if t < 16u {
            var largest = weights[t];
            for (var i = 1u; i < 8u; i++) {
                largest = max(largest, weights[t + 16u * i]);
            }
            reduced[t] = largest;
        }
        workgroupBarrier();
        var largest = reduced[0];
        for (var i = 1u; i < 16u; i++) {
            largest = max(largest, reduced[i]);
        }
        weights[t] = select(vec4(0.0), exp(score - largest), seen);
        workgroupBarrier();

        if share < sharing {
            var sums = array(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
            var total = vec4(0.0);
            let count = min(THREADS, end - block * THREADS);
            let base = (region + block * THREADS) * quarters + quarter;
            for (var i = share; i < count; i += sharing) {
                let value = values[base + i * quarters];
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
            if quarter == 0u {
                reduced[share] = total;
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 2u; k++) {
            let item = t + k * THREADS;
            if item < 4u * quarters {
                let query = item / quarters;
                var here = State(largest[query], 0.0, vec4(0.0));
                for (var i = 0u; i < sharing; i++) {
                    here.sum += reduced[i][query];
                    here.mixed += mixed[query * THREADS + i * quarters + item % quarters];
                }
                states[k] = merge(states[k], here);
            }
        }
    }

    for (var k = 0u; k < 2u; k++) {
        let query = (t + k * THREADS) / quarters;
        let quarter = (t + k * THREADS) % quarters;
        if query < 4u && quad.first + query < quad.end {
            if params.parts == 1u {
                finish(quad, query, quarter, states[k]);
            } else {
                let at = partial(quad, part, query, quarters);
                partials[at + quarter] = states[k].mixed;
                if quarter == 0u {
                    partials[at + quarters] = vec4(states[k].largest, states[k].sum, 0.0, 0.0);
                }
            }
        }
    }
}

@compute @workgroup_size(128)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let number = group.y * groups.x + group.x;
    if number >= params.quads * params.kv_heads {
        return;
    }
    let quad = quad_of(number);
    let quarters = (params.head_dim + 3u) / 4u;
    let parts = quad.positions.w / THREADS - quad.lowest.x / THREADS + 1u;
    for (var item = t; item < 4u * quarters; item += THREADS) {
        let query = item / quarters;
        if quad.first + query < quad.end {
            var state = State(LOWEST, 0.0, vec4(0.0));
            for (var part = 0u; part < parts; part++) {
                let at = partial(quad, part, query, quarters);
                let about = partials[at + quarters];
                state = merge(state, State(about.x, about.y, partials[at + item % quarters]));
            }
            finish(quad, query, item % quarters, state);
        }
    }
}
