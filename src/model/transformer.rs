//! The forward pass of a dense transformer, written once over [`Compute`], for several sequences at
//! once. What a layer computes is the [`Block`](crate::arch::Block) of the model's configuration;
//! no family is known here by name.
//!
//! Per layer: `x += O · attention(rope(Q·n), rope(K·n), V·n)` with `n = norm(x)`, queries and keys
//! normed head by head before their rotation where the block has norms for them, then
//! `x += Down · (activation(Gate·m) ⊙ Up·m)` with `m = norm(x)`; at the end
//! `logits = Head · norm(x)` of the wanted rows.
//!
//! **Invariant:** a sequence's logits depend on its own tokens alone, however it is batched or
//! split: bit for bit on the CPU, to rounding on a device whose kernels differ by the number of
//! rows.

mod bind;

use std::collections::BTreeSet;
use std::ops::Range;

use super::batch::{among_wanted, wanted_rows};
use super::{Batch, KvPages, KvPool, Logits, NewTokens, Pick, Picked, RopeTable};
use crate::arch::{Activation, ModelConfig, Role};
use crate::device::{Attention, Choice, Compute, Device, Heads, Product, RotateAppend, Span};
use crate::weights::{MatrixId, Weights};
use crate::{Error, Result, WeightName};

/// A matrix with its optional bias.
struct Linear {
    weight: MatrixId,
    bias: Option<WeightName>,
}

impl Linear {
    fn product<'a, D: Compute>(
        &self,
        weights: &'a Weights<D>,
        out: &'a mut D::Buffer,
        accumulate: bool,
    ) -> Product<'a, D> {
        let bias =
            self.bias.as_ref().map(|name| weights.vector(name).expect("bound to these weights"));
        let (weight, id) = (weights.matrix(self.weight), self.weight);
        Product { weight, id, bias, out, accumulate }
    }
}

struct Layer {
    attention_norm: WeightName,
    /// q, k, v
    attention: [Linear; 3],
    /// Of every head of q and of k.
    head_norms: Option<[WeightName; 2]>,
    out: Linear,
    feed_forward_norm: WeightName,
    /// gate, up
    feed_forward: [Linear; 2],
    down: Linear,
}

/// A model's structure, bound to the weights it reads.
pub struct Transformer {
    config: ModelConfig,
    rope: RopeTable,
    embedding: MatrixId,
    layers: Vec<Layer>,
    norm: WeightName,
    head: MatrixId,
}

/// Buffers of one forward pass, for a number of rows.
pub(super) struct Workspace<D: Compute> {
    rows: usize,
    /// `(rows, hidden)`: the residual stream, its norm.
    stream: D::Buffer,
    normed: D::Buffer,
    /// `(rows, heads × head_dim)` or `(rows, kv_heads × head_dim)`.
    queries: D::Buffer,
    keys: D::Buffer,
    values: D::Buffer,
    mixed: D::Buffer,
    /// As `keys`, where these are normed.
    normed_keys: Option<D::Buffer>,
    /// `(rows, intermediate)`
    gate: D::Buffer,
    up: D::Buffer,
    /// `(rows, head_dim)`
    angles: D::Buffer,
    angles_host: Vec<f32>,
    /// `(wanted rows, vocab)`
    logits: D::Buffer,
}

/// What is not in the weights, for every row and for those whose logits are wanted.
struct UnmergedDeltas<'a, D: Compute + 'a> {
    of_rows: D::Unmerged<'a>,
    of_wanted: D::Unmerged<'a>,
}

pub(super) fn heads(config: &ModelConfig) -> Heads {
    Heads {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

impl Transformer {
    /// The model's hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Runs the new tokens of every sequence through the model, appends them to its table and
    /// returns the wanted logits.
    ///
    /// # Errors
    /// Before anything is computed: when the pool is another model's, a table other weights', a
    /// sequence twice there, empty or too long, a token unknown, or pages are lacking
    /// ([`Error::OutOfPages`]). After any error every table is as before.
    ///
    /// # Panics
    /// When `weights` are not those the model was bound to.
    pub fn forward<D: Compute>(
        &self,
        device: &D,
        weights: &Weights<D>,
        pool: &mut KvPool<D>,
        batch: &Batch<'_, D>,
    ) -> Result<Logits> {
        let vocab_size = self.config.vocab_size;
        self.forward_then(device, weights, pool, batch, |logits, sequences| {
            let wanted = sequences.last().map_or(0, |rows| rows.end);
            Ok(Logits::new(device.read(logits, 0..wanted * vocab_size)?, vocab_size, sequences))
        })
    }

    /// Like [`Self::forward`], but a token is chosen on the device from each row of wanted logits,
    /// and only the tokens leave it: one for each of `choices`.
    ///
    /// # Errors
    /// As [`Self::forward`], and [`Error::NonFiniteLogits`].
    ///
    /// # Panics
    /// When the batch does not want as many rows of logits as there are choices.
    pub fn next_tokens<D: Compute>(
        &self,
        device: &D,
        weights: &Weights<D>,
        pool: &mut KvPool<D>,
        batch: &Batch<'_, D>,
        choices: &[Choice],
    ) -> Result<Vec<u32>> {
        self.forward_then(device, weights, pool, batch, |logits, sequences| {
            assert_eq!(
                sequences.last().map_or(0, |rows| rows.end),
                choices.len(),
                "one choice a row of logits"
            );
            device.sample(logits, self.config.vocab_size, choices)?.into_iter().collect()
        })
    }

    /// Like [`Self::next_tokens`], for sequences of different people: where one row's logits are not
    /// finite the others have their tokens all the same.
    ///
    /// # Errors
    /// As [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::next_tokens`].
    pub fn pick<D: Compute>(
        &self,
        device: &D,
        weights: &Weights<D>,
        pool: &mut KvPool<D>,
        batch: &Batch<'_, D>,
        picks: &[Pick],
    ) -> Result<Vec<Result<Picked>>> {
        let vocab_size = self.config.vocab_size;
        let choice = |pick: &Pick| match pick {
            Pick::Token(choice) => *choice,
            Pick::Logits => Choice::GREEDY,
        };
        let choices: Vec<Choice> = picks.iter().map(choice).collect();
        self.forward_then(device, weights, pool, batch, |logits, sequences| {
            let rows = sequences.last().map_or(0, |rows| rows.end);
            assert_eq!(rows, picks.len(), "one choice a row of logits");
            let tokens = device.sample(logits, vocab_size, &choices)?;
            // One transfer, from the first row that is wanted here to the last.
            let is_logits = |pick: &Pick| matches!(pick, Pick::Logits);
            let first = picks.iter().position(is_logits).unwrap_or(rows);
            let last = picks.iter().rposition(is_logits).map_or(rows, |last| last + 1);
            let read = match first < last {
                true => device.read(logits, first * vocab_size..last * vocab_size)?,
                false => Vec::new(),
            };
            let row = |k: usize| read[(k - first) * vocab_size..][..vocab_size].to_vec();
            let picked =
                picks.iter().zip(tokens).enumerate().map(|(k, (pick, token))| match pick {
                    Pick::Token(_) => token.map(Picked::Token),
                    Pick::Logits => Ok(Picked::Logits(row(k))),
                });
            Ok(picked.collect())
        })
    }

    fn forward_then<D: Compute, R: Send>(
        &self,
        device: &D,
        weights: &Weights<D>,
        pool: &mut KvPool<D>,
        batch: &Batch<'_, D>,
        finish: impl FnOnce(&D::Buffer, Vec<Range<usize>>) -> Result<R> + Send,
    ) -> Result<R> {
        self.check_batch(pool, batch)?;
        let sequences = batch.sequences;
        let held = |new: &NewTokens<'_>| pool.pages.pages(new.table).len();
        let held: Vec<usize> = sequences.iter().map(held).collect();
        pool.pages.grow(sequences.iter().map(|new| (new.table, new.tokens.len())))?;
        let result = self.forward_grown(device, weights, pool, batch, finish);
        for (new, held) in sequences.iter().zip(held) {
            match &result {
                Ok(_) => pool.pages.append(new.table, new.tokens),
                Err(_) => pool.pages.shrink(new.table, held),
            }
        }
        result
    }

    /// The same for a checked batch whose tables have pages enough.
    fn forward_grown<D: Compute, R: Send>(
        &self,
        device: &D,
        weights: &Weights<D>,
        pool: &mut KvPool<D>,
        batch: &Batch<'_, D>,
        finish: impl FnOnce(&D::Buffer, Vec<Range<usize>>) -> Result<R> + Send,
    ) -> Result<R> {
        let spans = spans(&pool.pages, batch);
        let rows = spans.last().map_or(0, |span| span.rows.end);
        let tokens: Vec<u32> =
            batch.sequences.iter().flat_map(|sequence| sequence.tokens).copied().collect();
        let (wanted, sequences) = wanted_rows(batch, &spans);
        let mut workspace =
            self.workspace_for(device, pool.workspace.take(), rows, wanted.len())?;
        let positions = spans.iter().flat_map(|span| span.past..span.past + span.rows.len());
        self.rope.angles(positions, &mut workspace.angles_host);
        let nodes = batch.node_rows(&spans);
        let unmerged = UnmergedDeltas {
            of_rows: device.unmerged(&nodes, |id| id != self.head || id == self.embedding)?,
            of_wanted: device.unmerged(&among_wanted(&nodes, &wanted), |id| id == self.head)?,
        };
        let result = device.submit(|| {
            self.run(device, weights, pool, &mut workspace, &tokens, &spans, &wanted, &unmerged);
            finish(&workspace.logits, sequences)
        })?;
        pool.workspace = Some(workspace);
        Ok(result)
    }

    /// The one there is, or one that is larger both ways: a batch of many rows and one of many
    /// logits in turn use the same.
    fn workspace_for<D: Compute>(
        &self,
        device: &D,
        there: Option<Workspace<D>>,
        rows: usize,
        wanted: usize,
    ) -> Result<Workspace<D>> {
        let had = there.as_ref().map_or((0, 0), |there| {
            (there.rows, device.len(&there.logits) / self.config.vocab_size)
        });
        match there {
            Some(there) if had.0 >= rows && had.1 >= wanted => Ok(there),
            there => {
                // Its memory goes first.
                drop(there);
                self.workspace(device, rows.max(had.0), wanted.max(had.1))
            }
        }
    }

    fn check_batch<D: Compute>(&self, pool: &KvPool<D>, batch: &Batch<'_, D>) -> Result<()> {
        let expected = heads(&self.config);
        for (field, expected, found) in [
            ("layers", self.layers.len(), pool.layers.len()),
            ("heads", expected.heads, pool.heads.heads),
            ("kv_heads", expected.kv_heads, pool.heads.kv_heads),
            ("head_dim", expected.head_dim, pool.heads.head_dim),
        ] {
            if expected != found {
                return Err(Error::CacheShape { field, expected, found });
            }
        }
        let mut tables = BTreeSet::new();
        for (index, new) in batch.sequences.iter().enumerate() {
            if !tables.insert(new.table) {
                return Err(Error::BatchSequence { index, problem: "it is there already" });
            }
            self.check_sequence(&pool.pages, index, new)?;
        }
        Ok(())
    }

    fn check_sequence(&self, pages: &KvPages, index: usize, new: &NewTokens<'_>) -> Result<()> {
        let NewTokens { table, owner, tokens, .. } = *new;
        if !pages.is_open(table) {
            return Err(Error::BatchSequence { index, problem: "it has no table here" });
        }
        if tokens.is_empty() {
            return Err(Error::BatchSequence { index, problem: "it brings no tokens" });
        }
        let found = pages.owner(table);
        if found != owner {
            return Err(Error::CacheOwner { expected: owner, found });
        }
        let (capacity, past) = (self.config.max_position_embeddings, pages.len(table));
        if tokens.len() > capacity - past {
            let needed = past.saturating_add(tokens.len());
            return Err(Error::ContextFull { index, needed, capacity });
        }
        let vocab_size = self.config.vocab_size;
        match tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(Error::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }

    fn workspace<D: Compute>(
        &self,
        device: &D,
        rows: usize,
        wanted: usize,
    ) -> Result<Workspace<D>> {
        let c = &self.config;
        let alloc = |width: usize| device.alloc(rows * width);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        Ok(Workspace {
            rows,
            stream: alloc(c.hidden_size)?,
            normed: alloc(c.hidden_size)?,
            queries: alloc(q)?,
            keys: alloc(kv)?,
            values: alloc(kv)?,
            mixed: alloc(q)?,
            normed_keys: c.block.tensor(Role::KeyNorm).map(|_| alloc(kv)).transpose()?,
            gate: alloc(c.intermediate_size)?,
            up: alloc(c.intermediate_size)?,
            angles: alloc(c.head_dim)?,
            angles_host: Vec::new(),
            logits: device.alloc(wanted * c.vocab_size)?,
        })
    }

    /// The forward pass itself: calls to the device in sequence, nothing that can fail.
    #[allow(clippy::too_many_arguments, reason = "the batch in its parts, each borrowed once")]
    fn run<D: Compute>(
        &self,
        device: &D,
        weights: &Weights<D>,
        pool: &mut KvPool<D>,
        w: &mut Workspace<D>,
        tokens: &[u32],
        spans: &[Span],
        wanted: &[usize],
        unmerged: &UnmergedDeltas<'_, D>,
    ) {
        let c = &self.config;
        let rows = tokens.len();
        #[allow(clippy::cast_possible_truncation, reason = "rounded to the activations' precision")]
        let eps = c.rms_norm_eps as f32;
        let heads = heads(c);
        let scale = c.block.scale(c.head_dim);
        let vector = |name: &WeightName| weights.vector(name).expect("bound to these weights");
        device.write(&w.angles_host, &mut w.angles);
        let table = (weights.matrix(self.embedding), self.embedding);
        let UnmergedDeltas { of_rows, of_wanted } = unmerged;
        device.embed(table, tokens, of_rows, &mut w.stream);
        for (layer, kv) in self.layers.iter().zip(&mut pool.layers) {
            device.rms_norm(&w.stream, vector(&layer.attention_norm), eps, rows, &mut w.normed);
            let [q, k, v] = &layer.attention;
            let projections = [
                q.product(weights, &mut w.queries, false),
                k.product(weights, &mut w.keys, false),
                v.product(weights, &mut w.values, false),
            ];
            device.matmul(&w.normed, rows, projections, of_rows);
            if let (Some([q, k]), Some(normed)) = (&layer.head_norms, &mut w.normed_keys) {
                device.rms_norm(&w.queries, vector(q), eps, rows * heads.heads, &mut w.mixed);
                device.rms_norm(&w.keys, vector(k), eps, rows * heads.kv_heads, normed);
                std::mem::swap(&mut w.queries, &mut w.mixed);
                std::mem::swap(&mut w.keys, normed);
            }
            let rotate_append = RotateAppend {
                queries: &mut w.queries,
                keys: &mut w.keys,
                values: &w.values,
                angles: &w.angles,
                cache: kv,
                heads,
            };
            device.rotate_append(rotate_append, spans);
            let attention = Attention {
                queries: &w.queries,
                cache: kv,
                heads,
                scale,
                soft_cap: c.block.score_soft_cap,
                window: c.sliding_window,
                out: &mut w.mixed,
            };
            device.attention(attention, spans);
            let out = layer.out.product(weights, &mut w.stream, true);
            device.matmul(&w.mixed, rows, [out], of_rows);

            device.rms_norm(&w.stream, vector(&layer.feed_forward_norm), eps, rows, &mut w.normed);
            let [gate, up] = &layer.feed_forward;
            device.matmul(
                &w.normed,
                rows,
                [gate.product(weights, &mut w.gate, false), up.product(weights, &mut w.up, false)],
                of_rows,
            );
            let len = rows * c.intermediate_size;
            match c.block.activation {
                Activation::Silu => device.silu_mul(&mut w.gate, &w.up, len),
                Activation::GeluTanh => device.gelu_mul(&mut w.gate, &w.up, len),
            }
            let down = layer.down.product(weights, &mut w.stream, true);
            device.matmul(&w.gate, rows, [down], of_rows);
        }
        if wanted.is_empty() {
            return;
        }
        let norm = vector(&self.norm);
        let head = Linear { weight: self.head, bias: None };
        device.select_rows(&w.stream, wanted, c.hidden_size, &mut w.normed);
        device.rms_norm(&w.normed, norm, eps, wanted.len(), &mut w.stream);
        let logits = head.product(weights, &mut w.logits, false);
        device.matmul(&w.stream, wanted.len(), [logits], of_wanted);
    }
}

/// Where every sequence of a batch stands, whose tables have pages enough.
fn spans<D: Device>(pages: &KvPages, batch: &Batch<'_, D>) -> Vec<Span> {
    let mut rows = 0;
    let span = |new: &NewTokens<'_>| {
        let start = rows;
        rows += new.tokens.len();
        let (past, pages) = (pages.len(new.table), pages.pages(new.table).to_vec());
        Span { rows: start..rows, past, pages }
    };
    batch.sequences.iter().map(span).collect()
}
