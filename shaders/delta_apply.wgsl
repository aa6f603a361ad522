// N ← N ± Q for every low-rank delta at once, in one read and one write of the weights:
//     Q = (Σ_r B'_ir · A'_rj + half_i) >> s_i,  half_i = (1 << s_i) >> 1.
// Twin: device/cpu/delta_apply/.
//
// A workgroup owns ROWS × 8 VECS weights, a thread 4 × 8 of them. The factors of all deltas go by as
// one list of rank pairs, PAIRS at a time through workgroup memory; sums and net changes stay in
// registers: the blocking of a matrix product (Goto and van de Geijn, 2008), with the ranks as the
// inner dimension, which is so short that the weights are what is read most.

@group(0) @binding(0) var<storage, read_write> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> factors: array<u32>;
@group(1) @binding(0) var<uniform> params: DeltaApplyParams;
@group(1) @binding(1) var<storage, read> pairs: array<RankPair>;

// Rows of a tile.
override ROWS: u32;
// Vectors of eight weights beside each other in a tile.
override VECS: u32;
override THREADS: u32 = ROWS / 4u * VECS;
// Quads of columns in a tile.
override QUADS: u32 = 2u * VECS;
// Pairs at a time: as many as let every thread bring one quad of A'.
override PAIRS: u32 = THREADS / QUADS;
// Words that A' of a pair takes in a panel: one for each column, since a word holds both ranks.
override PAIR_WORDS: u32 = ROW_ALIGNMENT;

// [pair][quad], even quads before odd ones, so that neighbouring threads read neighbouring quads.
var<workgroup> a_tile: array<vec4<u32>, PAIRS * QUADS>;
// [pair][four rows]
var<workgroup> b_tile: array<vec4<u32>, PAIRS * ROWS / 4u>;
// [pair][four rows], where a chunk ends.
var<workgroup> shift_tile: array<vec4<u32>, PAIRS * ROWS / 4u>;

// Four columns of one pair's A': in a panel the even columns lie before the odd ones.
fn stage_a(pair: u32, k: u32, quad: u32, first_quad: u32) {
    let column = first_quad + quad;
    let panel_quads = PAIR_WORDS / 4u;
    var even = vec2<u32>();
    var odd = vec2<u32>();
    if column < 2u * params.row_vecs {
        let panel = pairs[pair].a + (column / panel_quads) * pairs[pair].chunk_pairs * PAIR_WORDS;
        let at = panel + (column % panel_quads) * 2u;
        even = vec2<u32>(factors[at], factors[at + 1u]);
        odd = vec2<u32>(factors[at + PAIR_WORDS / 2u], factors[at + PAIR_WORDS / 2u + 1u]);
    }
    a_tile[k * QUADS + (quad & 1u) * (QUADS / 2u) + (quad >> 1u)] = vec4<u32>(even.x, odd.x, even.y, odd.y);
}

// Four rows of one pair's B'.
fn stage_b(pair: u32, k: u32, quad: u32, first_row: u32) {
    var found = vec4<u32>();
    for (var i = 0u; i < 4u; i++) {
        let row = first_row + 4u * quad + i;
        if row < params.rows {
            found[i] = factors[pairs[pair].b + b_row(params.first_row + row, pairs[pair].chunk_pairs)];
        }
    }
    b_tile[k * (ROWS / 4u) + quad] = found;
}

// Shifts of four rows.
fn stage_shifts(pair: u32, k: u32, quad: u32, first_row: u32) {
    var found = vec4<u32>();
    for (var i = 0u; i < 4u; i++) {
        let row = first_row + 4u * quad + i;
        if row < params.rows {
            let byte = params.first_row + row;
            found[i] = (factors[pairs[pair].shifts + byte / 4u] >> (8u * (byte % 4u))) & 0xffu;
        }
    }
    shift_tile[k * (ROWS / 4u) + quad] = found;
}

fn rounded(sum: vec4<i32>, shift: u32) -> vec4<i32> {
    return (sum + vec4<i32>(i32((1u << shift) >> 1u))) >> vec4<u32>(shift);
}

fn store(row: u32, column: u32, left: vec4<i32>, right: vec4<i32>) {
    if row < params.rows && column < params.row_vecs {
        let at = row * params.row_vecs + column;
        let n = weights[at];
        weights[at] = vec4<u32>(
            add_pairs(n.x, pack(left.x, left.y)),
            add_pairs(n.y, pack(left.z, left.w)),
            add_pairs(n.z, pack(right.x, right.y)),
            add_pairs(n.w, pack(right.z, right.w)),
        );
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(local_invocation_index) thread: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let tile = group.y * groups.x + group.x;
    let first_row = tile / params.column_tiles * ROWS;
    let first_quad = tile % params.column_tiles * QUADS;
    let tx = thread % VECS;
    let ty = thread / VECS;
    // Sums and net changes: row, and left or right four columns.
    var s0 = vec4<i32>(); var t0 = vec4<i32>(); var n0 = vec4<i32>(); var m0 = vec4<i32>();
    var s1 = vec4<i32>(); var t1 = vec4<i32>(); var n1 = vec4<i32>(); var m1 = vec4<i32>();
    var s2 = vec4<i32>(); var t2 = vec4<i32>(); var n2 = vec4<i32>(); var m2 = vec4<i32>();
    var s3 = vec4<i32>(); var t3 = vec4<i32>(); var n3 = vec4<i32>(); var m3 = vec4<i32>();
    for (var done = 0u; done < params.pairs; done += PAIRS) {
        let count = min(PAIRS, params.pairs - done);
        let first = params.first_pair + done;
        if thread / QUADS < count {
            stage_a(first + thread / QUADS, thread / QUADS, thread % QUADS, first_quad);
        }
        // Half the threads take B', the other half the shifts.
        let k = ty % PAIRS;
        if k < count {
            if ty < PAIRS {
                stage_b(first + k, k, tx, first_row);
            } else if pairs[first + k].ends != 0 {
                stage_shifts(first + k, k, tx, first_row);
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < count; k++) {
            let a = a_tile[k * QUADS + tx];
            let c = a_tile[k * QUADS + QUADS / 2u + tx];
            let b = b_tile[k * (ROWS / 4u) + ty];
            let al = lows(a); let ah = highs(a);
            let cl = lows(c); let ch = highs(c);
            let bl = lows(b); let bh = highs(b);
            s0 += bl.x * al + bh.x * ah; t0 += bl.x * cl + bh.x * ch;
            s1 += bl.y * al + bh.y * ah; t1 += bl.y * cl + bh.y * ch;
            s2 += bl.z * al + bh.z * ah; t2 += bl.z * cl + bh.z * ch;
            s3 += bl.w * al + bh.w * ah; t3 += bl.w * cl + bh.w * ch;
            let sign = pairs[first + k].ends;
            if sign != 0 {
                let shift = shift_tile[k * (ROWS / 4u) + ty];
                n0 += sign * rounded(s0, shift.x); m0 += sign * rounded(t0, shift.x);
                n1 += sign * rounded(s1, shift.y); m1 += sign * rounded(t1, shift.y);
                n2 += sign * rounded(s2, shift.z); m2 += sign * rounded(t2, shift.z);
                n3 += sign * rounded(s3, shift.w); m3 += sign * rounded(t3, shift.w);
                s0 = vec4<i32>(); s1 = vec4<i32>(); s2 = vec4<i32>(); s3 = vec4<i32>();
                t0 = vec4<i32>(); t1 = vec4<i32>(); t2 = vec4<i32>(); t3 = vec4<i32>();
            }
        }
        workgroupBarrier();
    }
    let row = first_row + 4u * ty;
    let column = first_quad / 2u + tx;
    store(row, column, n0, m0);
    store(row + 1u, column, n1, m1);
    store(row + 2u, column, n2, m2);
    store(row + 3u, column, n3, m3);
}
