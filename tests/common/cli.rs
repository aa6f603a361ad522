//! The command line, run as scripts run it.

// Each test file compiles this for itself and uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "shared by test files that use different parts")]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two matrices of the made base.
pub fn modules() -> [TinyModule; 2] {
    ["self_attn.q_proj", "self_attn.o_proj"]
        .map(|name| TinyModule::linear(&format!("model.layers.0.{name}"), 64, 64))
}

/// An adapter of these two, which claims no others.
pub fn adapter(rank: usize, seed: u64) -> TinyAdapter {
    TinyAdapter::new(modules().to_vec(), rank, seed)
        .with_config(json!({ "layers_to_transform": [0] }))
}

/// Makes a base in `base` and, in `tree`, adapters `fr`, `fr/alice` and `fr/bob`.
pub fn make_base_and_tree(folder: &Path) {
    tiny_hf_model(&folder.join("base"), &TinyModel::default());
    for (name, rank, seed) in [("fr", 3, 1), ("fr/alice", 2, 2), ("fr/bob", 1, 3)] {
        adapter(rank, seed).write(&folder.join("tree").join(name)).unwrap();
    }
}

/// A base in `base` and a tree of `fr`, `fr/alice` and `fr/bob` in `tree`, in a folder that goes
/// with it.
pub struct Made {
    pub dir: TempDir,
}

impl Made {
    pub fn new() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        make_base_and_tree(made.dir.path());
        made
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as an argument.
    pub fn path(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The stdout of a success that had nothing to say on stderr.
    pub fn text(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (Some(0), ""));
        self.stdout
    }

    /// The one document on one line of such a stdout.
    pub fn json(self) -> Value {
        let text = self.text();
        assert_eq!(text.lines().count(), 1, "one document, one line");
        serde_json::from_str(&text).unwrap()
    }

    /// The stderr of a failure that left stdout empty.
    pub fn refusal(self) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (Some(1), ""));
        assert!(
            self.stderr.starts_with("error: ") && self.stderr.trim_end().lines().count() == 1,
            "{}",
            self.stderr
        );
        self.stderr
    }
}

/// Runs the command line.
pub fn pleach(arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    let output = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A document's fields, in order.
pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}
