//! A million files that wait: from the director's start to its first claim, against reading and looking at all of them
//! (the stat floor, in the same run); its memory; and how fast it then works them off, against a short queue. The files
//! are made once and used again by the next run.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

mod common;

use common::{Bench, Root, compare, number, pause, until};

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
const FIRST: u64 = 2000;

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let waiting = number("GAMDOK_BENCH_ITEMS", 1_000_000);
    let short = Bench::new("backlog-short");
    let queue = short.root("short", CONFIG);
    fill(&queue.inbox(), FIRST as usize + 1000);
    let long = Bench::kept(&format!("backlog-{waiting}"));
    let root = long.root("long", CONFIG);
    fill(&root.inbox(), waiting);
    // Older than `settle`, so that the first scan may take them.
    pause(Duration::from_secs(5));

    let floor = stat_floor(&root.inbox()).min(stat_floor(&root.inbox()));
    let measured = measure(&root);
    let baseline = measure(&queue);
    println!("\n{waiting} files waiting");
    compare("start to first claim", "s", measured.first_claim.as_secs_f64(), floor.as_secs_f64());
    println!("start to READY=1                   {:>9.3} s", measured.ready.as_secs_f64());
    println!("peak memory (VmHWM)                {:>9.1} MiB", measured.peak_kib as f64 / 1024.0);
    let (ours, usual) = (measured.rate, baseline.rate);
    println!(
        "items/s over the first {FIRST}        {ours:>9.0}   with 1,000 waiting {usual:>9.0}   ratio {:.2}",
        ours / usual
    );
}

/// Makes up the number of files in a folder.
fn fill(inbox: &Path, wanted: usize) {
    let present = fs::read_dir(inbox).expect("read").count();
    if present < wanted {
        println!("making {} files in {}", wanted - present, inbox.display());
    }
    let run = common::now_ns();
    for n in present..wanted {
        File::create_new(inbox.join(format!("item-{run}-{n:07}"))).expect("made");
    }
}

/// Reading all names and looking at each file once.
fn stat_floor(inbox: &Path) -> Duration {
    let started = Instant::now();
    let mut bytes = 0;
    for entry in fs::read_dir(inbox).expect("read") {
        bytes += entry.expect("an entry").metadata().expect("a file").len();
    }
    std::hint::black_box(bytes);
    started.elapsed()
}

struct Measured {
    ready: Duration,
    first_claim: Duration,
    rate: f64,
    peak_kib: u64,
}

fn measure(root: &Root) -> Measured {
    let before = root.done();
    let started = Instant::now();
    let director = root.start();
    until("the first claim", Duration::from_secs(300), || root.claimed() > 0 || root.done() > before);
    let first_claim = started.elapsed();
    until("the first outcome", Duration::from_secs(60), || root.done() > before);
    let (working, already) = (Instant::now(), root.done());
    until("the work", Duration::from_secs(600), || root.done() >= before + FIRST);
    let rate = (root.done() - already) as f64 / working.elapsed().as_secs_f64();
    let measured = Measured { ready: director.ready_in, first_claim, rate, peak_kib: director.kilobytes("VmHWM") };
    director.stop();
    measured
}
