//! Rotates queries and keys, and appends keys and values to their pages. Twin:
//! `device/cpu/rotate_append.rs`; shader `rotate_append`.

use super::context::Slice;
use super::params::{AppendedRow, RotateAppendParams};
use super::pipeline::Kernel;
use super::{Gpu, word};
use crate::device::compute::{PAGE, Piece, RotateAppend, Span};

impl Gpu {
    /// [`crate::device::Compute::rotate_append`].
    pub(super) fn rotate_and_append(&self, what: RotateAppend<'_, Self>, spans: &[Span]) {
        let RotateAppend { queries, keys, values, angles, cache, heads } = what;
        assert_eq!(cache.heads, heads, "a cache of other heads");
        let place = |Piece { page, rows, first }: Piece| {
            (first..).take(rows.len()).map(move |place| AppendedRow { page, place: word(place) })
        };
        let rows: Vec<AppendedRow> = spans.iter().flat_map(Span::pieces).flat_map(place).collect();
        let mut pending = self.pending();
        let params = RotateAppendParams {
            first_row: pending.shared_records(&rows),
            rows: word(rows.len()),
            heads: word(heads.heads),
            kv_heads: word(heads.kv_heads),
            head_dim: word(heads.head_dim),
        };
        let buffers = [
            queries.slice(),
            keys.slice(),
            values.slice(),
            angles.slice(),
            Slice::whole(&cache.keys),
            Slice::whole(&cache.values),
        ];
        // A pair of a query, or four values of a key or value, for each invocation.
        let (pairs, fours) = (heads.head_dim / 2, heads.head_dim.div_ceil(4));
        let items = rows.len() * (heads.heads * pairs + 2 * heads.kv_heads * fours);
        let kernel = Kernel::flat("rotate_append").constant("PAGE", word(PAGE));
        pending.dispatch(&self.context, &kernel, buffers, &params, self.context.flat(items));
    }
}
