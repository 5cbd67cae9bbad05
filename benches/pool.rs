//! The library's pool on closures of a microsecond: µs a task beside a bare loop and a bare channel between two threads, and
//! whether its memory stays the same at a hundred times as many tasks. Then tasks for Python processes that stay, beside
//! the same messages through the same Python by two bare threads.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use gamdok::{Pool, Residents};

mod common;

use common::{median, number};

/// The work of a task: nothing worth a thread, so that what is measured is the handing over.
fn work(n: u64) -> u64 {
    black_box((0..20).fold(n, |sum, step| sum.rotate_left(step) ^ n))
}

/// Answers the sum of all results, so that nothing is left out.
type Contender = (&'static str, fn(u64) -> u64);

const CONTENDERS: [Contender; 6] = [
    ("bare loop", |tasks| (0..tasks).map(work).fold(0, u64::wrapping_add)),
    ("bare thread and channel", bare_channel),
    ("map", |tasks| pool().map(0..tasks, work).flatten().fold(0, u64::wrapping_add)),
    ("map_unordered", |tasks| pool().map_unordered(0..tasks, work).flatten().fold(0, u64::wrapping_add)),
    ("scope, map_unordered", |tasks| {
        pool().scope(|scope| scope.map_unordered(0..tasks, work).flatten().fold(0, u64::wrapping_add))
    }),
    ("submit and wait, 64 in flight", submit),
];

fn main() {
    // Called by itself: one contender in a process of its own, which then tells the most memory it had.
    if let Ok(which) = std::env::var("GAMDOK_BENCH_POOL") {
        let (_, run) = CONTENDERS[which.parse::<usize>().expect("a number")];
        black_box(run(number("GAMDOK_BENCH_ITEMS", 0) as u64));
        println!("{}", high_water());
        return;
    }
    if !common::asked_to_measure() {
        return;
    }
    let (tasks, rounds) = (number("GAMDOK_BENCH_ITEMS", 1_000_000) as u64, number("GAMDOK_BENCH_ROUNDS", 3));
    let cores = gamdok::Slots::cpu_count();
    let expected = CONTENDERS[0].1(tasks);
    let mut took = vec![Vec::new(); CONTENDERS.len()];
    for _ in 0..rounds {
        for ((_, run), took) in CONTENDERS.iter().zip(&mut took) {
            let started = Instant::now();
            assert_eq!(run(tasks), expected);
            took.push(started.elapsed().as_secs_f64() * 1e6 / tasks as f64);
        }
    }
    println!("{cores} cores, {tasks} tasks, {rounds} rounds, medians; most memory at 10,000 tasks and at {tasks}");
    let floor = median(&mut took[1]);
    for (which, ((name, _), mut took)) in CONTENDERS.iter().zip(took).enumerate() {
        let median = median(&mut took);
        let (few, many) = (memory(which, 10_000), memory(which, tasks));
        println!(
            "{name:<30} {median:>7.3} µs a task   {:>6.2} x thread and channel   VmHWM {few:>6} → {many:>6} KiB",
            median / floor
        );
    }
    residents(rounds);
}

/// What a worker does without the library: the same lines, one answer each.
const BARE: &str = "import json, sys
for line in sys.stdin:
    task = json.loads(line)['task']
    sys.stdout.write(json.dumps({'type': 'done', 'id': 'x', 'result': task * 2}) + '\\n')
    sys.stdout.flush()
";

fn residents(rounds: usize) {
    let tasks = number("GAMDOK_BENCH_TASKS", 100_000) as u64;
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");
    let script = "from gamdok_worker import serve_tasks\nserve_tasks(lambda task: task * 2)\n";
    let residents = Residents::builder(["python3", "-c", script]).env("PYTHONPATH", helper).slots(2).build();
    let residents = residents.expect("python3");
    let expected = tasks * (tasks - 1);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Both processes have loaded what they need.
        residents.map(0..100_u64).for_each(drop);
        let started = Instant::now();
        let sum: u64 = residents.map(0..tasks).filter_map(|answer| answer.ok()?.as_u64()).sum();
        ours.push(started.elapsed().as_secs_f64() * 1e6 / tasks as f64);
        assert_eq!(sum, expected);
        floor.push(bare_python(tasks / 2) * 1e6 / tasks as f64);
    }
    println!("{tasks} tasks for two Python processes that stay, {rounds} rounds, medians");
    common::compare("residents, a task", "µs", median(&mut ours), median(&mut floor));
}

/// Two processes with half of the tasks each: seconds.
fn bare_python(each: u64) -> f64 {
    let start = || {
        let mut python = Command::new("python3");
        python.args(["-c", BARE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3")
    };
    let mut two = [start(), start()];
    let started = Instant::now();
    thread::scope(|threads| {
        for python in &mut two {
            let (mut give, take) = (python.stdin.take().expect("piped"), python.stdout.take().expect("piped"));
            threads.spawn(move || {
                (0..each).try_for_each(|n| writeln!(give, "{{\"id\":\"x\",\"attempt\":1,\"task\":{n}}}"))
            });
            threads.spawn(move || BufReader::new(take).lines().filter(Result::is_ok).count());
        }
    });
    two.iter_mut().for_each(|python| drop(python.wait()));
    started.elapsed().as_secs_f64()
}

fn pool() -> Pool {
    Pool::new().expect("a pool")
}

/// The least that hands a task to another thread and its result back.
fn bare_channel(tasks: u64) -> u64 {
    let (give, take) = crossbeam_channel::bounded::<u64>(64);
    let (answer, answers) = crossbeam_channel::bounded::<u64>(64);
    thread::scope(|threads| {
        threads.spawn(move || take.iter().try_for_each(|n| answer.send(work(n))));
        threads.spawn(move || (0..tasks).try_for_each(|n| give.send(n)));
        answers.iter().fold(0, u64::wrapping_add)
    })
}

fn submit(tasks: u64) -> u64 {
    let pool = pool();
    let mut line = std::collections::VecDeque::new();
    let mut sum = 0_u64;
    for n in 0..tasks {
        line.push_back(pool.submit(move || work(n)));
        if line.len() == 64 {
            sum = line.pop_front().map_or(sum, |ticket| sum.wrapping_add(ticket.wait().expect("a result")));
        }
    }
    line.into_iter().fold(sum, |sum, ticket| sum.wrapping_add(ticket.wait().expect("a result")))
}

/// The most memory that a process had which ran only this.
fn memory(which: usize, tasks: u64) -> u64 {
    let own = std::env::current_exe().expect("this executable has a path");
    let mut command = Command::new(own);
    command.env("GAMDOK_BENCH_POOL", which.to_string()).env("GAMDOK_BENCH_ITEMS", tasks.to_string());
    let printed = command.output().expect("started").stdout;
    String::from_utf8_lossy(&printed).trim().parse().expect("kilobytes")
}

fn high_water() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
