//! What is asked of the scheduler.

use super::nodes::{NodePath, Serial};
use crate::error::EngineDefect;
use crate::{Error, Result};

/// Names a job; the caller gives it, and no two that are in work have the same.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Where the weights stand when a job's rows run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// Anywhere on its path: what is below is applied in factored form.
    #[default]
    Automatic,
    /// Exactly at its node, nothing in factored form.
    Leaf,
    /// Exactly at its node's parent; of the root at the root.
    Parent,
    /// Exactly at the root, the whole path in factored form.
    Root,
}

/// A text to be made.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// The node version it belongs to.
    pub path: NodePath,
    /// Tokens of the prompt, at least one.
    pub prompt_tokens: usize,
    /// New tokens at most; none where only the prompt is run.
    pub max_tokens: usize,
    /// Where the weights stand for it. At a fixed place the tokens are the same whatever the company:
    /// bit for bit on the CPU, as far as rounding lets them on a GPU.
    pub merge: Merge,
    /// When nobody waits for it any more, on the caller's clock.
    pub deadline_ms: Option<f64>,
}

impl Job {
    /// The depth at which the weights have to stand for it, if it is fixed.
    pub(super) fn merge_depth(&self) -> Option<usize> {
        match self.merge {
            Merge::Automatic => None,
            Merge::Leaf => Some(self.path.len()),
            Merge::Parent => Some(self.path.len().saturating_sub(1)),
            Merge::Root => Some(0),
        }
    }

    /// Positions that it comes to hold at most: the last token is chosen, but not run.
    pub(super) fn most_positions(&self) -> usize {
        self.prompt_tokens.saturating_add(self.max_tokens.saturating_sub(1))
    }

    /// Whose share of the machine it takes: the node at the top of its path, or the base.
    pub(super) fn tenant(&self) -> Tenant {
        self.path.first().copied()
    }
}

/// A subtree at the top of the tree; none is the base itself.
pub(super) type Tenant = Option<Serial>;

/// Bounds of a scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Sequences that hold pages at once.
    pub max_running: usize,
    /// Jobs that wait at once; more are refused.
    pub max_waiting: usize,
    /// Tokens of a step: rows that decode and chunks of prompts together. More than twice
    /// `max_running`, so that prompts move on beside rows that decode.
    pub step_tokens: usize,
    /// Positions of a page of keys and values.
    pub page_positions: usize,
    /// Pages there are.
    pub pages: usize,
    /// How long a sequence that could run is passed over for others, in milliseconds; then its turn
    /// comes before all that pays.
    pub stall_ms: f64,
    /// How many steps ahead a switch may count on, at most.
    pub horizon_steps: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_running: 32,
            max_waiting: 1024,
            step_tokens: 128,
            page_positions: 32,
            pages: 1024,
            stall_ms: 1000.0,
            horizon_steps: 256.0,
        }
    }
}

impl Options {
    /// Refuses bounds that nothing could run within.
    pub(super) fn check(&self) -> Result<()> {
        let least = |name, found: usize, least: usize| match found < least {
            true => Err(refusal(name, format!("{least} or more"), found.to_string())),
            false => Ok(()),
        };
        least("max_running", self.max_running, 1)?;
        least("max_waiting", self.max_waiting, 1)?;
        least("step_tokens", self.step_tokens, self.max_running.saturating_mul(2))?;
        least("page_positions", self.page_positions, 1)?;
        least("pages", self.pages, 1)?;
        for (name, found) in [("stall_ms", self.stall_ms), ("horizon_steps", self.horizon_steps)] {
            if !(found.is_finite() && found >= 1.0) {
                return Err(refusal(name, "a number from 1".to_owned(), found.to_string()));
            }
        }
        Ok(())
    }

    /// Pages that so many positions take.
    pub(super) fn pages_of(&self, positions: usize) -> usize {
        positions.div_ceil(self.page_positions)
    }
}

fn refusal(name: &'static str, expected: String, found: String) -> Error {
    EngineDefect::Option { name, expected, found }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_nothing_runs_within_are_refused() {
        assert!(Options::default().check().is_ok());
        type Change = fn(&mut Options);
        let cases: [(&str, Change); 7] = [
            ("max_running", |options| options.max_running = 0),
            ("max_waiting", |options| options.max_waiting = 0),
            ("step_tokens", |options| options.step_tokens = 63),
            ("page_positions", |options| options.page_positions = 0),
            ("pages", |options| options.pages = 0),
            ("stall_ms", |options| options.stall_ms = f64::NAN),
            ("horizon_steps", |options| options.horizon_steps = 0.5),
        ];
        for (expected, change) in cases {
            let mut options = Options::default();
            change(&mut options);
            match options.check() {
                Err(Error::Engine(EngineDefect::Option { name, .. })) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
