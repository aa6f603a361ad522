//! Where head and embedding are one matrix, merging an adapter of the one changes the other as
//! well, which no training ever saw: while an adapter is trained, the other one stays what it was.
//! Tools that merge have written such models for years, and they answer a little wrongly. Here the
//! two part as soon as an adapter touches either.
//!
//! The judge is a model without adapters: the same weights with the delta added to the right
//! matrix, head and embedding stored apart.

use std::path::Path;

use pleach::Runtime;
use pleach::runtime::Prompt;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model, tiny_hf_model_of};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// One for all, so that the judge's other matrices are rounded alike.
const HEADROOM: f32 = 2.0;
const PROMPT: [u32; 5] = [7, 99, 3, 250, 42];

fn embedding(model: &TinyModel) -> TinyModule {
    let module = TinyModule::linear("model.embed_tokens", model.vocab, model.hidden);
    TinyModule { is_embedding: true, ..module }
}

fn head(model: &TinyModel) -> TinyModule {
    TinyModule::linear("lm_head", model.vocab, model.hidden)
}

/// `scaling · B · A` of an adapter's module as `(vocab, hidden)`, from the tensors it writes: an
/// embedding's are stored the other way round.
fn delta(adapter: &TinyAdapter, module: usize) -> Vec<f32> {
    let tensors = adapter.tensors();
    let [(_, [rank, a_cols], a), (_, [b_rows, _], b)] =
        [&tensors[2 * module], &tensors[2 * module + 1]];
    let scaling = 2.0;
    let product = |i: usize, j: usize| {
        scaling * (0..*rank).map(|r| b[i * rank + r] * a[r * a_cols + j]).sum::<f32>()
    };
    if adapter.modules[module].is_embedding {
        (0..*a_cols)
            .flat_map(|token| (0..*b_rows).map(move |j| (token, j)))
            .map(|(token, j)| product(j, token))
            .collect()
    } else {
        (0..*b_rows)
            .flat_map(|i| (0..*a_cols).map(move |j| (i, j)))
            .map(|(i, j)| product(i, j))
            .collect()
    }
}

/// Logits of the untied model that has `to_embedding` added to its embedding and `to_head` to its
/// head.
fn judge(dir: &Path, model: &TinyModel, to_embedding: &[&[f32]], to_head: &[&[f32]]) -> Vec<f32> {
    let mut weights = model.weights();
    let mut head = weights[EMBEDDING].clone();
    let add = |values: &mut Vec<f32>, deltas: &[&[f32]]| {
        deltas.iter().for_each(|delta| values.iter_mut().zip(*delta).for_each(|(w, d)| *w += d));
    };
    add(&mut head.1, to_head);
    add(&mut weights.get_mut(EMBEDDING).unwrap().1, to_embedding);
    weights.insert(HEAD.to_owned(), head);
    tiny_hf_model_of(dir, &TinyModel { tied: false, ..model.clone() }, &weights);
    logits(&Runtime::builder().base(dir).headroom(HEADROOM).open().unwrap())
}

fn logits(runtime: &Runtime) -> Vec<f32> {
    runtime.score(&Prompt::Tokens(PROMPT.to_vec())).unwrap().logits
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

#[test]
fn adapter_of_embedding_or_head_changes_that_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let model = TinyModel::default();
    let adapters = [
        ("embed", TinyAdapter::new(vec![embedding(&model)], 3, 1)),
        ("head", TinyAdapter::new(vec![head(&model)], 3, 2)),
        ("embed/head", TinyAdapter::new(vec![head(&model)], 3, 3)),
        ("both", TinyAdapter::new(vec![embedding(&model), head(&model)], 3, 4)),
    ];
    for (name, adapter) in &adapters {
        adapter.write(&place("tree").join(name)).unwrap();
    }
    let [e, h, eh] = [0, 1, 2].map(|at: usize| delta(&adapters[at].1, 0));
    let [both_e, both_h] = [0, 1].map(|module| delta(&adapters[3].1, module));

    tiny_hf_model(&place("base"), &model);
    let mut runtime = Runtime::builder()
        .base(place("base"))
        .tree(place("tree"))
        .headroom(HEADROOM)
        .open()
        .unwrap();
    let (root, fingerprint) = (logits(&runtime), runtime.fingerprint().unwrap());
    assert!(runtime.is_tied());
    let expected = judge(&place("judge"), &model, &[], &[]);
    assert!(distance(&root, &expected) < 1e-3 * distance(&expected, &vec![0.0; expected.len()]));

    for (node, to_embedding, to_head) in [
        ("embed", vec![&e[..]], vec![]),
        ("head", vec![], vec![&h[..]]),
        ("embed/head", vec![&e[..]], vec![&eh[..]]),
        ("both", vec![&both_e[..]], vec![&both_h[..]]),
    ] {
        let (to_embedding, to_head) = (&to_embedding[..], &to_head[..]);
        runtime.switch_to(node).unwrap();
        let (found, right) =
            (logits(&runtime), judge(&place("judge"), &model, to_embedding, to_head));
        let all: Vec<&[f32]> = to_embedding.iter().chain(to_head).copied().collect();
        let wrong = judge(&place("judge"), &model, &all, &all);
        let shift = distance(&right, &root);
        println!("{node:<12} off by {:.6} of its shift", distance(&found, &right) / shift);
        assert!(
            distance(&found, &right) < 0.005 * shift,
            "{node}: {} of {shift}",
            distance(&found, &right)
        );
        assert!(
            distance(&found, &wrong) > 0.2 * shift,
            "{node}: as if head and embedding had both been changed"
        );

        runtime.switch_to("/").unwrap();
        assert_eq!(logits(&runtime), root, "{node} and back");
        assert_eq!(runtime.fingerprint().unwrap(), fingerprint, "{node} and back");
    }
    assert!(!runtime.is_tied(), "an adapter has parted them");
    assert!(runtime.verify(50, 1, 1, |_| ()).unwrap().is_clean());
    assert_eq!(runtime.fingerprint().unwrap(), fingerprint);

    // A way that takes a node of the embedding down and one of the head in is no other than a fresh
    // one.
    runtime.switch_to("embed/head").unwrap();
    runtime.switch_to("head").unwrap();
    let mut fresh = Runtime::builder()
        .base(place("base"))
        .tree(place("tree"))
        .headroom(HEADROOM)
        .open()
        .unwrap();
    fresh.switch_to("head").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), fresh.fingerprint().unwrap());
    assert_eq!(logits(&runtime), logits(&fresh));
}

/// Loaded again the two are one again, and part again when they have to.
#[test]
fn restored_weights_are_tied_again_and_part_again() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tree) = (dir.path().join("base"), dir.path().join("tree"));
    let model = TinyModel::default();
    tiny_hf_model(&base, &model);
    TinyAdapter::new(vec![head(&model)], 3, 2).write(&tree.join("head")).unwrap();
    let mut runtime = Runtime::builder().base(base).tree(tree).headroom(HEADROOM).open().unwrap();
    let root = (logits(&runtime), runtime.fingerprint().unwrap());
    runtime.switch_to("head").unwrap();
    let at_head = (logits(&runtime), runtime.fingerprint().unwrap());
    assert_ne!(at_head, root);
    runtime.restore().unwrap();
    assert!(runtime.is_tied());
    assert_eq!((logits(&runtime), runtime.fingerprint().unwrap()), root);
    runtime.switch_to("head").unwrap();
    assert_eq!((logits(&runtime), runtime.fingerprint().unwrap()), at_head);
}
