//! A trainer writes over an adapter while a server has it. A node that was dropped from memory and
//! read again came back as another model under the same name, and was blamed on the weights. Here a
//! node of a folder tree is one content while a runtime lives: files that are others by now are
//! refused, with what they were, and what was added is what is subtracted.

use std::path::Path;

use pleach::error::TreeDefect;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{Error, Runtime};
use tempfile::TempDir;

fn adapter(seed: u64) -> TinyAdapter {
    TinyAdapter::new(vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64)], 2, seed)
}

/// A runtime that keeps nothing but the current path in memory.
fn forgetful() -> (TempDir, Runtime) {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
    for (name, seed) in [("fr", 1), ("fr/alice", 2), ("de", 3)] {
        adapter(seed).write(&dir.path().join("tree").join(name)).unwrap();
    }
    let builder = Runtime::builder().base(dir.path().join("base")).tree(dir.path().join("tree"));
    let runtime = builder.headroom(4.0).delta_budget_bytes(0).open().unwrap();
    (dir, runtime)
}

fn changed(result: pleach::Result<impl Sized>) -> (String, String) {
    match result {
        Err(Error::Tree(defect)) => match *defect {
            TreeDefect::Changed { node, first, found, .. } => {
                assert_ne!(first, found);
                (node, first)
            }
            other => panic!("{other}"),
        },
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

fn tree(dir: &TempDir, node: &str) -> std::path::PathBuf {
    dir.path().join("tree").join(node)
}

#[test]
fn node_that_was_dropped_does_not_come_back_with_other_content() {
    let (dir, mut runtime) = forgetful();
    let base = runtime.fingerprint().unwrap();
    runtime.switch_to("fr/alice").unwrap();
    let alice = runtime.fingerprint().unwrap();
    // While it stands there, the files change: what was added is subtracted.
    adapter(7).write(&tree(&dir, "fr/alice")).unwrap();
    runtime.switch_to("de").unwrap();
    assert_eq!(changed(runtime.switch_to("fr/alice")).0, "fr/alice");
    assert_eq!(runtime.current(), "de");
    assert_eq!(changed(runtime.prefetch("fr/alice")).0, "fr/alice");
    runtime.switch_to("/").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), base);
    // The same bytes are the same node, whatever became of the files in between.
    std::fs::remove_dir_all(tree(&dir, "fr/alice")).unwrap();
    let gone = runtime.switch_to("fr/alice").unwrap_err();
    assert!(
        matches!(&gone, Error::Tree(defect) if matches!(**defect, TreeDefect::Gone { .. })),
        "{gone}"
    );
    adapter(2).write(&tree(&dir, "fr/alice")).unwrap();
    runtime.switch_to("fr/alice").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), alice);
}

#[test]
fn config_alone_makes_other_content() {
    let (dir, mut runtime) = forgetful();
    runtime.switch_to("de").unwrap();
    runtime.switch_to("/").unwrap();
    let louder = TinyAdapter { alpha: 3.0, ..adapter(3) };
    std::fs::write(tree(&dir, "de").join("adapter_config.json"), louder.config_bytes()).unwrap();
    let (node, first) = changed(runtime.switch_to("de"));
    assert_eq!((&node[..], first.len()), ("de", 16));
    // Another runtime begins again.
    let path = |name: &str| dir.path().join(name);
    let mut other =
        Runtime::builder().base(path("base")).tree(path("tree")).headroom(4.0).open().unwrap();
    other.switch_to("de").unwrap();
}

#[test]
fn restored_runtime_holds_what_it_held() {
    let (dir, mut runtime) = forgetful();
    runtime.switch_to("fr/alice").unwrap();
    adapter(8).write(&tree(&dir, "fr")).unwrap();
    runtime.restore().unwrap();
    assert_eq!(changed(runtime.switch_to("fr/alice")).0, "fr");
}

/// The fresh loads of a verification go through the same check: the files are blamed, not the
/// weights.
#[test]
fn verify_says_that_files_changed_and_blames_no_weights() {
    let (dir, mut runtime) = forgetful();
    assert!(runtime.verify(20, 1, 1, |_| ()).unwrap().is_clean());
    adapter(9).write(Path::new(&tree(&dir, "fr"))).unwrap();
    assert_eq!(changed(runtime.verify(20, 1, 1, |_| ())).0, "fr");
}

/// Files that would be refused today are reported as others, not what is wrong with them.
#[test]
fn content_that_no_longer_fits_is_other_content() {
    let (dir, mut runtime) = forgetful();
    runtime.switch_to("de").unwrap();
    runtime.switch_to("/").unwrap();
    let wide =
        TinyAdapter::new(vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 96, 96)], 2, 3);
    wide.write(&tree(&dir, "de")).unwrap();
    assert_eq!(changed(runtime.switch_to("de")).0, "de");
}

/// A first read that failed is no content: an upload that is completed is served.
#[test]
fn adapter_that_could_not_be_read_is_served_once_it_can() {
    let (dir, mut runtime) = forgetful();
    let tensors = tree(&dir, "de").join("adapter_model.safetensors");
    let bytes = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(runtime.switch_to("de"), Err(Error::SafeTensors { .. })));
    std::fs::write(&tensors, &bytes).unwrap();
    runtime.switch_to("de").unwrap();
}
