//! Pictures of a tree: text, DOT and JSON.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{AdapterTree, NodeId};

/// The tree in box-drawing characters, one node a line; `note` adds words to a node's line.
pub fn text(tree: &AdapterTree, note: impl Fn(NodeId) -> Option<String>) -> String {
    let mut out = String::new();
    // A node, and for each level above it whether more siblings follow.
    let mut stack: Vec<(NodeId, Vec<bool>)> = vec![(tree.root(), Vec::new())];
    while let Some((id, more)) = stack.pop() {
        if let Some((last, above)) = more.split_last() {
            out.extend(above.iter().map(|more| if *more { "│   " } else { "    " }));
            out.push_str(if *last { "├── " } else { "└── " });
        }
        out.push_str(&one_line(short_name(tree, id)));
        if let Some(label) = tree.label(id) {
            let _ = write!(out, " “{}”", one_line(label));
        }
        if let Some(level) = tree.level_name(tree.depth(id)) {
            let _ = write!(out, " ({})", one_line(level));
        }
        if let Some(note) = note(id) {
            let _ = write!(out, "  {}", one_line(&note));
        }
        out.push('\n');
        for (index, child) in tree.children(id).into_iter().rev().enumerate() {
            stack.push((child, [more.as_slice(), &[index > 0]].concat()));
        }
    }
    out
}

/// The text in one line: its line feeds are written as `\n`, so that what a file says cannot pass
/// for a line of its own.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains('\n') { Cow::Owned(text.replace('\n', "\\n")) } else { Cow::Borrowed(text) }
}

/// The name without the parent's, where it starts with it.
fn short_name(tree: &AdapterTree, id: NodeId) -> &str {
    let name = tree.name(id);
    let above = tree.parent(id).map_or("", |parent| tree.name(parent));
    name.strip_prefix(above)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|rest| !rest.is_empty())
        .unwrap_or(name)
}

/// The tree in Graphviz' language; `note` adds a second line to a node.
pub fn dot(tree: &AdapterTree, note: impl Fn(NodeId) -> Option<String>) -> String {
    let mut out = String::from("digraph tree {\n  node [shape=box];\n");
    for id in tree.nodes() {
        let words =
            [Some(short_name(tree, id).to_owned()), tree.label(id).map(str::to_owned), note(id)];
        let words: Vec<String> = words.into_iter().flatten().map(|word| escape(&word)).collect();
        let _ = writeln!(out, "  \"{}\" [label=\"{}\"];", escape(tree.name(id)), words.join("\\n"));
    }
    for id in tree.nodes() {
        if let Some(parent) = tree.parent(id) {
            let _ = writeln!(
                out,
                "  \"{}\" -> \"{}\";",
                escape(tree.name(parent)),
                escape(tree.name(id))
            );
        }
    }
    out.push_str("}\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The tree as JSON: `{name, level, label, depth, adapter, children}` nested; `adapter` is what
/// `note` returns.
pub fn json(tree: &AdapterTree, note: impl Fn(NodeId) -> Option<Value>) -> Value {
    subtree(tree, tree.root(), &note)
}

/// At most [`super::MAX_DEPTH`] deep.
fn subtree(tree: &AdapterTree, id: NodeId, note: &impl Fn(NodeId) -> Option<Value>) -> Value {
    let mut node = Map::new();
    node.insert("name".into(), json!(tree.name(id)));
    node.insert("depth".into(), json!(tree.depth(id)));
    node.insert("level".into(), json!(tree.level_name(tree.depth(id))));
    node.insert("label".into(), json!(tree.label(id)));
    node.insert("adapter".into(), json!(note(id)));
    let children = tree.children(id).into_iter().map(|child| subtree(tree, child, note)).collect();
    node.insert("children".into(), Value::Array(children));
    Value::Object(node)
}
