//! A store that passes every scripted test can still lose a node in the one order of steps that
//! nobody wrote down: a rollback after a move, a compaction that a full disk breaks off. Here the
//! order is random, and a model in memory has every answer. `fuzz/fuzz_targets/store_walk.rs` takes
//! the same walks where libFuzzer leads them.

#[path = "common/drawn.rs"]
mod drawn;
#[path = "common/stored.rs"]
mod stored;
#[path = "common/walk.rs"]
mod walk;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use walk::{Tally, walk};

/// Walks, each of about forty steps: some seconds.
const WALKS: u64 = 40;
/// Bytes that decide a walk.
const BYTES: usize = 400;

fn add(sum: Tally, walked: Tally) -> Tally {
    Tally {
        made: sum.made + walked.made,
        refused: sum.refused + walked.refused,
        compacted: sum.compacted + walked.compacted,
        broken_off: sum.broken_off + walked.broken_off,
        made_nevertheless: sum.made_nevertheless + walked.made_nevertheless,
        reopened: sum.reopened + walked.reopened,
    }
}

#[test]
fn a_random_walk_finds_what_the_model_says() {
    let mut sum = Tally::default();
    for seed in 0..WALKS {
        let mut bytes = vec![0; BYTES];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        eprintln!("seed {seed}");
        sum = add(sum, walk(&bytes));
    }
    eprintln!("{sum:?}");
    // A walk that is refused everything, or that nothing breaks off, would test little.
    let Tally { made, refused, compacted, broken_off, .. } = sum;
    assert!(made > 200 && refused > 200 && compacted > 40 && broken_off > 50, "{sum:?}");
}
