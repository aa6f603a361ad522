//! Disks fill up, come loose and fail to sync, and programs that never saw it happen lose what they
//! had promised. Here every step to disk of a script of changes fails once, for a moment or for
//! good: what was confirmed is there afterwards, what failed has not happened, and the next change
//! works.

#[path = "common/stored.rs"]
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use pleach::error::StoreDefect;
use pleach::store::{Faults, Store, StoreOptions};
use pleach::{Error, Result};
use stored::{Model, Op, content, info, labelled, lattice, look, scratch, verified};

fn script() -> Vec<Op> {
    let publish = |name: &str, seed| Op::Publish(name.into(), seed);
    let replace = |name: &str, seed| Op::Replace(name.into(), seed);
    vec![
        publish("fr", 1),
        publish("fr/alice", 2),
        publish("fr/bob", 3),
        replace("fr/alice", 4),
        Op::Batch(vec![
            publish("de", 5),
            publish("de/eva", 6),
            replace("fr/bob", 7),
            Op::Remove("de/eva".into()),
        ]),
        Op::Move("fr".into(), "de/fr".into()),
        Op::Rollback("de/eva".into(), 6),
        Op::Compact,
        replace("de/fr/bob", 8),
        Op::Remove("de/fr".into()),
        publish("it", 9),
        Op::Rollback("de/fr".into(), 9),
        Op::Compact,
        publish("it/gia", 10),
    ]
}

fn unconfirmed(error: &Error) -> bool {
    matches!(error, Error::Store { defect, .. } if matches!(**defect, StoreDefect::Unconfirmed { .. }))
}

/// What an error is, for the count; anything but these has no business here.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "Io",
        Error::Store { defect, .. } => match **defect {
            StoreDefect::Unconfirmed { .. } => "Unconfirmed",
            StoreDefect::Catalogue { .. } => "Catalogue",
            _ => panic!("{error}"),
        },
        _ => panic!("{error}"),
    }
}

/// Runs the script at `folder` until its end, errors or not; returns what the store may hold now
/// and the errors.
fn run(folder: &Path, options: &StoreOptions) -> (Vec<Model>, Vec<Error>) {
    let mut errors = Vec::new();
    let mut store = match Store::create_with(folder, info(), lattice(), options) {
        Ok(store) => store,
        Err(error) => return (vec![Model::default()], vec![error]),
    };
    // More than one after a change that was not confirmed.
    let mut models = vec![(Model::default(), 0)];
    for (at, op) in script().iter().enumerate() {
        if at == 4 {
            drop(store);
            store = match Store::open_with(folder, options) {
                Ok(store) => store,
                Err(error) => {
                    errors.push(error);
                    break;
                }
            };
        }
        let allowed: Vec<_> =
            models.iter().filter(|(model, _)| model.allows(op)).cloned().collect();
        if allowed.is_empty() {
            continue;
        }
        let mut after = allowed.clone();
        for (model, generation) in &mut after {
            model.make(op, *generation + 1);
            *generation += op.generations();
        }
        match op.make(&store) {
            Ok(made) => {
                after.retain(|(_, generation)| made.is_none_or(|made| made == *generation));
                assert!(!after.is_empty(), "{op:?} made generation {made:?}");
                models = after;
            }
            Err(error) => {
                if unconfirmed(&error) || matches!(op, Op::Compact) {
                    models.extend(after);
                }
                // A refusal, where it is not known what the store holds.
                if !(models.len() > 1 && matches!(error, Error::Tree(_))) {
                    errors.push(error);
                }
            }
        }
    }
    (models.into_iter().map(|(model, _)| model).collect(), errors)
}

/// The store after `steps` steps and a failure; counts the errors by kind.
fn fail_after(steps: i64, for_good: bool, kinds: &mut BTreeMap<&'static str, usize>) -> Result<()> {
    let folder = scratch();
    let place = folder.path().join("store");
    let options = StoreOptions {
        faults: Faults::after(steps, for_good),
        segment_bytes: 4096,
        ..StoreOptions::default()
    };
    let (models, errors) = run(&place, &options);
    for error in &errors {
        *kinds.entry(kind(error)).or_default() += 1;
    }
    if !Store::is_store(&place) {
        assert!(errors.len() == 1 && models[0] == Model::default(), "the store is gone");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "something was left behind"
        );
        Store::create(&place, info(), lattice())?;
    }
    let store = Store::open(&place)?;
    let names: BTreeSet<String> = models.iter().flat_map(Model::names).collect();
    let found = look(&store, &names)?;
    let which = models.iter().position(|model| *model == found);
    assert!(which.is_some(), "{errors:?}\nfound {found:#?}\ninstead of {models:#?}");
    verified(&store);
    store.publish("later", content(99), labelled(99))?;
    assert_eq!(look(&store, &names)?.nodes.len(), found.nodes.len() + 1);
    verified(&store);
    Ok(())
}

#[test]
fn a_failure_at_any_step_loses_nothing_and_leaves_nothing_half_done() {
    let folder = scratch();
    let options = StoreOptions {
        faults: Faults::after(i64::MAX, false),
        segment_bytes: 4096,
        ..StoreOptions::default()
    };
    let (models, errors) = run(&folder.path().join("store"), &options);
    assert!(models.len() == 1 && errors.is_empty(), "{errors:?}");
    let steps = i64::try_from(options.faults.steps()).unwrap();
    assert!(steps > 100, "only {steps} steps");
    let mut kinds = BTreeMap::new();
    for step in 0..steps {
        for for_good in [false, true] {
            if let Err(error) = fail_after(step, for_good, &mut kinds) {
                panic!("step {step}, for good {for_good}: {error}");
            }
        }
    }
    let printed = format!("{steps} steps, errors: {kinds:?}");
    std::io::stderr().write_all(format!("{printed}\n").as_bytes()).unwrap();
    assert_eq!(kinds.keys().copied().collect::<Vec<_>>(), ["Io", "Unconfirmed"], "{printed}");
}

/// A change whose end failed was looked for, found missing and made again: then it turned up from
/// before, when the next program wrote. What a look shows after the failure stays, for every reader.
#[test]
fn what_an_unconfirmed_change_left_stays() {
    let mut ends = 0;
    for steps in 0.. {
        let folder = scratch();
        let place = folder.path().join("store");
        drop(Store::create(&place, info(), lattice()).unwrap());
        let faults = Faults::after(steps, false);
        let store =
            Store::open_with(&place, &StoreOptions { faults, ..StoreOptions::default() }).unwrap();
        let reader = Store::open(&place).unwrap();
        let Err(error) = store.publish("a", content(1), labelled(1)) else { break };
        let holds = |store: &Store| !store.list("a", None, 1).unwrap().is_empty();
        // The reader looks first: the store opens its database again to write when it next looks,
        // and that alone would make a commit valid that nobody settled.
        let seen = holds(&reader);
        assert_eq!(holds(&store), seen, "step {steps}: {error}");
        if unconfirmed(&error) {
            ends += 1;
            assert!(error.to_string().contains("settled"), "{error}");
        } else {
            assert!(!seen, "step {steps}: {error}");
        }
        drop(store);
        let next = Store::open(&place).unwrap();
        next.publish("b", content(2), labelled(2)).unwrap();
        assert_eq!([holds(&next), holds(&reader)], [seen; 2], "step {steps}: {error}");
        verified(&next);
    }
    assert!(ends > 1, "{ends} ends of a change failed");
}

/// A change that is refused may have made a segment already. Another process removes that and makes
/// it again: bytes that went to the old file would be gone.
#[test]
fn a_segment_that_another_process_made_anew_is_the_one_written_to() {
    let folder = scratch();
    let options = StoreOptions { segment_bytes: 4096, ..StoreOptions::default() };
    let store =
        Store::create_with(&folder.path().join("store"), info(), lattice(), &options).unwrap();
    let mut seed = 0;
    let mut publish = |store: &Store| {
        seed += 1;
        store.publish(&format!("n{seed}"), content(seed), labelled(seed)).unwrap();
    };
    publish(&store);
    let segments = |store: &Store| store.stats().unwrap().segments;
    for _ in 0..20 {
        let before = segments(&store);
        assert!(store.publish("n1", content(0), labelled(0)).is_err());
        if segments(&store) > before {
            let other = Store::open_with(store.folder(), &options).unwrap();
            other.compact(|_, _| ()).unwrap();
            assert_eq!(segments(&store), before);
            publish(&other);
            assert_eq!(segments(&store), before + 1);
        }
        publish(&store);
        look(&Store::open(store.folder()).unwrap(), &BTreeSet::new()).unwrap();
    }
    assert!(segments(&store) > 3);
    verified(&store);
}
