// out[t] = step · N[token], for the tokens whose rows lie in this part of the table. Twin:
// device/cpu/embed.rs.
//
// What is not in the table is added to N as integers, those of a switch, over several dispatches: the
// output holds the sums until the last of them multiplies. So a row is the merged one to the bit.

// Two i16 in each u32, a row takes `row_words`; or the entries of a sparse delta, place and change of
// a word, by ascending place.
@group(0) @binding(0) var<storage, read> source: array<u32>;
// Factors of deltas.
@group(0) @binding(1) var<storage, read> factors: array<u32>;
// One for each row of the whole table.
@group(0) @binding(2) var<storage, read> steps: array<f32>;
// (tokens, width): integers or the bits of numbers.
@group(0) @binding(3) var<storage, read_write> out: array<u32>;
@group(1) @binding(0) var<uniform> params: EmbedParams;
@group(1) @binding(1) var<storage, read> words: array<u32>;

override THREADS: u32;

// What an entry of a sparse delta changes a word by, if there is one.
fn change_at(place: u32) -> u32 {
    var first = 0u;
    var end = params.entries;
    while first < end {
        let middle = (first + end) / 2u;
        if source[2u * middle] < place {
            first = middle + 1u;
        } else {
            end = middle;
        }
    }
    if first < params.entries && source[2u * first] == place {
        return source[2u * first + 1u];
    }
    return 0u;
}

// Q of one chunk. The four words at `at` are its A', its B', its shifts, and how many pairs it has.
fn q(at: u32, row: u32, j: u32) -> i32 {
    let pairs = words[at + 3u];
    // In a panel the even columns lie before the odd ones.
    let panel = j / ROW_ALIGNMENT;
    let place = j % 2u * (ROW_ALIGNMENT / 2u) + j % ROW_ALIGNMENT / 2u;
    let a = words[at] + panel * pairs * ROW_ALIGNMENT + place;
    let b = words[at + 1u] + b_row(row, pairs);
    var sum = 0;
    for (var p = 0u; p < pairs; p++) {
        let of_column = factors[a + p * ROW_ALIGNMENT];
        let of_row = factors[b + p * PANEL_ROWS];
        sum += low(of_column) * low(of_row) + high(of_column) * high(of_row);
    }
    let shift = (factors[words[at + 2u] + row / 4u] >> (8u * (row % 4u))) & 0xffu;
    return (sum + i32((1u << shift) >> 1u)) >> shift;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = id.y * groups.x * THREADS + id.x;
    if index >= params.len {
        return;
    }
    let t = params.first_token + index / params.width;
    let token = words[params.tokens + t];
    let row = token - params.first_row;
    if row >= params.part_rows {
        return;
    }
    let j = index % params.width;
    let at = t * params.width + j;
    let word = row * row_words(params.width) + j / 2u;
    var n = 0;
    if params.accumulate != 0u {
        n = bitcast<i32>(out[at]);
    }
    if params.source == 1u {
        n += column(source[word], j);
    } else if params.source == 2u {
        n += column(change_at(word), j);
    }
    if params.has_lists != 0u {
        let list = params.lists + 2u * t;
        for (var k = 0u; k < words[list]; k++) {
            n += q(words[list + 1u] + 4u * k, token, j);
        }
    }
    out[at] = select(bitcast<u32>(n), bitcast<u32>(f32(n) * steps[token]), params.finish != 0u);
}
