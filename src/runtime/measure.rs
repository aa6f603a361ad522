//! Measurements: a switch, a decoded token, a prompt, each beside its ceiling taken in the same run.
//!
//! Every repetition times the ceiling and the thing itself one after the other, and the ratio is the median of the pairs'
//! ratios: a machine whose speed drifts then drifts for both.

use std::time::Instant;

use serde::Serialize;

use super::Runtime;
use crate::Result;
use crate::device::cpu::ceiling;
use crate::model::{Batch, KvCache, Sequence, Want};

/// A measured time beside its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Median time, in milliseconds.
    pub ms: f64,
    /// Median time of the ceiling, in milliseconds.
    pub ceiling_ms: f64,
    /// Median of the pairs' ratios: 1 is the ceiling, more is slower.
    pub ratio: f64,
}

impl Measured {
    fn of(pairs: &[(f64, f64)]) -> Self {
        Self {
            ms: median(pairs.iter().map(|(ms, _)| *ms)),
            ceiling_ms: median(pairs.iter().map(|(_, ceiling)| *ceiling)),
            ratio: median(pairs.iter().map(|(ms, ceiling)| ms / ceiling)),
        }
    }
}

/// The median; of an even number of values, the upper of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time<R>(work: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64() * 1e3, result)
}

impl Runtime {
    /// Switches to and fro between two nodes. The ceiling is the larger of two: reading, changing and writing the touched
    /// weights, and as many integer products from registers as the factors need.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn measure_switch(&mut self, a: &str, b: &str, repeats: usize) -> Result<Measured> {
        self.switch_to(a)?;
        self.switch_to(b)?;
        self.switch_to(a)?;
        let (plan, simd) = (self.tree.plan(self.tree.node(a)?, self.tree.node(b)?), self.device.simd());
        let mut products = 0;
        let mut touched = Vec::new();
        for (_, id) in self.weights.matrix_names() {
            let moved = plan.subtract.iter().chain(&plan.add);
            let ranks: Vec<_> = moved.filter_map(|&node| Some(self.cache.peek(node)?.delta(id)?.rank())).collect();
            if !ranks.is_empty() && !touched.contains(&id) {
                let grid = self.weights.grid(id);
                products += grid.rows() as u64 * grid.cols as u64 * ranks.iter().sum::<usize>() as u64;
                touched.push(id);
            }
        }
        let mut pairs = Vec::with_capacity(repeats);
        for k in 0..repeats {
            // Twice restores every bit; the second time is measured.
            let memory = (0..2).map(|_| {
                self.weights
                    .pass(&touched, |lanes| time(|| self.device.install(|| ceiling::read_modify_write(simd, lanes))).0)
            });
            let memory = memory.last().unwrap_or(0.0);
            let (multiply, ()) = time(|| self.device.install(|| ceiling::integer_multiply_add(simd, products)));
            let report = self.switch_to(if k % 2 == 0 { b } else { a })?;
            pairs.push((report.total_ms, memory.max(multiply)));
        }
        Ok(Measured::of(&pairs))
    }

    /// Decodes tokens one at a time after a prompt of `context` tokens. The ceiling is reading every weight that a token
    /// reads, two bytes each.
    ///
    /// # Errors
    /// As [`Runtime::generate`].
    pub fn measure_decode(&self, context: usize, repeats: usize) -> Result<Measured> {
        self.usable()?;
        let mut cache = self.filled_cache(context, repeats + 1)?;
        let read: Vec<_> = self.decoded_matrices().map(|id| self.weights.matrix(id).lanes()).collect();
        let mut pairs = Vec::with_capacity(repeats);
        self.step(&mut cache, &[1])?;
        for _ in 0..repeats {
            let (ceiling, _) =
                time(|| std::hint::black_box(self.device.install(|| ceiling::read(self.device.simd(), &read))));
            let (ms, done) = time(|| self.step(&mut cache, &[1]));
            done?;
            pairs.push((ms, ceiling));
        }
        Ok(Measured::of(&pairs))
    }

    /// Runs a prompt of `tokens` tokens. The ceiling is as many f32 products from registers as its matrices need.
    ///
    /// # Errors
    /// As [`Runtime::generate`].
    pub fn measure_prefill(&self, tokens: usize, repeats: usize) -> Result<Measured> {
        self.usable()?;
        let prompt: Vec<u32> = (1..).take(tokens).map(|t| t % 1000).collect();
        let mut cache = self.filled_cache(0, tokens)?;
        let layers: u64 = self.layer_weights();
        let head = self.weights.grid(self.head()).rows() as u64 * self.base.config().hidden_size as u64;
        let mut pairs = Vec::with_capacity(repeats);
        for k in 0..=repeats {
            let (ceiling, ()) = time(|| {
                self.device.install(|| {
                    ceiling::float_multiply_add(self.device.simd(), layers * tokens as u64 + head);
                });
            });
            cache.clear();
            let (ms, done) = time(|| self.step(&mut cache, &prompt));
            done?;
            // The first run warms up.
            if k > 0 {
                pairs.push((ms, ceiling));
            }
        }
        Ok(Measured::of(&pairs))
    }

    fn step(&self, cache: &mut KvCache<crate::device::cpu::Cpu>, tokens: &[u32]) -> Result<()> {
        let batch = Batch { sequences: &[Sequence { slot: 0, tokens, want: Want::Last }], owner: self.owner() };
        self.model.forward(&self.device, &self.weights, cache, &batch).map(drop)
    }

    fn filled_cache(&self, context: usize, room: usize) -> Result<KvCache<crate::device::cpu::Cpu>> {
        let mut cache = self.kv_cache(context + room)?;
        let tokens: Vec<u32> = (1..).take(context).map(|t| t % 1000).collect();
        if context > 0 {
            self.step(&mut cache, &tokens)?;
        }
        Ok(cache)
    }

    /// Matrices a decoded token reads whole: all but an embedding that is not the head.
    fn decoded_matrices(&self) -> impl Iterator<Item = crate::weights::MatrixId> {
        let embedding = crate::WeightName::new(crate::weights::EMBEDDING);
        let names = self.weights.matrix_names();
        names.filter(move |(name, _)| **name != embedding).map(|(_, id)| id)
    }

    fn head(&self) -> crate::weights::MatrixId {
        self.weights.matrix_id(&crate::WeightName::new(crate::weights::HEAD)).expect("every model has a head")
    }

    fn layer_weights(&self) -> u64 {
        let size = |id| {
            let grid = self.weights.grid(id);
            grid.rows() as u64 * grid.cols as u64
        };
        self.decoded_matrices().filter(|&id| id != self.head()).map(size).sum()
    }
}
