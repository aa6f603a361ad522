//! What an adapter is, in a few lines: for `inspect`, for the tree's picture and for `--json`.

use std::collections::BTreeSet;

use serde::Serialize;

use super::PeftHeader;

/// What an adapter is. The field names are part of the command line's JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterSummary {
    /// `lora`, or `rslora` where the scaling is `alpha / √rank`.
    pub kind: &'static str,
    /// The ranks it uses, smallest first.
    pub ranks: Vec<usize>,
    /// The scalings it uses, smallest first.
    pub scalings: Vec<f64>,
    /// Last segments of the modules it adapts, in alphabetical order.
    pub target_modules: Vec<String>,
    /// How its tensors are stored.
    pub dtypes: Vec<String>,
    /// Matrices of the base it changes.
    pub touched_matrices: usize,
    /// Weights (elements) of the base it changes.
    pub touched_weights: u64,
    /// Parameters it has.
    pub parameters: u64,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// The base that its config names.
    pub base_model: Option<String>,
    /// BLAKE3 of its files, where they were read whole.
    pub hash: Option<String>,
}

impl PeftHeader {
    /// What it is, from its header alone: without the hash.
    pub fn summary(&self) -> AdapterSummary {
        let modules = || self.modules.values();
        let ranks: BTreeSet<usize> = modules().map(|module| module.rank).collect();
        let mut scalings: Vec<f64> = modules().map(|module| module.scaling).collect();
        scalings.sort_by(f64::total_cmp);
        scalings.dedup();
        let last: BTreeSet<&str> =
            modules().filter_map(|module| module.name.rsplit('.').next()).collect();
        let spans = || modules().flat_map(|module| module.change.spans());
        let dtypes: BTreeSet<String> = spans().map(|span| span.dtype.to_string()).collect();
        AdapterSummary {
            kind: self.facts.kind,
            ranks: ranks.into_iter().collect(),
            scalings,
            target_modules: last.into_iter().map(str::to_owned).collect(),
            dtypes: dtypes.into_iter().collect(),
            touched_matrices: self.modules.len(),
            touched_weights: self.touched_weights(),
            parameters: spans().map(|span| span.shape[0] as u64 * span.shape[1] as u64).sum(),
            bytes: self.facts.data_bytes,
            base_model: self.base_model().map(str::to_owned),
            hash: None,
        }
    }
}

impl std::fmt::Display for AdapterSummary {
    /// One line: `lora, rank 2–6, scaling 1.5–2.5, o_proj q_proj v_proj, F32, 1.2 MB`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, rank {}", self.kind, span(&self.ranks, usize::to_string))?;
        write!(
            f,
            ", scaling {}",
            span(&self.scalings, |scaling| format!("{:.4}", scaling)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned())
        )?;
        write!(
            f,
            ", {}, {}, {}",
            self.target_modules.join(" "),
            self.dtypes.join(" "),
            size(self.bytes)
        )
    }
}

/// `2`, or `2–6`.
fn span<T>(sorted: &[T], show: impl Fn(&T) -> String) -> String {
    match sorted {
        [] => String::new(),
        [one] => show(one),
        [first, .., last] => format!("{}–{}", show(first), show(last)),
    }
}

/// Bytes as people read them: `1.2 MB`.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
