//! The queue: who is next among jobs that wait.
//!
//! Start-time fair queueing over the subtrees at the top of the tree, their tenants: every tenant
//! has a clock that its admitted jobs move on by what they are expected to take, and the tenant
//! whose clock is behind is next; within one the first come is first. One that comes back from doing
//! nothing starts where the others are. What lost its pages comes before all others.
//!
//! **Invariant:** while a tenant has jobs waiting that could be admitted, others are admitted for no
//! more than it is, but for one job of each and what holds a place already.

use std::collections::BTreeMap;

use super::job::{JobId, Tenant};

/// Jobs that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Preempted jobs by order of submission.
    returned: BTreeMap<u64, JobId>,
    tenants: BTreeMap<Tenant, Waiting>,
    /// The clock of the tenant that was admitted last, before it was moved on.
    clock: f64,
}

#[derive(Debug, Default)]
struct Waiting {
    clock: f64,
    jobs: BTreeMap<u64, JobId>,
}

/// What becomes of a job whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is taken, and charged with so much.
    Take(f64),
    /// Those behind it may come first.
    Skip,
    /// Nobody comes before it.
    Hold,
}

impl Queue {
    /// Puts a job at the end of its tenant's; `order` ascends with every submission.
    pub(super) fn push(&mut self, tenant: Tenant, order: u64, id: JobId) {
        let clock = self.clock;
        let waiting = self.tenants.entry(tenant).or_default();
        waiting.clock = waiting.clock.max(clock);
        waiting.jobs.insert(order, id);
    }

    /// Puts a job that had been admitted in front.
    pub(super) fn push_returned(&mut self, order: u64, id: JobId) {
        self.returned.insert(order, id);
    }

    /// Takes a job out, admitted and charged with `charge`, or gone for good with none.
    pub(super) fn take(&mut self, tenant: Tenant, order: u64, charge: Option<f64>) {
        if self.returned.remove(&order).is_some() {
            return;
        }
        let Some(waiting) = self.tenants.get_mut(&tenant) else { return };
        waiting.jobs.remove(&order);
        if let Some(charge) = charge {
            self.clock = self.clock.max(waiting.clock);
            waiting.clock += charge;
        }
        let clock = self.clock;
        self.tenants.retain(|_, waiting| !waiting.jobs.is_empty() || waiting.clock > clock);
    }

    /// Gives a tenant back what a job was charged with too much, or takes it.
    pub(super) fn settle(&mut self, tenant: Tenant, charge: f64) {
        if let Some(waiting) = self.tenants.get_mut(&tenant) {
            waiting.clock = (waiting.clock + charge).max(0.0);
        }
    }

    /// The first `most` jobs that `judge` takes, in the order in which they are to be admitted.
    pub(super) fn next(&self, most: usize, mut judge: impl FnMut(JobId) -> Verdict) -> Vec<JobId> {
        let mut next = Vec::new();
        for id in self.returned.values() {
            if next.len() == most {
                return next;
            }
            match judge(*id) {
                Verdict::Take(_) => next.push(*id),
                Verdict::Skip => {}
                Verdict::Hold => return next,
            }
        }
        let mut heads: Vec<_> = self
            .tenants
            .iter()
            .map(|(tenant, waiting)| (waiting.clock, *tenant, waiting.jobs.values()))
            .collect();
        while next.len() < most && !heads.is_empty() {
            let behind = |a: &usize, b: &usize| {
                heads[*a].0.total_cmp(&heads[*b].0).then(heads[*a].1.cmp(&heads[*b].1))
            };
            let k = (0..heads.len()).min_by(behind).expect("there is one");
            let Some(id) = heads[k].2.next() else {
                drop(heads.swap_remove(k));
                continue;
            };
            match judge(*id) {
                Verdict::Take(charge) => {
                    next.push(*id);
                    heads[k].0 += charge;
                }
                Verdict::Skip => {}
                Verdict::Hold => break,
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Serial;

    fn tenant(k: u64) -> Tenant {
        Some(Serial(k))
    }

    fn ids(queue: &Queue, most: usize, charge: f64) -> Vec<u64> {
        queue.next(most, |_| Verdict::Take(charge)).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn tenants_take_turns_whatever_their_numbers() {
        let mut queue = Queue::default();
        (0..6).for_each(|k| queue.push(tenant(1), k, JobId(k)));
        (6..8).for_each(|k| queue.push(tenant(2), k, JobId(k)));
        assert_eq!(ids(&queue, 5, 1.0), [0, 6, 1, 7, 2]);
        queue.take(tenant(1), 0, Some(10.0));
        assert_eq!(ids(&queue, 5, 1.0), [6, 7, 1, 2, 3], "who took much waits");
        queue.settle(tenant(1), -10.0);
        assert_eq!(ids(&queue, 3, 1.0), [1, 6, 2], "and is given back what it did not use");
    }

    #[test]
    fn nobody_saves_up_by_doing_nothing() {
        let mut queue = Queue::default();
        for k in 0..10 {
            queue.push(tenant(1), k, JobId(k));
            queue.take(tenant(1), k, Some(1.0));
        }
        (10..13).for_each(|k| queue.push(tenant(1), k, JobId(k)));
        (20..23).for_each(|k| queue.push(tenant(2), k, JobId(k)));
        assert_eq!(ids(&queue, 6, 1.0), [20, 10, 21, 11, 22, 12]);
    }

    #[test]
    fn what_was_preempted_is_first_and_holds_others_back() {
        let mut queue = Queue::default();
        queue.push(tenant(1), 1, JobId(1));
        queue.push_returned(5, JobId(5));
        queue.push_returned(3, JobId(3));
        assert_eq!(ids(&queue, 9, 1.0), [3, 5, 1]);
        let held = queue.next(9, |id| if id.0 == 5 { Verdict::Hold } else { Verdict::Take(1.0) });
        assert_eq!(held, [JobId(3)]);
        let skipped =
            queue.next(9, |id| if id.0 == 3 { Verdict::Skip } else { Verdict::Take(1.0) });
        assert_eq!(skipped, [JobId(5), JobId(1)]);
        queue.take(tenant(1), 3, Some(1.0));
        queue.take(tenant(1), 1, None);
        assert_eq!(ids(&queue, 9, 1.0), [5]);
        assert!(queue.tenants.is_empty(), "who has nothing is forgotten");
    }
}
