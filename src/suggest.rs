//! "Did you mean": the names nearest to one that was not found.

use std::cmp::Ordering;

/// Longest query looked at: the comparison is quadratic in the length.
const MAX_QUERY_CHARS: usize = 256;

/// The likeness from which a name is worth suggesting.
const LIKE_ENOUGH: f64 = 0.8;

/// The up to three `candidates` most like `query`, best first. A candidate is also compared by its
/// last segment (after the last `separator`), so that `alise` finds `fr/task/alice`.
pub(crate) fn nearest<'a>(
    query: &str,
    separator: char,
    candidates: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let query: String = query.chars().take(MAX_QUERY_CHARS).collect();
    let mut best: Vec<(f64, &str)> = Vec::new();
    for candidate in candidates {
        let last = candidate.rsplit(separator).next().unwrap_or(candidate);
        let likeness =
            strsim::jaro_winkler(&query, candidate).max(strsim::jaro_winkler(&query, last));
        if likeness >= LIKE_ENOUGH {
            best.push((likeness, candidate));
            best.sort_by(|a, b| {
                b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(b.1))
            });
            best.truncate(3);
        }
    }
    best.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// `; did you mean a, b or c?`, or nothing.
pub(crate) fn did_you_mean(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("; did you mean {one}?"),
        [first @ .., last] => format!("; did you mean {} or {last}?", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_best_first() {
        let names = ["fr", "fr/task/alice-33", "fr/task/bob", "fr/task/alice-2"];
        assert_eq!(
            nearest("alice", '/', names.into_iter()),
            ["fr/task/alice-2", "fr/task/alice-33"]
        );
        assert_eq!(nearest("zzz", '/', names.into_iter()), Vec::<String>::new());
        assert_eq!(did_you_mean(&["a".into(), "b".into()]), "; did you mean a or b?");
    }
}
