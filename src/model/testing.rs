//! Small random models for tests, and their forward pass as the textbook has it, in f64.

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "test code")]

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::WeightName;
use crate::arch::{Activation, Block, FAMILIES, ModelConfig, RopeScaling};
use crate::device::Device;
use crate::lattice::LatticeMatrix;
use crate::weights::Weights;

/// Three layers, grouped queries, odd sizes.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig {
        architecture: FAMILIES[0].class.to_owned(),
        block: FAMILIES[0].block,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 6,
        vocab_size: 50,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 128,
        sliding_window: None,
        tie_word_embeddings: true,
        eos_token_ids: vec![2],
        bos_token_id: None,
    }
}

/// What models of the size of `base` may compute, with the names of their biased layers: every
/// family's block, and every part that a block may have.
pub(crate) fn cases(base: ModelConfig) -> Vec<(String, ModelConfig, &'static [&'static str])> {
    let qkv: &[&str] = &["q_proj", "k_proj", "v_proj"];
    let linear = RopeScaling::Linear { factor: 4.0 };
    let factors = RopeScaling::Factors(vec![1.0, 1.5, 8.0]);
    let all_parts = Block {
        attention_scale: Some(0.3),
        score_soft_cap: Some(2.5),
        activation: Activation::GeluTanh,
        ..base.block
    };
    let families = FAMILIES.iter().map(|family| {
        (
            family.class.to_owned(),
            ModelConfig { block: family.block, ..base.clone() },
            [].as_slice(),
        )
    });
    let more: [(&str, ModelConfig, &[&str]); 6] = [
        ("untied", ModelConfig { tie_word_embeddings: false, ..base.clone() }, &[]),
        ("window", ModelConfig { sliding_window: Some(5), ..base.clone() }, &[]),
        (
            "biases of q, k and v",
            ModelConfig { num_attention_heads: 7, num_key_value_heads: 1, ..base.clone() },
            qkv,
        ),
        ("all biases", ModelConfig { rope_scaling: linear, ..base.clone() }, &["proj"]),
        ("factors", ModelConfig { rope_scaling: factors, ..base.clone() }, &[]),
        ("scale, soft cap and GELU", ModelConfig { block: all_parts, ..base.clone() }, &[]),
    ];
    families.chain(more.map(|(name, config, biased)| (name.to_owned(), config, biased))).collect()
}

/// A model's weights by name, before they are uploaded.
pub(crate) struct TinyModel {
    pub(crate) config: ModelConfig,
    pub(crate) matrices: BTreeMap<String, LatticeMatrix>,
    pub(crate) vectors: BTreeMap<String, Vec<f32>>,
}

impl TinyModel {
    /// Random weights for `config`, with biases on the linear layers whose name contains one of
    /// `biased`.
    pub(crate) fn random(config: ModelConfig, biased: &[&str], seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let c = &config;
        let mut shapes = vec![("model.embed_tokens".to_owned(), c.vocab_size, c.hidden_size)];
        if !c.tie_word_embeddings {
            shapes.push(("lm_head".to_owned(), c.vocab_size, c.hidden_size));
        }
        let mut vectors = BTreeMap::new();
        let mut norm = |name: String, len: usize, rng: &mut StdRng| {
            vectors.insert(name, (0..len).map(|_| rng.random_range(0.5..1.5)).collect());
        };
        norm("model.norm.weight".to_owned(), c.hidden_size, &mut rng);
        for (layer, tensor) in
            (0..c.num_hidden_layers).flat_map(|i| c.block.tensors().map(move |tensor| (i, tensor)))
        {
            match tensor.shape(c)[..] {
                [rows, cols] => {
                    shapes.push((format!("model.layers.{layer}.{}", tensor.module), rows, cols));
                }
                _ => norm(tensor.weight(layer).to_string(), tensor.shape(c)[0], &mut rng),
            }
        }
        let mut matrices = BTreeMap::new();
        for (name, rows, cols) in shapes {
            let mut matrix = LatticeMatrix::zeros(rows, cols);
            let stride = matrix.stride();
            for row in matrix.integers_mut().chunks_exact_mut(stride) {
                row[..cols].fill_with(|| rng.random_range(-26_000..=26_000));
            }
            let size = 3.0 / (cols as f32).sqrt() / 26_000.0;
            matrix.parts_mut().1.fill_with(|| rng.random_range(0.5 * size..size));
            if biased.iter().any(|part| name.contains(part)) {
                vectors.insert(
                    format!("{name}.bias"),
                    (0..rows).map(|_| rng.random_range(-1.0..1.0)).collect(),
                );
            }
            matrices.insert(format!("{name}.weight"), matrix);
        }
        Self { config, matrices, vectors }
    }

    pub(crate) fn weights<D: Device>(&self, device: &D) -> Weights<D> {
        let matrix = |matrix: &LatticeMatrix| device.upload_matrix(matrix.clone()).expect("memory");
        let vector = |vector: &Vec<f32>| device.upload_buffer(vector.clone()).expect("memory");
        let matrices =
            self.matrices.iter().map(|(name, values)| (WeightName::new(name), matrix(values)));
        let vectors =
            self.vectors.iter().map(|(name, values)| (WeightName::new(name), vector(values)));
        Weights::from_parts(matrices, vectors)
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let matrix = &self.matrices[&format!("{name}.weight")];
        let bias = self.vectors.get(&format!("{name}.bias"));
        (0..matrix.rows())
            .map(|i| {
                let sum: f64 = matrix.row(i).iter().zip(x).map(|(&n, x)| f64::from(n) * x).sum();
                sum * f64::from(matrix.steps()[i]) + bias.map_or(0.0, |bias| f64::from(bias[i]))
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.config.rms_norm_eps).sqrt();
        x.iter().zip(&self.vectors[name]).map(|(x, w)| x * scale * f64::from(*w)).collect()
    }

    /// Norms every head, if the block has a norm called so.
    fn norm_heads(&self, name: &str, x: &mut [f64]) {
        if self.vectors.contains_key(name) {
            for head in x.chunks_exact_mut(self.config.head_dim) {
                head.copy_from_slice(&self.norm(name, head));
            }
        }
    }

    fn activation(&self, x: f64) -> f64 {
        match self.config.block.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + inner.tanh())
            }
        }
    }

    fn rotate(&self, x: &mut [f64], position: usize) {
        let half = self.config.head_dim / 2;
        for head in x.chunks_exact_mut(2 * half) {
            for j in 0..half {
                let divisor = match &self.config.rope_scaling {
                    RopeScaling::Linear { factor } => *factor,
                    RopeScaling::Factors(factors) => f64::from(factors[j]),
                    _ => 1.0,
                };
                let angle =
                    position as f64 / self.config.rope_theta.powf(j as f64 / half as f64) / divisor;
                let (a, b) = (head[j], head[j + half]);
                head[j] = a * angle.cos() - b * angle.sin();
                head[j + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }

    /// Logits after every token.
    pub(crate) fn reference(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let c = &self.config;
        let d = c.head_dim;
        let table = &self.matrices["model.embed_tokens.weight"];
        let embed = |t: &u32| {
            let step = f64::from(table.steps()[*t as usize]);
            table.row(*t as usize).iter().map(|&n| f64::from(n) * step).collect()
        };
        let mut stream: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        for i in 0..c.num_hidden_layers {
            let name = |rest: &str| format!("model.layers.{i}.{rest}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in stream.iter_mut().enumerate() {
                let n = self.norm(&name("input_layernorm.weight"), x);
                let mut q = self.linear(&name("self_attn.q_proj"), &n);
                let mut k = self.linear(&name("self_attn.k_proj"), &n);
                self.norm_heads(&name("self_attn.q_norm.weight"), &mut q);
                self.norm_heads(&name("self_attn.k_norm.weight"), &mut k);
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                keys.push(k);
                values.push(self.linear(&name("self_attn.v_proj"), &n));
                let first =
                    c.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
                let mut mixed = vec![0.0; q.len()];
                for head in 0..c.num_attention_heads {
                    let from = head / (c.num_attention_heads / c.num_key_value_heads) * d;
                    let score = |key: &Vec<f64>| {
                        let dot: f64 =
                            q[head * d..][..d].iter().zip(&key[from..]).map(|(q, k)| q * k).sum();
                        let score = dot
                            * c.block.attention_scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
                        c.block
                            .score_soft_cap
                            .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                            .exp()
                    };
                    let weights: Vec<f64> = keys[first..].iter().map(score).collect();
                    let total: f64 = weights.iter().sum();
                    for (weight, value) in weights.iter().zip(&values[first..]) {
                        for j in 0..d {
                            mixed[head * d + j] += weight / total * value[from + j];
                        }
                    }
                }
                let out = self.linear(&name("self_attn.o_proj"), &mixed);
                x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
                let m = self.norm(&name("post_attention_layernorm.weight"), x);
                let up = self.linear(&name("mlp.up_proj"), &m);
                let inner: Vec<f64> = self
                    .linear(&name("mlp.gate_proj"), &m)
                    .into_iter()
                    .zip(up)
                    .map(|(g, u)| self.activation(g) * u)
                    .collect();
                let out = self.linear(&name("mlp.down_proj"), &inner);
                x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
            }
        }
        let head = if c.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
        stream.iter().map(|x| self.linear(head, &self.norm("model.norm.weight", x))).collect()
    }
}
