//! Measurements: a switch, a decoded token, a prompt, each beside its ceiling taken in the same
//! run.
//!
//! Every repetition times the ceiling and the thing itself one after the other, and the ratio is
//! the median of the pairs' ratios: a machine whose speed drifts then drifts for both.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::replica::Kv;
use super::{NodeVersion, Runtime, SwitchReport};
use crate::device::Choice;
use crate::weights::{EMBEDDING, HEAD, MatrixId};
use crate::{Result, WeightName};

const GREEDY: Choice =
    Choice { temperature: 0.0, top_k: None, top_p: None, min_p: None, random: 0.0 };

/// How long a measurement takes further turns where the device is not the CPU: a GPU may be
/// software.
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
        let (start, patient) = (Instant::now(), self.replica.residence().is_host);
        (0..most).take_while(move |&turn| patient || turn == 0 || start.elapsed() < PATIENCE)
    }

    /// Switches to and fro between two nodes. The ceiling is the larger of two: reading, changing
    /// and writing the touched weights, and as many integer products from registers as the factors
    /// need.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn measure_switch(&mut self, a: &str, b: &str, repeats: usize) -> Result<MeasuredSwitch> {
        self.measure_switches(a, b, repeats, false)
    }

    /// The same with the target's deltas in the host's memory alone, so that every switch uploads
    /// them; none on the CPU.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn measure_uploading_switch(
        &mut self,
        a: &str,
        b: &str,
        repeats: usize,
    ) -> Result<Option<MeasuredSwitch>> {
        if self.replica.residence().is_host {
            return Ok(None);
        }
        self.measure_switches(a, b, repeats, true).map(Some)
    }

    fn measure_switches(
        &mut self,
        a: &str,
        b: &str,
        repeats: usize,
        upload: bool,
    ) -> Result<MeasuredSwitch> {
        self.switch_to(a)?;
        self.switch_to(b)?;
        self.switch_to(a)?;
        let (touched, products) = self.work_between(&self.version(a)?, &self.version(b)?)?;
        let mut pairs = Vec::with_capacity(repeats);
        let mut reports = Vec::with_capacity(repeats);
        for k in self.turns(repeats) {
            let ceiling = self.replica.switch_ceiling_ms(&touched, products, upload)?;
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

    /// Decodes tokens one at a time after a prompt of `context` tokens, taking the likeliest each
    /// time. The ceiling is reading every weight that a token reads, two bytes each.
    ///
    /// # Errors
    /// As [`Runtime::generate`].
    pub fn measure_decode(&self, context: usize, repeats: usize) -> Result<Measured> {
        let mut kv = self.filled_kv(context, repeats + 1)?;
        let read: Vec<MatrixId> = self.decoded_matrices().collect();
        let mut pairs = Vec::with_capacity(repeats);
        let token = self.measured_tokens(1);
        self.run(&mut kv, &token)?;
        for _ in self.turns(repeats) {
            let ceiling = self.replica.read_ceiling_ms(&read)?;
            let (ms, done) = time(|| self.run(&mut kv, &token));
            done?;
            pairs.push((ms, ceiling));
        }
        Ok(Measured::of(&pairs))
    }

    /// Runs a prompt of `tokens` tokens. The ceiling is as many f32 products from registers as its
    /// matrices need.
    ///
    /// # Errors
    /// As [`Runtime::generate`].
    pub fn measure_prefill(&self, tokens: usize, repeats: usize) -> Result<Measured> {
        let prompt = self.measured_tokens(tokens);
        let mut kv = self.filled_kv(0, tokens)?;
        let products = self.prefill_products(tokens as u64);
        let mut pairs = Vec::with_capacity(repeats);
        let mut run = || {
            kv.clear();
            let (ms, done) = time(|| self.run(&mut kv, &prompt));
            done.map(|()| ms)
        };
        // The first run warms up.
        run()?;
        for _ in self.turns(repeats) {
            let ceiling = self.replica.products_ceiling_ms(products)?;
            pairs.push((run()?, ceiling));
        }
        Ok(Measured::of(&pairs))
    }

    /// So many tokens: the first thousand in turn, or all of a smaller vocabulary.
    fn measured_tokens(&self, count: usize) -> Vec<u32> {
        let known =
            u32::try_from(self.base().config().vocab_size).unwrap_or(u32::MAX).clamp(1, 1000);
        (1..).take(count).map(|token| token % known).collect()
    }

    fn run(&self, kv: &mut Kv, tokens: &[u32]) -> Result<()> {
        self.replica.forward(kv)?.choose(tokens, GREEDY).map(drop)
    }

    fn filled_kv(&self, context: usize, room: usize) -> Result<Kv> {
        self.replica.check_usable()?;
        let mut kv = self.replica.kv(context + room)?;
        if context > 0 {
            self.run(&mut kv, &self.measured_tokens(context))?;
        }
        Ok(kv)
    }

    /// The matrices that a switch between two versions touches, and the integer products its
    /// factors need.
    fn work_between(&self, a: &NodeVersion, b: &NodeVersion) -> Result<(Vec<MatrixId>, u64)> {
        let way = a.way_to(b);
        let moved = way.left.iter().chain(&way.entered);
        let moved = moved
            .map(|version| self.engine.deltas(version, &mut SwitchReport::default()))
            .collect::<Result<Vec<_>>>()?;
        let mut products = 0;
        let mut touched: Vec<MatrixId> =
            moved.iter().flat_map(|deltas| deltas.iter().map(|(id, _)| id)).collect();
        touched.sort_unstable();
        touched.dedup();
        for &id in &touched {
            let rank: usize =
                moved.iter().filter_map(|deltas| Some(deltas.delta(id)?.rank())).sum();
            products += self.size(id) * rank as u64;
        }
        Ok((touched, products))
    }

    /// Matrices a decoded token reads whole: all but an embedding that is not the head.
    fn decoded_matrices(&self) -> impl Iterator<Item = MatrixId> {
        self.engine.grids().names().filter(|(name, _)| name.as_str() != EMBEDDING).map(|(_, id)| id)
    }

    /// Products of a prompt: every layer's weights once a token, the head's once.
    fn prefill_products(&self, tokens: u64) -> u64 {
        let head = self.engine.grids().id(&WeightName::new(HEAD)).expect("every model has a head");
        let layers: u64 =
            self.decoded_matrices().filter(|&id| id != head).map(|id| self.size(id)).sum();
        layers * tokens + self.size(head)
    }

    fn size(&self, id: MatrixId) -> u64 {
        let grid = self.engine.grids().grid(id);
        (grid.rows() * grid.cols) as u64
    }
}
