// s[t][r] = Σ_j A'_rj x[t][j], the input of a product in the ranks of the deltas that are not in the
// weights, for the rows that have them. All matrices of one input share a dispatch. Twin:
// device/cpu/shrink.rs.
//
// A workgroup sums up to PAIRS pairs of ranks of up to ROWS rows: THREADS threads walk over A' side
// by side, a word (two ranks of one column) each, and every word serves all the rows. The threads'
// sums are halved together in workgroup memory. A row's sums are taken in the same order whatever
// rows and pairs are beside it.

@group(0) @binding(0) var<storage, read> factors: array<u32>;
// (tokens, inputs).
@group(0) @binding(1) var<storage, read> x: array<f32>;
// By chunk and row, the pairs of its ranks.
@group(0) @binding(2) var<storage, read_write> shrunk: array<vec2<f32>>;
@group(1) @binding(0) var<uniform> params: ShrinkParams;
@group(1) @binding(1) var<storage, read> records: array<ShrinkGroup>;

// At most MOST_ROWS and MOST_PAIRS.
override ROWS: u32;
override PAIRS: u32;
// A power of two.
override THREADS: u32;
// Arrays of a thread are sized by constants alone.
const MOST_ROWS = 8u;
const MOST_PAIRS = 4u;

// By row, pair and thread.
var<workgroup> partial: array<vec2<f32>, ROWS * PAIRS * THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) ids: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = id.y * ids.x + id.x;
    if index >= params.groups {
        return;
    }
    let group = records[params.first_group + index];
    let half_panel = ROW_ALIGNMENT / 2u;

    var sums: array<array<vec2<f32>, MOST_PAIRS>, MOST_ROWS>;
    for (var k = thread; k < 2u * row_words(params.inputs); k += THREADS) {
        // In a panel the even columns lie before the odd ones.
        let panel = k / ROW_ALIGNMENT;
        let place = k % ROW_ALIGNMENT;
        let j = panel * ROW_ALIGNMENT + place % half_panel * 2u + place / half_panel;
        if j < params.inputs {
            // Past the end the last pair or row is taken again; its sums are not used.
            var a: array<vec2<f32>, MOST_PAIRS>;
            for (var p = 0u; p < PAIRS; p++) {
                let pair = panel * group.chunk_pairs + min(p, group.pairs - 1u);
                let both = factors[group.a + pair * ROW_ALIGNMENT + place];
                a[p] = vec2<f32>(f32(low(both)), f32(high(both)));
            }
            for (var t = 0u; t < ROWS; t++) {
                let value = x[(group.first_row + min(t, group.rows - 1u)) * params.inputs + j];
                for (var p = 0u; p < PAIRS; p++) {
                    sums[t][p] += a[p] * value;
                }
            }
        }
    }
    for (var t = 0u; t < ROWS; t++) {
        for (var p = 0u; p < PAIRS; p++) {
            partial[(t * PAIRS + p) * THREADS + thread] = sums[t][p];
        }
    }
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            for (var k = thread; k < ROWS * PAIRS * THREADS; k += THREADS) {
                partial[k] += partial[k + half];
            }
        }
    }
    workgroupBarrier();
    if thread < ROWS * PAIRS {
        let t = thread / PAIRS;
        let p = thread % PAIRS;
        if t < group.rows && p < group.pairs {
            shrunk[group.sums + t * group.chunk_pairs + p] = partial[thread * THREADS];
        }
    }
}
