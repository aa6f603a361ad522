// BLAKE3 of one matrix: rows and columns as u64, the integers row by row without padding (i16), the
// steps (f32), all little-endian. Twin: device/cpu/fingerprint.rs. Source: O'Connor,
// Aumasson, Neves and Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", section 2.
//
// `chunks` hashes one chunk a thread and joins the values of a workgroup's chunks, `merge` joins
// GROUP values of any level; the last dispatch of a matrix leaves one value, made with the flag
// ROOT: the hash. BLAKE3's tree puts into each left subtree the largest power of two of chunks that
// leaves one for the right (section 2.1); with workgroups of a power of two that is what pairing
// neighbours makes, level by level, if an odd last one moves up as it is.

@group(0) @binding(0) var<storage, read> first: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> second: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> steps: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<Value>;
@group(1) @binding(0) var<uniform> params: FingerprintParams;

// Chunks, or values, that one workgroup takes: a power of two.
override GROUP: u32;
// Bytes of a chunk.
override CHUNK_BYTES: u32;

const CHUNK_START = 1u;
const CHUNK_END = 2u;
const PARENT = 4u;
const ROOT = 8u;
const IV_LOW = vec4<u32>(0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au);
const IV_HIGH = vec4<u32>(0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u);

struct Value {
    low: vec4<u32>,
    high: vec4<u32>,
}

var<workgroup> joined: array<Value, GROUP>;

fn rotated(x: vec4<u32>, by: u32) -> vec4<u32> {
    return (x >> vec4<u32>(by)) | (x << vec4<u32>(32u - by));
}

// Sixteen words: a block, or the state's four rows.
struct Sixteen {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

// Four G at once, one a column.
fn mixed(state: Sixteen, x: vec4<u32>, y: vec4<u32>) -> Sixteen {
    var s = state;
    s.a += s.b + x;
    s.d = rotated(s.d ^ s.a, 16u);
    s.c += s.d;
    s.b = rotated(s.b ^ s.c, 12u);
    s.a += s.b + y;
    s.d = rotated(s.d ^ s.a, 8u);
    s.c += s.d;
    s.b = rotated(s.b ^ s.c, 7u);
    return s;
}

// The compression function: a value, a block of 16 words, the chunk's number, the block's length.
fn compressed(value: Value, block: Sixteen, counter: u32, len: u32, flags: u32) -> Value {
    var m = block;
    var s = Sixteen(value.low, value.high, IV_LOW, vec4<u32>(counter, 0u, len, flags));
    for (var round = 0u; round < 7u; round++) {
        s = mixed(s, vec4<u32>(m.a.xz, m.b.xz), vec4<u32>(m.a.yw, m.b.yw));
        s = Sixteen(s.a, s.b.yzwx, s.c.zwxy, s.d.wxyz);
        s = mixed(s, vec4<u32>(m.c.xz, m.d.xz), vec4<u32>(m.c.yw, m.d.yw));
        s = Sixteen(s.a, s.b.wxyz, s.c.zwxy, s.d.yzwx);
        // 2 6 3 10 | 7 0 4 13 | 1 11 12 5 | 9 14 15 8
        m = Sixteen(
            vec4<u32>(m.a.z, m.b.z, m.a.w, m.c.z),
            vec4<u32>(m.b.w, m.a.x, m.b.x, m.d.y),
            vec4<u32>(m.a.y, m.c.w, m.d.x, m.b.y),
            vec4<u32>(m.c.y, m.d.z, m.d.w, m.c.x),
        );
    }
    return Value(s.a ^ s.c, s.b ^ s.d);
}

fn parent(left: Value, right: Value, flags: u32) -> Value {
    let block = Sixteen(left.low, left.high, right.low, right.high);
    return compressed(Value(IV_LOW, IV_HIGH), block, 0u, 64u, PARENT | flags);
}

// Four words of the integers, by row and place in the row.
fn integers(row: u32, at: u32) -> vec4<u32> {
    let vecs = params.row_words / 4u;
    if row < params.second_row {
        return first[(row - params.first_row) * vecs + at];
    }
    return second[(row - params.second_row) * vecs + at];
}

// Two bytes of the stream.
fn piece(at: u32) -> u32 {
    if at < 8u {
        let word = select(0u, select(params.cols, params.rows, at < 4u), at % 4u < 2u);
        return (word >> (16u * (at % 2u))) & 0xffffu;
    }
    let i = at - 8u;
    if i < params.rows * params.cols {
        let column = i % params.cols;
        let word = integers(i / params.cols, column / 8u)[column / 2u % 4u];
        return (word >> (16u * (column % 2u))) & 0xffffu;
    }
    let step = i - params.rows * params.cols;
    if step < 2u * params.rows {
        return (steps[step / 2u] >> (16u * (step % 2u))) & 0xffffu;
    }
    return 0u;
}

// Sixteen bytes of the stream. Where a row is whole vectors, so is everything else.
fn fetched(at: u32) -> vec4<u32> {
    if params.cols % 8u != 0u {
        let i = 8u * at;
        let even = vec4<u32>(piece(i), piece(i + 2u), piece(i + 4u), piece(i + 6u));
        let odd = vec4<u32>(piece(i + 1u), piece(i + 3u), piece(i + 5u), piece(i + 7u));
        return even | (odd << vec4<u32>(16u));
    }
    if at == 0u {
        return vec4<u32>(params.rows, 0u, params.cols, 0u);
    }
    let row_vecs = params.cols / 8u;
    let i = at - 1u;
    if i < params.rows * row_vecs {
        return integers(i / row_vecs, i % row_vecs);
    }
    let row = 4u * (i - params.rows * row_vecs);
    var found = vec4<u32>();
    for (var k = 0u; k < 4u && row + k < params.rows; k++) {
        found[k] = steps[row + k];
    }
    return found;
}

// Joins the first `count` of the workgroup's values, pair by pair.
fn join(thread: u32, group: u32, count: u32, root: bool) {
    var left = count;
    for (var width = GROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        var value: Value;
        if 2u * thread < left {
            value = joined[2u * thread];
            if 2u * thread + 1u < left {
                value = parent(value, joined[2u * thread + 1u], select(0u, ROOT, root && left == 2u));
            }
        }
        workgroupBarrier();
        if 2u * thread < left {
            joined[thread] = value;
        }
        left = (left + 1u) / 2u;
    }
    if thread == 0u && count > 0u {
        values[params.result + group] = joined[0];
    }
}

@compute @workgroup_size(GROUP)
fn chunks(
    @builtin(local_invocation_index) thread: u32,
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) size: vec3<u32>,
) {
    let own = id.y * size.x + id.x;
    let group = params.first_group + own;
    let count = select(0u, min(GROUP, params.count - group * GROUP), own < params.groups);
    let chunk = group * GROUP + thread;
    if thread < count {
        // Vectors of sixteen bytes are at most 2^32 - 1, bytes are not.
        let bytes_left = 16u + 2u * (params.rows * params.cols) + 4u * params.rows - CHUNK_BYTES * chunk;
        let len = select(CHUNK_BYTES, bytes_left, chunk == params.count - 1u);
        let blocks = (len + 63u) / 64u;
        var value = Value(IV_LOW, IV_HIGH);
        for (var block = 0u; block < blocks; block++) {
            let at = CHUNK_BYTES / 16u * chunk + 4u * block;
            let words = Sixteen(fetched(at), fetched(at + 1u), fetched(at + 2u), fetched(at + 3u));
            let last = block == blocks - 1u;
            let flags = select(0u, CHUNK_START, block == 0u) | select(0u, CHUNK_END, last)
                | select(0u, ROOT, last && params.count == 1u);
            value = compressed(value, words, chunk, select(64u, len - 64u * block, last), flags);
        }
        joined[thread] = value;
    }
    join(thread, group, count, params.count <= GROUP);
}

@compute @workgroup_size(GROUP)
fn merge(
    @builtin(local_invocation_index) thread: u32,
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) size: vec3<u32>,
) {
    let group = id.y * size.x + id.x;
    let count = select(0u, min(GROUP, params.count - group * GROUP), group < params.groups);
    if thread < count {
        joined[thread] = values[params.source + group * GROUP + thread];
    }
    join(thread, group, count, params.count <= GROUP);
}
