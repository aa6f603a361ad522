//! Other ways to choose where to stand, behind the same queue, pages and machine.

use crate::engine::{Choice, Choose, Scene};

/// Always at this depth: whoever hangs below the node there that most hang below. At 0 all are at
/// the root, the whole path in factored form; far down it is one node at a time.
///
/// What waited for `stall_ms` has its turn, as everywhere.
#[derive(Clone, Copy, Debug)]
pub struct FixedDepth(pub usize);

impl Choose for FixedDepth {
    fn choose(&mut self, scene: &Scene<'_>) -> Choice {
        below(scene, self.0, false)
    }
}

/// All at the depth `depth` of one member's path.
fn below(scene: &Scene<'_>, depth: usize, most_only: bool) -> Choice {
    let members = scene.members;
    let at = |k: usize| {
        let Some(merge) = members[k].merge_depth else {
            return &members[k].path[..depth.min(members[k].path.len())];
        };
        &members[k].path[..merge]
    };
    let together = |k: usize| (0..members.len()).filter(move |other| at(*other) == at(k));
    let oldest = (0..members.len())
        .min_by(|a, b| members[*a].since_ms.total_cmp(&members[*b].since_ms))
        .expect("there is a member");
    let is_overdue = scene.now_ms - members[oldest].since_ms >= scene.options.stall_ms;
    let here = (0..members.len()).find(|k| at(*k) == scene.stand);
    let most = (0..members.len()).max_by_key(|k| (together(*k).count(), members.len() - k));
    let k = match (is_overdue, here) {
        (true, _) => oldest,
        (false, Some(here)) if !most_only => here,
        _ => most.expect("there is a member"),
    };
    Choice { stand: at(k).into(), members: together(k).collect() }
}

/// Two modes, as dLoRA has them: merged at the busiest leaf, for its sequences alone, or all at the
/// root in factored form. It merges while one leaf has more than half of the rows, and gathers
/// credits meanwhile, one a step for each sequence that waits for it; when they are more than the
/// rows it has served it, the others have a turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergedOrNot {
    credits: f64,
    unmerged_steps: usize,
}

/// Steps in factored form once credits are used up.
const UNMERGED_STEPS: usize = 8;
/// Credits for each place in the batch.
const CREDITS: f64 = 16.0;

impl Choose for MergedOrNot {
    fn choose(&mut self, scene: &Scene<'_>) -> Choice {
        let all = scene.members.len();
        let merged = below(scene, usize::MAX, true);
        let waiting = all - merged.members.len();
        if self.unmerged_steps > 0 || merged.members.len() * 2 <= all {
            self.unmerged_steps = self.unmerged_steps.saturating_sub(1);
            self.credits = 0.0;
            return below(scene, 0, true);
        }
        self.credits += waiting as f64;
        if self.credits > CREDITS * all as f64 {
            self.unmerged_steps = UNMERGED_STEPS;
        }
        merged
    }
}
