//! A folder of adapters lives on a volume: with `lost+found`, a Kubernetes mount's `..data`, a link
//! that somebody forgot, one upload that broke off. Servers that gave up at the first of them took
//! every user down with one. Here the others are served, the bad entry is reported with its reason
//! wherever one looks, and nothing hangs under another parent because of it.

#[path = "../common/cli.rs"]
mod cli;

use std::path::Path;

use cli::{Made, keys, pleach};
use pleach::Error;
use pleach::error::{PassedOverWhy, TreeDefect};
use pleach::runtime::Runtime;
use pleach::tree::AdapterTree;
use serde_json::{Value, json};

impl Made {
    fn adapter(&self, node: &str, seed: u64) {
        cli::adapter(2, seed).write(&self.at("tree").join(node)).unwrap();
    }

    /// An upload that broke off: a config without tensors.
    fn broken(&self, node: &str) {
        self.adapter(node, 9);
        std::fs::remove_file(self.at("tree").join(node).join("adapter_model.safetensors")).unwrap();
    }

    fn tree(&self) -> AdapterTree {
        AdapterTree::open(&self.at("tree")).unwrap()
    }

    /// Runs a command on the base and the tree.
    fn run(&self, command: &str, arguments: &[&str]) -> cli::Run {
        let (base, tree) = (self.path("base"), self.path("tree"));
        pleach(&[&[command, "--base", &base, "--tree", &tree], arguments].concat())
    }

    fn import(&self, arguments: &[&str]) -> cli::Run {
        let (base, tree, store) = (self.path("base"), self.path("tree"), self.path("store"));
        pleach(
            &[&["store", "import", &tree, &store, "--base", &base, "--headroom", "4"], arguments]
                .concat(),
        )
    }
}

fn names(tree: &AdapterTree) -> Vec<&str> {
    tree.nodes().skip(1).map(|id| tree.name(id)).collect()
}

fn refused(tree: &AdapterTree) -> Vec<&str> {
    tree.refused().iter().map(|entry| &entry.name[..]).collect()
}

#[test]
fn what_is_refused_is_told_by_every_command_and_at_open() {
    let made = Made::new();
    made.adapter("fr/a!b", 5);
    let tree = pleach(&["tree", &made.path("tree")]).text();
    assert!(
        tree.contains("alice")
            && tree.contains("\nrefused: fr/a!b: \"fr/a!b\" cannot be a node's name: "),
        "{tree}"
    );
    let json = pleach(&["tree", &made.path("tree"), "--json"]).json();
    assert_eq!(json["refused"][0]["node"], json!("fr/a!b"));
    assert_eq!(keys(&json["refused"][0]), ["node", "reason"]);
    let dot = pleach(&["tree", &made.path("tree"), "--format", "dot"]).text();
    assert!(dot.starts_with("// refused: fr/a!b: "), "{dot}");
    let inspected = pleach(&["inspect", &made.path("tree")]).text();
    assert!(inspected.contains("\nrefused: fr/a!b: "), "{inspected}");
    let inspected = pleach(&["inspect", &made.path("tree"), "--json"]).json();
    assert_eq!(inspected["refused"], json["refused"]);

    let served = made.run("score", &["--node", "fr/alice", "-p", "hello"]);
    assert_eq!(served.status, Some(0));
    assert!(served.stderr.starts_with("warning: not served: fr/a!b: "), "{}", served.stderr);
    let asked = made.run("score", &["--node", "fr/a!b", "-p", "hello"]).refusal();
    assert!(asked.starts_with("error: there is no node fr/a!b: fr/a!b is refused: "), "{asked}");
}

#[test]
fn import_names_all_that_is_refused_and_makes_no_store() {
    let made = Made::new();
    made.adapter("fr/a!b", 5);
    made.broken("de");
    made.adapter("de/eve", 6);
    made.adapter("nan", 7);
    std::fs::write(made.at("tree/nan/adapter_config.json"), "{").unwrap();
    let run = made.import(&[]);
    assert_eq!((run.status, &run.stdout[..]), (Some(1), ""));
    assert!(
        run.stderr.starts_with("error: ")
            && run.stderr.contains("4 entries of the tree are refused"),
        "{}",
        run.stderr
    );
    let lines: Vec<&str> =
        run.stderr.lines().skip(1).map(|line| line.split_once(": ").unwrap().0.trim()).collect();
    assert_eq!(lines, ["de", "de/eve", "fr/a!b", "nan"]);
    assert!(run.stderr.contains("de/eve: its parent de is refused"), "{}", run.stderr);
    let left: Vec<_> = std::fs::read_dir(made.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("store")), "{left:?}");

    let answer = made.import(&["--skip-refused", "--json"]).json();
    assert_eq!(
        keys(&answer),
        [
            "store",
            "nodes",
            "bytes",
            "refused",
            "passed_over",
            "doubtful",
            "remarks",
            "kept",
            "seconds"
        ]
    );
    assert_eq!((&answer["nodes"], answer["refused"].as_array().unwrap().len()), (&json!(3), 4));
    let list = pleach(&["store", "list", &made.path("store"), "--json"]).json();
    let nodes: Vec<&Value> =
        list["nodes"].as_array().unwrap().iter().map(|node| &node["node"]).collect();
    assert_eq!(nodes, ["fr", "fr/alice", "fr/bob"]);
}

#[test]
fn store_of_nothing_but_refusals_is_not_made() {
    let made = Made::new();
    std::fs::remove_file(made.at("tree/fr/adapter_model.safetensors")).unwrap();
    let run = made.import(&["--skip-refused"]);
    assert_eq!(run.status, Some(1));
    assert!(!made.at("store").exists());
}

#[test]
fn verify_walks_the_others_and_fails_unless_refusals_are_left_out() {
    let made = Made::new();
    made.broken("de");
    made.adapter("de/eve", 6);
    let run = made.run("verify", &["--switches", "40", "--json"]);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&answer["nodes_visited"], &answer["mismatched_nodes"]), (&json!(4), &json!(0)));
    let nodes: Vec<&Value> =
        answer["refused"].as_array().unwrap().iter().map(|entry| &entry["node"]).collect();
    assert_eq!(nodes, ["de", "de/eve"]);
    let drawn = pleach(&["tree", &made.path("tree"), "--json"]).json();
    let eve = drawn["children"][0]["children"][0]["adapter"]["refusal"].as_str().unwrap();
    assert!(eve.starts_with("its parent de is refused"), "{eve}");
    let text = made.run("verify", &["--switches", "5", "--skip-refused"]).text();
    assert!(text.contains("\nrefused: de: adapter "), "{text}");
}

#[test]
fn bench_measures_the_others() {
    let made = Made::new();
    let config = made.at("base/config.json");
    let mut short: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    short["max_position_embeddings"] = json!(40);
    std::fs::write(&config, short.to_string()).unwrap();
    // The deepest leaves are those that cannot be read.
    made.broken("fr/alice/deep");
    made.broken("fr/alice/deeper");
    let run = made.run(
        "bench",
        &["--repeats", "1", "--ranks", "1", "--device", "cpu", "--headroom", "4", "--json"],
    );
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(answer["refused"].as_array().unwrap().len(), 2, "{}", answer["refused"]);
    assert!(
        answer["figures"]
            .as_array()
            .unwrap()
            .iter()
            .any(|figure| figure["name"] == "switch_leaf_ms")
    );
}

/// Under the grandparent it would be another model.
#[test]
fn child_of_a_refused_node_is_refused_unless_tree_toml_gives_it_a_parent() {
    let made = Made::new();
    made.adapter("de", 4);
    made.adapter("de/eve", 5);
    made.adapter("de/eve/x", 6);
    std::fs::write(
        made.at("tree/tree.toml"),
        "[nodes.de]\nparent = \"nowhere\"\n[nodes.fred]\nadapter = \"no\"",
    )
    .unwrap();
    let tree = made.tree();
    assert_eq!(names(&tree), ["fr", "fr/alice", "fr/bob"]);
    assert_eq!(refused(&tree), ["de", "de/eve", "de/eve/x", "fred"]);
    let Err(Error::Tree(defect)) = tree.node("de/eve/x") else { panic!() };
    assert!(
        matches!(&*defect, TreeDefect::Refused { entry, .. } if entry.name == "de/eve/x"),
        "{defect}"
    );
    assert!(defect.to_string().contains("its parent de/eve is refused"), "{defect}");

    std::fs::write(
        made.at("tree/tree.toml"),
        "[nodes.de]\nparent = \"no\"\n[nodes.\"de/eve\"]\nparent = \"/\"",
    )
    .unwrap();
    let tree = made.tree();
    assert_eq!(names(&tree), ["de/eve", "de/eve/x", "fr", "fr/alice", "fr/bob"]);
    assert_eq!(tree.depth(tree.node("de/eve").unwrap()), 1);
}

#[test]
fn what_concerns_the_whole_tree_still_fails_whole() {
    let made = Made::new();
    for (toml, words) in [
        ("[tree", "tree.toml"),
        ("[tree]\nskip = [\"[x\"]", "is no pattern"),
        ("[nodes.fr]\nparent = \"fr/alice\"", "form a cycle"),
        ("[tree]\nskip = [\"fr\"]", "no tree here"),
    ] {
        std::fs::write(made.at("tree/tree.toml"), toml).unwrap();
        let error = AdapterTree::open(&made.at("tree")).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    std::fs::write(made.at("tree/tree.toml"), "").unwrap();
    std::fs::rename(made.at("tree/fr"), made.at("tree/f!")).unwrap();
    let error = AdapterTree::open(&made.at("tree")).unwrap_err().to_string();
    assert!(
        error.contains("every entry is refused, so there is no tree here:")
            && error.contains("f!/alice"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn kubernetes_volume_is_served_through_its_links() {
    use std::os::unix::fs::symlink;
    let made = Made::new();
    // An atomic writer's mount: the data in a dated folder, a link to it, and links to what is in
    // it.
    let volume = made.at("tree/fr/carol");
    cli::adapter(2, 8).write(&volume.join("..2026_11_26_10_00_00.123")).unwrap();
    symlink("..2026_11_26_10_00_00.123", volume.join("..data")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        symlink(Path::new("..data").join(file), volume.join(file)).unwrap();
    }
    // And one whose links lead to folders.
    let volume = made.at("tree/de");
    cli::adapter(2, 9).write(&volume.join("..2026_11_26_10_00_01.7/dave")).unwrap();
    symlink("..2026_11_26_10_00_01.7", volume.join("..data")).unwrap();
    symlink("..data/dave", volume.join("dave")).unwrap();
    let tree = made.tree();
    assert_eq!(names(&tree), ["de/dave", "fr", "fr/alice", "fr/bob", "fr/carol"]);
    assert_eq!(refused(&tree), Vec::<&str>::new());
    let why: Vec<_> =
        tree.passed_over().iter().map(|passed| (&passed.why, passed.adapters)).collect();
    assert_eq!(why, [(&PassedOverWhy::Volume, 1); 2]);
    assert_eq!(made.run("verify", &["--switches", "9", "--skip-refused"]).status, Some(0));
}

/// The writer has put another folder of data in the place of the one that a runtime was opened on.
#[cfg(unix)]
#[test]
fn volume_that_was_written_anew_is_told_and_what_was_read_is_served() {
    use std::os::unix::fs::symlink;
    let made = Made::new();
    let volume = made.at("tree/de");
    for (data, seed) in [("..first", 1), ("..second", 2)] {
        for node in ["dave", "erna"] {
            cli::adapter(2, seed).write(&volume.join(data).join(node)).unwrap();
        }
    }
    symlink("..first", volume.join("..data")).unwrap();
    for node in ["dave", "erna"] {
        symlink(Path::new("..data").join(node), volume.join(node)).unwrap();
    }
    let open =
        || pleach::Runtime::builder().base(made.at("base")).tree(made.at("tree")).open().unwrap();
    let mut runtime = open();
    runtime.switch_to("de/dave").unwrap();
    let served = runtime.fingerprint().unwrap();
    std::fs::remove_file(volume.join("..data")).unwrap();
    symlink("..second", volume.join("..data")).unwrap();
    std::fs::remove_dir_all(volume.join("..first")).unwrap();
    let error = runtime.switch_to("de/erna").unwrap_err().to_string();
    assert!(error.starts_with("de/erna: ") && error.contains("open the tree again"), "{error}");
    runtime.switch_to("/").unwrap();
    runtime.switch_to("de/dave").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), served);
    open().switch_to("de/erna").unwrap();
}

/// A file system's own folder, which nobody but root may read.
#[cfg(unix)]
#[test]
fn folder_that_cannot_be_read_is_refused_alone() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let made = Made::new();
    let lost = made.at("tree/lost+found");
    std::fs::create_dir(&lost).unwrap();
    std::fs::set_permissions(&lost, std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(made.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(["tree", &made.path("tree")]);
    // Root may read everything: then somebody else looks.
    if std::fs::read_dir(&lost).is_ok() {
        command.uid(65534);
    }
    let output = command.output().unwrap();
    std::fs::set_permissions(&lost, std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("alice") && text.contains("\nrefused: lost+found: "), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn names_in_two_encodings_are_one_name() {
    let made = Made::new();
    made.adapter("fr/Zoe\u{308}", 5);
    let tree = made.tree();
    assert_eq!(names(&tree), ["fr", "fr/Zoë", "fr/alice", "fr/bob"]);
    assert_eq!(tree.node("fr/Zoe\u{308}").unwrap(), tree.node("fr/Zoë").unwrap());
    made.adapter("fr/Zoë", 6);
    let tree = made.tree();
    assert_eq!((names(&tree), refused(&tree)), (vec!["fr", "fr/alice", "fr/bob"], vec!["fr/Zoë"]));
}

#[test]
fn adapter_refused_while_the_tree_is_served_is_refused_alone() {
    let made = Made::new();
    made.broken("de");
    let mut runtime = Runtime::builder()
        .base(made.at("base"))
        .tree(made.at("tree"))
        .headroom(4.0)
        .open()
        .unwrap();
    let base = runtime.fingerprint().unwrap();
    assert!(matches!(runtime.switch_to("de"), Err(Error::Adapter { .. })));
    runtime.switch_to("fr/alice").unwrap();
    runtime.switch_to("/").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), base);
}
