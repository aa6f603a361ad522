//! A layout that lives in a document alone is gone within a year: files grow, a lower module
//! reaches up, `unsafe` turns up in one more place. So the layout that ARCHITECTURE.md draws is
//! checked here, over the text of the sources themselves. A rule that some file breaks today names
//! that file in its table, and fails, too, once the file is mended.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const MAX_LINES: usize = 640;
/// Longest shader.
const MAX_SHADER_LINES: usize = 300;

/// The library's modules: each uses only those before it.
const MODULES: [&str; 19] = [
    "name", "suggest", "contain", "error", "file", "arch", "base", "adapter", "lattice", "tree",
    "device", "compile", "store", "nodes", "weights", "model", "runtime", "engine", "testing",
];

/// Names of model families. What is particular to one stands in `src/arch`.
const FAMILY_NAMES: [&str; 3] = ["llama", "mistral", "qwen"];

/// Files outside that name one all the same, and for what.
const FAMILIES_NAMED: [(&str, &str); 7] = [
    ("src/base/gguf.rs", "a warning says what llama.cpp does"),
    ("src/base/hf_rope.rs", "`rope_type: llama3`, the name of a scaling that any family may have"),
    ("src/model/rope.rs", "the same"),
    ("src/base/made.rs", "names of published models whose shapes are made"),
    ("src/model/tokenizer/pre.rs", "names of published pre-tokenizers"),
    ("src/model/chat/mod.rs", "the class of a published tokenizer"),
    ("src/testing.rs", "makes models of every family"),
];

/// Uses that go up: from, to, for the sake of what.
const UPWARD_USES: [(&str, &str, &str); 1] =
    [("error", "device", "`SimdLevel`, named by the error about a missing instruction set")];

/// Where `unsafe` may stand, and why.
const UNSAFE_FILES: [(&str, &str); 7] = [
    ("crates/cli/src/main.rs", "sets a variable of the environment before anything else runs"),
    ("crates/cli/src/signals.rs", "asks which signals are ignored"),
    (
        "src/device/gpu/pipeline.rs",
        "keeps compiled shaders, and leaves loop counters out of the shaders",
    ),
    ("src/file/mmap.rs", "maps a file"),
    ("src/device/cpu/parallel.rs", "hands tiles of one buffer to several threads"),
    ("src/device/cpu/simd/avx2.rs", "vector intrinsics, and calls to what is compiled for them"),
    ("src/device/cpu/simd/avx512.rs", "vector intrinsics, and calls to what is compiled for them"),
];

/// Shaders that lack a file or a test of their name, and where what they lack is.
const UNNAMED_PARTS: [(&str, &str, &str); 3] = [
    ("matvec", "src/device/cpu/matvec.rs", "matmul.rs, which takes any number of tokens"),
    ("rotate_append", "a test", "tested with the attention it prepares"),
    ("expand_sparse", "src/device/cpu/expand_sparse.rs", "a part of `expand.rs` there"),
];

/// Crates that stay behind one module, and the folders or files that may name them.
const PRIVATE_CRATES: [(&str, &[&str]); 25] = [
    ("wgpu", &["src/device/gpu/"]),
    ("pollster", &["src/device/gpu/"]),
    ("memmap2", &["src/file/"]),
    ("petgraph", &["src/tree/"]),
    ("glob", &["src/tree/manifest.rs"]),
    ("icu_normalizer", &["src/tree/name.rs"]),
    ("icu_properties", &["src/tree/name.rs"]),
    ("rustix", &["src/store/"]),
    ("redb", &["src/store/catalogue/"]),
    ("bincode", &["src/store/catalogue/record.rs"]),
    ("candle_core", &["src/file/gguf/", "src/error/file.rs", "src/testing"]),
    ("hf_hub", &["src/file/hub"]),
    ("minijinja", &["src/model/chat/"]),
    ("minijinja_contrib", &["src/model/chat/"]),
    (
        "jiff",
        &["src/model/chat/clock.rs", "crates/cli/src/store/mod.rs", "crates/serve/src/tree.rs"],
    ),
    ("tokenizers", &["src/model/tokenizer", "src/testing"]),
    ("tracing_subscriber", &["crates/cli/src/console.rs"]),
    ("signal_hook", &["crates/cli/src/signals.rs"]),
    ("libc", &["crates/cli/src/signals.rs", "src/file/regular.rs"]),
    ("anyhow", &["crates/cli/src/"]),
    ("axum", &["crates/serve/src/"]),
    ("hyper", &["crates/serve/src/"]),
    ("tokio", &["crates/serve/src/", "crates/cli/src/serve/mod.rs", "crates/cli/src/signals.rs"]),
    ("opentelemetry", &["crates/cli/src/serve/traces.rs"]),
    ("prometheus", &["crates/serve/src/metrics.rs"]),
];

/// One Rust file, by its path from the project's folder.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The code without comments and inline tests.
    fn code(&self) -> String {
        let (before, tests) =
            self.text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&self.text, ""));
        let after = tests.split_once("\n}\n").map_or("", |(_, after)| after);
        let lines = before
            .lines()
            .chain(after.lines())
            .map(|line| line.split(" // ").next().unwrap_or_default());
        lines
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Whether it is compiled for tests alone.
    fn is_test(&self) -> bool {
        let path = &self.path;
        !(path.starts_with("src/") || path.starts_with("crates/"))
            || path.ends_with("tests.rs")
            || path.contains("/tests/")
            || path == "src/model/testing.rs"
    }

    /// The library's module it belongs to; none for the crate's root and the other crates.
    fn module(&self) -> Option<&str> {
        let inner = self.path.strip_prefix("src/")?;
        let module = inner.split(['/', '.']).next()?;
        (module != "lib").then_some(module)
    }
}

/// Every Rust file of the project that is not built by a tool.
fn sources() -> Vec<Source> {
    fn collect(root: &Path, folder: PathBuf, sources: &mut Vec<Source>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push(Source {
                    path: name,
                    text: std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n"),
                });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["src", "crates", "tests", "benches", "examples", "fuzz/fuzz_targets"] {
        collect(root, root.join(folder), &mut sources);
    }
    assert!(sources.len() > 50, "only {} files found in {}", sources.len(), root.display());
    sources
}

/// The words of a text: identifiers and keywords.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// What follows every `crate::` in `code`, up to the next `::`, the members of a braced list each
/// by itself.
fn used_from_the_crate(code: &str) -> BTreeSet<&str> {
    let mut used = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            used.extend(words(rest).next());
            continue;
        };
        let (mut depth, mut start) = (1, true);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                c if start && !c.is_whitespace() => {
                    used.extend(words(&list[i..]).next());
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

/// Fails with every finding at once.
fn none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}\n  {}", findings.join("\n  "));
}

#[test]
fn every_file_says_first_what_it_is() {
    let sources = sources();
    let without = sources.iter().filter(|source| !source.text.starts_with("//! "));
    let found: Vec<String> = without.map(|source| source.path.clone()).collect();
    none(&found, "files that do not open with `//!`");
}

#[test]
fn no_file_is_too_long_to_read() {
    let lengths = sources().into_iter().map(|source| (source.text.lines().count(), source.path));
    let long: Vec<_> =
        lengths.filter(|(lines, _)| *lines > MAX_LINES).map(|found| format!("{found:?}")).collect();
    none(&long, "files of more than 640 lines: look for the seam");
}

#[test]
fn unsafe_stands_only_where_its_reason_is_known() {
    let sources = sources();
    let named: BTreeSet<&str> = UNSAFE_FILES.iter().map(|(path, _)| *path).collect();
    let others = sources.iter().filter(|source| source.path != "tests/tidy.rs");
    let found = others.filter(|source| words(&source.code()).any(|word| word == "unsafe"));
    assert_eq!(
        found.map(|source| &source.path[..]).collect::<BTreeSet<_>>(),
        named,
        "files with `unsafe`, and the list"
    );
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (k, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let opens = ["unsafe {", "unsafe impl"].iter().any(|opening| code.contains(opening));
            let above = &lines[k.saturating_sub(5)..k];
            if opens && !above.iter().any(|line| line.contains("// SAFETY:")) {
                findings.push(format!("{}:{}: {line}", source.path, k + 1));
            }
        }
    }
    none(&findings, "`unsafe` without `// SAFETY:` in the five lines above");
}

#[test]
fn modules_use_only_those_below_them() {
    let rank = |module: &str| MODULES.iter().position(|known| *known == module);
    let (mut findings, mut upward) = (Vec::new(), BTreeSet::new());
    for source in sources().iter().filter(|source| !source.is_test()) {
        let Some(module) = source.module() else { continue };
        let Some(own) = rank(module) else {
            findings.push(format!("{}: module {module} has no rank", source.path));
            continue;
        };
        let code = source.code();
        if code.contains("super::super") {
            findings.push(format!(
                "{}: `super::super` hides what is used; write `crate::`",
                source.path
            ));
        }
        for used in used_from_the_crate(&code) {
            let used = match used {
                "Error" | "Result" => "error",
                "WeightName" => "name",
                "Runtime" => "runtime",
                other => other,
            };
            let Some(other) = rank(used) else {
                findings.push(format!("{}: uses crate::{used}, which has no rank", source.path));
                continue;
            };
            if other > own {
                upward.insert((module.to_owned(), used.to_owned()));
            }
        }
    }
    none(&findings, "modules outside the order");
    let named: BTreeSet<_> =
        UPWARD_USES.iter().map(|(from, to, _)| (from.to_string(), to.to_string())).collect();
    assert_eq!(upward, named, "uses that go up, and the list of them");
}

/// What the parts of a module leave to others of its parts: where it may not be named, where it may,
/// the names, and why.
const LEFT_TO: [(&str, &[&str], &[&str], &str); 2] = [
    (
        "src/adapter/formats/",
        &[],
        &["crate::base", "adapter::bind", "adapter::lower", "BaseModel", "BaseShapes"],
        "a file is read the same whatever it is put on",
    ),
    (
        "src/adapter/",
        &["src/adapter/bind.rs", "src/adapter/mod.rs"],
        &["BaseShapes"],
        "one place says what fits a base",
    ),
];

#[test]
fn parts_of_a_module_leave_to_others_what_is_theirs() {
    let mut findings = Vec::new();
    let sources = sources();
    for (folder, except, names, why) in LEFT_TO {
        let inside = sources.iter().filter(|source| source.path.starts_with(folder));
        let inside: Vec<_> = inside.filter(|source| !source.is_test()).collect();
        assert!(!inside.is_empty(), "nothing is in {folder}");
        for source in inside.iter().filter(|source| !except.contains(&&source.path[..])) {
            let code = source.code();
            let named = names.iter().filter(|name| code.contains(**name));
            findings.extend(named.map(|name| format!("{} names {name}: {why}", source.path)));
        }
    }
    none(&findings, "names that belong to another part");
}

/// A rule that hangs on a family's name is missed by whoever adds a family.
#[test]
fn families_are_named_in_arch_alone() {
    let sources = sources();
    let names_one = |source: &Source| {
        let code = source.code().to_lowercase();
        FAMILY_NAMES.iter().any(|name| code.contains(name))
    };
    let library =
        |source: &&Source| source.path.starts_with("src/") && !source.path.starts_with("src/arch/");
    let found =
        sources.iter().filter(library).filter(|source| !source.is_test() && names_one(source));
    assert_eq!(
        found.map(|source| &source.path[..]).collect::<BTreeSet<_>>(),
        FAMILIES_NAMED.iter().map(|(path, _)| *path).collect(),
        "files that name a family, and the list"
    );
}

/// A shader without a twin on the CPU has nothing that says what is right.
#[test]
fn every_shader_opens_with_what_it_is_and_names_its_twin() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut findings = Vec::new();
    let mut folders = vec![root.join("shaders")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            count += 1;
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            let text = std::fs::read_to_string(&path).unwrap();
            let head = text.lines().take_while(|line| line.starts_with("//"));
            let head = head.map(|line| line.trim_matches(['/', ' '])).collect::<Vec<_>>().join(" ");
            let twin = head
                .split_once("Twin: ")
                .map(|(_, twin)| twin.split(['.', ' ', ',']).next().unwrap_or(""));
            let twin_is_there = twin.is_some_and(|twin| {
                let twin = root.join("src").join(twin);
                twin.is_dir() || twin.with_extension("rs").is_file()
            });
            let alone = ["shaders/shared/", "shaders/naive/"];
            if head.is_empty() {
                findings.push(format!("{name} does not open with what it is"));
            } else if !twin_is_there && !alone.iter().any(|start| name.starts_with(start)) {
                findings.push(format!("{name} names no `Twin: device/cpu/…` that is there"));
            }
            if text.lines().count() > MAX_SHADER_LINES {
                findings.push(format!("{name} is longer than {MAX_SHADER_LINES} lines"));
            }
        }
    }
    assert!(count > 2, "only {count} shaders found");
    none(&findings, "shaders");
}

/// One kernel, one name: its shader, its twin on the CPU, the file that dispatches it and the test
/// that compares them are found by it.
#[test]
fn a_kernel_has_one_name_everywhere() {
    let sources = sources();
    let is_file = |folder: &str, name: &str| {
        let here = |source: &&Source| source.path.starts_with(folder);
        let named = |source: &Source| {
            let inner = &source.path[folder.len()..];
            inner == format!("{name}.rs")
                || inner.ends_with(&format!("/{name}.rs"))
                || inner.contains(&format!("{name}/"))
        };
        sources.iter().filter(here).any(named)
    };
    let tests: Vec<&str> = sources
        .iter()
        .filter(|source| source.path.starts_with("src/device/gpu/tests"))
        .flat_map(|source| source.text.split("    fn ").chain(source.text.split("\nfn ")))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let names = |folder: &str| {
        let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        files.filter_map(|name| Some(name.strip_suffix(".wgsl")?.to_owned())).collect::<Vec<_>>()
    };
    let shaders = names("shaders");
    assert!(shaders.len() > 10, "only {} shaders found", shaders.len());
    let mut lacking = BTreeSet::new();
    for name in &shaders {
        for folder in ["src/device/cpu/", "src/device/gpu/"] {
            if !is_file(folder, name) {
                lacking.insert((name.clone(), format!("{folder}{name}.rs")));
            }
        }
        if !tests.iter().any(|test| test.contains(name.as_str())) {
            lacking.insert((name.clone(), "a test".to_owned()));
        }
    }
    let known: BTreeSet<_> =
        UNNAMED_PARTS.iter().map(|(name, what, _)| (name.to_string(), what.to_string())).collect();
    assert_eq!(lacking, known, "shaders without a file or test of their name, and the list");
    let alone: Vec<_> =
        names("shaders/naive").into_iter().filter(|name| !shaders.contains(name)).collect();
    none(&alone, "naive shaders of no kernel");
}

#[test]
fn crates_stay_behind_their_modules() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let code = source.code();
        for (name, places) in PRIVATE_CRATES {
            if words(&code).any(|word| word == name)
                && !places.iter().any(|place| source.path.starts_with(place))
            {
                findings.push(format!("{} names {name}, which belongs to {places:?}", source.path));
            }
        }
    }
    none(&findings, "crates outside their modules");
}

/// With `cargo test` every member is built with the library's test code in it; a user's is not.
#[test]
fn other_crates_use_no_test_code_of_the_library() {
    let sources = sources();
    let others = sources.iter().filter(|source| source.path.starts_with("crates/"));
    let found = others.filter(|source| words(&source.code()).any(|word| word == "testing"));
    none(
        &found.map(|source| source.path.clone()).collect::<Vec<_>>(),
        "files that name the feature `testing`",
    );
}

/// Cargo does not look into `tests/cli` and `tests/serve`: a file that its member does not list would
/// never run.
#[test]
fn every_test_of_a_member_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources();
    for member in ["cli", "serve"] {
        let manifest = root.join("crates").join(member).join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let folder = format!("tests/{member}/");
        let files = sources.iter().filter_map(|source| source.path.strip_prefix(&folder));
        // What they share is no test of its own.
        let files = files.filter(|file| *file != "common.rs").map(str::to_owned);
        let listed = |file: &String| manifest.contains(&format!("path = \"../../{folder}{file}\""));
        let (found, missing): (Vec<String>, Vec<String>) = files.partition(listed);
        assert!(!found.is_empty(), "no file of {folder} is listed");
        none(&missing, &format!("files that crates/{member}/Cargo.toml does not list"));
    }
}

#[test]
fn nothing_is_left_unwritten() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.path != "tests/tidy.rs") {
        for word in ["todo!", "unimplemented!", "dbg!"] {
            if source.code().contains(word) {
                findings.push(format!("{} has {word}", source.path));
            }
        }
    }
    none(&findings, "unfinished code");
}

/// The Markdown pages of the project, by their paths from its folder.
fn pages() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            if path.is_dir() && ["docs", "trees", "benches"].iter().any(|top| name.starts_with(top))
            {
                folders.push(path);
            } else if name.ends_with(".md") {
                let text = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
                pages.push(Source { path: name, text });
            }
        }
    }
    pages
}

/// The lines of a page outside its code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    page.split("\n```").step_by(2).flat_map(str::lines)
}

/// Targets of a page's links and pictures: `](TARGET)`, `src="TARGET"` and `srcset="TARGET"`. What
/// stands in code is none.
fn links(page: &str) -> Vec<String> {
    let text: String = prose(page).flat_map(|line| [line, "\n"]).collect();
    let text: String = text.split('`').step_by(2).collect();
    let opened = [("](", ')'), ("src=\"", '"'), ("srcset=\"", '"')];
    let found = opened.iter().flat_map(|(opening, closing)| {
        text.split(opening).skip(1).filter_map(|rest| rest.split_once(*closing))
    });
    found.map(|(target, _)| target.to_owned()).collect()
}

/// What GitHub calls a page's headings in links: letters and digits in lower case, a hyphen for
/// every space, and a number behind what was there before.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in prose(page).filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|k| format!("{name}-{k}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        found.extend(names.find(|name| !found.contains(name)));
    }
    found
}

/// A page that moves leaves links behind that lead nowhere, and nobody follows them all.
#[test]
fn every_link_of_a_page_leads_to_a_file_and_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (pages, mut findings, mut followed) = (pages(), Vec::new(), 0);
    for page in &pages {
        for link in links(&page.text) {
            if ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            followed += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = root.join(&page.path).parent().unwrap().to_owned();
            let target = if file.is_empty() { root.join(&page.path) } else { folder.join(file) };
            if !target.exists() {
                findings.push(format!("{}: {link}: there is no such file", page.path));
            } else if !anchor.is_empty()
                && !anchors(&std::fs::read_to_string(target).unwrap()).contains(anchor)
            {
                findings.push(format!("{}: {link}: there is no such heading", page.path));
            }
        }
    }
    assert!(pages.len() > 10 && followed > 40, "{} pages, {followed} links", pages.len());
    none(&findings, "links that lead nowhere");
}

#[test]
fn links_and_headings_are_found_as_github_finds_them() {
    let page = "# A store of 1,000,000 `x`\n## A\n## A\n[a](b.md#c) `[no](d)`\n\
                ```\n[no](e)\n# F\n```\n\
                <img src=\"g.svg\"> [two\nlines](h.md)";
    assert_eq!(links(page), ["b.md#c", "h.md", "g.svg"]);
    let expected = ["a-store-of-1000000-x", "a", "a-1"].map(str::to_owned);
    assert_eq!(anchors(page), BTreeSet::from(expected));
}

#[test]
fn uses_are_found_in_every_form() {
    let code = "use crate::{\n    Error,\n    file::{mmap, gguf::{A, B}},\n};\nuse crate::tree;\nlet x: crate::base::Config;";
    assert_eq!(used_from_the_crate(code), BTreeSet::from(["Error", "base", "file", "tree"]));
}
