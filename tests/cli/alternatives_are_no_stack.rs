//! A trainer's output folder holds the adapter, and below it the best one, the last one, the
//! reference model's, the converted one. Read as a tree each is added on top of the other: the
//! model is wrong and nobody notices. Here such nodes are named with what settles it, `tree.toml`
//! passes them over or gives them a parent, and what is passed over is reported and counted.

#[path = "../common/cli.rs"]
mod cli;

use std::path::PathBuf;

use cli::{Made, pleach};
use pleach::Error;
use pleach::adapter::Limits;
use pleach::error::TreeDefect;
use pleach::tree::{AdapterTree, DoubtWhy};
use serde_json::json;

impl Made {
    fn adapter(&self, node: &str, rank: usize, seed: u64) -> PathBuf {
        let folder = self.at("tree").join(node);
        cli::adapter(rank, seed).write(&folder).unwrap();
        folder
    }

    fn say(&self, toml: &str) {
        std::fs::write(self.at("tree/tree.toml"), toml).unwrap();
    }

    fn tree(&self) -> AdapterTree {
        AdapterTree::open(&self.at("tree")).unwrap()
    }

    /// The doubtful nodes and why.
    fn doubts(&self) -> Vec<(String, DoubtWhy)> {
        let tree = self.tree();
        let doubts = tree.nodes().filter_map(|node| tree.doubt(node, &Limits::default()));
        doubts.map(|doubt| (doubt.node, doubt.why)).collect()
    }

    fn import(&self) -> cli::Run {
        let (base, tree, store) = (self.path("base"), self.path("tree"), self.path("store"));
        pleach(&["store", "import", &tree, &store, "--base", &base, "--headroom", "4", "--json"])
    }
}

fn names(tree: &AdapterTree) -> Vec<&str> {
    tree.nodes().skip(1).map(|id| tree.name(id)).collect()
}

#[test]
fn copies_and_folders_of_a_run_are_doubtful_and_others_are_not() {
    let made = Made::new();
    made.adapter("fr/alice/copied", 2, 2); // alice's own bytes
    made.adapter("fr/alice/final", 2, 11);
    made.adapter("fr/alice/epoch_3", 2, 12);
    made.adapter("fr/alice/run-4/weights", 2, 13);
    made.adapter("fr/alice/tmp-checkpoint-500", 2, 14);
    made.adapter("fr/alice/ref", 3, 15); // another rank: a change on top may be called so
    made.adapter("fr/alice/poems", 2, 16); // a task that has alice's form
    made.adapter("best", 2, 17); // hangs under the root
    assert_eq!(
        made.doubts(),
        [
            ("fr/alice/copied", DoubtWhy::SameTensors),
            ("fr/alice/epoch_3", DoubtWhy::RunFolder),
            ("fr/alice/final", DoubtWhy::RunFolder),
            ("fr/alice/run-4/weights", DoubtWhy::RunFolder),
            ("fr/alice/tmp-checkpoint-500", DoubtWhy::RunFolder),
        ]
        .map(|(node, why)| (node.to_owned(), why))
    );
}

#[test]
fn doubts_say_how_tree_toml_settles_them_and_it_does() {
    let made = Made::new();
    made.adapter("fr/alice/best", 2, 11);
    let tree = made.tree();
    let doubt =
        tree.doubt(tree.node("fr/alice/best").unwrap(), &Limits::default()).unwrap().to_string();
    for toml in [
        "[tree]\nskip = [\"fr/alice/best\"]",
        "[nodes.\"fr/alice/best\"]\nparent = \"fr\"",
        "[nodes.\"fr/alice/best\"]\nparent = \"fr/alice\"",
    ] {
        for part in toml.split('\n') {
            let value = part.rsplit(" = ").next().unwrap();
            assert!(doubt.contains(value), "{doubt}: {part}");
        }
        made.say(toml);
        assert_eq!(made.doubts(), [], "{toml}");
    }
    let tree = made.tree();
    assert_eq!(tree.depth(tree.node("fr/alice/best").unwrap()), 3, "a stack that is meant is one");
}

#[test]
fn doubts_are_told_where_the_tree_is_looked_at_imported_and_used() {
    let made = Made::new();
    made.adapter("fr/alice/best", 2, 11);
    let words = "fr/alice/best has a training run's name, and the same targets and ranks as its parent fr/alice";
    let text = pleach(&["tree", &made.path("tree")]).text();
    assert!(text.contains(&format!("\ndoubtful: {words}")), "{text}");
    let tree = pleach(&["tree", &made.path("tree"), "--json"]).json();
    assert_eq!(tree["doubtful"][0]["node"], json!("fr/alice/best"));
    let inspected = pleach(&["inspect", &made.path("tree"), "--json"]).json();
    assert_eq!(inspected["doubtful"], tree["doubtful"]);
    assert_eq!(made.import().json()["doubtful"], tree["doubtful"]);
    let (base, tree) = (made.path("base"), made.path("tree"));
    let arguments =
        ["score", "--base", &base, "--tree", &tree, "--headroom", "4", "-p", "hello", "--node"];
    let run = pleach(&[&arguments[..], &["fr/alice/best"]].concat());
    assert_eq!((run.status, run.stderr.lines().count()), (Some(0), 1), "{}", run.stderr);
    assert!(run.stderr.starts_with(&format!("warning: {words}")), "{}", run.stderr);
    pleach(&[&arguments[..], &["fr/alice"]].concat()).text();
}

#[test]
fn what_is_passed_over_is_told_counted_and_named_when_asked_for() {
    let made = Made::new();
    made.adapter("fr/alice/checkpoint-500", 2, 11);
    made.adapter("fr/alice/checkpoint-500/best", 2, 12);
    made.adapter("fr/alice/final", 2, 13);
    made.adapter("fr/carol/ref", 2, 14);
    std::fs::create_dir(made.at("tree/fr/checkpoint-7")).unwrap();
    made.say("[tree]\nskip = [\"final\", \"fr/*/ref\"]");
    let tree = made.tree();
    assert_eq!(names(&tree), ["fr", "fr/alice", "fr/bob"]);
    assert_eq!(made.doubts(), []);
    let text = pleach(&["tree", &made.path("tree")]).text();
    for line in [
        "\npassed over: fr/alice/checkpoint-500: a trainer's checkpoint, an earlier state of the adapter beside it, 2 adapters\n",
        "\npassed over: fr/alice/final: skip = [\"final\"] in tree.toml, 1 adapter\n",
        "\npassed over: fr/carol/ref: skip = [\"fr/*/ref\"] in tree.toml, 1 adapter\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let json = pleach(&["tree", &made.path("tree"), "--json"]).json();
    assert_eq!(json["passed_over"].as_array().unwrap().len(), 3);
    assert_eq!(json["passed_over"][0]["adapters"], json!(2));
    assert_eq!(made.import().json()["passed_over"], json!(4));
    for (name, folder, words) in [
        ("fr/alice/checkpoint-500/best", "fr/alice/checkpoint-500", "a trainer's checkpoint"),
        ("fr/alice/final", "fr/alice/final", "skip = [\"final\"] in tree.toml"),
        ("fr/carol/ref/", "fr/carol/ref", "adapter = \"fr/carol/ref\""),
    ] {
        let Err(Error::Tree(defect)) = tree.node(name) else { panic!("{name}") };
        assert!(
            matches!(&*defect, TreeDefect::PassedOver { folder: found, .. } if found == folder),
            "{defect}"
        );
        let text = defect.to_string();
        assert!(text.starts_with("there is no node fr/") && text.contains(words), "{text}");
    }
}

/// The original cannot be read; the form that can lies below it, and would be a node on top of it.
#[test]
fn converted_form_below_the_refused_original_takes_its_place_where_tree_toml_says_so() {
    let made = Made::new();
    let original = made.adapter("fr/dave", 2, 11);
    std::fs::rename(original.join("adapter_model.safetensors"), original.join("adapter_model.bin"))
        .unwrap();
    made.adapter("fr/dave/converted", 2, 12);
    let run = made.import();
    assert_eq!(run.status, Some(1));
    assert!(
        run.stderr.contains("fr/dave/converted: its parent fr/dave is refused"),
        "{}",
        run.stderr
    );
    made.say("[tree]\nskip = [\"dave\"]\n[nodes.\"fr/dave\"]\nadapter = \"fr/dave/converted\"");
    let tree = made.tree();
    assert_eq!(names(&tree), ["fr", "fr/alice", "fr/bob", "fr/dave"]);
    // What is left of the folder is the original.
    assert_eq!(tree.passed_over().iter().map(|passed| passed.adapters).sum::<usize>(), 1);
    assert_eq!(made.import().json()["nodes"], json!(4));
}

#[test]
fn checkpoint_is_served_under_the_name_that_tree_toml_gives_it() {
    let made = Made::new();
    made.adapter("fr/alice/checkpoint-500", 2, 11);
    made.say("[nodes.\"fr/alice-500\"]\nadapter = \"fr/alice/checkpoint-500\"");
    let tree = made.tree();
    assert_eq!(names(&tree), ["fr", "fr/alice", "fr/alice-500", "fr/bob"]);
    assert_eq!(tree.passed_over(), []);
}
