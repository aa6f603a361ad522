//! Adapters made in memory against the formula they stand for.

#![allow(
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "small numbers; the values must be equal, not near"
)]

use safetensors::Dtype;
use serde_json::json;

use super::*;
use crate::testing::adapter::{TinyAdapter, TinyModule};

const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.11.self_attn.v_proj";

fn weight(module: &str) -> WeightName {
    WeightName::new(format!("{module}.weight"))
}

fn two_modules() -> TinyAdapter {
    TinyAdapter::new(vec![TinyModule::linear(Q, 6, 5), TinyModule::linear(V, 3, 5)], 2, 7)
}

fn open(made: &TinyAdapter) -> PeftAdapter {
    PeftAdapter::from_bytes(&made.config_bytes(), made.tensor_bytes(), &Limits::default()).unwrap()
}

#[test]
fn factors_and_scaling_arrive_as_they_are_in_the_file() {
    let made = two_modules();
    let deltas = open(&made).deltas(&made.base_shapes()).unwrap();
    let tensors = made.tensors();
    assert_eq!(deltas.len(), 2);
    for (module, pair) in made.modules.iter().zip(tensors.chunks(2)) {
        let (lora_a, lora_b) = (pair[0].2.clone(), pair[1].2.clone());
        let expected = FloatDelta::LowRank { rank: 2, lora_a, lora_b, scaling: 2.0 };
        assert_eq!(deltas[&weight(&module.module)], expected);
    }
}

#[test]
fn half_precision_factors_are_widened_exactly() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        let made = TinyAdapter { dtype, ..two_modules() };
        let deltas = open(&made).deltas(&made.base_shapes()).unwrap();
        let FloatDelta::LowRank { lora_a, .. } = &deltas[&weight(Q)] else { panic!() };
        for (read, stored) in lora_a.iter().zip(&made.tensors()[0].2) {
            let expected = match dtype {
                Dtype::F16 => half::f16::from_f32(*stored).to_f32(),
                _ => half::bf16::from_f32(*stored).to_f32(),
            };
            assert_eq!(*read, expected);
        }
    }
}

/// `(B·A)ᵀ` of the file has to be `lora_b · lora_a` of the delta.
#[test]
fn embedding_factors_are_swapped_and_transposed() {
    let embedding =
        TinyModule { is_embedding: true, ..TinyModule::linear("model.embed_tokens", 7, 4) };
    let made = TinyAdapter::new(vec![embedding], 3, 1);
    let deltas = open(&made).deltas(&made.base_shapes()).unwrap();
    let FloatDelta::LowRank { rank: 3, lora_a, lora_b, .. } =
        &deltas[&weight("model.embed_tokens")]
    else {
        panic!()
    };
    let (a, b) = (&made.tensors()[0].2, &made.tensors()[1].2);
    for token in 0..7 {
        for dim in 0..4 {
            let file: f32 = (0..3).map(|r| b[dim * 3 + r] * a[r * 7 + token]).sum();
            let ours: f32 = (0..3).map(|r| lora_b[token * 3 + r] * lora_a[r * 4 + dim]).sum();
            assert_eq!(file, ours);
        }
    }
}

#[test]
fn the_hash_covers_both_files() {
    let made = two_modules();
    let hash = |made: &TinyAdapter| open(made).hash();
    assert_eq!(hash(&made), hash(&made));
    assert_ne!(hash(&made), hash(&TinyAdapter { seed: 8, ..made.clone() }));
    assert_ne!(hash(&made), hash(&made.clone().with_config(json!({"revision": "x"}))));
}

#[test]
fn the_header_alone_knows_what_is_touched() {
    let made = two_modules();
    let dir = tempfile::tempdir().unwrap();
    made.write(dir.path()).unwrap();
    let header = PeftHeader::open(dir.path(), &Limits::default()).unwrap();
    assert_eq!(header.touched_weights(), 6 * 5 + 3 * 5);
    let summary = header.summary();
    assert_eq!(summary.to_string(), "lora, rank 2, scaling 2, q_proj v_proj, F32, 152 B");
    assert_eq!(summary.parameters, 2 * (5 + 6) + 2 * (5 + 3));
    let whole = PeftAdapter::open(dir.path(), &Limits::default()).unwrap();
    assert_eq!(whole.summary(), AdapterSummary { hash: Some(whole.hash().to_string()), ..summary });
}
