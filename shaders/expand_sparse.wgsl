// out[t][i] += step_i · Σ_j Q_ij x[t][j] over the entries of a sparse delta that is not in the
// weights, for a range of rows. Twin: device/cpu/expand.rs.
//
// A thread makes one output of one row. Entries are words of a row after another, so it finds its
// first one by halving.

// By ascending place.
@group(0) @binding(0) var<storage, read> entries: array<SparseWord>;
// One for each row of the whole matrix.
@group(0) @binding(1) var<storage, read> steps: array<f32>;
// (tokens, inputs).
@group(0) @binding(2) var<storage, read> x: array<f32>;
// (tokens, outputs).
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(1) @binding(0) var<uniform> params: ExpandSparseParams;

override THREADS: u32;

// The first entry at this place of the part or behind it.
fn first_at(place: u32) -> u32 {
    var first = 0u;
    var end = params.entries;
    while first < end {
        let middle = (first + end) / 2u;
        if entries[middle].place < place {
            first = middle + 1u;
        } else {
            end = middle;
        }
    }
    return first;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = id.y * groups.x * THREADS + id.x;
    if index >= params.len {
        return;
    }
    let row = params.first_row + index / params.part_outputs;
    let i = index % params.part_outputs;
    let start = i * row_words(params.inputs);
    let end = start + row_words(params.inputs);
    var sum = 0.0;
    for (var k = first_at(start); k < params.entries && entries[k].place < end; k++) {
        let entry = entries[k];
        let at = row * params.inputs + (entry.place - start) * 2u;
        // The column that is no entry may hold anything.
        if low(entry.change) != 0 {
            sum += f32(low(entry.change)) * x[at];
        }
        if high(entry.change) != 0 {
            sum += f32(high(entry.change)) * x[at + 1u];
        }
    }
    let output = params.first_output + i;
    out[row * params.outputs + output] += steps[output] * sum;
}
