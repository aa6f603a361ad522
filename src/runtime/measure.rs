//! Measurements: a switch, a decoded token, a prompt, each beside its ceiling taken in the same
//! run.
//!
//! Every repetition times the ceiling and the thing itself one after the other, and the ratio is
//! the median of the pairs' ratios: a machine whose speed drifts then drifts for both.

mod batch;

use std::time::{Duration, Instant};

pub use batch::MeasuredBatch;

use serde::Serialize;

use super::replica::{DeviceReplica, Kv};
use super::{NodeVersion, Runtime, SwitchReport};
use crate::device::{Ceilings, Choice};
use crate::weights::{EMBEDDING, HEAD, MatrixId};
use crate::{Result, WeightName};

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

/// What a copy of the weights could do at best on its device.
pub(crate) trait ReplicaCeilings {
    /// Whether deltas lie in the host's memory alone.
    fn is_host(&self) -> bool;

    /// Milliseconds that a switch takes at best that changes `touched` and needs so many integer
    /// products. With `upload` the deltas that are not applied leave the device first.
    fn switch_ms(&mut self, touched: &[MatrixId], products: u64, upload: bool) -> Result<f64>;

    /// Milliseconds to read `matrices` once.
    fn read_ms(&self, matrices: &[MatrixId]) -> Result<f64>;

    /// Milliseconds for so many f32 products.
    fn products_ms(&self, products: u64) -> Result<f64>;
}

impl<D: Ceilings + 'static> ReplicaCeilings for DeviceReplica<D> {
    fn is_host(&self) -> bool {
        D::HOST_MEMORY
    }

    fn switch_ms(&mut self, touched: &[MatrixId], products: u64, upload: bool) -> Result<f64> {
        if upload {
            self.uploaded.evict_to(0);
        }
        let Self { device, weights, .. } = self;
        let memory = weights.measure(touched, |matrices| device.read_modify_write_ms(matrices))?;
        Ok(memory.max(device.integer_products_ms(products)?))
    }

    fn read_ms(&self, matrices: &[MatrixId]) -> Result<f64> {
        self.device.read_ms(&matrices.iter().map(|&id| self.weights.matrix(id)).collect::<Vec<_>>())
    }

    fn products_ms(&self, products: u64) -> Result<f64> {
        self.device.float_products_ms(products)
    }
}

/// Measures a runtime, which it moves from node to node.
pub struct Measure<'a> {
    runtime: &'a mut Runtime,
}

impl<'a> Measure<'a> {
    /// Measures `runtime`.
    pub fn new(runtime: &'a mut Runtime) -> Self {
        Self { runtime }
    }

    /// Counts `most` turns of a measurement. On a GPU it takes no further one after two seconds.
    pub fn turns(&mut self, most: usize) -> impl Iterator<Item = usize> + use<> {
        let (start, patient) = (Instant::now(), self.runtime.replica.ceilings().is_host());
        (0..most).take_while(move |&turn| patient || turn == 0 || start.elapsed() < PATIENCE)
    }

    /// Switches to and fro between two nodes. The ceiling is the larger of two: reading, changing
    /// and writing the touched weights, and as many integer products from registers as the factors
    /// need.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn switch(&mut self, a: &str, b: &str, repeats: usize) -> Result<MeasuredSwitch> {
        self.switches(a, b, repeats, false)
    }

    /// The same with the target's deltas in the host's memory alone, so that every switch uploads
    /// them; none on the CPU.
    ///
    /// # Errors
    /// As [`Runtime::switch_to`].
    pub fn uploading_switch(
        &mut self,
        a: &str,
        b: &str,
        repeats: usize,
    ) -> Result<Option<MeasuredSwitch>> {
        if self.runtime.replica.ceilings().is_host() {
            return Ok(None);
        }
        self.switches(a, b, repeats, true).map(Some)
    }

    fn switches(
        &mut self,
        a: &str,
        b: &str,
        repeats: usize,
        upload: bool,
    ) -> Result<MeasuredSwitch> {
        self.runtime.switch_to(a)?;
        self.runtime.switch_to(b)?;
        self.runtime.switch_to(a)?;
        let (touched, products) =
            self.work_between(&self.runtime.version(a)?, &self.runtime.version(b)?)?;
        let mut pairs = Vec::with_capacity(repeats);
        let mut reports = Vec::with_capacity(repeats);
        for k in self.turns(repeats) {
            let ceiling = self.runtime.replica.ceilings().switch_ms(&touched, products, upload)?;
            let report = self.runtime.switch_to(if k % 2 == 0 { b } else { a })?;
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
    pub fn decode(&mut self, context: usize, repeats: usize) -> Result<Measured> {
        let mut kv = self.filled_kv(context, repeats + 1)?;
        let read: Vec<MatrixId> = self.decoded_matrices().collect();
        let mut pairs = Vec::with_capacity(repeats);
        let token = self.measured_tokens(1);
        self.run(&mut kv, &token)?;
        for _ in self.turns(repeats) {
            let ceiling = self.runtime.replica.ceilings().read_ms(&read)?;
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
    pub fn prefill(&mut self, tokens: usize, repeats: usize) -> Result<Measured> {
        let prompt = self.measured_tokens(tokens);
        let mut kv = self.filled_kv(0, tokens)?;
        let products = self.prefill_products(tokens as u64);
        let mut pairs = Vec::with_capacity(repeats);
        // The first run warms up.
        self.prompt_ms(&mut kv, &prompt)?;
        for _ in self.turns(repeats) {
            let ceiling = self.runtime.replica.ceilings().products_ms(products)?;
            pairs.push((self.prompt_ms(&mut kv, &prompt)?, ceiling));
        }
        Ok(Measured::of(&pairs))
    }

    /// Milliseconds that a prompt takes.
    fn prompt_ms(&self, kv: &mut Kv, prompt: &[u32]) -> Result<f64> {
        kv.clear();
        let (ms, done) = time(|| self.run(kv, prompt));
        done.map(|()| ms)
    }

    /// So many tokens: the first thousand in turn, or all of a smaller vocabulary.
    fn measured_tokens(&self, count: usize) -> Vec<u32> {
        let known = u32::try_from(self.runtime.base().config().vocab_size)
            .unwrap_or(u32::MAX)
            .clamp(1, 1000);
        (1..).take(count).map(|token| token % known).collect()
    }

    fn run(&self, kv: &mut Kv, tokens: &[u32]) -> Result<()> {
        self.runtime.replica.forward(kv)?.choose(tokens, Choice::GREEDY).map(drop)
    }

    fn filled_kv(&self, context: usize, more: usize) -> Result<Kv> {
        self.runtime.replica.check_usable()?;
        let mut kv = self.runtime.replica.kv(context + more)?;
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
            .map(|version| {
                let shared = &self.runtime.shared;
                shared.deltas(version, &shared.host, &mut SwitchReport::default())
            })
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
        self.runtime
            .shared
            .grids()
            .names()
            .filter(|(name, _)| name.as_str() != EMBEDDING)
            .map(|(_, id)| id)
    }

    /// Products of a prompt: every layer's weights once a token, the head's once.
    fn prefill_products(&self, tokens: u64) -> u64 {
        let head =
            self.runtime.shared.grids().id(&WeightName::new(HEAD)).expect("every model has a head");
        let layers: u64 =
            self.decoded_matrices().filter(|&id| id != head).map(|id| self.size(id)).sum();
        layers * tokens + self.size(head)
    }

    fn size(&self, id: MatrixId) -> u64 {
        let grid = self.runtime.shared.grids().grid(id);
        (grid.rows() * grid.cols) as u64
    }
}
