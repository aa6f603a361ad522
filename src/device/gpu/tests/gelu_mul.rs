//! GELU against its formula in f64.

use super::minimal;
use crate::device::{Compute, Device};

#[test]
fn gelu_mul_equals_its_formula() {
    let Some(gpu) = minimal() else { return };
    // From where 1 + tanh is nothing to where it is 2, and what is small.
    let gate: Vec<f32> =
        (-1000..1000).map(|i| i as f32 / 100.0 + 1e-3).chain([1e-6, -1e-6, 80.0, -80.0]).collect();
    let up: Vec<f32> = (0..gate.len()).map(|i| 1.5 - i as f32 / 1000.0).collect();
    let mut found = gpu.upload_buffer(gate.clone()).unwrap();
    gpu.gelu_mul(&mut found, &gpu.upload_buffer(up.clone()).unwrap(), gate.len());
    for ((found, g), u) in gpu.read(&found, 0..gate.len()).unwrap().into_iter().zip(gate).zip(up) {
        let (x, u) = (f64::from(g), f64::from(u));
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        let expected = x / 2.0 * (1.0 + inner.tanh()) * u;
        let off = (f64::from(found) - expected).abs();
        assert!(off <= 1e-6 * (x * u).abs(), "gelu({g})·{u}: {found}, not {expected}");
    }
}
