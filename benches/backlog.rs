//! A million files that wait: from the director's start to the first item's, against reading and looking at all of them
//! (the stat floor, in the same run); its memory; whether the oldest go first; and how fast it then works them off, against
//! a short queue, and the floor program from both folders beside it. The files are made once and used again by the next run.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

mod common;

use common::floor::Floor;
use common::{Bench, Root, compare, median, number, pause};

const CONFIG: &str = r#"
[inbox]
settle = "2s"
[devices]
use = "cpu"
cpu_slots = 2
[[route]]
name = "backlog"
kind = "any"
command = ["/bin/true"]
gpus = 0
"#;

/// How many items the throughput is taken over.
const FIRST: usize = 2000;
/// The short queue never holds less than this.
const SHORT: usize = 1000;

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let waiting = number("GAMDOK_BENCH_ITEMS", 1_000_000);
    let rounds = number("GAMDOK_BENCH_ROUNDS", 3);
    let kept = Bench::kept(&format!("backlog-{waiting}"));
    let bench = Bench::new("backlog");
    let [mut start, mut stat, mut ready, mut peak, mut overtaken] = [(); 5].map(|()| Vec::new());
    let [mut long, mut short, mut floor_long, mut floor_short] = [(); 4].map(|()| Vec::new());
    for round in 0..rounds {
        let root = bench.root(&format!("long{round}"), CONFIG);
        let shelf = kept.dir.join("inbox");
        // The root is new, its inbox is the kept one: what earlier runs have filed weighs on none.
        if shelf.exists() {
            fs::remove_dir(root.inbox()).expect("an empty inbox");
            fs::rename(&shelf, root.inbox()).expect("the kept inbox");
        }
        fill(&root.inbox(), waiting);
        let queue = bench.root(&format!("short{round}"), CONFIG);
        fill(&queue.inbox(), SHORT + FIRST);
        // Older than `settle`, so that the first scan may take them.
        pause(Duration::from_secs(3));

        stat.push(stat_floor(&root.inbox()).min(stat_floor(&root.inbox())));
        let of_long = measure(&root);
        let of_short = measure(&queue);
        start.push(of_long.first_start);
        ready.push(of_long.ready);
        peak.push(of_long.peak_mib);
        long.push(of_long.rate);
        short.push(of_short.rate);

        let oldest = by_age(&root.inbox());
        overtaken.push(oldest.partition_point(|(ctime, _)| *ctime < of_long.youngest_ns) as f64);
        floor_long.push(floor_rate(&bench.dir.join(format!("floor-long{round}")), &root.inbox(), &oldest));
        fill(&queue.inbox(), SHORT + FIRST);
        let names = by_age(&queue.inbox());
        floor_short.push(floor_rate(&bench.dir.join(format!("floor-short{round}")), &queue.inbox(), &names));
        fs::rename(root.inbox(), &shelf).expect("the inbox is kept");
    }
    println!("\n{waiting} files waiting, medians of {rounds} rounds");
    compare("start to the first item's start", "s", median(&mut start), median(&mut stat));
    println!("start to READY=1                   {:>9.1} ms", median(&mut ready) * 1000.0);
    println!("peak memory (VmHWM)                {:>9.1} MiB", median(&mut peak));
    println!("older ones left when {FIRST} were done {:>7.0}", median(&mut overtaken));
    rates("gamdok, items/s", median(&mut long), median(&mut short));
    rates("floor, items/s", median(&mut floor_long), median(&mut floor_short));
}

fn rates(what: &str, long: f64, short: f64) {
    println!("{what:<34} {long:>9.0}   with {SHORT} waiting {short:>9.0}   ratio {:>6.2}", long / short);
}

/// Makes up the number of files in a folder.
fn fill(inbox: &Path, wanted: usize) {
    let present = fs::read_dir(inbox).expect("read").count();
    if present + FIRST * 4 < wanted {
        println!("making {} files in {}", wanted - present, inbox.display());
    }
    let run = common::now_ns();
    for n in present..wanted {
        File::create_new(inbox.join(format!("item-{run}-{n:07}"))).expect("made");
    }
}

/// Reading all names and looking at each file once.
fn stat_floor(inbox: &Path) -> f64 {
    let started = Instant::now();
    let mut bytes = 0;
    for entry in fs::read_dir(inbox).expect("read") {
        bytes += entry.expect("an entry").metadata().expect("a file").len();
    }
    std::hint::black_box(bytes);
    started.elapsed().as_secs_f64()
}

/// The names with their ctimes in nanoseconds, oldest first.
fn by_age(inbox: &Path) -> Vec<(i128, OsString)> {
    let entries = fs::read_dir(inbox).expect("read").map(|entry| entry.expect("an entry"));
    let aged = entries.map(|entry| {
        let seen = entry.metadata().expect("a file");
        (i128::from(seen.ctime()) * 1_000_000_000 + i128::from(seen.ctime_nsec()), entry.file_name())
    });
    let mut names: Vec<_> = aged.collect();
    names.sort();
    names
}

/// The floor program on the oldest of a folder, items a second.
fn floor_rate(dir: &Path, inbox: &Path, oldest: &[(i128, OsString)]) -> f64 {
    let mut floor = Floor::new(dir, &["/bin/true"]);
    floor.inbox = inbox.to_owned();
    let started = Instant::now();
    for (n, (_, name)) in oldest.iter().take(FIRST).enumerate() {
        if n >= 2 {
            floor.reap();
        }
        floor.begin(name.clone());
    }
    floor.reap();
    floor.reap();
    FIRST as f64 / started.elapsed().as_secs_f64()
}

struct Measured {
    /// Seconds from the start of the process.
    ready: f64,
    first_start: f64,
    rate: f64,
    peak_mib: f64,
    /// The latest arrival among the first items.
    youngest_ns: i128,
}

fn measure(root: &Root) -> Measured {
    let launched = Timestamp::now();
    let director = root.start();
    // Looked at seldom: whoever counts the outcomes takes a core from those who make them.
    while root.done() < FIRST as u64 {
        assert!(Timestamp::now().duration_since(launched).as_secs() < 600, "{FIRST} items took ten minutes");
        pause(Duration::from_millis(100));
    }
    let (ready, peak_mib) = (director.ready_in.as_secs_f64(), director.kilobytes("VmHWM") as f64 / 1024.0);
    director.stop();
    let mut results = root.results();
    results.sort_by_key(|result| result.finished);
    results.truncate(FIRST);
    let first = results.iter().map(|result| result.started).min().expect("some");
    let last = results.last().expect("some").finished;
    Measured {
        ready,
        first_start: first.duration_since(launched).as_secs_f64(),
        rate: results.len() as f64 / last.duration_since(first).as_secs_f64(),
        peak_mib,
        youngest_ns: results.iter().map(|result| result.arrived.as_nanosecond()).max().expect("some"),
    }
}
