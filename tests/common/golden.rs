//! The golden answers for the tree of real adapters: what two independent float implementations
//! computed.
//!
//! They lie in `tests/fixtures/smollm2`, for the shipped tree. The variable `PLEACH_FIXTURES` names
//! another folder with `golden.json`, `golden.safetensors` and the tree `adapters`, such as one
//! with more branches.

// Each test file compiles this for itself and uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "shared by test files that use different parts")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;

/// The golden answers of one tree.
pub struct Golden {
    /// The folder of the tree of adapters.
    pub tree: PathBuf,
    /// Answers by node; `base` is the root.
    pub nodes: BTreeMap<String, GoldenNode>,
    tensors: Vec<u8>,
}

#[derive(Deserialize)]
struct File {
    nodes: BTreeMap<String, GoldenNode>,
}

/// What is known of one node.
#[derive(Deserialize)]
pub struct GoldenNode {
    /// The nodes from the top down to this one.
    pub path: Vec<String>,
    /// Two prompts and their answers.
    pub prompts: Vec<GoldenPrompt>,
    /// Norms of some tensors.
    pub tensors: BTreeMap<String, GoldenTensor>,
    /// Frobenius norm of the path's whole delta.
    pub fro_total_delta: f64,
}

/// A prompt and its greedy continuation.
#[derive(Deserialize)]
pub struct GoldenPrompt {
    /// The prompt.
    pub text: String,
    /// Its tokens; no BOS.
    pub ids: Vec<u32>,
    /// 24 tokens that follow.
    pub greedy_ids: Vec<u32>,
    /// Difference between the best two logits at each of them.
    pub greedy_top2_margins: Vec<f64>,
}

/// Norms of one tensor.
#[derive(Deserialize)]
pub struct GoldenTensor {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Frobenius norm of the path's delta.
    pub fro_delta: f64,
    /// Frobenius norm with the delta.
    pub fro_merged: f64,
}

impl Golden {
    /// Loads the fixtures of this project, or those that `PLEACH_FIXTURES` names.
    pub fn load() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (folder, tree) = match std::env::var_os("PLEACH_FIXTURES") {
            Some(folder) => (PathBuf::from(&folder), Path::new(&folder).join("adapters")),
            None => (here.join("tests/fixtures/smollm2"), here.join("trees/smollm2")),
        };
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let file: File = serde_json::from_slice(&read("golden.json"))
            .expect("golden.json has the fields named here");
        Self { tree, nodes: file.nodes, tensors: read("golden.safetensors") }
    }

    /// The nodes without the base.
    pub fn adapter_nodes(&self) -> impl Iterator<Item = (&String, &GoldenNode)> {
        self.nodes.iter().filter(|(name, _)| *name != "base")
    }

    /// The logits of the last position of prompt `prompt` at `node` (`base` for the root).
    pub fn logits(&self, node: &str, prompt: usize) -> Vec<f32> {
        let bytes = self.tensor(&format!("{node}|p{prompt}|logits"));
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    /// Rows 0..64 and columns 0..64 of a merged tensor at `node`, row-major.
    pub fn corner(&self, node: &str, tensor: &str) -> Vec<f64> {
        let bytes = self.tensor(&format!("{node}|corner|{tensor}"));
        bytes.chunks_exact(8).map(|eight| f64::from_le_bytes(eight.try_into().unwrap())).collect()
    }

    fn tensor(&self, key: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.tensors).expect("golden.safetensors is whole");
        tensors
            .tensor(key)
            .unwrap_or_else(|error| panic!("golden.safetensors: {error}"))
            .data()
            .to_vec()
    }
}
