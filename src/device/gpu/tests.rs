//! The shaders: checked as text without a GPU, then run, on a software adapter if there is no
//! other.
#![allow(clippy::cast_possible_truncation, reason = "made numbers")]

mod attention;
mod forward;
mod gelu_mul;
mod layout;
mod matmul;
mod rms_norm;
mod sampling;
mod switch;
mod unmerged;

use rand::Rng;
use rand::rngs::StdRng;

use super::*;
use crate::device::{Ceilings, Compute};
use crate::testing::gpu;

fn minimal() -> Option<Gpu> {
    gpu(&GpuOptions { minimal: true, ..GpuOptions::default() })
}

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn near(found: &[f32], expected: &[f32], limit: f32, what: impl std::fmt::Display) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= limit * expected.abs().max(1.0),
            "{what} {i}: {found}, not {expected}"
        );
    }
}

#[test]
fn silu_mul_of_values_written_before_comes_back() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let gate: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) / 50.0).collect();
    let up: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
    let mut found = gpu.alloc(1000).unwrap();
    gpu.write(&gate, &mut found);
    let up_there = gpu.upload_buffer(up.clone()).unwrap();
    gpu.silu_mul(&mut found, &up_there, 1000);
    for ((found, g), u) in gpu.read(&found, 0..1000).unwrap().into_iter().zip(gate).zip(up) {
        let expected = g / (1.0 + (-g).exp()) * u;
        assert!(
            (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
            "{found}, not {expected}"
        );
    }
}

#[test]
fn matrices_come_back_whole_and_by_rows_however_they_are_split() {
    for max_binding_bytes in [None, Some(4096)] {
        let Some(gpu) =
            gpu(&GpuOptions { minimal: true, max_binding_bytes, ..GpuOptions::default() })
        else {
            return;
        };
        let mut matrix = LatticeMatrix::zeros(100, 70);
        let (lanes, steps) = matrix.parts_mut();
        steps.iter_mut().enumerate().for_each(|(i, step)| *step = 1.0 / (i + 1) as f32);
        for (k, lane) in lanes.iter_mut().enumerate() {
            let used = if k % 3 == 2 { 6 } else { 32 };
            lane.0[..used].iter_mut().enumerate().for_each(|(j, n)| *n = (k * 97 + j) as i16);
        }
        let there = gpu.upload_matrix(matrix.clone()).unwrap();
        assert_eq!(there.parts.len(), if max_binding_bytes.is_some() { 5 } else { 1 });
        assert_eq!(gpu.read_matrix(&there).unwrap(), matrix);
        let rows = gpu.read_rows(&[(&there, &[0, 99, 21]), (&there, &[20])]).unwrap();
        assert_eq!(
            rows,
            [[matrix.row(0), matrix.row(99), matrix.row(21)].concat(), matrix.row(20).to_vec()]
        );
    }
}

#[test]
fn ceiling_passes_leave_every_bit_as_it_was() {
    let Some(gpu) = gpu(&GpuOptions { max_binding_bytes: Some(4096), ..GpuOptions::default() })
    else {
        return;
    };
    let mut matrix = LatticeMatrix::zeros(100, 70);
    let stride = matrix.stride();
    for (i, row) in matrix.integers_mut().chunks_exact_mut(stride).enumerate() {
        row[..70].iter_mut().enumerate().for_each(|(j, n)| *n = (i * 97 + j) as i16);
    }
    let mut there = gpu.upload_matrix(matrix.clone()).unwrap();
    gpu.read_modify_write_ms(&mut [&mut there]).unwrap();
    gpu.read_ms(&[&there]).unwrap();
    assert_eq!(gpu.read_matrix(&there).unwrap(), matrix);
    for products in [gpu.integer_products_ms(1 << 20), gpu.float_products_ms(1 << 20)] {
        assert!(products.unwrap() > 0.0);
    }
}

#[test]
fn compiled_shaders_are_kept_and_damaged_ones_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        GpuOptions { pipeline_cache: Some(folder.path().to_owned()), ..GpuOptions::default() };
    let use_it = || {
        let gpu = gpu(&options)?;
        let keeps = gpu.context.device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let mut values = gpu.upload_buffer(vec![1.0; 4]).unwrap();
        gpu.silu_mul(&mut values, &gpu.upload_buffer(vec![2.0; 4]).unwrap(), 4);
        assert!(gpu.read(&values, 0..4).unwrap().iter().all(|x| (x - 1.462_117).abs() < 1e-5));
        Some(keeps)
    };
    let files = || {
        std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let Some(keeps) = use_it() else { return };
    assert_eq!(files().len(), usize::from(keeps));
    for damage in [
        |bytes: &mut Vec<u8>| bytes.truncate(20),
        |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1,
    ] {
        for file in files() {
            let mut bytes = std::fs::read(&file).unwrap();
            let whole = bytes.clone();
            damage(&mut bytes);
            std::fs::write(&file, &bytes).unwrap();
            use_it();
            assert_eq!(files(), std::slice::from_ref(&file), "only this one, replaced whole");
            assert_eq!(std::fs::read(&file).unwrap().len(), whole.len());
        }
    }
}

#[test]
fn what_the_device_refuses_is_an_error_from_then_on() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let buffer = gpu.upload_buffer(vec![1.0; 4]).unwrap();
    gpu.check().unwrap();
    gpu.context.queue.write_buffer(&buffer.buffer, 1 << 20, &[0; 4]);
    let refused = gpu.read(&buffer, 0..4).map(drop).unwrap_err();
    assert!(matches!(refused, crate::Error::DeviceFailed { .. }), "{refused}");
    assert!(gpu.check().is_err() && gpu.alloc(1).is_err());
}

#[test]
fn work_that_does_not_bring_its_number_back_was_not_done() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let mut prepared = gpu.context.prepare(Recording::default(), &[]).unwrap();
    prepared.nonce += 1;
    assert!(matches!(gpu.context.submit(prepared), Err(crate::Error::DeviceFailed { .. })));
    assert!(gpu.check().is_err() && gpu.alloc(1).is_err());
}

#[test]
fn more_than_the_device_holds_is_refused_and_it_goes_on() {
    let Some(gpu) = gpu(&GpuOptions { minimal: true, ..GpuOptions::default() }) else { return };
    for len in [1 << 26, 1 << 40] {
        let refused = gpu.alloc(len).map(drop).unwrap_err();
        assert!(matches!(refused, crate::Error::DeviceLimit { .. }), "{refused}");
    }
    gpu.alloc(1 << 10).unwrap();
    gpu.check().unwrap();
}
