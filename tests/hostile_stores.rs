//! A store is published to by many hands, all day. Registries that let a name become a path have
//! written wherever a name pointed; those that read an upload file by file have served one user's
//! weights under another's config. Here a name is checked before anything is written, an adapter is
//! read as one version or not at all, and what was made for another base or by another version of
//! this program is refused by name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pleach::Error;
use pleach::adapter::{Limits, PeftAdapter};
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::error::{AdapterDefect, SafeTensorsDefect, StoreDefect, TreeDefect};
use pleach::store::{Changes, Details, ImportOptions, Store};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::tree::AdapterTree;
use tempfile::TempDir;

/// A made base, a folder for a tree, and a place for its store.
struct Made {
    dir: TempDir,
    base: BaseModel,
}

impl Made {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = base(&dir.path().join("base"), 0);
        adapter(&dir.path().join("tree/fr"), 1);
        adapter(&dir.path().join("tree/fr/alice"), 2);
        Self { dir, base }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn import(&self) -> pleach::Result<Store> {
        let tree = AdapterTree::open(&self.at("tree"))?;
        let lattice = base_lattice(&self.base, 4.0, |_, _| ())?;
        Store::import(
            &self.at("store"),
            &tree,
            &self.base,
            &lattice,
            ImportOptions::default(),
            |_, _| (),
        )?;
        Store::open(&self.at("store"))
    }

    /// The error of an import, which leaves nothing behind.
    fn refused(&self) -> Error {
        let error = self.import().unwrap_err();
        let entries =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> =
            entries.filter(|name| name.to_string_lossy().contains("store")).collect();
        assert!(left.is_empty(), "{left:?}");
        error
    }

    /// The entries that an import refuses, each with its reason.
    fn refused_entries(&self) -> Vec<(String, Error)> {
        match self.refused() {
            Error::Store { defect, .. } => match *defect {
                StoreDefect::Refused { refused } => refused
                    .into_iter()
                    .map(|entry| (entry.name, Arc::into_inner(entry.reason).unwrap()))
                    .collect(),
                other => panic!("{other}"),
            },
            other => panic!("{other}"),
        }
    }

    /// The reason of the one entry that an import refuses.
    fn refused_entry(&self) -> Error {
        let mut refused = self.refused_entries();
        assert_eq!(refused.len(), 1, "{refused:?}");
        refused.remove(0).1
    }
}

fn base(dir: &Path, seed: u64) -> BaseModel {
    tiny_hf_model(dir, &TinyModel { seed, ..TinyModel::default() });
    BaseModel::open(dir).unwrap()
}

fn made_adapter(seed: u64) -> TinyAdapter {
    TinyAdapter::new(vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64)], 2, seed)
}

fn adapter(dir: &Path, seed: u64) {
    made_adapter(seed).write(dir).unwrap();
}

fn defect(result: pleach::Result<impl Sized>) -> StoreDefect {
    match result {
        Err(Error::Store { defect, .. }) => *defect,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it was accepted"),
    }
}

/// Parts that no name may have, alone or between others.
#[rustfmt::skip]
const PARTS: &[&str] = &[
    // Ways up and away.
    "..", ".", "...", ". .", "..\\..", "..\\windows", "a/../b", "a/./b", "a//b", "a/..", "~", "~root", "$HOME", "`id`",
    // Hidden, or another name on another system.
    ".git", ".ssh", "alice.", "alice..", " alice", "alice ", "a  b", "a\u{a0}b", "a\u{3000}b",
    // Drives, shares, addresses, streams, patterns.
    "C:", "C:\\x", "c:x", "alice:", "\\\\host\\share", "file://x", "alice:str/eam:", "*", "?", "a#b", "[a]", "{a}", "a!", "a|b", "<a>", "\"a\"", "'a'", "a;b", "a&b",
    // Devices of Windows, with any extension and in any case.
    "CON", "nul", "Aux.txt", "PRN.tar.gz", "COM1", "lpt9.safetensors", "CON:x", "nul .txt",
    // What is decoded, cut or drawn otherwise later.
    "%2e%2e", "%2Fetc", "a\0", "a\nb", "\u{1b}[2J", "\u{7f}", "аlice", "a\u{202e}b", "\u{2215}etc",
    // Seen as nothing, as another letter, as a slash, or drawn over the line above.
    "a\u{200b}b", "a\u{3164}", "ａlice", "ﬁn", "aノb", "１２", "\u{301}a", "x\u{300}\u{301}\u{302}\u{303}\u{304}",
];

/// The parts at four places, and names that are wrong as a whole.
fn hostile_names() -> BTreeSet<String> {
    let placed = PARTS.iter().flat_map(|part| {
        [
            part.to_string(),
            format!("fr/{part}"),
            format!("{part}/alice"),
            format!("fr/{part}/alice"),
        ]
    });
    let whole = [
        "x".repeat(129),
        format!("fr/{}", "x".repeat(129)),
        vec!["d"; 65].join("/"),
        "fr//alice".to_owned(),
    ];
    placed.chain(whole).collect()
}

#[test]
fn two_hundred_hostile_names_are_refused_by_publish_and_move() {
    let made = Made::new();
    let store = made.import().unwrap();
    let content =
        store.compile_adapter(&made.at("tree/fr"), None, &Limits::default(), false).unwrap();
    let before = (store.stats().unwrap(), store.list("", None, 100).unwrap());
    let names = hostile_names();
    assert!(names.len() >= 200, "{}", names.len());
    for name in &names {
        let mut batch = Changes::new();
        batch.publish("fr/good", content.clone(), Details::default());
        batch.publish(name, content.clone(), Details::default());
        for refused in [
            store.publish(name, content.clone(), Details::default()).map(drop),
            store.move_to("fr/alice", name, None).map(drop),
            store.apply(&batch).map(drop),
        ] {
            let Err(Error::Tree(defect)) = refused else { panic!("{name:?}: {refused:?}") };
            assert!(
                matches!(*defect, TreeDefect::InvalidName { .. } | TreeDefect::TooDeep { .. }),
                "{name:?}: {defect}"
            );
            let text = defect.to_string();
            assert!(text.len() < 1000 && !text.contains(char::is_control), "{text:?}");
        }
    }
    for root in ["", "/", "///"] {
        let refused = defect(store.publish(root, content.clone(), Details::default()));
        assert!(matches!(refused, StoreDefect::Root { .. }), "{refused}");
        assert!(matches!(
            store.move_to("fr/alice", root, None),
            Err(Error::Tree(_) | Error::Store { .. })
        ));
    }
    assert_eq!((store.stats().unwrap(), store.list("", None, 100).unwrap()), before);
}

/// Platforms call their users by mail addresses, by numbers behind colons and by their names.
#[test]
fn names_that_platforms_give_are_published_and_found_in_either_encoding() {
    let made = Made::new();
    let store = made.import().unwrap();
    let content = || store.compile(&Default::default()).unwrap();
    for name in [
        "alice smith",
        "fr/alice@example.org",
        "user:42",
        "a+b=c,d (2)",
        "médecine/Zoë",
        "東京dev",
        "москва",
    ] {
        store.publish(name, content(), Details::default()).unwrap();
        assert_eq!(store.get(name).unwrap().name, name);
    }
    // As macOS writes it: `e` and a mark.
    assert_eq!(store.get("me\u{301}decine/Zoe\u{308}").unwrap().name, "médecine/Zoë");
    store.publish("de\u{301}jà", content(), Details::default()).unwrap();
    assert_eq!(store.get("déjà").unwrap().name, "déjà");
    let below = store.list("me\u{301}", None, 9).unwrap();
    assert_eq!(below.iter().map(|node| &node.name[..]).collect::<Vec<_>>(), ["médecine/Zoë"]);
    let again = defect(store.publish("de\u{301}ja\u{300}", content(), Details::default()));
    assert!(matches!(again, StoreDefect::NodeExists { .. }), "{again}");
    let folder = std::fs::read_dir(store.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(
        folder.collect::<BTreeSet<_>>(),
        ["catalogue.db", "reserve", "segments"].map(Into::into).into()
    );
}

#[test]
fn absolute_name_is_a_name_inside_the_store() {
    let made = Made::new();
    let store = made.import().unwrap();
    let content = store.compile(&Default::default()).unwrap();
    store.publish("/etc/passwd", content, Details::default()).unwrap();
    assert_eq!(store.get("etc/passwd").unwrap().name, "etc/passwd");
    let folder = std::fs::read_dir(store.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(
        folder.collect::<BTreeSet<_>>(),
        ["catalogue.db", "reserve", "segments"].map(Into::into).into()
    );
}

#[cfg(unix)]
#[test]
fn links_out_of_the_tree_are_not_imported() {
    use std::os::unix::fs::symlink;
    let made = Made::new();
    adapter(&made.at("secret"), 3);
    symlink(made.at("secret"), made.at("tree/fr/eve")).unwrap();
    assert!(
        matches!(made.refused_entry(), Error::Tree(defect) if matches!(*defect, TreeDefect::OutsideRoot { .. }))
    );
    std::fs::remove_file(made.at("tree/fr/eve")).unwrap();
    let tensors = made.at("tree/fr/alice/adapter_model.safetensors");
    std::fs::remove_file(&tensors).unwrap();
    symlink(made.at("secret/adapter_model.safetensors"), &tensors).unwrap();
    assert!(
        matches!(made.refused_entry(), Error::Tree(defect) if matches!(*defect, TreeDefect::OutsideRoot { .. }))
    );
}

#[test]
fn another_base_is_refused() {
    let made = Made::new();
    let store = made.import().unwrap();
    let other = base(&made.at("other"), 9);
    for refused in [
        store.check_base(&other),
        store
            .compile_adapter(&made.at("tree/fr"), Some(&other), &Limits::default(), false)
            .map(drop),
    ] {
        let text = defect(refused).to_string();
        assert!(
            text.contains(made.base.content_hash()) && text.contains(other.content_hash()),
            "{text}"
        );
    }
    std::fs::write(
        made.at("tree/tree.toml"),
        format!("[base]\nblake3 = {:?}", other.content_hash()),
    )
    .unwrap();
    std::fs::remove_dir_all(store.folder()).unwrap();
    assert!(matches!(made.refused(), Error::WrongBase { .. }));
    let narrow = made.at("narrow");
    tiny_hf_model(&narrow, &TinyModel { hidden: 96, heads: 6, ..TinyModel::default() });
    std::fs::remove_file(made.at("tree/tree.toml")).unwrap();
    let made = Made { base: BaseModel::open(&narrow).unwrap(), ..made };
    // The child of what is refused is refused with it: under the root it would be another model.
    let found = made.refused_entries();
    let [(fr, Error::Adapter { defect, .. }), (alice, Error::Tree(below))] = &found[..] else {
        panic!("{found:?}")
    };
    assert!(fr == "fr" && matches!(**defect, AdapterDefect::ShapeMismatch { .. }), "{defect}");
    assert!(
        alice == "fr/alice"
            && matches!(&**below, TreeDefect::BelowRefused { parent, .. } if parent == "fr")
    );
}

#[test]
fn segment_of_another_version_or_store_is_refused() {
    let made = Made::new();
    let store = made.import().unwrap();
    let segment = store.folder().join("segments/00000001.seg");
    let whole = std::fs::read(&segment).unwrap();
    let opened = || Store::open(store.folder()).and_then(|store| store.lattice());
    opened().unwrap();
    let with_header = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        let hash = blake3::hash(&bytes[..32]);
        bytes[32..64].copy_from_slice(hash.as_bytes());
        // Renamed into place: the file itself is mapped.
        let beside = made.at("beside");
        std::fs::write(&beside, bytes).unwrap();
        std::fs::rename(&beside, &segment).unwrap();
        defect(opened())
    };
    let later = with_header(8, 2);
    assert!(
        matches!(later, StoreDefect::FormatVersion { part: "a segment", expected: 1, found: 2 }),
        "{later}"
    );
    assert!(later.to_string().contains("use the program that wrote it"), "{later}");
    for (at, byte) in [(0, b'X'), (12, 9), (16, !whole[16])] {
        let damaged = with_header(at, byte);
        assert!(matches!(damaged, StoreDefect::Damaged { .. }), "{at}: {damaged}");
    }
}

#[test]
fn oversized_headers_are_refused_before_they_are_read() {
    let made = Made::new();
    let tensors = made.at("tree/fr/alice/adapter_model.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    for length in [u64::MAX, 1 << 40, (8 << 20) + 1] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&tensors, &bytes).unwrap();
        match made.refused_entry() {
            Error::SafeTensors {
                path,
                defect: SafeTensorsDefect::HeaderTooLarge { bytes, .. },
            } => {
                assert!(
                    bytes == length && path.ends_with("fr/alice/adapter_model.safetensors"),
                    "{}",
                    path.display()
                );
            }
            error => panic!("{error}"),
        }
    }
    std::fs::write(made.at("tree/fr/alice/adapter_config.json"), vec![b' '; (1 << 20) + 1])
        .unwrap();
    assert!(matches!(made.refused_entry(), Error::FileTooLarge { .. }));
}

/// A thread moves whole versions of a folder into place. A reader gets one of them, or learns that
/// it came in between.
#[test]
fn adapter_replaced_while_it_is_read_is_one_version_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Both versions fit each other's config: a mixture would pass every other check.
    let versions =
        [1_u32, 2].map(|k| TinyAdapter { alpha: f64::from(k), ..made_adapter(k.into()) });
    let hashes = versions.each_ref().map(|version| {
        PeftAdapter::from_bytes(&version.config_bytes(), version.tensor_bytes(), &Limits::default())
            .unwrap()
            .hash()
    });
    versions[0].write(&at("adapter")).unwrap();
    let done = AtomicBool::new(false);
    let (mut seen, mut between) = ([0_u32; 2], 0_u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in [1, 0].into_iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                // New files each time, as a publisher makes them.
                versions[version].write(&at("next")).unwrap();
                for (from, to) in [("adapter", "last"), ("next", "adapter")] {
                    std::fs::rename(at(from), at(to)).unwrap();
                }
                std::fs::remove_dir_all(at("last")).unwrap();
            }
        });
        while seen.iter().any(|count| *count < 300) {
            match PeftAdapter::open(&at("adapter"), &Limits::default()) {
                Ok(adapter) => {
                    let version = hashes.iter().position(|hash| *hash == adapter.hash());
                    // The thread must end even if this fails.
                    let Some(version) = version else { break };
                    seen[version] += 1;
                }
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    between += 1
                }
                Err(Error::Adapter { defect, .. })
                    if matches!(
                        *defect,
                        AdapterDefect::Changed { .. } | AdapterDefect::MissingFile { .. }
                    ) =>
                {
                    between += 1;
                }
                Err(_) => break,
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(
        seen.iter().all(|count| *count >= 300),
        "a mixture, or another error: {seen:?}, {between} in between"
    );
}
