//! A tree of a million users' adapters is written by many hands. Servers that built a path from an
//! adapter's name have served files from anywhere on the disk, through `..` and through links; a
//! link to a folder above has sent scanners round and round; and one bad entry of a million has
//! taken the others down with it. Here a name is an id, every file is inside the tree's folder, and
//! what is no node is left out with what is wrong about it.

use std::path::Path;
use std::sync::Arc;

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

/// What is left out of a tree that serves `served`.
fn left_out(dir: &TempDir, served: &[&str]) -> Vec<(String, Error)> {
    let tree = AdapterTree::open(dir.path()).unwrap();
    assert_eq!(names(&tree), served);
    let entries = tree.refused().to_vec();
    drop(tree);
    entries.into_iter().map(|entry| (entry.name, Arc::into_inner(entry.reason).unwrap())).collect()
}

/// The one defect of such a tree.
fn one_left_out(dir: &TempDir, served: &[&str]) -> (String, TreeDefect) {
    let mut entries = left_out(dir, served);
    let (name, error) = entries.pop().expect("something is left out");
    assert!(entries.is_empty(), "{entries:?}");
    match error {
        Error::Tree(defect) => (name, *defect),
        other => panic!("{name}: {other}"),
    }
}

fn names(tree: &AdapterTree) -> Vec<&str> {
    tree.nodes().skip(1).map(|id| tree.name(id)).collect()
}

fn memory() -> NodeSource {
    NodeSource::Memory(Default::default())
}

#[test]
fn folders_nest_as_the_tree_does() {
    let dir = folder(
        &[
            "fr",
            "fr/plain/alice",
            "de/deep/bob",
            ".git/hooks",
            "fr/checkpoint-500",
            "fr/__pycache__",
        ],
        "",
    );
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
    assert_eq!(
        (tree.tree_name(), tree.base().unwrap().name.as_deref()),
        (Some("clinic"), Some("tiny"))
    );
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
        " a",
        "a  b",
        "a\\b",
        "a\0b",
        "e\u{301}",
        "ａ",
        "a\n",
        "%2e%2e",
        "C:",
        "~",
        "a/.b",
        "a/..",
        "a:",
        "*",
        "a\u{202e}b",
        &"x".repeat(129),
    ] {
        let built = AdapterTree::builder().node(name, "", memory()).build();
        assert!(matches!(defect(built), TreeDefect::InvalidName { .. }), "{name:?}");
    }
    AdapterTree::builder().node("x".repeat(128), "", memory()).build().unwrap();
    for (folder, problem) in [
        ("a  b", "two spaces"),
        ("plain  folder/a", "two spaces"),
        ("fr/é!", "'!' (U+0021) is neither"),
        ("аlice", "of another script"),
        (".hidden", "hidden"),
        ("fr/.eve", "hidden"),
    ] {
        let (name, defect) = one_left_out(&self::folder(&["fr", folder], ""), &["fr"]);
        assert!(
            name == folder && matches!(defect, TreeDefect::InvalidName { .. }),
            "{folder}: {defect}"
        );
        assert!(defect.to_string().contains(problem), "{defect}");
    }
    // Its folder is not a node under its own name for that.
    let dir = self::folder(&["fr", "de"], "[nodes.\"../x\"]\nadapter = \"fr\"");
    assert!(
        matches!(one_left_out(&dir, &["de"]), (name, TreeDefect::InvalidName { .. }) if name == "../x")
    );
}

#[test]
fn adapters_outside_the_folder_are_refused() {
    for path in ["../x", "fr/../../x", "/etc", "fr/.."] {
        let dir = folder(&["fr"], &format!("[nodes.x]\nadapter = {path:?}"));
        let (_, found) = one_left_out(&dir, &["fr"]);
        assert!(matches!(found, TreeDefect::OutsideRoot { .. }), "{path}: {found:?}");
    }
    let missing = left_out(&folder(&["fr"], "[nodes.x]\nadapter = \"nowhere\""), &["fr"]);
    assert!(matches!(&missing[..], [(name, Error::Io { .. })] if name == "x"), "{missing:?}");
}

#[cfg(unix)]
#[test]
fn links_that_leave_the_folder_are_refused() {
    use std::os::unix::fs::symlink;
    let outside = folder(&["secret"], "");
    let dir = folder(&["fr"], "");
    symlink(outside.path().join("secret"), dir.path().join("fr/eve")).unwrap();
    let found = one_left_out(&dir, &["fr"]);
    assert!(
        matches!(&found, (name, TreeDefect::OutsideRoot { node, .. }) if name == node && node == "fr/eve")
    );

    let dir = folder(&["fr"], "[nodes.x]\nadapter = \".store/x\"");
    std::fs::create_dir(dir.path().join(".store")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join(".store/x")).unwrap();
    assert!(
        matches!(one_left_out(&dir, &["fr"]), (name, TreeDefect::OutsideRoot { .. }) if name == "x")
    );

    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let dir = folder(&["de", "fr"], "");
        std::fs::remove_file(dir.path().join("fr").join(file)).unwrap();
        symlink(outside.path().join("secret").join(file), dir.path().join("fr").join(file))
            .unwrap();
        assert!(
            matches!(one_left_out(&dir, &["de"]), (name, TreeDefect::OutsideRoot { .. }) if name == "fr"),
            "{file}"
        );
    }

    // The tree's own file, too; without it nobody knows what was meant.
    let dir = folder(&["fr"], "");
    std::fs::write(outside.path().join("other.toml"), "").unwrap();
    symlink(outside.path().join("other.toml"), dir.path().join("tree.toml")).unwrap();
    assert!(matches!(defect(AdapterTree::open(dir.path())), TreeDefect::OutsideRoot { .. }));
}

#[cfg(unix)]
#[test]
fn links_that_go_round_are_refused() {
    use std::os::unix::fs::symlink;
    let dir = folder(&["fr/a"], "");
    symlink(dir.path(), dir.path().join("fr/a/top")).unwrap();
    assert!(
        matches!(one_left_out(&dir, &["fr/a"]), (name, TreeDefect::LinkCycle { .. }) if name == "fr/a/top")
    );

    let dir = folder(&["fr"], "");
    symlink("self", dir.path().join("fr/self")).unwrap();
    assert!(
        matches!(one_left_out(&dir, &["fr"]), (name, TreeDefect::LinkCycle { .. }) if name == "fr/self")
    );

    // The folder is the node, and the link is not, whichever comes first.
    for link in ["fr/bob", "fr/aaron", "aa"] {
        let dir = folder(&["fr/alice"], "");
        symlink(dir.path().join("fr/alice"), dir.path().join(link)).unwrap();
        assert!(
            matches!(one_left_out(&dir, &["fr/alice"]), (name, TreeDefect::FolderTwice { .. }) if name == link)
        );
    }

    let dir = folder(&["a", "b"], "");
    symlink("../b", dir.path().join("a/x")).unwrap();
    symlink("../a", dir.path().join("b/y")).unwrap();
    let found = left_out(&dir, &["a", "b"]);
    assert_eq!(found.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["a/x", "b/y"]);

    let dir = folder(&["fr"], "");
    symlink("nowhere", dir.path().join("fr/gone")).unwrap();
    assert!(
        matches!(one_left_out(&dir, &["fr"]), (name, TreeDefect::DanglingLink { .. }) if name == "fr/gone")
    );
}

#[test]
fn two_nodes_of_one_name_are_refused() {
    let built = AdapterTree::builder().node("a", "", memory()).node("a", "", memory()).build();
    assert!(matches!(defect(built), TreeDefect::DuplicateNode { .. }));
    // Neither is served, since nobody knows which is meant; nor is what hangs below.
    let dir = folder(&["de", "fr", "fr/alice", "store"], "[nodes.fr]\nadapter = \"store\"");
    let found = left_out(&dir, &["de"]);
    let [(fr, Error::Tree(doubled)), (alice, Error::Tree(below))] = &found[..] else {
        panic!("{found:?}")
    };
    assert!(fr == "fr" && matches!(**doubled, TreeDefect::DuplicateNode { .. }), "{doubled}");
    assert!(alice == "fr/alice" && matches!(**below, TreeDefect::BelowRefused { .. }), "{below}");
    let found = refused(&["fr"], "[nodes.fr]\nlabel = \"x\"\n[nodes.fr]\nlabel = \"y\"");
    assert!(matches!(found, TreeDefect::Manifest { .. }), "{found:?}");
}

#[test]
fn cycles_of_parents_are_refused() {
    let found = refused(
        &["a", "b", "c"],
        "[nodes.a]\nparent = \"b\"\n[nodes.b]\nparent = \"a\"\n[nodes.c]\nparent = \"a\"",
    );
    match found {
        TreeDefect::ParentCycle { nodes } => assert_eq!(nodes, ["a", "b", "a"]),
        other => panic!("{other:?}"),
    }
    let found = refused(&["a"], "[nodes.a]\nparent = \"a\"");
    assert_eq!(found.to_string(), "the parents of a form a cycle: a → a");
}

#[test]
fn unknown_parents_and_nodes_are_refused_with_a_suggestion() {
    let dir = folder(&["fr", "fr/alice"], "[nodes.\"fr/alice\"]\nparent = \"fry\"");
    let (_, found) = one_left_out(&dir, &["fr"]);
    assert!(
        matches!(&found, TreeDefect::UnknownParent { nearest, .. } if nearest == &["fr"]),
        "{found:?}"
    );
    let dir = folder(&["fr", "fr/alice"], "[nodes.\"fr/alise\"]\nlabel = \"x\"");
    let (_, found) = one_left_out(&dir, &["fr", "fr/alice"]);
    assert!(
        matches!(&found, TreeDefect::NodeWithoutFiles { nearest, .. } if nearest[0] == "fr/alice"),
        "{found:?}"
    );
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
    let dir = folder(&["fr", &vec!["d"; MAX_DEPTH + 1].join("/")], "");
    assert!(matches!(one_left_out(&dir, &["fr"]), (_, TreeDefect::TooDeep { .. })));
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
