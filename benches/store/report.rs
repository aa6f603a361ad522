//! Figures beside their goals: a line for people as soon as one is known, a table at the end.

use std::fmt::Write;
use std::path::Path;

use crate::machine;

/// What a figure should be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    None,
    AtMost(f64),
    AtLeast(f64),
}

pub(crate) struct Report {
    head: String,
    rows: String,
}

impl Report {
    pub(crate) fn new(folder: &Path, leaves: u64) -> Self {
        let head = format!(
            "{}\n{} leaves in {}",
            machine::describe(folder),
            commas(leaves),
            folder.display()
        );
        println!("{head}\n");
        Self { head, rows: String::new() }
    }

    pub(crate) fn row(&mut self, figure: &str, value: f64, unit: &str, goal: Goal) {
        self.put(figure, value, None, unit, goal);
    }

    /// Times in microseconds: their median, which it returns, and which is what `goal` is about;
    /// then how they spread.
    pub(crate) fn percentiles(&mut self, figure: &str, mut times: Vec<f64>, goal: Goal) -> f64 {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        self.put(figure, at(0.5), Some([0.9, 0.99, 1.0].map(at)), "µs", goal);
        at(0.5)
    }

    fn put(&mut self, figure: &str, value: f64, spread: Option<[f64; 3]>, unit: &str, goal: Goal) {
        let (goal, met) = match goal {
            Goal::None => (String::new(), ""),
            Goal::AtMost(most) => {
                (format!("≤ {}", shown(most)), if value <= most { "yes" } else { "no" })
            }
            Goal::AtLeast(least) => {
                (format!("≥ {}", shown(least)), if value >= least { "yes" } else { "no" })
            }
        };
        let [p90, p99, largest] =
            spread.map_or([const { String::new() }; 3], |spread| spread.map(shown));
        let value = shown(value);
        println!(
            "{figure:<62} {value:>9} {p90:>9} {p99:>9} {largest:>9} {unit:<9} {goal:>9} {met}"
        );
        let row = [figure, &value, &p90, &p99, &largest, unit, &goal, met];
        writeln!(self.rows, "| {} |", row.join(" | ")).expect("memory takes it");
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let columns = "| figure | value or p50 | p90 | p99 | largest | unit | goal | met |";
        format!("{}\n\n{columns}\n|---|---:|---:|---:|---:|---|---:|---|\n{}", self.head, self.rows)
    }
}

/// The median.
pub(crate) fn median(times: &[f64]) -> f64 {
    pleach::runtime::measure::median(times.iter().copied())
}

fn shown(value: f64) -> String {
    match value {
        _ if value >= 100.0 => commas(value.round() as u64),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A count with commas between thousands.
pub(crate) fn commas(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
