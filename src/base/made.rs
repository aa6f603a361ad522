//! Bases made of random weights in a known model's shapes: for benches, where speed depends on
//! shapes alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::{BaseModel, Files, Weight, WeightInfo};
use crate::WeightName;
use crate::arch::{self, Biases, ModelConfig, RopeScaling};

/// Shapes that can be made, by name.
pub const SHAPES: [&str; 2] = ["llama-3.2-1b", "smollm2-135m"];

impl BaseModel {
    /// A base of random weights in the shapes called `name` (one of [`SHAPES`]): embedding and
    /// matrices uniform in ±0.05, norms 1. The same on every machine. It has no tokenizer.
    pub fn made(name: &str) -> Option<Self> {
        let sizes = match name {
            "llama-3.2-1b" => [2048, 8192, 16, 32, 8, 64, 128_256],
            "smollm2-135m" => [576, 1536, 30, 9, 3, 64, 49_152],
            _ => return None,
        };
        let [hidden, intermediate, layers, heads, kv_heads, head_dim, vocab] = sizes;
        let family = &arch::FAMILIES[0];
        let config = ModelConfig {
            architecture: family.class.to_owned(),
            block: family.block,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: vocab,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 8192,
            sliding_window: None,
            tie_word_embeddings: true,
            eos_token_ids: Vec::new(),
            bos_token_id: None,
        };
        let made = |(name, shape): (WeightName, Vec<usize>)| {
            let info = WeightInfo { shape, dtype: "made".to_owned() };
            let tensor = name.to_string();
            (name, Weight { info, file: 0, tensor, interleaved: None, added: 0.0 })
        };
        let weights: BTreeMap<_, _> =
            config.expected_weights(Biases::default()).into_iter().map(made).collect();
        let path = PathBuf::from(format!("made:{name}"));
        Some(Self { path, config, files: Files::Made, weights, content_hash: OnceLock::new() })
    }
}

/// Writes rows of a made weight.
pub(super) fn fill(name: &WeightName, info: &WeightInfo, rows: Range<usize>, out: &mut [f32]) {
    if info.shape.len() == 1 {
        out.fill(1.0);
        return;
    }
    let seed = name
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    for (row, out) in rows.zip(out.chunks_exact_mut(info.cols())) {
        let mut state = seed ^ (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for value in out {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *value = f32::from(i16::from_ne_bytes([z.to_ne_bytes()[3], z.to_ne_bytes()[5]]))
                * (0.05 / 32768.0);
        }
    }
}
