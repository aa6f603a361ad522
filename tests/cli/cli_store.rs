//! A store's whole life on the command line, as scripts see it: what each command answers, what it
//! refuses, and that the store is whole after each.
//!
//! A registry that answers a lost race with a success, or whose listing breaks off in the middle,
//! is noticed when a user's adapter is gone.

#[path = "../common/cli.rs"]
mod cli;

use std::path::{Path, PathBuf};

use pleach::testing::{TinyModel, tiny_hf_model};
use serde_json::{Value, json};

use cli::{Made, Run, adapter, keys, pleach};

impl Made {
    /// With another adapter beside the tree.
    fn with_other() -> Self {
        let made = Self::new();
        adapter(4, 4).write(&made.at("other")).unwrap();
        made
    }

    fn imported(more: &[&str]) -> Self {
        let made = Self::with_other();
        let (tree, base) = (made.path("tree"), made.path("base"));
        pleach(
            &[&["store", "import", &tree, &made.store(), "--base", &base, "--headroom", "4"], more]
                .concat(),
        )
        .text();
        made
    }

    fn store(&self) -> String {
        self.path("store")
    }

    /// `pleach store COMMAND STORE ARGUMENTS`.
    fn run(&self, command: &str, arguments: &[&str]) -> Run {
        pleach(&[&["store", command, &self.store()], arguments].concat())
    }

    fn json(&self, command: &str, arguments: &[&str]) -> Value {
        self.run(command, &[arguments, &["--json"]].concat()).json()
    }

    /// Names and generations, by `store list`.
    fn nodes(&self) -> Vec<(String, u64)> {
        let list = self.json("list", &[]);
        let rows = list["nodes"].as_array().unwrap().iter();
        rows.map(|row| {
            (row["node"].as_str().unwrap().to_owned(), row["generation"].as_u64().unwrap())
        })
        .collect()
    }

    fn assert_whole(&self) {
        let report = self.json("verify", &["--deep"]);
        assert_eq!((&report["clean"], &report["problems"]), (&json!(true), &json!([])));
    }
}

fn bytes(folder: &str) -> [Vec<u8>; 2] {
    ["adapter_config.json", "adapter_model.safetensors"]
        .map(|file| std::fs::read(PathBuf::from(folder).join(file)).unwrap())
}

/// The file was shrunk after it had been measured; and the root, which is the base, was counted by
/// some and not by others.
#[test]
fn what_is_told_of_a_store_is_so_when_the_command_ends() {
    let made = Made::imported(&[]);
    for round in 0..200 {
        made.run("move", &[["fr/bob", "fr/b"][round % 2], ["fr/b", "fr/bob"][round % 2]]).text();
    }
    let held = |stat: &Value| {
        stat["segment_bytes"].as_u64().unwrap() + stat["catalogue_bytes"].as_u64().unwrap()
    };
    let before = held(&made.json("stat", &[]));
    let report = made.json("compact", &["--catalogue"]);
    let stat = made.json("stat", &[]);
    assert_eq!(
        (&report["bytes_before"], &report["bytes_after"]),
        (&json!(before), &json!(held(&stat)))
    );
    assert!(held(&stat) < before * 2 / 3, "{report}");
    assert_eq!(report["left_bytes"], json!(0));
    let counted = [
        made.nodes().len() as u64,
        stat["nodes"].as_u64().unwrap(),
        pleach(&["inspect", &made.store(), "--json"]).json()["nodes"].as_u64().unwrap(),
        pleach(&["inspect", &made.path("tree"), "--json"]).json()["nodes"].as_u64().unwrap(),
        made.json("verify", &[])["nodes"].as_u64().unwrap(),
    ];
    assert_eq!(counted, [3; 5]);
}

#[test]
fn node_lives_from_import_to_export() {
    let made = Made::with_other();
    let (tree, base, store, other) =
        (made.path("tree"), made.path("base"), made.store(), made.path("other"));
    let report =
        pleach(&["store", "import", &tree, &store, "--base", &base, "--headroom", "4", "--json"])
            .json();
    let expected = [
        "store",
        "nodes",
        "bytes",
        "refused",
        "passed_over",
        "doubtful",
        "remarks",
        "kept",
        "seconds",
    ];
    assert_eq!(keys(&report), expected);
    assert_eq!(report["nodes"], json!(3));
    let nodes = |expected: &[(&str, u64)]| {
        let expected: Vec<_> =
            expected.iter().map(|(name, generation)| ((*name).to_owned(), *generation)).collect();
        assert_eq!(made.nodes(), expected);
        made.assert_whole();
    };
    nodes(&[("fr", 1), ("fr/alice", 2), ("fr/bob", 3)]);

    let label = ["--label", "team=blue", "--label", "since=2024=5"];
    let published = made.json("publish", &[&["/fr/carol/", &other][..], &label].concat());
    assert_eq!(keys(&published), ["node", "generation", "bytes", "kept", "fit"]);
    assert_eq!((&published["node"], &published["generation"]), (&json!("fr/carol"), &json!(4)));
    let again = made.run("publish", &["fr/carol", &other]).refusal();
    assert!(again.contains("already, in generation 4; replace it instead (--replace)"), "{again}");

    let stale = made.run("publish", &["fr/alice", &other, "--replace", "--expect", "1"]).refusal();
    assert!(stale.contains("fr/alice is in generation 2, not 1"), "{stale}");
    assert!(
        made.run("publish", &["fr/dave", &other, "--replace"])
            .refusal()
            .contains("there is no node fr/dave")
    );
    let text = made.run("publish", &["fr/alice", &other, "--replace", "--expect", "2"]).text();
    assert!(text.starts_with("fr/alice is published in generation 5: "), "{text}");

    let history = made.json("history", &["fr/alice"]);
    assert_eq!(history["node"], json!("fr/alice"));
    let past = &history["versions"][0];
    assert_eq!(
        (&past["generation"], &past["ending"], &past["ended"]),
        (&json!(2), &json!("replaced"), &json!(5))
    );
    let back = made.json("rollback", &["fr/alice", "2", "--expect", "5"]);
    assert_eq!(back, json!({ "node": "fr/alice", "generation": 6 }));
    assert!(
        made.run("rollback", &["fr/alice", "77"])
            .refusal()
            .contains("no generation 77 to go back to; it has 5, 2")
    );
    let row = made.json("list", &["fr/alice"])["nodes"][0].clone();
    assert_eq!(
        (&row["generation"], &row["content_generation"], &row["ranks"]),
        (&json!(6), &json!(2), &json!([2]))
    );

    let refusal = made.run("remove", &["fr"]).refusal();
    assert!(
        refusal.contains("fr has children, fr/alice first; remove them with it (--recursive)"),
        "{refusal}"
    );
    let moved = made.json("move", &["fr/bob", "de/bob", "--expect", "3"]);
    assert_eq!(moved, json!({ "node": "de/bob", "generation": 7 }));
    nodes(&[("de/bob", 7), ("fr", 1), ("fr/alice", 6), ("fr/carol", 4)]);
    assert_eq!(made.json("list", &["de/bob"])["nodes"][0]["parent"], json!("/"));
    assert_eq!(
        made.json("remove", &["fr", "--recursive"]),
        json!({ "node": "fr", "generation": 8 })
    );
    nodes(&[("de/bob", 7)]);

    let stat = made.json("stat", &[]);
    for (field, value) in [
        ("path", json!(store)),
        ("base_name", json!("made/tiny")),
        ("headroom", json!(4.0)),
        ("nodes", json!(1)),
        ("past_versions", json!(6)),
        ("generation", json!(8)),
        ("segments", json!(1)),
    ] {
        assert_eq!(stat[field], value, "{field}");
    }
    assert_eq!(stat["base_hash"].as_str().unwrap().len(), 64);
    let before = stat["segment_bytes"].as_u64().unwrap();
    assert_eq!(made.json("compact", &[])["forgotten_versions"], json!(6));
    let after = made.json("stat", &[]);
    assert!(
        after["segment_bytes"].as_u64().unwrap() < before && after["past_versions"] == json!(0),
        "{after}"
    );
    nodes(&[("de/bob", 7)]);
    assert!(made.run("rollback", &["fr", "1"]).refusal().contains("there is no node fr"));

    let exported = made.path("exported");
    let report = made.json("export", &["de/bob", &exported]);
    assert_eq!(keys(&report), ["adapter", "nodes", "generation", "original", "files", "rank"]);
    assert_eq!(
        (&report["nodes"], &report["original"], &report["rank"]),
        (&json!(["de/bob"]), &json!(false), &json!(1))
    );
    let adapter = pleach(&["inspect", &exported, "--base", &base, "--json"]).json();
    assert_eq!((&adapter["fits"], &adapter["base_model"]), (&json!(true), &json!("made/tiny")));
    assert!(made.run("export", &["de/bob", &exported]).refusal().contains(&exported));
    made.run("publish", &["de/bob2", &exported, "--parent", "de/bob", "--trained-on", "0"]).text();
    let row = made.json("list", &["de/bob2"])["nodes"][0].clone();
    assert_eq!((&row["parent"], &row["trained_on"]), (&json!("de/bob"), &json!(0)));
    nodes(&[("de/bob", 7), ("de/bob2", 9)]);
}

#[test]
fn kept_files_come_back_byte_for_byte_and_a_path_as_one_adapter() {
    let made = Made::imported(&["--keep-files"]);
    let exported = made.path("alice");
    assert_eq!(made.json("export", &["fr/alice", &exported])["original"], json!(true));
    assert_eq!(bytes(&exported), bytes(&made.path("tree/fr/alice")));
    let row = made.json("list", &["fr/alice"])["nodes"][0].clone();
    let length: usize = bytes(&exported).iter().map(Vec::len).sum();
    assert_eq!(row["kept_bytes"], json!(length + 8));
    assert_eq!(row["adapter_hash"], pleach(&["inspect", &exported, "--json"]).json()["hash"]);
    let flat = made.path("flat");
    let report = made.json("export", &["fr/alice", &flat, "--flatten"]);
    assert_eq!(report["nodes"], json!(["fr", "fr/alice"]));
    assert_eq!((&report["original"], &report["rank"]), (&json!(false), &json!(5)));
    let adapter = pleach(&["inspect", &flat, "--base", &made.path("base"), "--json"]).json();
    assert_eq!((&adapter["fits"], &adapter["ranks"]), (&json!(true), &json!([5])));
    made.run("publish", &["alice", &flat, "--keep-files"]).text();
    let again = made.path("again");
    made.run("export", &["alice", &again]).text();
    assert_eq!(bytes(&again), bytes(&flat));
    assert!(
        made.run("export", &["/", &made.path("root"), "--flatten"])
            .refusal()
            .contains("the root is the base itself")
    );
    made.assert_whole();
}

#[test]
fn lists_are_told_in_pages_that_join() {
    let made = Made::imported(&[]);
    let names = |arguments: &[&str]| -> (Vec<String>, bool) {
        let list = made.json("list", arguments);
        assert_eq!(keys(&list), ["store", "nodes", "more"]);
        let rows = list["nodes"].as_array().unwrap().iter();
        let names = rows.map(|row| row["node"].as_str().unwrap().to_owned()).collect();
        (names, list["more"].as_bool().unwrap())
    };
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&["--limit", "2"]), (owned(&["fr", "fr/alice"]), true));
    assert_eq!(names(&["--limit", "2", "--after", "fr/alice"]), (owned(&["fr/bob"]), false));
    assert_eq!(names(&["--limit", "3"]), (owned(&["fr", "fr/alice", "fr/bob"]), false));
    assert_eq!(names(&["fr/", "--limit", "0"]), (owned(&["fr/alice", "fr/bob"]), false));
    assert_eq!(names(&["nothing"]), (Vec::new(), false));
    assert_eq!(names(&["/", "--children"]), (owned(&["fr"]), false));
    assert_eq!(names(&["fr", "--children", "--limit", "1"]), (owned(&["fr/alice"]), true));
    assert!(made.run("list", &["it", "--children"]).refusal().contains("there is no node it"));
    let row = made.json("list", &["fr/bob"])["nodes"][0].clone();
    let fields = [
        "node",
        "generation",
        "content_generation",
        "parent",
        "trained_on",
        "kind",
        "ranks",
        "matrices",
        "bytes",
        "kept_bytes",
        "created",
        "adapter_hash",
        "labels",
    ];
    assert_eq!(keys(&row), fields);
    assert_eq!(
        (&row["kind"], &row["matrices"], &row["kept_bytes"]),
        (&json!("low_rank"), &json!(2), &json!(null))
    );
    let created = row["created"].as_str().unwrap();
    assert!(
        created.starts_with("20") && created.ends_with('Z') && created.len() == 20,
        "{created}"
    );
    let text = made.run("list", &[]).text();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.starts_with("fr  generation 1, low-rank 4, "), "{text}");
}

#[test]
fn list_longer_than_a_page_is_told_whole() {
    let made = Made::imported(&[]);
    let store = pleach::store::Store::open(Path::new(&made.store())).unwrap();
    let content = store.compile(&Default::default()).unwrap();
    let mut changes = pleach::store::Changes::new();
    for k in 0..2500 {
        changes.publish(&format!("fr/u{k:04}"), content.clone(), Default::default());
    }
    store.apply(&changes).unwrap();
    let list = made.json("list", &["--limit", "0"]);
    let rows = list["nodes"].as_array().unwrap();
    assert_eq!(
        (rows.len(), &rows[2502]["node"], &list["more"]),
        (2503, &json!("fr/u2499"), &json!(false))
    );
    let children = made.run("list", &["fr", "--children", "--limit", "2100"]).text();
    assert_eq!(
        (children.lines().count(), children.lines().last().unwrap().split(' ').next()),
        (2100, Some("fr/u2097"))
    );
    let tree = pleach(&["tree", &made.store(), "--limit", "0", "--json"]).json();
    assert_eq!(tree["children"][0]["children"].as_array().unwrap().len(), 2502);
    assert_eq!(made.json("verify", &[])["nodes"], json!(2503));
}

#[test]
fn tree_and_inspect_know_a_store() {
    let made = Made::imported(&[]);
    let store = made.store();
    let text = pleach(&["tree", &store]).text();
    assert!(text.starts_with("/\n└── fr  low-rank 4, "), "{text}");
    assert!(text.contains("    ├── alice  low-rank 2, ") && text.lines().count() == 4, "{text}");
    let cut = pleach(&["tree", &store, "--limit", "2"]).text();
    assert!(
        cut.ends_with("\n1 more: --limit, or `pleach store list`\n") && !cut.contains("bob"),
        "{cut}"
    );
    let json = pleach(&["tree", &store, "--json", "--limit", "2"]).json();
    assert_eq!((&json["more"], &json["children"][0]["adapter"]["ranks"]), (&json!(1), &json!([4])));
    let dot = pleach(&["tree", &store, "--format", "dot", "--limit", "2"]).text();
    assert!(dot.starts_with("// 1 more:") && dot.contains("\"fr\" -> \"fr/alice\";"), "{dot}");

    let run = pleach(&["inspect", &store, "--base", &made.path("base"), "--json"]).json();
    assert_eq!(
        (&run["what"], &run["nodes"], &run["fits"]),
        (&json!("store"), &json!(3), &json!(true))
    );
    let other = made.path("other-base");
    tiny_hf_model(Path::new(&other), &TinyModel { seed: 9, ..TinyModel::default() });
    let run = pleach(&["inspect", &store, "--base", &other]);
    assert_eq!((run.status, run.stderr.as_str()), (Some(1), ""));
    let run = run.stdout;
    assert!(
        run.contains("fits        ")
            && run.contains(": no: ")
            && run.contains("compiled for the base made/tiny")
    );
    let import =
        pleach(&["store", "import", &store, &made.path("second"), "--base", &made.path("base")])
            .refusal();
    assert!(import.contains("this is a store, not a folder of adapters"), "{import}");
}

#[test]
fn damage_is_told_and_fails_the_verification() {
    let made = Made::imported(&[]);
    let segment = made.dir.path().join("store/segments/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let run = made.run("verify", &["--json"]);
    assert_eq!((run.status, run.stderr.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&report["clean"], &report["problem_count"]), (&json!(false), &json!(1)));
    let run = made.run("verify", &[]);
    assert_eq!(run.status, Some(1));
    assert!(run.stdout.contains("problems         1\nproblem          "), "{}", run.stdout);
    assert!(made.run("export", &["fr/bob", &made.path("bob")]).refusal().contains("is damaged"));
    assert!(!Path::new(&made.path("bob")).exists());
}

#[test]
fn refusals_are_one_line_and_leave_the_store_as_it_was() {
    let made = Made::imported(&[]);
    let (tree, base, other, store) =
        (made.path("tree"), made.path("base"), made.path("other"), made.store());
    let refused = |arguments: &[&str], words: &str| {
        let refusal = pleach(arguments).refusal();
        assert!(refusal.contains(words), "{arguments:?}: {refusal}");
        let run = pleach(&[arguments, &["--json"]].concat());
        let answer: Value = serde_json::from_str(&run.stdout).unwrap();
        assert!(
            run.status == Some(1) && answer["error"].as_str().unwrap().contains(words),
            "{arguments:?}: {answer}"
        );
    };
    refused(
        &["store", "import", &tree, &store, "--base", &base],
        "there is something here already",
    );
    refused(
        &["store", "import", &made.path("absent"), &made.path("s2"), "--base", &base],
        "No such file",
    );
    refused(
        &["store", "import", &tree, &made.path("s2"), "--base", &base, "--headroom", "0.5"],
        "headroom",
    );
    refused(&["store", "list", &tree], "this is not a store: it has no catalogue.db");
    refused(&["store", "stat", &made.path("absent")], "No such file");
    refused(&["store", "publish", &store, "fr/../x", &other], "cannot be a node's name");
    refused(&["store", "publish", &store, "x\ny", &other], "cannot be a node's name");
    refused(
        &["store", "publish", &store, "/", &other],
        "the root is the base itself: it cannot be published",
    );
    refused(&["store", "publish", &store, "x", &tree], "there is no adapter_config.json");
    refused(
        &["store", "publish", &store, "x", &other, "--parent", "it"],
        "the parent it of x is not in the store",
    );
    refused(
        &["store", "publish", &store, "x", &other, "--label", "=v"],
        "a label's key has 0 bytes",
    );
    refused(&["store", "remove", &store, "fr/alise"], "did you mean fr/alice");
    refused(&["store", "remove", &store, "a\nb"], "cannot be a node's name");
    refused(&["store", "history", &store, "a\nb"], "there is no node a\u{fffd}b");
    refused(
        &["store", "remove", &store, "fr/bob", "--expect", "9"],
        "fr/bob is in generation 3, not 9",
    );
    refused(&["store", "move", &store, "fr", "fr/deeper"], "that is where it is, or below it");
    refused(&["store", "move", &store, "fr/bob", "fr/alice"], "there is a node fr/alice already");
    refused(&["store", "history", &store, "it"], "there is no node it");
    let wrong = made.path("wrong");
    tiny_hf_model(Path::new(&wrong), &TinyModel { seed: 9, ..TinyModel::default() });
    refused(
        &["store", "publish", &store, "x", &other, "--base", &wrong],
        "was compiled for the base made/tiny",
    );
    for usage in [
        &["store"][..],
        &["store", "import", "t", "s"],
        &["store", "publish", "s", "n", "a", "--expect", "1"],
    ] {
        assert_eq!(pleach(usage).status, Some(2), "{usage:?}");
    }
    assert_eq!(made.run("publish", &["x", &other, "--label", "novalue"]).status, Some(2));
    assert_eq!(
        made.nodes(),
        [("fr".to_owned(), 1), ("fr/alice".to_owned(), 2), ("fr/bob".to_owned(), 3)]
    );
    assert!(!Path::new(&made.path("s2")).exists());
    made.assert_whole();
}

#[test]
fn help_of_every_command_fits_a_line() {
    for (command, options) in [
        ("import", &["--base", "--headroom", "--keep-files"][..]),
        (
            "publish",
            &[
                "--replace",
                "--expect",
                "--parent",
                "--trained-on",
                "--label",
                "--keep-files",
                "--base",
            ],
        ),
        ("remove", &["--recursive", "--expect"]),
        ("move", &["--expect"]),
        ("rollback", &["--expect"]),
        ("list", &["--limit", "--after", "--children"]),
        ("history", &["<NODE>"]),
        ("stat", &["<STORE>", "--timeout"]),
        ("verify", &["--deep"]),
        ("compact", &["<STORE>"]),
        ("export", &["--flatten"]),
    ] {
        let help = pleach(&["store", command, "--help"]).text();
        assert!(options.iter().all(|option| help.contains(option)), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 140), "{help}");
    }
    assert!(pleach(&["store", "--help"]).text().lines().all(|line| line.chars().count() <= 140));
}

/// A change that was made, and then an error about its answer, would be made a second time.
#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_not_utf_8_is_answered_in_json_too() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStringExt;

    let made = Made::with_other();
    let store = made.dir.path().join(OsString::from_vec(b"st\xf6re".to_vec()));
    let run = |arguments: &[&OsStr]| {
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_pleach"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let [tree, base] = ["tree", "base"].map(|name| made.path(name));
    let import = ["store", "import", &tree].map(OsStr::new);
    let more = ["--base", &base, "--headroom", "4", "--json"].map(OsStr::new);
    assert_eq!(run(&[&import[..], &[store.as_os_str()], &more].concat())["nodes"], 3);
    for command in ["stat", "list", "verify"] {
        run(&[OsStr::new("store"), OsStr::new(command), store.as_os_str(), OsStr::new("--json")]);
    }
    let adapter = made.dir.path().join(OsString::from_vec(b"\xe9l\xe8ve".to_vec()));
    let export =
        [OsStr::new("store"), OsStr::new("export"), store.as_os_str(), OsStr::new("fr/bob")];
    run(&[&export[..], &[adapter.as_os_str(), OsStr::new("--json")]].concat());
}
