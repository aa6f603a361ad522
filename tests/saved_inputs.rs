//! A fuzzer's finding is lost unless it is run again on every change. Every saved input in
//! `fuzz/corpus/TARGET/` goes through the target's own function here: those named `ok_…` must be
//! read, all others refused, none may panic.

use std::path::Path;

use pleach::store::{read_catalogue_bytes, read_segment_bytes};
use pleach::testing::adapter::read_adapter_bytes;
use pleach::testing::tree::read_tree_toml_bytes;
use pleach::testing::{
    read_chat_bytes, read_gguf_bytes, read_safetensors_bytes, read_tokenizer_bytes,
};

fn run(target: &str, read: impl Fn(Vec<u8>) -> pleach::Result<()>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let (mut sound, mut refused) = (0, 0);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let result = read(std::fs::read(&path).unwrap());
        let expected = path.file_name().unwrap().to_string_lossy().starts_with("ok_");
        assert_eq!(result.is_ok(), expected, "{}: {result:?}", path.display());
        *(if expected { &mut sound } else { &mut refused }) += 1;
    }
    assert!(sound > 0 && refused > 0, "{target}: {sound} sound, {refused} refused");
}

#[test]
fn saved_safetensors_files_are_read_or_refused() {
    run("safetensors", read_safetensors_bytes);
}

#[test]
fn saved_gguf_files_are_read_or_refused() {
    run("gguf", read_gguf_bytes);
}

#[test]
fn saved_adapters_are_read_or_refused() {
    run("adapter", |bytes| read_adapter_bytes(&bytes));
}

#[test]
fn saved_tree_tomls_are_read_or_refused() {
    run("tree_toml", |bytes| read_tree_toml_bytes(&bytes));
}

#[test]
fn saved_tokenizers_are_read_or_refused() {
    run("tokenizer", |bytes| read_tokenizer_bytes(&bytes));
}

#[test]
fn saved_chat_templates_are_rendered_or_refused() {
    run("chat", |bytes| read_chat_bytes(&bytes));
}

#[test]
fn saved_segments_are_read_or_refused() {
    run("segment", |bytes| read_segment_bytes(&bytes));
}

#[test]
fn saved_catalogues_are_read_or_refused() {
    run("catalogue", |bytes| read_catalogue_bytes(&bytes));
}
