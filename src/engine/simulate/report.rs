//! What a run came to.

use std::fmt;

/// Figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Tokens made.
    pub tokens: usize,
    /// From the first request to the last answer.
    pub total_ms: f64,
    /// From a request to its first token, ascending.
    pub first_token_ms: Vec<f64>,
    /// From a token to the next, ascending.
    pub next_token_ms: Vec<f64>,
    /// Switches.
    pub switches: usize,
    /// Steps.
    pub steps: usize,
    /// Preemptions.
    pub preemptions: usize,
}

/// The value that a share of an ascending list is not above; 0 of an empty one.
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let k = (ascending.len() as f64 * share).ceil() as usize;
    ascending.get(k.saturating_sub(1)).copied().unwrap_or_default()
}

impl Report {
    /// Tokens made in a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.total_ms * 1e3
    }

    /// The head of a table whose lines are reports.
    pub const HEAD: &str =
        "  tok/s | first token p50, p99 ms | next token p50, p99 ms | switches of steps";
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, first_99] = [0.5, 0.99].map(|share| percentile(&self.first_token_ms, share));
        let [next, next_99] = [0.5, 0.99].map(|share| percentile(&self.next_token_ms, share));
        write!(f, "{:7.1} | {first:11.0} {first_99:11.0} ", self.tokens_per_second())?;
        write!(f, "| {next:10.0} {next_99:11.0} ",)?;
        write!(f, "| {:8} {:8}", self.switches, self.steps)
    }
}
