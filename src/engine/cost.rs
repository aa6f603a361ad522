//! What a step and a switch are expected to take, and how that is learned from what they took.
//!
//! A step's time is linear in its [`Features`]: the merged rows (a curve through measured points),
//! the tokens of prompts, the positions attended to, and what is applied in factored form: a node
//! over a range of rows reads its factors once and multiplies them with every row. A switch is one
//! pass over the matrices that the nodes left and entered touch. Printed, the model is one line a
//! term.
//!
//! **Invariant:** predictions depend on constants, observations and features alone: no clock.

use std::fmt;

use super::fit::Fit;

/// Multiply-adds in a million.
const MILLION: f64 = 1e6;
/// Bytes in a megabyte.
const MEGABYTE: f64 = 1e6;
/// Positions in a thousand.
const THOUSAND: f64 = 1e3;

/// What a step's time is predicted from. Counts; they add up over the parts of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Features {
    /// Rows of one token: sequences that decode.
    pub rows: f64,
    /// Tokens of prompts.
    pub prompt_tokens: f64,
    /// Cached positions read, summed over the sequences of the step.
    pub positions: f64,
    /// Multiply-adds of what is applied in factored form: rows × Σ rank × (inputs + outputs).
    pub factored: f64,
    /// Numbers in the factors applied, each range of rows for itself: Σ rank × (inputs + outputs).
    pub loaded: f64,
    /// Ranges of rows that a node is applied to in factored form.
    pub ranges: f64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measured {
    /// A step of these features.
    Step(Features),
    /// A switch that reads and writes so many bytes of weights.
    Switch {
        /// Bytes of the touched matrices, read and written.
        bytes: f64,
    },
}

/// Where a [`CostModel`] starts: times of one machine. Observations do the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct CostConstants {
    /// Rows that decode → milliseconds of a step without anything factored, rows ascending from 0.
    /// Between two points it is interpolated, beyond the last the last slope goes on.
    pub pass_ms: Vec<(usize, f64)>,
    /// Milliseconds a token of a prompt.
    pub prompt_token_ms: f64,
    /// Milliseconds for a thousand positions attended to.
    pub attention_ms: f64,
    /// Milliseconds for a million factored multiply-adds.
    pub factored_ms: f64,
    /// Milliseconds for a million numbers of factors read.
    pub loaded_ms: f64,
    /// Milliseconds for each range of rows with a node of its own.
    pub range_ms: f64,
    /// Milliseconds of any switch.
    pub switch_ms: f64,
    /// Milliseconds for a megabyte of weights that a switch reads and writes.
    pub switch_megabyte_ms: f64,
}

impl Default for CostConstants {
    /// A model of 135 million parameters on one thread of a server's CPU.
    fn default() -> Self {
        Self {
            pass_ms: vec![
                (0, 18.0),
                (1, 20.8),
                (4, 30.0),
                (6, 33.0),
                (16, 45.0),
                (32, 90.0),
                (64, 170.0),
            ],
            prompt_token_ms: 0.9,
            attention_ms: 1.0,
            factored_ms: 0.047,
            loaded_ms: 0.19,
            range_ms: 0.02,
            switch_ms: 0.5,
            switch_megabyte_ms: 0.04,
        }
    }
}

/// Predicts milliseconds, and learns from those measured.
#[derive(Clone, Debug)]
pub struct CostModel {
    /// The rows of the curve's points.
    points: Vec<f64>,
    step: Fit,
    switch: Fit,
}

/// Terms of a step behind the curve's points.
const LINEAR_TERMS: usize = 5;

impl CostModel {
    /// Starts from constants; a zero among them counts as next to nothing.
    ///
    /// # Panics
    /// Without two points of the curve in ascending order.
    pub fn new(constants: &CostConstants) -> Self {
        let CostConstants { pass_ms, prompt_token_ms, attention_ms, .. } = constants;
        let points: Vec<f64> = pass_ms.iter().map(|(rows, _)| *rows as f64).collect();
        assert!(points.len() > 1, "a curve has two points or more");
        assert!(points.is_sorted_by(|a, b| a < b), "the points of a curve ascend");
        let linear = [
            *prompt_token_ms,
            *attention_ms,
            constants.factored_ms,
            constants.loaded_ms,
            constants.range_ms,
        ];
        let positive = |ms: f64| ms.max(1e-6);
        let step = pass_ms.iter().map(|(_, ms)| *ms).chain(linear).map(positive).collect();
        let switch = [constants.switch_ms, constants.switch_megabyte_ms].map(positive).to_vec();
        Self { points, step: Fit::new(step), switch: Fit::new(switch) }
    }

    /// The features as the fit has them: weights of the curve's points, then the linear terms.
    fn terms(&self, features: &Features) -> Vec<f64> {
        let mut terms = vec![0.0; self.points.len() + LINEAR_TERMS];
        if features.rows + features.prompt_tokens > 0.0 {
            let (k, share) = self.segment(features.rows);
            terms[k] = 1.0 - share;
            terms[k + 1] = share;
        }
        terms[self.points.len()..].copy_from_slice(&[
            features.prompt_tokens,
            features.positions / THOUSAND,
            features.factored / MILLION,
            features.loaded / MILLION,
            features.ranges,
        ]);
        terms
    }

    /// The segment of the curve that `rows` lies on, and where on it: beyond the last point above 1.
    fn segment(&self, rows: f64) -> (usize, f64) {
        let last = self.points.len() - 2;
        let k = self.points.partition_point(|point| *point <= rows).saturating_sub(1).min(last);
        (k, (rows - self.points[k]) / (self.points[k + 1] - self.points[k]))
    }

    /// Milliseconds that the merged weights take for so many rows.
    pub fn pass_ms(&self, rows: f64) -> f64 {
        let (k, share) = self.segment(rows);
        let (from, to) = (self.step.get(k), self.step.get(k + 1));
        (from + share * (to - from)).max(from.min(to))
    }

    fn linear(&self, k: usize) -> f64 {
        self.step.get(self.points.len() + k)
    }

    /// Milliseconds a token of a prompt.
    pub fn prompt_token_ms(&self) -> f64 {
        self.linear(0)
    }

    /// Milliseconds for so many positions attended to.
    pub fn attention_ms(&self, positions: f64) -> f64 {
        self.linear(1) * positions / THOUSAND
    }

    /// Milliseconds for so many factored multiply-adds.
    pub fn factored_ms(&self, factored: f64) -> f64 {
        self.linear(2) * factored / MILLION
    }

    /// Milliseconds for ranges of rows with a node of their own, of factors of so many numbers in
    /// all.
    pub fn ranges_ms(&self, ranges: f64, loaded: f64) -> f64 {
        self.linear(3) * loaded / MILLION + self.linear(4) * ranges
    }

    /// What a step of these features takes.
    pub fn step(&self, features: &Features) -> Prediction {
        let runs = features.rows + features.prompt_tokens > 0.0;
        Prediction {
            pass_ms: if runs { self.pass_ms(features.rows) } else { 0.0 },
            prompt_ms: self.prompt_token_ms() * features.prompt_tokens,
            attention_ms: self.attention_ms(features.positions),
            factored_ms: self.factored_ms(features.factored)
                + self.ranges_ms(features.ranges, features.loaded),
            switch_ms: 0.0,
        }
    }

    /// Milliseconds of a switch that reads and writes so many bytes of weights; none for none.
    pub fn switch_ms(&self, bytes: f64) -> f64 {
        if bytes == 0.0 {
            return 0.0;
        }
        self.switch.get(0) + self.switch.get(1) * bytes / MEGABYTE
    }

    /// Learns what something took. Outliers move it little.
    pub fn observe(&mut self, what: Measured, measured_ms: f64) {
        match what {
            Measured::Step(features) => {
                let terms = self.terms(&features);
                self.step.observe(&terms, measured_ms);
            }
            Measured::Switch { bytes } => {
                self.switch.observe(&[1.0, bytes / MEGABYTE], measured_ms);
            }
        }
    }
}

impl fmt::Display for CostModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pass       ")?;
        for (k, rows) in self.points.iter().enumerate() {
            write!(f, "{}{rows} rows {:.1} ms", if k > 0 { ", " } else { "" }, self.step.get(k))?;
        }
        writeln!(f, "\nprompts    {:.3} ms a token", self.linear(0))?;
        writeln!(f, "attention  {:.3} ms for 1,000 positions", self.linear(1))?;
        writeln!(f, "factored   {:.4} ms for a million multiply-adds", self.linear(2))?;
        writeln!(f, "factors    {:.4} ms for a million numbers read", self.linear(3))?;
        writeln!(f, "ranges     {:.4} ms a node and range of rows", self.linear(4))?;
        let [fixed, megabyte] = [0, 1].map(|k| self.switch.get(k));
        writeln!(f, "switch     {fixed:.2} ms and {megabyte:.4} ms a MB read and written")?;
        let [step, switch] = [&self.step, &self.switch].map(|fit| 100.0 * fit.error());
        write!(f, "error      {step:.0} % of a step, {switch:.0} % of a switch, lately")
    }
}

/// What a plan is expected to take, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The merged weights, for rows that decode.
    pub pass_ms: f64,
    /// The tokens of prompts.
    pub prompt_ms: f64,
    /// Attention to cached positions.
    pub attention_ms: f64,
    /// What is applied in factored form.
    pub factored_ms: f64,
    /// The switch before the step.
    pub switch_ms: f64,
}

impl Prediction {
    /// The step without its switch.
    pub fn step_ms(&self) -> f64 {
        self.pass_ms + self.prompt_ms + self.attention_ms + self.factored_ms
    }

    /// All of it.
    pub fn total_ms(&self) -> f64 {
        self.step_ms() + self.switch_ms
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass_ms, prompt_ms, attention_ms, factored_ms, switch_ms } = self;
        write!(
            f,
            "{:.1} ms: pass {pass_ms:.1}, prompts {prompt_ms:.1}, attention {attention_ms:.1}, \
             factored {factored_ms:.1}, switch {switch_ms:.1}",
            self.total_ms()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_goes_through_its_points_and_on() {
        let cost = CostModel::new(&CostConstants::default());
        for (rows, ms) in [(0.0, 18.0), (1.0, 20.8), (11.0, 39.0), (64.0, 170.0), (96.0, 250.0)] {
            assert!((cost.pass_ms(rows) - ms).abs() < 1e-9, "{rows}: {}", cost.pass_ms(rows));
        }
    }

    #[test]
    fn terms_and_predictions_are_the_same_sum() {
        let cost = CostModel::new(&CostConstants::default());
        let features = Features {
            rows: 12.0,
            prompt_tokens: 40.0,
            positions: 3_000.0,
            factored: 2.5e6,
            loaded: 1e5,
            ranges: 3.0,
        };
        let terms = cost.terms(&features);
        let sum: f64 = terms.iter().enumerate().map(|(k, x)| x * cost.step.get(k)).sum();
        assert!((sum - cost.step(&features).total_ms()).abs() < 1e-9);
        assert_eq!(cost.step(&Features::default()).total_ms(), 0.0, "nothing costs nothing");
    }

    #[test]
    fn a_model_prints_a_line_a_term() {
        let text = CostModel::new(&CostConstants::default()).to_string();
        assert_eq!(text.lines().count(), 8, "{text}");
        assert!(text.starts_with("pass       0 rows 18.0 ms, 1 rows 20.8 ms"), "{text}");
        assert!(
            text.contains("\nswitch     0.50 ms and 0.0400 ms a MB read and written\n"),
            "{text}"
        );
    }
}
