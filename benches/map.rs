//! `gamdok map -- true {}` over many arguments, two at a time, beside `xargs -P2 -n1 true` and GNU parallel, in alternating
//! rounds.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod common;

use common::{Bench, median, number};

/// Each gets the arguments on stdin, and leaves nothing to be read.
const CONTENDERS: [(&str, &[&str]); 4] = [
    ("xargs -P2 -n1 true", &["xargs", "-P2", "-n1", "true"]),
    ("gamdok map -- true {}", &["gamdok", "map", "--slots", "2", "--", "true", "{}"]),
    ("gamdok map --keep-order", &["gamdok", "map", "--slots", "2", "--keep-order", "--", "true", "{}"]),
    ("GNU parallel -j2 true", &["parallel", "--will-cite", "-j2", "true", "{}"]),
];

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let (items, rounds) = (number("GAMDOK_BENCH_ITEMS", 5000), number("GAMDOK_BENCH_ROUNDS", 3));
    let bench = Bench::new("map");
    let list = bench.dir.join("arguments");
    let mut file = BufWriter::new(File::create(&list).expect("made"));
    (0..items).for_each(|n| writeln!(file, "argument-{n:07}").expect("written"));
    file.flush().expect("written");
    let mut took = vec![Vec::new(); CONTENDERS.len()];
    for round in 0..rounds {
        for ((name, words), took) in CONTENDERS.iter().zip(&mut took) {
            match timed(words, &list) {
                Some(time) => took.push(time.as_secs_f64() * 1e6 / items as f64),
                None if round == 0 => println!("{name}: not installed, skipped"),
                None => {}
            }
        }
    }
    println!("\n{items} arguments, {rounds} rounds, medians");
    let xargs = median(&mut took[0]);
    for ((name, _), mut took) in CONTENDERS.iter().zip(took).filter(|(_, took)| !took.is_empty()) {
        let median = median(&mut took);
        println!("{name:<26} {median:>8.1} µs a run   {:>6.2} x xargs", median / xargs);
    }
    memory(&bench.dir, items);
}

fn timed(words: &[&str], stdin: &Path) -> Option<Duration> {
    if words[0] == "parallel" && !is_gnu() {
        return None;
    }
    let mut command = if words[0] == "gamdok" { common::gamdok() } else { Command::new(words[0]) };
    command.args(&words[1..]).stdin(File::open(stdin).expect("opened")).stdout(Stdio::null());
    let started = Instant::now();
    let status = command.status().ok()?;
    assert!(status.success(), "{words:?}: {status}");
    Some(started.elapsed())
}

/// moreutils has another program of this name.
fn is_gnu() -> bool {
    let version = Command::new("parallel").arg("--version").stdin(Stdio::null()).output();
    version.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).starts_with("GNU parallel"))
}

/// The most memory while the first run is the slowest, and the output of all others waits for it.
fn memory(dir: &Path, items: usize) {
    let high = |items: usize| {
        let (gate, list) = (dir.join(format!("gate-{items}")), dir.join(format!("numbers-{items}")));
        fs::write(&list, (1..=items).map(|n| format!("{n}\n")).collect::<String>()).expect("written");
        assert!(Command::new("mkfifo").arg(&gate).status().is_ok_and(|status| status.success()));
        // The last opens the gate for the first, and tells what the one that started it had used.
        let last = "if [ $0 = 1 ]; then read x < $1; elif [ $0 = $2 ]; then grep VmHWM /proc/$PPID/status; echo > $1; \
                    else head -c 20000 /dev/zero | tr '\\0' x; fi";
        let mut command = common::gamdok();
        command.args(["map", "--slots", "2", "--keep-order", "--", "sh", "-c", last, "{}"]).arg(&gate);
        command.arg(items.to_string()).stdin(File::open(&list).expect("opened"));
        let printed = command.output().expect("started").stdout;
        let tail = String::from_utf8_lossy(&printed[printed.len().saturating_sub(100)..]).into_owned();
        tail.split_whitespace().rev().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let (few, many) = (high(50), high(items));
    println!("--keep-order behind a slow first run, 20 kB each: VmHWM {few} KiB at 50 runs, {many} KiB at {items}");
}
