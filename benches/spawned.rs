//! Spawned items: files dropped by rename, each worked off by `/bin/true`, two at a time; gamdok beside the floor and the
//! peers that are installed, in alternating rounds.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod common;

use common::floor::Floor;
use common::{Bench, drop_into, median, number, stage, until};

const CONFIG: &str = r#"
[devices]
use = "cpu"
cpu_slots = 2
[[route]]
name = "spawned"
kind = "any"
command = ["/bin/true"]
gpus = 0
"#;

type Contender = (&'static str, fn(&Bench, usize, usize) -> Option<Duration>);

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let (items, rounds) = (number("GAMDOK_BENCH_ITEMS", 5000), number("GAMDOK_BENCH_ROUNDS", 3));
    let bench = Bench::new("spawned");
    let contenders: [Contender; 5] = [
        ("floor", floor),
        ("gamdok", gamdok),
        ("xargs -P2 (no claim, no record)", xargs),
        ("task-spooler tsp -S 2", task_spooler),
        ("GNU parallel -j2", parallel),
    ];
    let mut took = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for (at, (name, run)) in contenders.iter().enumerate() {
            match run(&bench, round, items) {
                Some(time) => took[at].push(time.as_secs_f64() * 1000.0 / items as f64),
                None if round == 0 => println!("{name}: not installed, skipped"),
                None => {}
            }
        }
    }
    let floor = median(&mut took[0]);
    println!("\n{items} items, {rounds} rounds, medians");
    for ((name, _), mut took) in contenders.iter().zip(took) {
        if !took.is_empty() {
            let median = median(&mut took);
            println!("{name:<34} {median:>8.3} ms an item   {:>6.2} x floor", median / floor);
        }
    }
}

fn floor(bench: &Bench, round: usize, items: usize) -> Option<Duration> {
    let dir = bench.dir.join(format!("floor-{round}"));
    let staged = stage(&dir.join("staging"), items);
    let mut floor = Floor::new(&dir, &["/bin/true"]);
    let started = Instant::now();
    staged.iter().for_each(|item| drop_into(&floor.inbox, item));
    floor.drain(2);
    Some(started.elapsed())
}

fn gamdok(bench: &Bench, round: usize, items: usize) -> Option<Duration> {
    let root = bench.root(&format!("gamdok-{round}"), CONFIG);
    let staged = root.stage(items);
    let director = root.start();
    let started = Instant::now();
    staged.iter().for_each(|item| root.drop_in(item));
    until("the work", Duration::from_secs(600), || root.done() >= items as u64);
    let took = started.elapsed();
    director.stop();
    assert_eq!(fs::read_dir(root.inbox()).expect("read").count(), 0, "nothing is left in the inbox");
    Some(took)
}

fn xargs(bench: &Bench, round: usize, items: usize) -> Option<Duration> {
    let list = list(bench, round, items);
    let mut command = Command::new("xargs");
    command.args(["-P2", "-n1", "/bin/true"]);
    timed(command, &list)
}

fn parallel(bench: &Bench, round: usize, items: usize) -> Option<Duration> {
    // moreutils has another program of this name.
    let version = Command::new("parallel").arg("--version").stdin(Stdio::null()).output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).starts_with("GNU parallel") {
        return None;
    }
    let list = list(bench, round, items);
    let mut command = Command::new("parallel");
    command.args(["--will-cite", "-j2", "/bin/true"]);
    timed(command, &list)
}

fn task_spooler(bench: &Bench, _round: usize, items: usize) -> Option<Duration> {
    let sockets = tempfile::tempdir().expect("a folder");
    let program = ["tsp", "ts"].into_iter().find(|name| is_task_spooler(name, sockets.path()))?;
    let tsp = |words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).env("TS_SOCKET", sockets.path().join("socket")).env("TMPDIR", &bench.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("task-spooler runs")
    };
    tsp(&["-S", "2"]);
    let started = Instant::now();
    for _ in 0..items {
        tsp(&["-n", "/bin/true"]);
    }
    // Two may be running: the last, and the one before it.
    for id in [items - 2, items - 1] {
        tsp(&["-w", &id.to_string()]);
    }
    let took = started.elapsed();
    tsp(&["-K"]);
    Some(took)
}

/// moreutils has another `ts`, too.
fn is_task_spooler(program: &str, sockets: &Path) -> bool {
    let said = Command::new(program).arg("-V").env("TS_SOCKET", sockets.join("asked")).stdin(Stdio::null()).output();
    said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("Task Spooler"))
}

/// A file of names for programs that read them.
fn list(bench: &Bench, round: usize, items: usize) -> std::path::PathBuf {
    let path = bench.dir.join(format!("names-{round}"));
    let mut file = std::io::BufWriter::new(fs::File::create(&path).expect("made"));
    for n in 0..items {
        writeln!(file, "item-{n:07}").expect("written");
    }
    file.flush().expect("written");
    path
}

fn timed(mut command: Command, stdin: &Path) -> Option<Duration> {
    let started = Instant::now();
    let status = command.stdin(fs::File::open(stdin).expect("opened")).stdout(Stdio::null()).status().ok()?;
    status.success().then(|| started.elapsed())
}
