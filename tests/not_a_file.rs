//! A named pipe under a file's name stops whoever opens it until somebody writes, which may be
//! never; `/dev/zero` has no end and filled 2 GiB. An upload folder may hold either. Here whatever
//! is wanted as a file is looked at before it is opened, and all but a regular file is refused by
//! what it is.

#![cfg(unix)]

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pleach::Error;
use pleach::adapter::{Limits, PeftAdapter, PeftHeader};
use pleach::base::BaseModel;
use pleach::file::read_limited;
use pleach::model::tokenizer::Tokenizer;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::tree::AdapterTree;
use tempfile::TempDir;

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// What `ask` is refused with, within a time that no pipe keeps.
fn refused<T>(ask: impl FnOnce() -> pleach::Result<T> + Send + 'static) -> (PathBuf, &'static str) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(ask().map(drop)));
    match receiver.recv_timeout(Duration::from_secs(30)).expect("it does not wait for a writer") {
        Err(Error::NotAFile { path, found }) => (path, found),
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("it was accepted"),
    }
}

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn whatever_is_no_file_is_refused_by_what_it_is() {
    let (_dir, path) = folder();
    pipe(&path.join("pipe"));
    let _socket = UnixListener::bind(path.join("socket")).unwrap();
    std::fs::create_dir(path.join("folder")).unwrap();
    symlink("/dev/zero", path.join("device")).unwrap();
    symlink("pipe", path.join("link")).unwrap();
    for (name, kind) in [
        ("pipe", "a named pipe"),
        ("link", "a named pipe"),
        ("socket", "a socket"),
        ("device", "a device"),
        ("folder", "a folder"),
    ] {
        let file = path.join(name);
        assert_eq!(refused(move || read_limited(&file, 1 << 30)), (path.join(name), kind));
        let file = path.join(name);
        assert_eq!(
            refused(move || pleach::file::gguf::GgufFile::open_mapped(&file)),
            (path.join(name), kind)
        );
    }
    let error = read_limited(&path.join("pipe"), 9).unwrap_err().to_string();
    assert!(
        error.ends_with("pipe: not a regular file: a named pipe; put the file itself there"),
        "{error}"
    );
}

#[test]
fn pipes_in_an_adapter_a_base_a_tree_or_for_a_tokenizer_stop_nobody() {
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let (_dir, path) = folder();
        TinyAdapter::new(vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 8, 8)], 1, 1)
            .write(&path)
            .unwrap();
        std::fs::remove_file(path.join(file)).unwrap();
        pipe(&path.join(file));
        let at = path.clone();
        assert_eq!(
            refused(move || PeftAdapter::open(&at, &Limits::default())),
            (path.join(file), "a named pipe")
        );
        let at = path.clone();
        assert_eq!(refused(move || PeftHeader::open(&at, &Limits::default())).1, "a named pipe");
    }
    for file in ["config.json", "model.safetensors"] {
        let (_dir, path) = folder();
        tiny_hf_model(&path, &TinyModel::default());
        std::fs::remove_file(path.join(file)).unwrap();
        pipe(&path.join(file));
        let at = path.clone();
        assert_eq!(refused(move || BaseModel::open(&at)), (path.join(file), "a named pipe"));
    }
    let (_dir, path) = folder();
    TinyAdapter::new(vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 8, 8)], 1, 1)
        .write(&path.join("fr"))
        .unwrap();
    pipe(&path.join("tree.toml"));
    let at = path.clone();
    assert_eq!(refused(move || AdapterTree::open(&at)), (path.join("tree.toml"), "a named pipe"));
    tiny_hf_model(&path.join("base"), &TinyModel::default());
    let base = BaseModel::open(&path.join("base")).unwrap();
    let at = path.join("tree.toml");
    assert_eq!(refused(move || Tokenizer::for_base(&base, Some(&at))).1, "a named pipe");
}

/// Nobody takes the name between the look and the opening: what is opened is looked at again, and
/// opening does not wait.
#[test]
fn pipe_that_takes_a_files_place_meanwhile_stops_nobody() {
    let (_dir, path) = folder();
    std::fs::write(path.join("file"), "text").unwrap();
    pipe(&path.join("pipe"));
    let (sender, receiver) = mpsc::channel();
    let (at, start) = (path.clone(), Instant::now());
    std::thread::spawn(move || {
        let (mut texts, mut pipes) = (0, 0);
        while texts < 500 || pipes < 500 {
            match read_limited(&at.join("it"), 9) {
                Ok(bytes) => texts += usize::from(bytes == b"text"),
                Err(Error::NotAFile { found: "a named pipe", .. }) => pipes += 1,
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(other) => panic!("{other}"),
            }
        }
        sender.send(())
    });
    for name in ["file", "pipe"].iter().cycle() {
        let _ = std::fs::remove_file(path.join("next"));
        symlink(name, path.join("next")).unwrap();
        std::fs::rename(path.join("next"), path.join("it")).unwrap();
        match receiver.recv_timeout(Duration::ZERO) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                assert!(start.elapsed() < Duration::from_secs(120), "it waits")
            }
            result => return result.unwrap(),
        }
    }
}
