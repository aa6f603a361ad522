//! An adapter comes out of a store and AutoPeft asks the hub for a base called `model.Q4_1.gguf`:
//! the store kept the name of a file in place of the one that the adapters published. And a tree of
//! adapters for one model is served on another of the same shapes: every switch works, every answer
//! is a little wrong, and three names that differ lie there unread.

#[path = "../common/cli.rs"]
mod cli;

use std::path::Path;

use cli::{Made, pleach};
use serde_json::{Value, json};

impl Made {
    fn edit(&self, file: &str, key: &str, value: &str) {
        let path = self.at(file);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = json!(value);
        std::fs::write(path, config.to_string()).unwrap();
    }

    fn names(&self, node: &str, base: &str) {
        self.edit(&format!("tree/{node}/adapter_config.json"), "base_model_name_or_path", base);
    }

    /// What an import has to say.
    fn import(&self, store: &str) -> String {
        let run = pleach(&[
            "store",
            "import",
            &self.path("tree"),
            &self.path(store),
            "--base",
            &self.path("base"),
        ]);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        run.stderr
    }
}

fn base_of(adapter: &str) -> Value {
    let config = std::fs::read(Path::new(adapter).join("adapter_config.json")).unwrap();
    serde_json::from_slice::<Value>(&config).unwrap()["base_model_name_or_path"].take()
}

#[test]
fn an_exported_adapter_names_the_base_as_the_adapters_did() {
    let made = Made::new();
    for (node, base) in [
        ("fr", "acme/Tiny-1B"),
        ("fr/alice", "acme/Tiny-1B"),
        ("fr/bob", "packer/tiny-1b-bnb-4bit"),
    ] {
        made.names(node, base);
    }
    std::fs::write(made.at("tree/tree.toml"), "[base]\nname = \"our tiny one\"\n").unwrap();
    assert_eq!(made.import("store"), "");
    for (flags, out) in [(&[][..], "plain"), (&["--flatten"][..], "flat")] {
        let out = made.path(out);
        pleach(&[&["store", "export", &made.path("store"), "fr/bob", &out], flags].concat()).text();
        assert_eq!(base_of(&out), json!("acme/Tiny-1B"));
    }
    // Where they name folders of their makers' machines, the tree's name is the better one.
    for node in ["fr", "fr/alice", "fr/bob"] {
        made.names(node, "/home/me/models/tiny");
    }
    assert_eq!(made.import("other"), "");
    pleach(&["store", "export", &made.path("other"), "fr", &made.path("local")]).text();
    assert_eq!(base_of(&made.path("local")), json!("our tiny one"));
}

#[test]
fn names_that_mean_different_bases_are_told_once() {
    let made = Made::new();
    let run = || {
        let (base, tree) = (made.path("base"), made.path("tree"));
        pleach(&["verify", "--base", &base, "--tree", &tree, "--switches", "3", "--device", "cpu"])
    };
    assert_eq!(run().stderr, "", "all adapters say the same, and the base nothing");
    made.edit("base/config.json", "_name_or_path", "made/TINY");
    assert_eq!(run().stderr, "");
    made.edit("base/config.json", "_name_or_path", "/data/other");
    assert_eq!(run().stderr, "", "a path is no name");

    made.edit("base/config.json", "_name_or_path", "acme/Other-1B");
    let printed = run();
    assert_eq!(printed.status, Some(0));
    assert_eq!(printed.stderr.matches("warning:").count(), 1, "{}", printed.stderr);
    assert!(
        printed.stderr.contains("3 adapters say made/tiny, the base calls itself acme/Other-1B"),
        "{}",
        printed.stderr
    );

    made.edit("base/config.json", "_name_or_path", "");
    made.names("fr/bob", "acme/Other-1B");
    std::fs::write(made.at("tree/tree.toml"), "[base]\nname = \"acme/Third\"\n").unwrap();
    let printed = made.import("store");
    let expected =
        "1 adapter says acme/Other-1B, 2 adapters say made/tiny, tree.toml says acme/Third";
    assert!(
        printed.starts_with("warning:")
            && printed.contains(expected)
            && printed.lines().count() == 1,
        "{printed}"
    );
}

/// What is published later is asked, too.
#[test]
fn an_adapter_published_for_another_base_is_told() {
    let made = Made::new();
    for node in ["fr", "fr/alice", "fr/bob"] {
        made.names(node, "acme/Tiny-1B");
    }
    assert_eq!(made.import("store"), "");
    let (store, adapter) = (made.path("store"), made.path("tree/fr/bob"));
    pleach(&["store", "publish", &store, "one", &adapter]).text();
    made.names("fr/bob", "acme/Tiny-1B-Instruct");
    let run = pleach(&["store", "publish", &store, "two", &adapter]);
    assert_eq!(run.status, Some(0));
    let printed = "warning: two: it names the base acme/Tiny-1B-Instruct, the store acme/Tiny-1B;";
    assert!(run.stderr.starts_with(printed), "{}", run.stderr);
    let inspected = pleach(&["inspect", &made.path("tree"), "--base", &made.path("base")]);
    assert!(inspected.stderr.contains("different bases are named"), "{inspected:?}");
}
