//! A tree of a million users' adapters is written by many hands. Servers that built a path from an adapter's name have
//! served files from anywhere on the disk, through `..` and through links; a link to a folder above has sent scanners
//! round and round. Here a name is an id, every file is inside the tree's folder, and what is not a tree is refused with
//! what is wrong about it.

use std::path::Path;

use pleach::Error;
use pleach::error::TreeDefect;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::tree::{AdapterTree, MAX_DEPTH, NodeSource};
use tempfile::TempDir;

fn adapter(dir: &Path) {
    let module = TinyModule::linear("model.layers.0.self_attn.q_proj", 4, 4);
    TinyAdapter::new(vec![module], 1, 1).write(dir).unwrap();
}

/// A folder with adapters at `nodes`, and a `tree.toml`.
fn folder(nodes: &[&str], manifest: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    nodes.iter().for_each(|node| adapter(&dir.path().join(node)));
    if !manifest.is_empty() {
        std::fs::write(dir.path().join("tree.toml"), manifest).unwrap();
    }
    dir
}

fn defect(result: pleach::Result<AdapterTree>) -> TreeDefect {
    match result {
        Err(Error::Tree(defect)) => *defect,
        other => panic!("{other:?}"),
    }
}

fn refused(nodes: &[&str], manifest: &str) -> TreeDefect {
    defect(AdapterTree::open(folder(nodes, manifest).path()))
}

fn names(tree: &AdapterTree) -> Vec<&str> {
    tree.nodes().skip(1).map(|id| tree.name(id)).collect()
}

fn memory() -> NodeSource {
    NodeSource::Memory(Default::default())
}

#[test]
fn folders_nest_as_the_tree_does() {
    let dir = folder(&["fr", "fr/plain/alice", "de/deep/bob", ".git/hooks", "fr/checkpoint-500", "fr/__pycache__"], "");
    std::fs::remove_file(dir.path().join(".git/hooks/adapter_config.json")).unwrap();
    let tree = AdapterTree::open(dir.path()).unwrap();
    assert_eq!(names(&tree), ["de/deep/bob", "fr", "fr/plain/alice"]);
    let alice = tree.node("fr/plain/alice").unwrap();
    assert_eq!(tree.parent(alice), Some(tree.node("fr").unwrap()));
    assert_eq!(tree.parent(tree.node("de/deep/bob").unwrap()), Some(tree.root()));
    let expected = dir.path().canonicalize().unwrap().join("fr/plain/alice");
    assert!(matches!(tree.source(alice), Some(NodeSource::Folder(path)) if *path == expected));
}

#[test]
fn tree_toml_adds_what_folders_cannot_say() {
    let dir = folder(
        &["fr", "fr/alice", "store/med", "store/med/eve"],
        r#"
        [tree]
        name = "clinic"
        levels = ["language", "task"]
        [base]
        name = "tiny"
        blake3 = "ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
        [nodes."fr/medical"]
        adapter = "store/med"
        label = "Médecine"
        [nodes."fr/alice"]
        parent = "fr/medical"
        "#,
    );
    let tree = AdapterTree::open(dir.path()).unwrap();
    assert_eq!(names(&tree), ["fr", "fr/medical", "fr/alice", "store/med/eve"]);
    let medical = tree.node("fr/medical").unwrap();
    assert_eq!((tree.label(medical), tree.level_name(2)), (Some("Médecine"), Some("task")));
    assert_eq!(tree.parent(tree.node("fr/alice").unwrap()), Some(medical));
    assert_eq!((tree.tree_name(), tree.base().unwrap().name.as_deref()), (Some("clinic"), Some("tiny")));
    assert!(tree.base().unwrap().blake3.as_ref().unwrap().starts_with("abcdef"));
}

#[test]
fn a_folder_without_adapters_is_no_tree() {
    assert!(matches!(refused(&[], ""), TreeDefect::Empty { .. }));
    assert!(matches!(refused(&[""], ""), TreeDefect::RootIsAdapter { .. }));
    assert!(matches!(AdapterTree::open(Path::new("/no/such/folder")), Err(Error::Io { .. })));
}

#[test]
fn hostile_names_are_refused() {
    for name in [
        "",
        ".",
        "..",
        ".hidden",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "a b",
        "a\\b",
        "a\0b",
        "é",
        "a\n",
        "%2e%2e",
        "C:",
        "~",
        "a/.b",
        "a/..",
        "a:b",
        "*",
        "a\u{202e}b",
        &"x".repeat(129),
    ] {
        let built = AdapterTree::builder().node(name, "", memory()).build();
        assert!(matches!(defect(built), TreeDefect::InvalidName { .. }), "{name:?}");
    }
    AdapterTree::builder().node("x".repeat(128), "", memory()).build().unwrap();
    for folder in ["a b", "plain folder/a", "fr/é", ".hidden", "fr/.eve"] {
        assert!(matches!(refused(&["fr", folder], ""), TreeDefect::InvalidName { .. }), "{folder}");
    }
    assert!(matches!(refused(&["fr"], "[nodes.\"../x\"]\nadapter = \"fr\""), TreeDefect::InvalidName { .. }));
}

#[test]
fn adapters_outside_the_folder_are_refused() {
    for path in ["../x", "fr/../../x", "/etc", "fr/.."] {
        let found = refused(&["fr"], &format!("[nodes.x]\nadapter = {path:?}"));
        assert!(matches!(found, TreeDefect::OutsideRoot { .. }), "{path}: {found:?}");
    }
    let missing = folder(&["fr"], "[nodes.x]\nadapter = \"nowhere\"");
    assert!(matches!(AdapterTree::open(missing.path()), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn links_that_leave_the_folder_are_refused() {
    use std::os::unix::fs::symlink;
    let outside = folder(&["secret"], "");
    let dir = folder(&["fr"], "");
    symlink(outside.path().join("secret"), dir.path().join("fr/eve")).unwrap();
    assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::OutsideRoot { node, .. } if node == "fr/eve"));

    let dir = folder(&["fr"], "[nodes.x]\nadapter = \".store/x\"");
    std::fs::create_dir(dir.path().join(".store")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join(".store/x")).unwrap();
    assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::OutsideRoot { .. }));

    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let dir = folder(&["fr"], "");
        std::fs::remove_file(dir.path().join("fr").join(file)).unwrap();
        symlink(outside.path().join("secret").join(file), dir.path().join("fr").join(file)).unwrap();
        assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::OutsideRoot { .. }), "{file}");
    }
}

#[cfg(unix)]
#[test]
fn links_that_go_round_are_refused() {
    use std::os::unix::fs::symlink;
    let dir = folder(&["fr/a"], "");
    symlink(dir.path(), dir.path().join("fr/a/top")).unwrap();
    assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::LinkCycle { .. }));

    let dir = folder(&["fr"], "");
    symlink("self", dir.path().join("fr/self")).unwrap();
    assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::LinkCycle { .. }));

    let dir = folder(&["fr/alice"], "");
    symlink("alice", dir.path().join("fr/bob")).unwrap();
    assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::FolderTwice { .. }));

    let dir = folder(&["a", "b"], "");
    symlink("../b", dir.path().join("a/x")).unwrap();
    symlink("../a", dir.path().join("b/y")).unwrap();
    let found = defect(AdapterTree::open(dir.path()));
    assert!(matches!(found, TreeDefect::LinkCycle { .. } | TreeDefect::FolderTwice { .. }), "{found:?}");

    let dir = folder(&["fr"], "");
    symlink("nowhere", dir.path().join("fr/gone")).unwrap();
    assert!(matches!(AdapterTree::open(dir.path()), Err(Error::Io { .. })));
}

#[test]
fn two_nodes_of_one_name_are_refused() {
    let built = AdapterTree::builder().node("a", "", memory()).node("a", "", memory()).build();
    assert!(matches!(defect(built), TreeDefect::DuplicateNode { .. }));
    let found = refused(&["fr", "store"], "[nodes.fr]\nadapter = \"store\"");
    assert!(matches!(found, TreeDefect::DuplicateNode { .. }), "{found:?}");
    let found = refused(&["fr"], "[nodes.fr]\nlabel = \"x\"\n[nodes.fr]\nlabel = \"y\"");
    assert!(matches!(found, TreeDefect::Manifest { .. }), "{found:?}");
}

#[test]
fn cycles_of_parents_are_refused() {
    let found =
        refused(&["a", "b", "c"], "[nodes.a]\nparent = \"b\"\n[nodes.b]\nparent = \"a\"\n[nodes.c]\nparent = \"a\"");
    match found {
        TreeDefect::ParentCycle { nodes } => assert_eq!(nodes, ["a", "b", "a"]),
        other => panic!("{other:?}"),
    }
    let found = refused(&["a"], "[nodes.a]\nparent = \"a\"");
    assert_eq!(found.to_string(), "the parents of a form a cycle: a → a");
}

#[test]
fn unknown_parents_and_nodes_are_refused_with_a_suggestion() {
    let found = refused(&["fr", "fr/alice"], "[nodes.\"fr/alice\"]\nparent = \"fry\"");
    assert!(matches!(&found, TreeDefect::UnknownParent { nearest, .. } if nearest == &["fr"]), "{found:?}");
    let found = refused(&["fr", "fr/alice"], "[nodes.\"fr/alise\"]\nlabel = \"x\"");
    assert!(matches!(&found, TreeDefect::NodeWithoutFiles { nearest, .. } if nearest[0] == "fr/alice"), "{found:?}");
}

#[test]
fn trees_deeper_than_the_limit_are_refused() {
    let chain = |length: usize| {
        (0..length).fold(AdapterTree::builder(), |builder, index| {
            let parent = if index == 0 { String::new() } else { format!("n{}", index - 1) };
            builder.node(format!("n{index}"), parent, memory())
        })
    };
    assert_eq!(chain(MAX_DEPTH).build().unwrap().len(), MAX_DEPTH + 1);
    assert!(matches!(defect(chain(MAX_DEPTH + 1).build()), TreeDefect::TooDeep { .. }));
    let found = refused(&[&vec!["d"; MAX_DEPTH + 1].join("/")], "");
    assert!(matches!(found, TreeDefect::TooDeep { .. }), "{found:?}");
}

#[test]
fn manifests_with_unknown_keys_or_bad_hashes_are_refused() {
    for text in [
        "[tree]\nnames = 1",
        "[nodes.fr]\npath = \"x\"",
        "[base]\nsha256 = \"x\"",
        "[node]",
        "=",
        "[tree]\nlevels = \"x\"",
    ] {
        assert!(matches!(refused(&["fr"], text), TreeDefect::Manifest { .. }), "{text}");
    }
    assert!(matches!(refused(&["fr"], "[base]\nblake3 = \"abc\""), TreeDefect::BadHash { .. }));
}
