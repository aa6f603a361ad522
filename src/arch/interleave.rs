//! The order in which llama.cpp's converter stores the rows of some queries and keys: each head's
//! two halves interleaved, since its rotary embedding turns neighbours, not halves.
//!
//! **Source:** `LlamaModel.permute` of llama.cpp's converter:
//! `w.reshape(heads, 2, rows / heads / 2, in).swapaxes(1, 2)`.

/// The row of the file that holds row `row` (Hugging Face order) of an interleaved weight,
/// `head_dim` rows a head.
pub(crate) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (part, j) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * j + part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_row_inverts_the_converters_reshape() {
        // reshape(2 heads, 2, 2, in).swapaxes(1, 2) of rows 0..8 has this order.
        let file = [0, 2, 1, 3, 4, 6, 5, 7];
        for (at, row) in file.into_iter().enumerate() {
            assert_eq!(interleaved_row(row, 4), at);
        }
    }
}
