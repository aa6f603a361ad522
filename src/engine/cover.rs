//! Where to stand and for whom.
//!
//! Every sequence that could run belongs to some node. A *group* runs together, at a node above all
//! its members or at one of them; a *cover* is groups that have every sequence between them, run in
//! turn. From the leaves upwards, all that hangs below a node is first thought to run together at
//! it; whoever is cheaper apart, with the switch that its turn takes, is parted. The cheapest cover
//! wins:
//!
//! - one busy leaf is one group, which stands on it;
//! - leaves of one task are one group: their rows share a pass, and what they have of their own is
//!   small;
//! - strangers share the root as long as rows share passes; large parties part where a turn each is
//!   cheaper than what they have of their own, and long prompts are run where they belong.
//!
//! Then the group whose turn it is, and where it stands: as far down as its expected steps pay for
//! the switch.
//!
//! **Invariant:** a sequence that waited for `stall_ms` is in the group that is chosen, unless one
//! is that waited longer.

use std::ops::Range;

use super::cost::CostModel;
use super::job::{JobId, Options};
use super::nodes::{NodePath, NodeTable, Serial, common_depth};
use super::plan::{Part, features};

/// A sequence that could run now.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// The job.
    pub id: JobId,
    /// The node version it belongs to.
    pub path: &'a [Serial],
    /// The depth at which the weights have to stand, if that is fixed.
    pub merge_depth: Option<usize>,
    /// Positions in the cache.
    pub from: usize,
    /// Tokens to run until the next is chosen; one: it decodes.
    pub tokens: usize,
    /// Steps it is expected to decode yet.
    pub steps_left: f64,
    /// Since when it could run and did not.
    pub since_ms: f64,
    /// Whether it ran in the step before.
    pub ran: bool,
}

/// What is chosen from.
pub struct Scene<'a> {
    /// The caller's clock.
    pub now_ms: f64,
    /// Where the weights stand.
    pub stand: &'a [Serial],
    /// Who could run, in depth-first order.
    pub members: &'a [Member<'a>],
    /// The nodes.
    pub table: &'a NodeTable,
    /// What things take.
    pub cost: &'a CostModel,
    /// Bounds.
    pub options: &'a Options,
}

/// Where to stand, and who of the members may run there.
#[derive(Clone, Debug)]
pub struct Choice {
    /// A node above all of them.
    pub stand: NodePath,
    /// Places in [`Scene::members`], ascending.
    pub members: Vec<usize>,
}

/// A way to choose.
pub trait Choose {
    /// Where to stand and for whom; there is a member at least.
    fn choose(&mut self, scene: &Scene<'_>) -> Choice;
}

/// The cheapest cover by the cost model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cover;

impl Choose for Cover {
    fn choose(&mut self, scene: &Scene<'_>) -> Choice {
        let all = scene.members.len();
        let together = scene.turn_ms(&scene.load(0..all), 1.0).max(1.0);
        let mut steps = (scene.options.stall_ms / together).clamp(1.0, scene.options.horizon_steps);
        let mut groups = scene.cover(0..all, 0, steps);
        if groups.len() > 2 {
            // Each waits for all others within the same time.
            steps = (steps / (groups.len() - 1) as f64).max(1.0);
            groups = scene.cover(0..all, 0, steps);
        }
        let is_alone = groups.len() == 1;
        let group = scene.whose_turn(groups, steps);
        let steps = if is_alone { scene.steps_left(&group.members) } else { steps };
        let depth = match group.merge {
            Merged::At(depth) => depth,
            Merged::Free => scene.best_depth(&group.members, steps, is_alone),
        };
        let stand = scene.members[group.members[0]].path[..depth].into();
        Choice { stand, members: group.members }
    }
}

/// Where a group may stand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Merged {
    /// At its own node or above.
    Free,
    /// At this depth alone.
    At(usize),
}

/// Sequences that run together.
#[derive(Debug)]
struct Group {
    /// Places of the members, ascending.
    members: Vec<usize>,
    merge: Merged,
    /// The depth up to which everything is merged in `load`.
    depth: usize,
    load: Load,
}

/// What a turn of a group is made of.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Rows that decode.
    rows: f64,
    /// What they take in a step beside the merged weights.
    row_ms: f64,
    /// Factors read in a step.
    range_ms: f64,
    /// Tokens of prompts.
    prompt: f64,
    /// What they take in all.
    prompt_ms: f64,
}

impl Load {
    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.row_ms += other.row_ms;
        self.range_ms += other.range_ms;
        self.prompt += other.prompt;
        self.prompt_ms += other.prompt_ms;
    }
}

/// A part is put apart only if that saves so much of all: turns cost others their evenness.
const WORTHWHILE: f64 = 0.1;

impl Scene<'_> {
    /// What members take where everything is merged for each.
    fn load(&self, range: Range<usize>) -> Load {
        let mut load = Load::default();
        for member in &self.members[range] {
            if member.tokens == 1 {
                load.rows += 1.0;
                load.row_ms += self.cost.attention_ms(member.from as f64);
            } else {
                load.prompt += member.tokens as f64;
                load.prompt_ms += self.cost.prompt_token_ms() * member.tokens as f64;
            }
        }
        load
    }

    /// The same load with `nodes` applied to it in factored form.
    fn lifted(&self, mut load: Load, nodes: &[Serial]) -> Load {
        for node in nodes {
            let factors = self.table.factors(*node);
            load.row_ms += self.cost.factored_ms(load.rows * factors);
            load.prompt_ms += self.cost.factored_ms(load.prompt * factors);
            load.range_ms += self.cost.ranges_ms(1.0, factors);
        }
        load
    }

    /// Milliseconds of a turn of `steps` steps; of prompts alone, of as many as they need.
    fn turn_ms(&self, load: &Load, steps: f64) -> f64 {
        let of_prompts = (load.prompt / self.options.step_tokens as f64).ceil();
        let steps = if load.rows > 0.0 { steps } else { of_prompts };
        steps * (self.cost.pass_ms(load.rows) + load.row_ms + load.range_ms) + load.prompt_ms
    }

    /// Milliseconds of a group's turn by itself, with the switch there from depth `depth` above it.
    fn apart_ms(&self, group: &Group, depth: usize, steps: f64) -> f64 {
        let path = self.members[group.members[0]].path;
        let bytes = self.table.switch_bytes(&path[..depth], &path[..group.depth]);
        self.turn_ms(&group.load, steps) + self.cost.switch_ms(bytes)
    }

    /// A group's load where the weights stand at depth `depth` above it.
    fn lifted_to(&self, group: &Group, depth: usize) -> Load {
        let path = self.members[group.members[0]].path;
        self.lifted(group.load, &path[depth..group.depth])
    }

    /// The cheapest groups of members that share the first `depth` nodes of their paths, if each
    /// has turns of `steps` steps.
    fn cover(&self, range: Range<usize>, depth: usize, steps: f64) -> Vec<Group> {
        let mut groups = self.own_groups(range.start, depth, range.end);
        let mut start = range.start + groups.iter().map(|group| group.members.len()).sum::<usize>();
        while start < range.end {
            let node = self.members[start].path[depth];
            let others = &self.members[start..range.end];
            let end = start + others.partition_point(|member| member.path[depth] <= node);
            groups.extend(self.cover(start..end, depth + 1, steps));
            start = end;
        }
        self.join(groups, depth, steps)
    }

    /// The members at exactly this node, by where they may stand.
    fn own_groups(&self, start: usize, depth: usize, end: usize) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for k in (start..end).take_while(|k| self.members[*k].path.len() == depth) {
            let merge = self.members[k].merge_depth.map_or(Merged::Free, Merged::At);
            let load = self.load(k..k + 1);
            match groups.iter_mut().find(|group| group.merge == merge) {
                Some(group) => {
                    group.members.push(k);
                    group.load.add(&load);
                }
                None => groups.push(Group { members: vec![k], merge, depth, load }),
            }
        }
        groups
    }

    /// Joins at depth `depth` the groups of one node that are cheaper together. Those with a place
    /// of their own elsewhere stay as they are; those whose place is here are together.
    fn join(&self, groups: Vec<Group>, depth: usize, steps: f64) -> Vec<Group> {
        let (free, fixed): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.merge == Merged::Free);
        let (here, mut apart): (Vec<_>, Vec<_>) =
            fixed.into_iter().partition(|group| group.merge == Merged::At(depth));
        if here.is_empty() && free.len() < 2 {
            apart.extend(free);
            return apart;
        }
        let mut base = Load::default();
        here.iter().for_each(|group| base.add(&self.lifted_to(group, depth)));
        let lifted: Vec<Load> = free.iter().map(|group| self.lifted_to(group, depth)).collect();
        let alone: Vec<f64> = free.iter().map(|group| self.apart_ms(group, depth, steps)).collect();
        let joined = self.cheapest_together(&base, !here.is_empty(), &lifted, &alone, steps);
        let merge = if here.is_empty() { Merged::Free } else { Merged::At(depth) };
        let mut together = Group { members: Vec::new(), merge, depth, load: base };
        together.members.extend(here.into_iter().flat_map(|group| group.members));
        for (k, group) in free.into_iter().enumerate() {
            if joined[k] {
                together.load.add(&lifted[k]);
                together.members.extend(group.members);
            } else {
                apart.push(group);
            }
        }
        together.members.sort_unstable();
        apart.extend((!together.members.is_empty()).then_some(together));
        apart
    }

    /// Which of the loads join `base`: all, and then whoever saves most is parted, one by one, as
    /// long as that saves anything. `alone` is what each takes by itself.
    fn cheapest_together(
        &self,
        base: &Load,
        has_base: bool,
        lifted: &[Load],
        alone: &[f64],
        steps: f64,
    ) -> Vec<bool> {
        let mut joined = vec![true; lifted.len()];
        let together = |joined: &[bool]| {
            let mut inside = (0..joined.len()).filter(|k| joined[*k]);
            match (inside.clone().count(), has_base) {
                (0, false) => 0.0,
                // It stands where it belongs.
                (1, false) => alone[inside.next().expect("there is one")],
                _ => {
                    let mut load = *base;
                    inside.for_each(|k| load.add(&lifted[k]));
                    self.turn_ms(&load, steps)
                }
            }
        };
        let mut now = together(&joined);
        loop {
            let without = |k: usize| {
                let mut fewer = joined.clone();
                fewer[k] = false;
                together(&fewer) + alone[k]
            };
            let inside = (0..joined.len()).filter(|k| joined[*k]);
            let costs = inside.map(|k| (without(k), k));
            let Some((best, k)) = costs.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            if best > now * (1.0 - WORTHWHILE) {
                break;
            }
            joined[k] = false;
            now = best - alone[k];
        }
        if !has_base && joined.iter().filter(|joined| **joined).count() == 1 {
            joined.fill(false);
        }
        joined
    }

    /// The group with whoever waited too long, or that which ran last, or the fastest.
    fn whose_turn(&self, mut groups: Vec<Group>, steps: f64) -> Group {
        let since = |k: &usize| self.members[*k].since_ms;
        let longest = (0..self.members.len()).min_by(|a, b| since(a).total_cmp(&since(b)));
        let overdue =
            longest.filter(|k| self.now_ms - self.members[*k].since_ms >= self.options.stall_ms);
        let ran =
            |group: &Group| group.members.iter().filter(|k| self.members[**k].ran).count() as f64;
        let rate = |group: &Group| {
            let tokens = group.load.rows * steps + group.load.prompt;
            let path = self.members[group.members[0]].path;
            let bytes = self.table.switch_bytes(self.stand, &path[..group.depth]);
            tokens / (self.turn_ms(&group.load, steps) + self.cost.switch_ms(bytes))
        };
        let of = |key: &dyn Fn(&Group) -> f64| {
            let keys = groups.iter().map(key).enumerate();
            keys.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).expect("there is one")
        };
        let k = match overdue {
            Some(member) => groups.iter().position(|group| group.members.contains(&member)),
            None => Some(of(&ran)).filter(|most| most.1 > 0.0).map(|most| most.0),
        };
        let k = k.unwrap_or_else(|| of(&rate).0);
        groups.swap_remove(k)
    }

    /// Steps that members are expected to have in common, on average.
    fn steps_left(&self, members: &[usize]) -> f64 {
        let sum: f64 = members.iter().map(|k| self.members[*k].steps_left).sum();
        (sum / members.len() as f64).clamp(1.0, self.options.horizon_steps)
    }

    /// The depth at which members cost least, with the switch there: from where the weights stand,
    /// for `steps` steps, of those in their prompts, too, if they stay.
    fn best_depth(&self, members: &[usize], steps: f64, they_stay: bool) -> usize {
        let (first, last) = (members[0], members[members.len() - 1]);
        let path = self.members[first].path;
        let deepest = common_depth(path, self.members[last].path);
        let part = |k: &usize, tokens: usize| {
            let Member { path, from, .. } = self.members[*k];
            Part { path, from, tokens }
        };
        let ms = |depth: usize| {
            let decoding = members.iter().filter(|k| they_stay || self.members[**k].tokens == 1);
            let decoding = features(self.table, depth, decoding.map(|k| part(k, 1)));
            let prompts = members.iter().filter(|k| self.members[**k].tokens > 1);
            let prompts = prompts.map(|k| part(k, self.members[*k].tokens));
            let prompts = self.cost.step(&features(self.table, depth, prompts));
            let bytes = self.table.switch_bytes(self.stand, &path[..depth]);
            steps * self.cost.step(&decoding).step_ms() + prompts.step_ms() - prompts.pass_ms
                + self.cost.switch_ms(bytes)
        };
        let depths = (0..=deepest).map(|depth| (ms(depth), depth));
        depths.min_by(|a, b| a.0.total_cmp(&b.0)).expect("the root is a depth").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CostConstants, NodeCost};

    /// Nodes 1 and 2 at the top, 11, 12 … below 1, 111, 112 … below 11. Nodes of the top are large, users
    /// small. One matrix that takes a switch some 20 ms.
    fn table() -> NodeTable {
        let mut table = NodeTable::new([500_000_000u64]);
        for (nodes, factors) in [(1..3u64, 8_000_000), (11..29, 2_000_000), (111..299, 100_000)] {
            let cost = NodeCost { matrices: vec![0], factors };
            nodes.for_each(|node| table.insert(Serial(node), &cost));
        }
        table
    }

    /// The path whose digits are the places below one another.
    fn path(leaf: u64) -> Vec<Serial> {
        let digits = leaf.ilog10();
        (0..=digits).map(|k| Serial(leaf / 10u64.pow(digits - k))).collect()
    }

    fn decoding((k, path): (usize, &Vec<Serial>)) -> Member<'_> {
        Member {
            id: JobId(k as u64),
            path,
            merge_depth: None,
            from: 100,
            tokens: 1,
            steps_left: 100.0,
            since_ms: 0.0,
            ran: false,
        }
    }

    /// Where to stand for sequences at these leaves that have decoded for a while, and for which.
    fn choose(stand: &[Serial], leaves: &[u64], change: impl Fn(usize, &mut Member<'_>)) -> Choice {
        let mut leaves = leaves.to_vec();
        leaves.sort_by_key(|leaf| path(*leaf));
        let paths: Vec<_> = leaves.iter().map(|leaf| path(*leaf)).collect();
        let mut members: Vec<Member<'_>> = paths.iter().enumerate().map(decoding).collect();
        members.iter_mut().enumerate().for_each(|(k, member)| change(k, member));
        let (cost, options) = (CostModel::new(&CostConstants::default()), Options::default());
        let table = table();
        let scene = Scene {
            now_ms: 100.0,
            stand,
            members: &members,
            table: &table,
            cost: &cost,
            options: &options,
        };
        Cover.choose(&scene)
    }

    #[test]
    fn a_busy_leaf_has_the_weights_on_it() {
        let choice = choose(&[], &[111; 8], |_, _| ());
        assert_eq!((&choice.stand[..], choice.members.len()), (&path(111)[..], 8));
    }

    #[test]
    fn a_switch_that_does_not_pay_is_not_made() {
        let short = |_: usize, member: &mut Member<'_>| member.steps_left = 1.0;
        let choice = choose(&path(1), &[111; 8], short);
        assert_eq!((&choice.stand[..], choice.members.len()), (&path(1)[..], 8));
        let choice = choose(&path(1), &[111; 8], |_, _| ());
        assert_eq!(&choice.stand[..], &path(111)[..], "in a hundred steps it does");
    }

    #[test]
    fn leaves_of_one_task_share_it() {
        let choice = choose(&path(111), &[111, 112, 113, 114, 115], |_, _| ());
        assert_eq!((&choice.stand[..], choice.members.len()), (&path(11)[..], 5));
    }

    #[test]
    fn strangers_share_the_root() {
        let choice = choose(&path(111), &[111, 121, 211, 221], |_, _| ());
        assert_eq!((choice.stand.len(), choice.members.len()), (0, 4));
    }

    #[test]
    fn large_parties_part_and_take_turns() {
        let leaves = [[111; 16], [211; 16]].concat();
        let choice = choose(&path(111), &leaves, |k, member| member.ran = k >= 16);
        assert_eq!((&choice.stand[..], choice.members[0]), (&path(211)[..], 16), "who ran goes on");
        let waited = |k: usize, member: &mut Member<'_>| {
            member.since_ms = if k == 3 { -2000.0 } else { 90.0 };
            member.ran = k >= 16;
        };
        let choice = choose(&path(211), &leaves, waited);
        assert!(choice.members.contains(&3), "until somebody waited too long");
    }

    #[test]
    fn a_long_prompt_is_run_where_it_belongs() {
        let leaves = [111, 121, 211, 221];
        let prompt = |tokens: usize| {
            move |k: usize, member: &mut Member<'_>| {
                member.tokens = if k == 3 { tokens } else { 1 };
                member.since_ms = if k == 3 { -2000.0 } else { 90.0 };
            }
        };
        let choice = choose(&[], &leaves, prompt(16));
        assert_eq!((choice.stand.len(), choice.members.len()), (0, 4), "a short one beside others");
        let choice = choose(&[], &leaves, prompt(2000));
        assert!(!choice.stand.is_empty() && path(221).starts_with(&choice.stand), "{choice:?}");
    }

    #[test]
    fn who_has_a_place_of_its_own_runs_there_alone_or_with_those_below() {
        let fixed = |place: Option<usize>| {
            move |k: usize, member: &mut Member<'_>| {
                member.merge_depth = if k == 0 { place } else { None };
                member.since_ms = if k == 0 { -2000.0 } else { 90.0 };
            }
        };
        let leaves = [111, 112, 113, 211];
        for (place, expected) in [(0, 4), (1, 3), (2, 3), (3, 1)] {
            let choice = choose(&[], &leaves, fixed(Some(place)));
            assert_eq!(&choice.stand[..], &path(111)[..place]);
            assert!(choice.members.contains(&0) && choice.members.len() <= expected, "{choice:?}");
        }
    }
}
