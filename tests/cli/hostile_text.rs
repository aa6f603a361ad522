//! Someone's adapter is called `ESC ] 0 ; … BEL`, its base `ESC [ 2 J`, its node's label has a line
//! feed and then `error: …`. Who runs `pleach tree` on it, or reads the refusal, has the screen
//! cleared, the window renamed, or a line that was never said. So no command may let a byte through
//! that steers a terminal, and no text of a file may begin a line of its own.

#[path = "../common/cli.rs"]
mod cli;

use std::path::Path;

use cli::{Run, make_base_and_tree, pleach};
use serde_json::{Value, json};

/// Clears the screen, renames the window, colours (8-bit), goes back, deletes, turns the direction,
/// ends a line, is not there.
const HOSTILE: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r\u{7f}\u{202e}\u{2028}\u{feff}\u{2066}\u{200b}";
const FORGED: &str = "\nerror: all is well\nwarning: all is well";

fn is_harmless(run: &Run) {
    for (stream, text) in [("stdout", &run.stdout), ("stderr", &run.stderr)] {
        let steers = |c: &char| {
            (c.is_control() && !['\n', '\t'].contains(c))
                || HOSTILE.chars().skip(5).any(|h| h == *c && !h.is_ascii())
        };
        assert_eq!(text.chars().find(steers), None, "{stream}: {text:?}");
        assert!(
            !text
                .lines()
                .any(|line| line.starts_with("error: all") || line.starts_with("warning: all")),
            "{stream}: {text}"
        );
    }
}

fn edit(config: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(config, value.to_string()).unwrap();
}

#[test]
fn no_command_lets_through_what_steers_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    make_base_and_tree(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, tree, store, text) =
        (at("base"), at("tree"), at("store"), format!("{HOSTILE}{FORGED}"));
    // Labels, names of the tree and its levels, the base's name.
    let quoted = json!(text).to_string().replace("\u{7f}", "\\u007f");
    let toml = format!("[tree]\nname = {quoted}\nlevels = [{quoted}]\n[base]\nname = {quoted}\n");
    let labelled = format!("{toml}[nodes.fr]\nlabel = {quoted}\n");
    std::fs::write(dir.path().join("tree/tree.toml"), labelled).unwrap();
    for node in ["fr", "fr/alice", "fr/bob"] {
        let config = dir.path().join("tree").join(node).join("adapter_config.json");
        edit(&config, |config| config["base_model_name_or_path"] = json!(text));
    }
    let fr = at("tree/fr");
    let answers = |arguments: &[&str]| {
        let run = pleach(arguments);
        assert_eq!(run.status, Some(0), "{arguments:?}: {}", run.stderr);
        is_harmless(&run);
        assert!(run.stdout.len() > 10, "{arguments:?} said nothing");
    };
    answers(&["tree", &tree]);
    answers(&["tree", &tree, "--format", "dot"]);
    answers(&["inspect", &tree, "--base", &base]);
    answers(&["inspect", &fr, "--base", &base]);
    // A store takes no such label; all else it takes.
    let import = ["store", "import", &tree, &store, "--base", &base];
    let run = pleach(&import);
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""));
    is_harmless(&run);
    std::fs::write(dir.path().join("tree/tree.toml"), toml).unwrap();
    answers(&import);
    answers(&["tree", &store]);
    answers(&["tree", &store, "--format", "dot"]);
    answers(&["inspect", &store]);
    answers(&["store", "stat", &store]);
    answers(&["store", "publish", &store, "fr/carol", &fr, "--label", "a=b"]);
    answers(&["store", "publish", &store, "fr/carol", &fr, "--replace", "--accept-unreachable"]);
    answers(&["store", "list", &store]);
    answers(&["store", "history", &store, "fr/carol"]);
    // It is printed, written out.
    assert!(
        pleach(&["inspect", &fr]).stdout.contains(
            "made for    \\u001b[2J\\u001b]0;owned\\u0007\\u009b31m\\u000d\\u007f\\u202e"
        )
    );
    // JSON says the same, and nothing of it raw.
    let run = pleach(&["inspect", &fr, "--json"]);
    is_harmless(&run);
    assert_eq!(serde_json::from_str::<Value>(&run.stdout).unwrap()["base_model"], json!(text));

    // Now the adapter is refused for a key, and named on the command line by what was typed.
    edit(&dir.path().join("tree/fr/adapter_config.json"), |config| config[&text] = json!(text));
    let name = format!("fr/{HOSTILE}");
    let label = format!("a={text}");
    let refused: [&[&str]; 10] = [
        &["inspect", &fr],
        &["inspect", &text],
        &["tree", &text],
        &["generate", "--base", &base, "--tree", &tree, "--node", "fr", "--prompt", "x"],
        &["generate", "--base", &base, "--tree", &tree, "--node", &name, "--prompt", "x"],
        &["store", "publish", &store, "fr/dora", &fr],
        &["store", "publish", &store, "fr/eve", &at("tree/fr/bob"), "--label", &label],
        &["store", "publish", &store, &name, &at("tree/fr/bob")],
        &["store", "export", &store, &name, &at("out")],
        &["store", "import", &tree, &at("other"), "--base", &base],
    ];
    for arguments in refused {
        let run = pleach(arguments);
        assert_eq!(run.status, Some(1), "{arguments:?}: {}", run.stdout);
        is_harmless(&run);
        assert!(run.stderr.starts_with("error: "), "{arguments:?}: {}", run.stderr);
    }
    for arguments in
        [&["tree", &tree][..], &["tree", &tree, "--format", "dot"], &["inspect", &tree]]
    {
        let run = pleach(arguments);
        is_harmless(&run);
        assert!(run.stdout.contains("\\u001b[2J"), "{}", run.stdout);
    }
    // Wrong usage is reported by the argument parser.
    for arguments in [
        &[&text[..]][..],
        &["tree", &tree, "--format", &text],
        &["tree", &tree, &text],
        &[&format!("--{text}")],
    ] {
        let run = pleach(arguments);
        assert_eq!(run.status, Some(2), "{}", run.stderr);
        is_harmless(&run);
        // clap takes whole sequences out of what it repeats; what is left is written out.
        assert!(run.stderr.contains("\\u009b31m"), "{}", run.stderr);
    }
}
