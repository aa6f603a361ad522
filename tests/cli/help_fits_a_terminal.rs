//! Help that is wider than the window is broken in the middle of words, and its columns are lost.
//! Here the help of every command, short and long, stays within 100 columns, however wide the
//! terminal is; in a narrower one it is narrower, but for the line of usage, which is never broken.

use std::process::Command;

const WIDEST: usize = 100;

/// The help of a command in a terminal of `columns`.
fn help(command: &[String], flag: &str, columns: usize) -> String {
    let mut run = Command::new(env!("CARGO_BIN_EXE_pleach"));
    let output = run.args(command).arg(flag).env("COLUMNS", columns.to_string()).output().unwrap();
    assert!(output.status.success(), "{command:?} {flag}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help lists.
fn listed(help: &str) -> Vec<String> {
    let Some((_, commands)) = help.split_once("Commands:\n") else { return Vec::new() };
    let lines = commands.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn help_of_every_command_stays_within_100_columns() {
    let (mut commands, mut seen, mut wide) = (vec![Vec::new()], 0, Vec::new());
    while let Some(command) = commands.pop() {
        seen += 1;
        for (columns, flag) in [(300, "-h"), (300, "--help"), (80, "-h"), (80, "--help")] {
            let help = help(&command, flag, columns);
            let may_be = |line: &str| columns < WIDEST && line.starts_with("Usage:");
            let too_wide = help.lines().filter(|line| {
                line.chars().count() > if may_be(line) { WIDEST } else { columns.min(WIDEST) }
            });
            wide.extend(too_wide.map(|line| format!("{command:?} {flag} {columns}: {line}")));
        }
        let below = listed(&help(&command, "-h", WIDEST));
        let below = below.into_iter().filter(|name| name != "help");
        commands.extend(below.map(|name| [&command[..], &[name]].concat()));
    }
    assert!(seen > 20, "{seen} commands");
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}
