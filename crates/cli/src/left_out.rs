//! What a tree leaves out, for people: what is refused, what is passed over, what is doubtful.

use pleach::adapter::Limits;
use pleach::error::RefusedEntry;
use pleach::tree::render::one_line;
use pleach::tree::{AdapterTree, Doubt};
use serde_json::{Value, json};

/// What there is to say about a tree beside its nodes.
pub(crate) struct LeftOut<'a> {
    tree: &'a AdapterTree,
    doubts: Vec<Doubt>,
}

impl<'a> LeftOut<'a> {
    /// Looks at every adapter of the tree and at its parent.
    pub(crate) fn of(tree: &'a AdapterTree, limits: &Limits) -> Self {
        let doubts = tree.nodes().skip(1).filter_map(|node| tree.doubt(node, limits)).collect();
        Self { tree, doubts }
    }

    /// One entry a line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let passed = self.tree.passed_over().iter().map(|passed| format!("passed over: {passed}"));
        let doubts = self.doubts.iter().map(|doubt| format!("doubtful: {doubt}"));
        let others = passed.chain(doubts).map(|line| one_line(&line).into_owned());
        refused_lines(self.tree.refused()).into_iter().chain(others).collect()
    }

    /// The lines, ended; nothing if there are none.
    pub(crate) fn text(&self) -> String {
        self.lines().into_iter().map(|line| line + "\n").collect()
    }

    /// Fields to stand beside the tree's own.
    pub(crate) fn json(&self) -> [(&'static str, Value); 3] {
        [
            ("refused", json!(self.tree.refused())),
            ("passed_over", json!(self.tree.passed_over())),
            ("doubtful", json!(self.doubts)),
        ]
    }
}

/// One entry a line.
pub(crate) fn refused_lines(refused: &[RefusedEntry]) -> Vec<String> {
    refused.iter().map(|entry| one_line(&format!("refused: {entry}")).into_owned()).collect()
}
