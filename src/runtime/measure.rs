//! Measurements: a switch, a decoded token, a prompt, each beside its ceiling taken in the same run.
//!
//! Every repetition times the ceiling and the thing itself one after the other, and the ratio is the median of the pairs'
//! ratios: a machine whose speed drifts then drifts for both.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::live::{Live, on_device};
use super::{Runtime, SwitchReport};
use crate::device::{Ceilings, Choice, Compute};
use crate::model::{Batch, KvCache, Sequence, Want};
use crate::tree::SwitchPlan;
use crate::weights::{EMBEDDING, HEAD, MatrixId};
use crate::{Result, WeightName};

const GREEDY: Choice = Choice { temperature: 0.0, top_k: None, top_p: None, min_p: None, random: 0.0 };

/// How long a measurement takes further turns where the device is not the CPU: a GPU may be software.
const PATIENCE: Duration = Duration::from_secs(2);

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

/// A measured switch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeasuredSwitch {
    /// The whole call beside its ceiling.
    #[serde(flatten)]
    pub time: Measured,
    /// Bytes of weights read and written: four for every touched weight.
    pub touched_bytes: u64,
    /// Median time of the pass by the device's own clock, in milliseconds, where it has one.
    pub device_pass_ms: Option<f64>,
    /// Median time of the copies to the device by its own clock, in milliseconds.
    pub device_upload_ms: Option<f64>,
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
    /// Counts `most` turns of a measurement. On a GPU it takes no further one after two seconds.
    pub fn turns(&self, most: usize) -> impl Iterator<Item = usize> + use<> {
        let (start, patient) = (Instant::now(), on_device!(&self.live, live => live.is_host()));
        (0..most).take_while(move |&turn| patient || turn == 0 || start.elapsed() < PATIENCE)
    }

    /// Switches to and fro between two nodes. The ceiling is the larger of two: reading, changing and writing the touched
    /// weights, and as many integer products from registers as the factors need.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn measure_switch(&mut self, a: &str, b: &str, repeats: usize) -> Result<MeasuredSwitch> {
        self.measure_switches(a, b, repeats, false)
    }

    /// The same with the target's deltas in the host's memory alone, so that every switch uploads them; none on the CPU.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn measure_uploading_switch(&mut self, a: &str, b: &str, repeats: usize) -> Result<Option<MeasuredSwitch>> {
        if on_device!(&self.live, live => live.is_host()) {
            return Ok(None);
        }
        self.measure_switches(a, b, repeats, true).map(Some)
    }

    fn measure_switches(&mut self, a: &str, b: &str, repeats: usize, upload: bool) -> Result<MeasuredSwitch> {
        self.switch_to(a)?;
        self.switch_to(b)?;
        self.switch_to(a)?;
        let (from, to) = (self.sources.resolve(a)?, self.sources.resolve(b)?);
        let plan = self.sources.tree.plan(from, to);
        let (touched, products) = on_device!(&self.live, live => live.work_of(&plan));
        let mut pairs = Vec::with_capacity(repeats);
        let mut reports = Vec::with_capacity(repeats);
        for k in self.turns(repeats) {
            let path = self.sources.tree.path_from_root(self.current);
            let ceiling = on_device!(&mut self.live, live => {
                if upload {
                    live.uploaded.evict_to(0, &path);
                }
                let Live { device, weights, .. } = &mut **live;
                let memory = weights.measure(&touched, |matrices| device.read_modify_write_ms(matrices))?;
                memory.max(live.device.integer_products_ms(products)?)
            });
            let report = self.switch_to(if k % 2 == 0 { b } else { a })?;
            pairs.push((report.total_ms, ceiling));
            reports.push(report);
        }
        let by_device = |time: fn(&SwitchReport) -> Option<f64>| {
            let times: Option<Vec<f64>> = reports.iter().map(time).collect();
            times.map(|times| median(times.into_iter()))
        };
        Ok(MeasuredSwitch {
            time: Measured::of(&pairs),
            touched_bytes: reports.first().map_or(0, |report| report.touched_bytes),
            device_pass_ms: by_device(|report| report.device_pass_ms),
            device_upload_ms: by_device(|report| report.device_upload_ms),
        })
    }

    /// Decodes tokens one at a time after a prompt of `context` tokens, taking the likeliest each time. The ceiling is
    /// reading every weight that a token reads, two bytes each.
    ///
    /// # Errors
    /// As [`Runtime::generate`].
    pub fn measure_decode(&self, context: usize, repeats: usize) -> Result<Measured> {
        on_device!(&self.live, live => {
            live.usable()?;
            let mut cache = self.filled_cache(live, context, repeats + 1)?;
            let read: Vec<_> = live.decoded_matrices().map(|id| live.weights.matrix(id)).collect();
            let mut pairs = Vec::with_capacity(repeats);
            let token = self.measured_tokens(1);
            self.step(live, &mut cache, &token)?;
            for _ in self.turns(repeats) {
                let ceiling = live.device.read_ms(&read)?;
                let (ms, done) = time(|| self.step(live, &mut cache, &token));
                done?;
                pairs.push((ms, ceiling));
            }
            Ok(Measured::of(&pairs))
        })
    }

    /// Runs a prompt of `tokens` tokens. The ceiling is as many f32 products from registers as its matrices need.
    ///
    /// # Errors
    /// As [`Runtime::generate`].
    pub fn measure_prefill(&self, tokens: usize, repeats: usize) -> Result<Measured> {
        on_device!(&self.live, live => {
            live.usable()?;
            let prompt = self.measured_tokens(tokens);
            let mut cache = self.filled_cache(live, 0, tokens)?;
            let products = live.prefill_products(tokens as u64);
            let mut pairs = Vec::with_capacity(repeats);
            let mut run = || {
                cache.clear();
                let (ms, done) = time(|| self.step(live, &mut cache, &prompt));
                done.map(|()| ms)
            };
            // The first run warms up.
            run()?;
            for _ in self.turns(repeats) {
                let ceiling = live.device.float_products_ms(products)?;
                pairs.push((run()?, ceiling));
            }
            Ok(Measured::of(&pairs))
        })
    }

    /// So many tokens: the first thousand in turn, or all of a smaller vocabulary.
    fn measured_tokens(&self, count: usize) -> Vec<u32> {
        let known = u32::try_from(self.base().config().vocab_size).unwrap_or(u32::MAX).clamp(1, 1000);
        (1..).take(count).map(|token| token % known).collect()
    }

    fn step<D: Compute>(&self, live: &Live<D>, cache: &mut KvCache<D>, tokens: &[u32]) -> Result<()> {
        let sequences = &[Sequence { slot: 0, tokens, want: Want::Last }];
        let (batch, choice) = (Batch { sequences, owner: self.owner() }, GREEDY);
        live.model.next_tokens(&live.device, &live.weights, cache, &batch, &[choice]).map(drop)
    }

    fn filled_cache<D: Compute>(&self, live: &Live<D>, context: usize, room: usize) -> Result<KvCache<D>> {
        let mut cache = self.kv_cache(live, context + room)?;
        let tokens = self.measured_tokens(context);
        if context > 0 {
            self.step(live, &mut cache, &tokens)?;
        }
        Ok(cache)
    }
}

impl<D: Compute> Live<D> {
    /// Whether the device is the CPU.
    fn is_host(&self) -> bool {
        D::HOST_MEMORY
    }

    /// The matrices a switch touches, and the integer products its factors need.
    fn work_of(&self, plan: &SwitchPlan) -> (Vec<MatrixId>, u64) {
        let moved = || plan.subtract.iter().chain(&plan.add).filter_map(|&node| self.compiled.peek(node));
        let mut products = 0;
        let mut touched: Vec<MatrixId> = moved().flat_map(|deltas| deltas.iter().map(|(id, _)| id)).collect();
        touched.sort_unstable();
        touched.dedup();
        for &id in &touched {
            let rank: usize = moved().filter_map(|deltas| Some(deltas.delta(id)?.rank())).sum();
            products += self.size(id) * rank as u64;
        }
        (touched, products)
    }

    /// Matrices a decoded token reads whole: all but an embedding that is not the head.
    fn decoded_matrices(&self) -> impl Iterator<Item = MatrixId> {
        let embedding = WeightName::new(EMBEDDING);
        self.weights.matrix_names().filter(move |(name, _)| **name != embedding).map(|(_, id)| id)
    }

    /// Products of a prompt: every layer's weights once a token, the head's once.
    fn prefill_products(&self, tokens: u64) -> u64 {
        let head = self.weights.matrix_id(&WeightName::new(HEAD)).expect("every model has a head");
        let layers: u64 = self.decoded_matrices().filter(|&id| id != head).map(|id| self.size(id)).sum();
        layers * tokens + self.size(head)
    }

    fn size(&self, id: MatrixId) -> u64 {
        let grid = self.weights.grid(id);
        (grid.rows() * grid.cols) as u64
    }
}
