//! The whole model against its textbook form, and the promises about batching, splitting and
//! refusing.

#![allow(clippy::cast_possible_truncation, reason = "test code")]

use super::testing::{TinyModel, cases, tiny_config};
use super::{
    Batch, Decoding, GenerateOptions, KvPool, NewTokens, OneSequence, Sampling, StopReason,
    TableId, Transformer, Want,
};
use crate::arch::ModelConfig;
use crate::device::Choice;
use crate::device::cpu::{Cpu, SimdLevel};
use crate::weights::Weights;
use crate::{Error, Result};

const OWNER: [u8; 32] = [7; 32];

struct Runner {
    cpu: Cpu,
    weights: Weights<Cpu>,
    model: Transformer,
}

/// Some sequences in a pool of theirs.
struct Sequences {
    pool: KvPool<Cpu>,
    tables: Vec<TableId>,
}

impl Sequences {
    fn len(&self, i: usize) -> usize {
        self.pool.pages().len(self.tables[i])
    }
}

impl Runner {
    fn new(model: &TinyModel, cpu: Cpu) -> Self {
        let weights = model.weights(&cpu);
        let model = Transformer::bind(&cpu, &model.config, &weights).expect("a whole model");
        Self { cpu, weights, model }
    }

    /// Memory for a whole context of each of some sequences.
    fn sequences(&self, count: usize) -> Sequences {
        let tokens = count * self.model.config().max_position_embeddings;
        let mut pool = KvPool::for_tokens(&self.cpu, self.model.config(), tokens).expect("memory");
        let tables = (0..count).map(|_| pool.pages_mut().open(OWNER)).collect();
        Sequences { pool, tables }
    }

    fn try_forward(
        &self,
        Sequences { pool, tables }: &mut Sequences,
        sequences: &[(usize, &[u32], Want)],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let new = |&(i, tokens, want): &(usize, _, _)| NewTokens {
            table: tables[i],
            owner: OWNER,
            tokens,
            want,
        };
        let sequences: Vec<NewTokens<'_>> = sequences.iter().map(new).collect();
        let batch = Batch::merged(&sequences);
        let logits = self.model.forward(&self.cpu, &self.weights, pool, &batch)?;
        Ok((0..sequences.len())
            .map(|i| logits.sequence(i).map(<[f32]>::to_vec).collect())
            .collect())
    }

    fn forward(
        &self,
        there: &mut Sequences,
        sequences: &[(usize, &[u32], Want)],
    ) -> Vec<Vec<Vec<f32>>> {
        self.try_forward(there, sequences).expect("a valid batch")
    }

    /// The first of some sequences.
    fn one<'a>(&'a self, Sequences { pool, tables }: &'a mut Sequences) -> OneSequence<'a, Cpu> {
        let Self { cpu: device, weights, model } = self;
        OneSequence { model, device, weights, pool, table: tables[0], owner: OWNER }
    }

    /// Logits after every token, in one prefill.
    fn all(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.forward(&mut self.sequences(1), &[(0, tokens, Want::All)]).remove(0)
    }
}

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 17 + seed * 29 + i * i % 7) % 50).collect()
}

fn default_runner() -> Runner {
    Runner::new(&TinyModel::random(tiny_config(), &[], 1), Cpu::new(Some(2)).unwrap())
}

#[test]
fn forward_equals_the_textbook_for_every_block() {
    for (name, config, biased) in cases(tiny_config()) {
        let model = TinyModel::random(config, biased, 3);
        let input = tokens(23, 1);
        let expected = model.reference(&input);
        let size = expected.iter().flatten().fold(0f64, |size, x| size.max(x.abs()));
        for level in SimdLevel::available() {
            let found = Runner::new(&model, Cpu::with_simd(Some(2), level).unwrap()).all(&input);
            assert_eq!(found.len(), expected.len());
            for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
                for (found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs() / size;
                    assert!(
                        error < 1e-5,
                        "{name} {level:?} position {position}: {found}, not {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn ragged_batch_equals_sequences_alone_bit_for_bit() {
    let runner = default_runner();
    let inputs = [tokens(40, 1), tokens(1, 2), tokens(19, 3)];
    let mut there = runner.sequences(5);
    let split = [(4, 33), (0, 0), (2, 12)];
    let first: Vec<_> =
        [0, 2].map(|i: usize| (split[i].0, &inputs[i][..split[i].1], Want::All)).to_vec();
    let first = runner.forward(&mut there, &first);
    let second: Vec<_> =
        (0..3).map(|i| (split[i].0, &inputs[i][split[i].1..], Want::All)).collect();
    let second = runner.forward(&mut there, &second);
    for (i, parts) in
        [(0, vec![&first[0], &second[0]]), (1, vec![&second[1]]), (2, vec![&first[1], &second[2]])]
    {
        let joined: Vec<Vec<f32>> = parts.into_iter().flatten().cloned().collect();
        assert_eq!(joined, runner.all(&inputs[i]), "sequence {i}");
    }
}

#[test]
fn prefill_then_decode_equals_one_prefill_bit_for_bit() {
    for window in [None, Some(6)] {
        let config = ModelConfig { sliding_window: window, ..tiny_config() };
        let runner = Runner::new(&TinyModel::random(config, &[], 5), Cpu::new(Some(2)).unwrap());
        let input = tokens(60, 4);
        let expected = runner.all(&input);
        let mut there = runner.sequences(1);
        assert_eq!(
            runner.forward(&mut there, &[(0, &input[..21], Want::Nothing)]),
            [Vec::<Vec<f32>>::new()]
        );
        for (position, token) in input.iter().enumerate().skip(21) {
            let logits = runner.forward(&mut there, &[(0, &[*token], Want::Last)]);
            assert_eq!(
                logits[0],
                [expected[position].clone()],
                "position {position}, window {window:?}"
            );
        }
        assert_eq!(there.len(0), 60);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    // Large enough for every operation to be split.
    let config = ModelConfig {
        hidden_size: 320,
        intermediate_size: 640,
        head_dim: 32,
        num_attention_heads: 12,
        num_key_value_heads: 4,
        vocab_size: 600,
        ..tiny_config()
    };
    let model = TinyModel::random(config, &[], 6);
    let input = tokens(110, 5);
    let runs = [1, 2, 3].map(|threads| {
        let runner = Runner::new(&model, Cpu::new(Some(threads)).unwrap());
        let mut there = runner.sequences(1);
        let mut logits = runner.forward(&mut there, &[(0, &input[..100], Want::All)]);
        logits.extend(
            input[100..].iter().flat_map(|t| runner.forward(&mut there, &[(0, &[*t], Want::Last)])),
        );
        logits
    });
    assert!(runs[0] == runs[1] && runs[0] == runs[2]);
}

#[test]
fn cleared_sequence_forgets() {
    let runner = default_runner();
    let (long, short) = (tokens(50, 1), tokens(9, 2));
    let mut there = runner.sequences(2);
    runner.forward(&mut there, &[(0, &long, Want::Nothing), (1, &long, Want::Nothing)]);
    there.pool.pages_mut().clear(there.tables[0]);
    assert_eq!((there.len(0), there.len(1)), (0, 50));
    assert_eq!(runner.forward(&mut there, &[(0, &short, Want::All)])[0], runner.all(&short));
}

#[test]
fn pages_of_other_weights_are_refused_and_owners_stand_side_by_side() {
    let runner = default_runner();
    let other = [8; 32];
    let Sequences { mut pool, tables } = runner.sequences(1);
    let run = |pool: &mut KvPool<Cpu>, new: &[(TableId, [u8; 32])]| {
        let want = Want::Last;
        let new = new.iter().map(|&(table, owner)| NewTokens { table, owner, tokens: &[3], want });
        let sequences: Vec<NewTokens<'_>> = new.collect();
        runner.model.forward(&runner.cpu, &runner.weights, pool, &Batch::merged(&sequences))
    };
    let (mine, others) = (tables[0], pool.pages_mut().open(other));
    run(&mut pool, &[(others, other), (mine, OWNER)]).unwrap();
    for [first, second] in [[(mine, other), (others, other)], [(others, other), (mine, other)]] {
        let refused = run(&mut pool, &[first, second]).expect_err("refused");
        assert!(
            matches!(refused, Error::CacheOwner { expected, found: OWNER } if expected == other),
            "{refused}"
        );
        assert_eq!([mine, others].map(|table| pool.pages().len(table)), [1, 1]);
    }
    pool.pages_mut().release(mine);
    let refused = run(&mut pool, &[(mine, OWNER)]).expect_err("refused");
    assert!(matches!(refused, Error::BatchSequence { index: 0, .. }), "{refused}");
}

#[test]
fn impossible_batches_are_refused_and_change_nothing() {
    let runner = default_runner();
    let mut there = runner.sequences(2);
    there.tables.push(runner.sequences(1).tables[0]);
    let long = tokens(128, 1);
    runner.forward(&mut there, &[(0, &long[..100], Want::Nothing)]);
    let mut refused = |sequences: &[(usize, &[u32], Want)]| {
        let error = runner.try_forward(&mut there, sequences).expect_err("refused");
        assert_eq!((there.len(0), there.len(1)), (100, 0));
        assert_eq!(there.pool.pages().free(), 4);
        error
    };
    let last = Want::Last;
    let error = refused(&[(0, &long[..29], last)]);
    assert!(
        matches!(error, Error::ContextFull { index: 0, needed: 129, capacity: 128 }),
        "{error}"
    );
    assert!(matches!(
        refused(&[(1, &[49, 50], last)]),
        Error::UnknownToken { token: 50, vocab_size: 50 }
    ));
    assert!(matches!(
        refused(&[(1, &long[..9], last), (0, &long[..29], last)]),
        Error::ContextFull { index: 1, .. }
    ));
    assert!(matches!(
        refused(&[(0, &[1], last), (0, &[1], last)]),
        Error::BatchSequence { index: 1, .. }
    ));
    assert!(matches!(refused(&[(2, &[1], last)]), Error::BatchSequence { index: 0, .. }));
    assert!(matches!(refused(&[(0, &[], last)]), Error::BatchSequence { index: 0, .. }));
    assert_eq!(runner.try_forward(&mut there, &[]).unwrap(), Vec::<Vec<Vec<f32>>>::new());
    runner.forward(&mut there, &[(0, &long[100..], last)]);
}

#[test]
fn pool_of_another_model_is_refused() {
    let runner = default_runner();
    let other = ModelConfig { num_hidden_layers: 2, ..tiny_config() };
    let mut pool = KvPool::for_tokens(&runner.cpu, &other, 10).unwrap();
    let tables = vec![pool.pages_mut().open(OWNER)];
    let result = runner.try_forward(&mut Sequences { pool, tables }, &[(0, &[1], Want::Last)]);
    assert!(matches!(result, Err(Error::CacheShape { field: "layers", expected: 3, found: 2 })));
}

#[test]
fn pool_holds_the_pages_that_its_bytes_are_enough_for() {
    let runner = default_runner();
    let config = runner.model.config();
    // 3 layers, 2 heads, 32 positions, 6 values of a key and 16 of a padded value.
    let page = 3 * 2 * 32 * (6 + 16) * 4;
    for (bytes, pages) in [(page, 1), (7 * page - 1, 6), (7 * page, 7)] {
        assert_eq!(KvPool::new(&runner.cpu, config, bytes).unwrap().pages().total(), pages);
    }
    for bytes in [0, page - 1, u64::MAX] {
        let refused = KvPool::new(&runner.cpu, config, bytes).map(drop).expect_err("refused");
        assert!(
            matches!(refused, Error::CacheSize { page_bytes, .. } if page_bytes == page),
            "{refused}"
        );
    }
    let refused = KvPool::for_tokens(&runner.cpu, config, usize::MAX).map(drop);
    assert!(matches!(refused, Err(Error::CacheSize { .. })));
}

#[test]
fn batch_without_pages_enough_is_refused_and_changes_nothing() {
    let runner = default_runner();
    let mut there = runner.sequences(1);
    there.tables.push(there.pool.pages_mut().open(OWNER));
    let input = tokens(90, 1);
    runner.forward(&mut there, &[(0, &input[..40], Want::Nothing)]);
    let both: [(usize, &[u32], Want); 2] =
        [(1, &input[..33], Want::Last), (0, &input[40..65], Want::Last)];
    let refused = runner.try_forward(&mut there, &both).expect_err("refused");
    assert!(matches!(refused, Error::OutOfPages { needed: 3, free: 2, pages: 4 }), "{refused}");
    assert_eq!((there.len(0), there.len(1), there.pool.pages().free()), (40, 0, 2));
    let rest = runner.forward(&mut there, &[(0, &input[40..], Want::All)]).remove(0);
    assert_eq!(rest, runner.all(&input)[40..]);
}

#[test]
fn pass_that_fails_gives_its_pages_back() {
    let mut model = TinyModel::random(tiny_config(), &[], 1);
    let norm = model.vectors.get_mut("model.norm.weight").unwrap();
    norm.fill(f32::INFINITY);
    let runner = Runner::new(&model, Cpu::new(Some(1)).unwrap());
    let mut there = runner.sequences(1);
    let input = tokens(70, 1);
    runner.forward(&mut there, &[(0, &input[..33], Want::Nothing)]);
    let greedy = Choice::GREEDY;
    let Sequences { pool, tables } = &mut there;
    let want = Want::Last;
    let new = NewTokens { table: tables[0], owner: OWNER, tokens: &input[33..], want };
    // One more than it needs so far: it stays the table's, too.
    pool.pages_mut().reserve(tables[0], 3).unwrap();
    let before = pool.pages().pages(tables[0]).to_vec();
    assert_eq!(before.len(), 3);
    let Runner { cpu, weights, model } = &runner;
    let failed = model.next_tokens(cpu, weights, pool, &Batch::merged(&[new]), &[greedy]);
    assert!(matches!(failed, Err(Error::NonFiniteLogits { .. })));
    assert_eq!(pool.pages().pages(tables[0]), before);
    assert_eq!((there.len(0), there.pool.pages().free()), (33, 1));
}

#[test]
fn prompt_behind_shared_pages_has_the_bits_of_one_run_alone() {
    let runner = default_runner();
    let mut there = runner.sequences(2);
    let input = tokens(100, 1);
    let expected = runner.all(&input);
    runner.forward(&mut there, &[(0, &input[..97], Want::Nothing)]);
    let longer = there.pool.pages_mut().open_behind(OWNER, &[], &input);
    there.tables.push(longer);
    assert_eq!((there.len(2), there.pool.pages().free()), (96, 4));
    let rest = runner.forward(&mut there, &[(2, &input[96..], Want::All)]).remove(0);
    assert_eq!(rest, expected[96..]);
    // The one that was there first goes on beside it, and after all are gone the pages are found.
    let last = runner.forward(&mut there, &[(0, &input[97..], Want::All)]).remove(0);
    assert_eq!(last, expected[97..]);
    there.tables.iter().for_each(|&table| there.pool.pages_mut().release(table));
    there.tables = vec![there.pool.pages_mut().open_behind(OWNER, &[], &input[..64])];
    assert_eq!(there.len(0), 32);
    let again = runner.forward(&mut there, &[(0, &input[32..64], Want::All)]).remove(0);
    assert_eq!(again, expected[32..64]);
}

#[test]
fn incomplete_or_misshapen_weights_are_refused_by_name() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let bind = |change: &dyn Fn(&mut TinyModel)| {
        let mut model = TinyModel::random(tiny_config(), &["q_proj"], 1);
        change(&mut model);
        Transformer::bind(&cpu, &model.config, &model.weights(&cpu)).err().expect("refused")
    };
    let name = "model.layers.1.mlp.down_proj.weight";
    let error = bind(&|m| drop(m.matrices.remove(name)));
    assert!(
        matches!(&error, Error::MissingWeight { weight, .. } if weight.as_str() == name),
        "{error}"
    );
    let error = bind(&|m| drop(m.vectors.remove("model.norm.weight")));
    assert!(
        matches!(&error, Error::MissingWeight { weight, .. } if weight.as_str() == "model.norm.weight")
    );
    let error = bind(&|m| m.config.tie_word_embeddings = false);
    assert!(
        matches!(&error, Error::MissingWeight { weight, .. } if weight.as_str() == "lm_head.weight")
    );
    let error = bind(&|m| m.config.intermediate_size = 41);
    assert!(
        matches!(&error, Error::WeightShape { expected, .. } if expected == &[41, 24]),
        "{error}"
    );
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let error = bind(&|m| m.vectors.get_mut(bias).unwrap().truncate(35));
    assert!(matches!(&error, Error::WeightShape { weight, .. } if weight.as_str() == bias));
    let error = bind(&|m| m.config.num_key_value_heads = 4);
    assert!(matches!(error, Error::ModelConfig { field: "num_attention_heads", .. }));
    let error = bind(&|m| m.config.head_dim = 0);
    assert!(matches!(error, Error::ModelConfig { field: "head_dim", .. }));
}

fn run(
    runner: &Runner,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<(Vec<u32>, StopReason)> {
    let mut there = runner.sequences(1);
    let mut streamed = Vec::new();
    let mut decoding =
        Decoding::new(prompt, options, runner.model.config().max_position_embeddings)?;
    let mut forward = runner.one(&mut there);
    while let Some(token) = decoding.step(&mut forward)? {
        streamed.push(token);
    }
    assert_eq!(streamed, decoding.token_ids());
    Ok((streamed, decoding.stop().expect("it has ended")))
}

#[test]
fn greedy_generation_follows_the_textbook() {
    let model = TinyModel::random(tiny_config(), &[], 1);
    let runner = Runner::new(&model, Cpu::new(Some(2)).unwrap());
    let prompt = tokens(7, 1);
    let mut text = prompt.clone();
    for _ in 0..20 {
        let logits = model.reference(&text).pop().unwrap();
        let best = (0..50).max_by(|&a: &usize, &b| logits[a].total_cmp(&logits[b])).unwrap();
        text.push(best as u32);
    }
    let expected = &text[7..];
    let mut options = GenerateOptions { max_tokens: 20, ..Default::default() };
    assert_eq!(
        run(&runner, &prompt, &options).unwrap(),
        (expected.to_vec(), StopReason::MaxTokens)
    );
    let stop = expected[5];
    let before = expected.iter().position(|&token| token == stop).unwrap();
    options.stop_tokens = vec![99, stop];
    let stopped = (expected[..before].to_vec(), StopReason::StopToken(stop));
    assert_eq!(run(&runner, &prompt, &options).unwrap(), stopped);
    options.max_tokens = 0;
    assert_eq!(run(&runner, &prompt, &options).unwrap(), (vec![], StopReason::MaxTokens));
}

#[test]
fn generation_stops_at_the_end_of_the_context() {
    let runner = default_runner();
    let options = GenerateOptions { max_tokens: 50, ..Default::default() };
    let (ids, stop) = run(&runner, &tokens(120, 1), &options).unwrap();
    // The ninth token follows 128 others, but does not fit itself.
    assert_eq!((ids.len(), stop), (9, StopReason::ContextFull));
    let error = run(&runner, &tokens(129, 1), &options).expect_err("refused");
    assert!(matches!(error, Error::ContextFull { needed: 129, capacity: 128, .. }));
    assert!(matches!(run(&runner, &[], &options), Err(Error::EmptyPrompt)));
}

#[test]
fn long_prompt_in_parts_gives_the_tokens_of_one_prefill() {
    let config = ModelConfig { max_position_embeddings: 2000, ..tiny_config() };
    let runner = Runner::new(&TinyModel::random(config, &[], 1), Cpu::new(Some(2)).unwrap());
    let prompt = tokens(1030, 1);
    let mut there = runner.sequences(1);
    let whole = runner.forward(&mut there, &[(0, &prompt, Want::Last)]).remove(0).remove(0);
    let options =
        GenerateOptions { max_tokens: 1, sampling: Sampling::default(), ..Default::default() };
    let mut decoding = Decoding::new(&prompt, &options, 1100).unwrap();
    there.pool.pages_mut().clear(there.tables[0]);
    let next = decoding.step(&mut runner.one(&mut there)).unwrap();
    assert_eq!(next, Some(super::argmax(&whole).unwrap()));
    assert_eq!(there.len(0), 1030);
}
