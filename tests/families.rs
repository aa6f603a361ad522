//! A family whose norm is left out, whose heads are of another width or whose window stands open
//! still talks. So a tiny random model of every family, as transformers saves it, is held against
//! the logits that transformers computes for it, on every device, in one prefill and token by
//! token.
//!
//! `tests/fixtures/families/make_forward.py` makes them.

#![allow(clippy::cast_possible_truncation, reason = "test code")]

use std::path::{Path, PathBuf};

use pleach::base::BaseModel;
use pleach::device::Compute;
use pleach::device::cpu::Cpu;
use pleach::lattice::DEFAULT_HEADROOM;
use pleach::model::{Batch, KvPool, NewTokens, Transformer, Want};
use pleach::weights::Weights;
use serde::Deserialize;

/// Names the weights.
const OWNER: [u8; 32] = [1; 32];
/// Largest distance of a logit, as a share of the largest logit: what i16 steps leave of the
/// weights, with ample space.
const SHARE: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logits: Vec<Vec<f64>>,
}

/// The folders of the families' models.
fn folders() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let entries = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert!(folders.len() >= 4, "only {} families", folders.len());
    folders
}

/// Logits after every token: the first `ahead` at once, then one after another.
fn logits<D: Compute>(device: &D, base: &BaseModel, tokens: &[u32], ahead: usize) -> Vec<Vec<f32>> {
    let weights = Weights::load(base, device, DEFAULT_HEADROOM, |_, _| ()).unwrap();
    let model = Transformer::bind(device, base.config(), &weights).unwrap();
    let mut pool = KvPool::for_tokens(device, base.config(), tokens.len()).unwrap();
    let table = pool.pages_mut().open(OWNER);
    let mut found = Vec::new();
    let (first, rest) = tokens.split_at(ahead);
    for tokens in std::iter::once(first).chain(rest.chunks(1)) {
        let sequences = &[NewTokens { table, owner: OWNER, tokens, want: Want::All }];
        let logits = model.forward(device, &weights, &mut pool, &Batch::merged(sequences)).unwrap();
        found.extend(logits.rows().map(<[f32]>::to_vec));
    }
    found
}

fn check<D: Compute>(device: &D) {
    for folder in folders() {
        let golden = std::fs::read(folder.join("golden.json")).unwrap();
        let golden: Golden = serde_json::from_slice(&golden).unwrap();
        let size = golden.logits.iter().flatten().fold(0f64, |size, x| size.max(x.abs()));
        let base = BaseModel::open(&folder).unwrap();
        for ahead in [golden.tokens.len(), 9] {
            let found = logits(device, &base, &golden.tokens, ahead);
            assert_eq!(found.len(), golden.logits.len());
            for (position, (found, expected)) in found.iter().zip(&golden.logits).enumerate() {
                assert_eq!(found.len(), expected.len());
                for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
                    let off = (f64::from(*found) - expected).abs() / size;
                    assert!(
                        off < SHARE,
                        "{} position {position} token {token}: {found}, not {expected}",
                        folder.display()
                    );
                }
            }
        }
    }
}

#[test]
fn logits_of_every_family_are_those_of_transformers() {
    check(&Cpu::new(Some(2)).unwrap());
}

#[cfg(feature = "gpu")]
#[test]
fn logits_of_every_family_are_those_of_transformers_on_the_gpu() {
    if let Some(gpu) = pleach::testing::gpu(&Default::default()) {
        check(&gpu);
    }
}
