//! Opening a store, looking leaves up, and reading one that nobody has read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use pleach::store::{Location, Store};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::machine::{drop_folder_from_memory, drop_from_memory, memory, timed};
use crate::made::{Made, stored};
use crate::report::{Goal, Report, median};
use crate::{OPEN_AND_TELL, turns};

/// Times that the store is opened.
const OPENINGS: usize = 20;
const LOOKUPS: usize = 20_000;
/// Children and nodes asked for at a time.
const PAGE: usize = 100;
/// Leaves read. Few beside all of them, so that the disk's reading ahead seldom helps.
const READS: usize = 300;

pub(crate) fn measure(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    open(folder, made, report)?;
    look_up(folder, made, report)?;
    read(folder, made, report)
}

fn open(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    for (figure, cold) in [("open", false), ("open, catalogue not in memory", true)] {
        let (mut times, mut with_lookup) = (Vec::new(), Vec::new());
        for turn in 0..OPENINGS as u64 {
            if cold {
                drop_from_memory(&folder.join("catalogue.db"))?;
            }
            let (store, open_us) = timed(|| Store::open(folder));
            let store = store?;
            let (node, look_us) = timed(|| store.get(&Made::name(turn)));
            ensure!(node?.version.parent == Made::domain(turn) && store.len()? >= made.nodes());
            times.push(open_us / 1e3);
            with_lookup.push((open_us + look_us) / 1e3);
        }
        for (figure, times, goal) in [
            (figure.to_owned(), times, Goal::AtMost(20.0)),
            (format!("{figure}, and the first lookup"), with_lookup, Goal::None),
        ] {
            report.row(&figure, median(&times), "ms", goal);
        }
    }
    let child = Command::new(std::env::current_exe()?)
        .arg(made.leaves.to_string())
        .env(OPEN_AND_TELL, folder)
        .output()?;
    ensure!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let printed = String::from_utf8(child.stdout)?;
    let figures = printed.lines().filter_map(|line| line.split_once('\t'));
    let goal =
        |figure: &str| if figure.contains("opening") { Goal::AtMost(64.0) } else { Goal::None };
    for (figure, bytes) in figures {
        report.row(figure, bytes.parse::<f64>()? / f64::from(1 << 20), "MiB", goal(figure));
    }
    Ok(())
}

/// The memory of this process before it opens the store, then, and after it looked many of its
/// `leaves` up.
pub(crate) fn tell_memory(folder: &Path, leaves: u64) -> anyhow::Result<()> {
    let report = |when: &str| -> anyhow::Result<()> {
        println!("resident, {when}\t{}", memory("VmRSS")?);
        println!("resident, {when}, not of files\t{}", memory("RssAnon")?);
        Ok(())
    };
    report("before")?;
    let store = Store::open(folder)?;
    ensure!(store.len()? >= leaves);
    report("after opening")?;
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..turns(LOOKUPS) {
        store.get(&Made::name(rand::Rng::random_range(&mut rng, 0..leaves)))?;
    }
    report("after 20,000 lookups")
}

fn look_up(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    let catalogue = folder.join("catalogue.db");
    drop_from_memory(&catalogue)?;
    let store = Store::open(folder)?;
    let mut rng = StdRng::seed_from_u64(3);
    let mut leaves =
        |count: usize| -> Vec<u64> { (0..count).map(|_| made.random_leaf(&mut rng)).collect() };
    let mut look = |figure: &str,
                    count: usize,
                    goal,
                    ask: &dyn Fn(u64, &str, &str) -> pleach::Result<bool>| {
        let mut times = Vec::new();
        for leaf in leaves(count) {
            let (name, domain) = (Made::name(leaf), Made::domain(leaf));
            let (right, us) = timed(|| ask(leaf, &name, &domain));
            ensure!(right?, "a wrong answer about {name}");
            times.push(us);
        }
        report.percentiles(figure, times, goal);
        Ok(())
    };
    let get = |_, name: &str, domain: &str| {
        store.get(name).map(|node| node.name == name && node.version.parent == domain)
    };
    look("lookup of a random leaf, catalogue not in memory", READS, Goal::None, &get)?;
    std::io::copy(&mut File::open(&catalogue)?, &mut std::io::sink())?;
    look("lookup of a random leaf", turns(LOOKUPS), Goal::AtMost(20.0), &get)?;
    look("its path", turns(LOOKUPS / 10), Goal::None, &|_, name, domain| {
        store
            .path(name)
            .map(|path| path.len() == 3 && path[2].name == name && path[1].name == domain)
    })?;
    look("a page of 100 children", turns(LOOKUPS / 10), Goal::None, &|leaf, name, domain| {
        let page = store.children(domain, Some(name), PAGE)?;
        let next = leaf + 400;
        let expected = (next < made.leaves).then(|| Made::name(next));
        Ok(expected.is_none_or(|expected| page.first() == Some(&expected)) && page.is_sorted())
    })?;
    look("a page of 100 nodes by prefix", turns(LOOKUPS / 10), Goal::None, &|_, name, _| {
        // Up to 100 nodes have it.
        let prefix = &name[..name.len() - 2];
        let page = store.list(prefix, None, PAGE)?;
        Ok(page.iter().any(|node| node.name == name)
            && page.iter().all(|node| node.name.starts_with(prefix)))
    })
}

/// Reading a leaf's bytes alone, then as the store does: mapped, hashed and decoded.
fn read(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    let segments = folder.join("segments");
    let mut rng = StdRng::seed_from_u64(4);
    let mut sample = || -> anyhow::Result<Vec<(u64, Location)>> {
        let store = Store::open(folder)?;
        let leaves = (0..READS).map(|_| made.random_leaf(&mut rng));
        leaves.map(|leaf| Ok((leaf, stored(&store, &Made::name(leaf))?))).collect()
    };
    for (figure, cold) in [("a leaf from disk", true), ("a leaf in memory", false)] {
        let (plain, through) = (sample()?, sample()?);
        if cold {
            drop_folder_from_memory(&segments)?;
        }
        if !cold {
            for (_, node) in plain.iter().chain(&through) {
                bytes_of(folder, node)?;
            }
        }
        let mut times = Vec::new();
        for (_, node) in &plain {
            let (bytes, us) = timed(|| bytes_of(folder, node));
            ensure!(blake3::hash(&bytes?).as_bytes() == &node.blake3);
            times.push(us);
        }
        let floor = report.percentiles(&format!("{figure}: its bytes alone"), times, Goal::None);
        if cold {
            drop_folder_from_memory(&segments)?;
        }
        let store = Store::open(folder)?;
        if !cold {
            // Maps the segments.
            through.iter().try_for_each(|(_, node)| store.read(node).map(|_| ()))?;
        }
        let mut times = Vec::new();
        for (leaf, node) in &through {
            let (read, us) = timed(|| store.read(node));
            ensure!(read? == made.compiled(*leaf) && stored(&store, &Made::name(*leaf))? == *node);
            times.push(us);
        }
        let found =
            report.percentiles(&format!("{figure}: read, checked, decoded"), times, Goal::None);
        let goal = if cold { Goal::AtMost(2.0) } else { Goal::None };
        report.row(&format!("{figure}: the store over its bytes alone"), found / floor, "×", goal);
    }
    Ok(())
}

/// A leaf's bytes as they lie in its segment, by the shortest way.
pub(crate) fn bytes_of(folder: &Path, location: &Location) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(folder.join(format!("segments/{:08}.seg", location.segment)))?;
    let mut bytes = vec![0; usize::try_from(location.length).expect("a leaf is small")];
    file.seek(SeekFrom::Start(location.offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
