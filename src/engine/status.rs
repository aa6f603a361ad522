//! What an engine does and has done, for whoever looks on.

use std::collections::VecDeque;
use std::time::Instant;

use crate::nodes::CacheStats;
use crate::runtime::SwitchReport;

/// Switches that are remembered one by one.
const RECENT: usize = 32;

/// What an engine does.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Node where the weights stand.
    pub node: String,
    /// Sequences that hold pages.
    pub running: usize,
    /// Requests that wait for their turn; those whose deltas are being read are not counted yet.
    pub waiting: usize,
    /// Pages of keys and values that nobody holds, and all.
    pub pages: (usize, usize),
    /// Steps so far.
    pub steps: u64,
    /// Tokens that were run, those of prompts too.
    pub tokens: u64,
    /// Rows of steps at whose node the weights stood.
    pub merged_rows: u64,
    /// Rows of steps of which a part of the path was applied in factored form.
    pub factored_rows: u64,
    /// Switches so far.
    pub switches: u64,
    /// The same by the depth of the node that they led to, from the root, 0, on.
    pub switches_by_depth: Vec<u64>,
    /// Bytes of weights that they read and wrote.
    pub switched_bytes: u64,
    /// Milliseconds that they took.
    pub switch_ms: f64,
    /// The last 32 of them, the newest last.
    pub recent_switches: VecDeque<RecentSwitch>,
    /// Sequences that lost their pages and were run again.
    pub preempted: u64,
    /// What the cache of compiled deltas in a GPU's memory held at the last switch; nothing on the
    /// CPU.
    pub device_cache: CacheStats,
    /// What things are expected to take, a line a term.
    pub cost: String,
}

/// A switch that an engine has made.
#[derive(Clone, Debug)]
pub struct RecentSwitch {
    /// The how manieth it was, from 1 on.
    pub number: u64,
    /// When it was done.
    pub at: Instant,
    /// What it did and cost.
    pub report: SwitchReport,
}

impl Status {
    /// Counts a switch to a node of this depth.
    pub(super) fn note_switch(&mut self, report: SwitchReport, depth: usize) {
        // Now, and not with the step's end: whoever looks finds both or none.
        self.node.clone_from(&report.target);
        self.switches += 1;
        if self.switches_by_depth.len() <= depth {
            self.switches_by_depth.resize(depth + 1, 0);
        }
        self.switches_by_depth[depth] += 1;
        self.switched_bytes += report.touched_bytes;
        self.switch_ms += report.total_ms;
        if self.recent_switches.len() == RECENT {
            self.recent_switches.pop_front();
        }
        let (number, at) = (self.switches, Instant::now());
        self.recent_switches.push_back(RecentSwitch { number, at, report });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_counted_by_depth_and_the_last_remembered() {
        let mut status = Status::default();
        for depth in (0..40).map(|i| i % 3) {
            let report = SwitchReport { touched_bytes: 4, total_ms: 0.5, ..Default::default() };
            status.note_switch(report, depth);
        }
        assert_eq!((status.switches, &status.switches_by_depth[..]), (40, &[14, 13, 13][..]));
        assert_eq!((status.switched_bytes, status.switch_ms), (160, 20.0));
        let numbers: Vec<u64> = status.recent_switches.iter().map(|s| s.number).collect();
        assert_eq!(numbers, (9..=40).collect::<Vec<_>>());
    }
}
