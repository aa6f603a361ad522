//! A model's structure bound to the weights it reads: every name is looked up and every shape checked
//! once, so that a forward pass does neither.

use super::{Layer, Linear, Transformer};
use crate::arch::{ModelConfig, Role, Tensor};
use crate::device::Compute;
use crate::model::RopeTable;
use crate::weights::{EMBEDDING, HEAD, MatrixId, Weights};
use crate::{Error, Result, WeightName};

/// Resolves names against the weights and checks their shapes.
struct Binder<'a, D: Compute> {
    device: &'a D,
    weights: &'a Weights<D>,
    config: &'a ModelConfig,
}

impl<D: Compute> Binder<'_, D> {
    fn missing(&self, weight: WeightName) -> Error {
        Error::MissingWeight { weight, architecture: self.config.architecture.clone() }
    }

    fn check_shape(&self, weight: &WeightName, expected: &[usize], found: &[usize]) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let (expected, found) = (expected.to_vec(), found.to_vec());
        Err(Error::WeightShape { weight: weight.clone(), expected, found })
    }

    fn matrix(&self, weight: WeightName, shape: &[usize]) -> Result<MatrixId> {
        let Some(id) = self.weights.matrix_id(&weight) else { return Err(self.missing(weight)) };
        let (rows, cols) = self.device.shape(self.weights.matrix(id));
        self.check_shape(&weight, shape, &[rows, cols])?;
        Ok(id)
    }

    /// The vector's name if it is there, `len` long.
    fn find_vector(&self, weight: &WeightName, len: usize) -> Result<bool> {
        let Some(vector) = self.weights.vector(weight) else { return Ok(false) };
        self.check_shape(weight, &[len], &[self.device.len(vector)])?;
        Ok(true)
    }

    fn vector(&self, weight: WeightName, len: usize) -> Result<WeightName> {
        if self.find_vector(&weight, len)? { Ok(weight) } else { Err(self.missing(weight)) }
    }

    fn layer(&self, layer: usize) -> LayerBinder<'_, D> {
        LayerBinder { binder: self, layer }
    }
}

/// The same for one layer, by what a weight is for.
struct LayerBinder<'a, D: Compute> {
    binder: &'a Binder<'a, D>,
    layer: usize,
}

impl<D: Compute> LayerBinder<'_, D> {
    fn tensor(&self, role: Role) -> &'static Tensor {
        let block = &self.binder.config.block;
        block.tensor(role).unwrap_or_else(|| panic!("every block has a weight for {role:?}"))
    }

    fn linear(&self, role: Role) -> Result<Linear> {
        let tensor = self.tensor(role);
        let shape = tensor.shape(self.binder.config);
        let bias = tensor.bias(self.layer);
        let weight = self.binder.matrix(tensor.weight(self.layer), &shape)?;
        let bias = self.binder.find_vector(&bias, shape[0])?.then_some(bias);
        Ok(Linear { weight, bias })
    }

    fn norm(&self, role: Role) -> Result<WeightName> {
        let tensor = self.tensor(role);
        self.binder.vector(tensor.weight(self.layer), tensor.shape(self.binder.config)[0])
    }

    fn head_norms(&self) -> Result<Option<[WeightName; 2]>> {
        if self.binder.config.block.tensor(Role::QueryNorm).is_none() {
            return Ok(None);
        }
        Ok(Some([self.norm(Role::QueryNorm)?, self.norm(Role::KeyNorm)?]))
    }

    fn bind(&self) -> Result<Layer> {
        Ok(Layer {
            attention_norm: self.norm(Role::AttentionNorm)?,
            attention: [
                self.linear(Role::Query)?,
                self.linear(Role::Key)?,
                self.linear(Role::Value)?,
            ],
            head_norms: self.head_norms()?,
            out: self.linear(Role::Output)?,
            feed_forward_norm: self.norm(Role::FeedForwardNorm)?,
            feed_forward: [self.linear(Role::Gate)?, self.linear(Role::Up)?],
            down: self.linear(Role::Down)?,
        })
    }
}

fn check(config: &ModelConfig) -> Result<()> {
    let refuse = |field, expected: &str, found: String| {
        Err(Error::ModelConfig { field, expected: expected.to_owned(), found })
    };
    let c = config;
    for (field, value) in [
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("num_attention_heads", c.num_attention_heads),
        ("num_key_value_heads", c.num_key_value_heads),
        ("head_dim", c.head_dim),
        ("vocab_size", c.vocab_size),
        ("max_position_embeddings", c.max_position_embeddings),
    ] {
        if value == 0 || value > 1 << 30 {
            return refuse(field, "1 to 2^30", value.to_string());
        }
    }
    if !c.head_dim.is_multiple_of(2) {
        return refuse("head_dim", "an even number", c.head_dim.to_string());
    }
    if !c.num_attention_heads.is_multiple_of(c.num_key_value_heads) {
        return refuse(
            "num_attention_heads",
            "a multiple of num_key_value_heads",
            c.num_attention_heads.to_string(),
        );
    }
    if c.num_attention_heads.checked_mul(c.head_dim).is_none_or(|width| width > 1 << 30) {
        return refuse(
            "num_attention_heads",
            "at most 2^30 / head_dim",
            c.num_attention_heads.to_string(),
        );
    }
    if c.sliding_window == Some(0) {
        return refuse("sliding_window", "at least 1", "0".to_owned());
    }
    Ok(())
}

impl Transformer {
    /// Resolves every weight of `config` once. Biases are used where the base has them.
    ///
    /// # Errors
    /// When a weight is missing or has another shape than the configuration says, or the
    /// configuration contradicts itself.
    pub fn bind<D: Compute>(
        device: &D,
        config: &ModelConfig,
        weights: &Weights<D>,
    ) -> Result<Self> {
        check(config)?;
        let binder = Binder { device, weights, config };
        let table = [config.vocab_size, config.hidden_size];
        let embedding = binder.matrix(WeightName::new(EMBEDDING), &table)?;
        let head = WeightName::new(HEAD);
        let head = if config.tie_word_embeddings && weights.matrix_id(&head).is_none() {
            embedding
        } else {
            binder.matrix(head, &table)?
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| binder.layer(layer).bind())
            .collect::<Result<_>>()?;
        let norm = binder.vector(config.final_norm(), config.hidden_size)?;
        let rope = RopeTable::new(config)?;
        Ok(Self { rope, config: config.clone(), embedding, layers, norm, head })
    }
}
