//! Publishing, alone and in groups, beside what the disk allows; and what it costs those who read
//! meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use pleach::store::{Changes, Content, Details, Store};
use pleach::testing::measures;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::machine::timed;
use crate::made::{Made, stored};
use crate::report::{Goal, Report, commas};
use crate::{switching, turns};

/// Leaves published in groups of so many.
const GROUPS: [(usize, usize); 3] = [(1, 2_000), (100, 10_000), (1_000, 20_000)];
/// Leaves that are read meanwhile, again and again.
const WANTED: usize = 2_000;
/// How long leaves are read, with publishing and without.
const READING: Duration = Duration::from_secs(10);
/// The same where nothing is measured.
const SHORT_READING: Duration = Duration::from_millis(500);

pub(crate) fn measure(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    let store = Store::open(folder)?;
    let mut publisher =
        Publisher { store: &store, made, next: 10 * made.leaves + store.stats()?.generation };
    let ceiling = ceiling(folder, made, report)?;
    for (group, count) in GROUPS {
        let count = turns(count).next_multiple_of(group);
        let first = publisher.next;
        let ready = publisher.contents(count);
        let mut times = Vec::new();
        for contents in ready.chunks(group) {
            times.push(publisher.publish(contents)?);
        }
        publisher.check(first)?;
        let seconds = times.iter().sum::<f64>() / 1e6;
        let goal = Goal::AtLeast(if group == 1 { 200.0 } else { 2_000.0 });
        let figure = match group {
            1 => "publishing one at a time".to_owned(),
            _ => format!("publishing in groups of {}", commas(group as u64)),
        };
        report.row(&figure, count as f64 / seconds, "leaves/s", goal);
        if group == 1 {
            report.row(
                &format!("{figure}, over the ceiling"),
                count as f64 / seconds / ceiling,
                "×",
                Goal::None,
            );
        }
        report.percentiles(&format!("{figure}: a call"), times, Goal::None);
    }
    let mut fill = Vec::new();
    for (group, figure) in
        [(0, "nobody publishing"), (1, "publishing one at a time"), (1_000, "in groups of 1,000")]
    {
        if group > 0 {
            fill = publisher.contents(4_000);
        }
        serve(made, report, &mut publisher, figure, &fill, group)?;
    }
    Ok(())
}

/// Publishes new leaves, numbered on.
struct Publisher<'a> {
    store: &'a Store,
    made: &'a Made,
    next: u64,
}

impl Publisher<'_> {
    fn contents(&self, count: usize) -> Vec<Content> {
        self.made.contents(self.next, count as u64)
    }

    /// Publishes these together; the time in microseconds.
    fn publish(&mut self, contents: &[Content]) -> anyhow::Result<f64> {
        let mut changes = Changes::new();
        for content in contents {
            changes.publish(&Made::name(self.next), content.clone(), Details::default());
            self.next += 1;
        }
        let (done, us) = timed(|| self.store.apply(&changes));
        ensure!(done?.len() == contents.len());
        Ok(us)
    }

    /// Whether the first and the last leaf since `first` have the integers they were made with.
    fn check(&self, first: u64) -> anyhow::Result<()> {
        for number in [first, self.next - 1] {
            let node = stored(self.store, &Made::name(number))?;
            ensure!(self.store.read(&node)? == self.made.compiled(number));
        }
        Ok(())
    }
}

/// What the disk allows at best: a leaf's bytes appended to one file and a page written in another,
/// each made to last.
fn ceiling(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<f64> {
    let leaf = vec![7_u8; usize::try_from(made.contents(0, 1)[0].bytes())?];
    let paths = [folder.join("appended"), folder.join("page")];
    let mut appended = File::create(&paths[0])?;
    let mut page = OpenOptions::new().write(true).create(true).truncate(true).open(&paths[1])?;
    page.write_all(&[1; 4096])?;
    page.sync_all()?;
    let (mut both, mut page_alone) = (Vec::new(), Vec::new());
    for turn in 0..500_u16 {
        let write_page = |page: &mut File| -> std::io::Result<()> {
            page.seek(SeekFrom::Start(0))?;
            page.write_all(&[turn.to_le_bytes()[0]; 4096])?;
            page.sync_data()
        };
        let (done, us) = timed(|| -> std::io::Result<()> {
            appended.write_all(&leaf)?;
            appended.sync_data()?;
            write_page(&mut page)
        });
        done?;
        both.push(us);
        let (done, us) = timed(|| write_page(&mut page));
        done?;
        page_alone.push(us);
    }
    ensure!(std::fs::metadata(&paths[0])?.len() == 500 * leaf.len() as u64);
    paths.iter().try_for_each(std::fs::remove_file)?;
    let rate = |times: &[f64]| times.len() as f64 / times.iter().sum::<f64>() * 1e6;
    report.row(
        "ceiling: a leaf appended and a page written, made to last",
        rate(&both),
        "leaves/s",
        Goal::None,
    );
    report.row("ceiling: a page written, made to last", rate(&page_alone), "pages/s", Goal::None);
    Ok(rate(&both))
}

/// In one thread, looks a leaf up and reads it, then switches to another, in turn; in another,
/// publishes.
fn serve(
    made: &Made,
    report: &mut Report,
    publisher: &mut Publisher<'_>,
    figure: &str,
    contents: &[Content],
    group: usize,
) -> anyhow::Result<()> {
    // A handle of its own, as another process has it.
    let reader = Store::open(publisher.store.folder())?;
    let mut rng = StdRng::seed_from_u64(5);
    let wanted: Vec<u64> = (0..WANTED).map(|_| made.random_leaf(&mut rng)).collect();
    let read = |leaf: u64| {
        let name = Made::name(leaf);
        stored(&reader, &name).and_then(|node| reader.read(&node))
    };
    // Keeps no leaf, so that every switch reads its own.
    let mut runtime = switching::open(publisher.store.folder(), made, 0)?;
    // The disk is not what is asked about.
    wanted.iter().try_for_each(|&leaf| read(leaf).map(|_| ()))?;
    (0..Made::domains())
        .try_for_each(|domain| runtime.switch_to(&Made::domain(domain)).map(|_| ()))?;
    let long = if measures() { READING } else { SHORT_READING };
    let done = AtomicBool::new(false);
    let (reads, switches, published) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let reading = scope.spawn(|| -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
            let (mut reads, mut switches) = (Vec::new(), Vec::new());
            while !done.load(Ordering::Relaxed) {
                let [leaf, other] = [7, 11].map(|prime| wanted[reads.len() * prime % WANTED]);
                let (found, us) = timed(|| read(leaf));
                let found = found?;
                reads.push(us);
                let (switched, us) = timed(|| runtime.switch_to(&Made::name(other)));
                switched?;
                switches.push(us);
                if reads.len().is_multiple_of(64) {
                    ensure!(
                        found == made.compiled(leaf),
                        "{} has other integers",
                        Made::name(leaf)
                    );
                    switching::check(&runtime, made, other)?;
                }
            }
            Ok((reads, switches))
        });
        let start = Instant::now();
        let mut published = 0;
        let mut publish = || -> anyhow::Result<()> {
            while start.elapsed() < long {
                match group {
                    0 => std::thread::sleep(Duration::from_millis(10)),
                    _ => {
                        let at = published % (contents.len() - group + 1);
                        publisher.publish(&contents[at..at + group])?;
                        published += group;
                    }
                }
            }
            Ok(())
        };
        let result = publish();
        done.store(true, Ordering::Relaxed);
        let (reads, switches) = reading.join().expect("it did not panic")?;
        result.map(|()| (reads, switches, published))
    })?;
    report.percentiles(&format!("lookup and read, {figure}"), reads, Goal::None);
    report.percentiles(&format!("switch, {figure}"), switches, Goal::None);
    if group > 0 {
        report.row(
            &format!("leaves published meanwhile, {figure}"),
            published as f64 / long.as_secs_f64(),
            "leaves/s",
            Goal::None,
        );
    }
    Ok(())
}
