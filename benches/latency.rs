//! From the drop (rename into the inbox) to the first instruction of the job, on an idle director; beside it the floor:
//! an inotify watch, a rename, a spawn. Both start the same worker, which says when it began.

use std::sync::mpsc;
use std::time::Duration;

mod common;

use common::floor::{Floor, Watch};
use common::{Bench, Clockings, compare, drop_into, now_ns, number, pause, percentile, stage, until};

fn main() {
    if common::was_worker() || !common::asked_to_measure() {
        return;
    }
    let drops = number("GAMDOK_BENCH_ITEMS", 500);
    let bench = Bench::new("latency");
    let clock = Clockings::new();
    let root = bench.root("gamdok", &config(&clock));
    let staged = root.stage(drops);
    let director = root.start();

    let dir = bench.dir.join("floor");
    let floor_staged = stage(&dir.join("staging"), drops);
    let words = clock.words();
    let mut floor = Floor::new(&dir, &words.each_ref().map(String::as_str));
    let floor_inbox = floor.inbox.clone();
    let (reaped, ends) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let watch = Watch::new(&floor.inbox);
        for _ in 0..drops {
            floor.begin(watch.next());
            floor.reap();
            reaped.send(()).expect("the comparison waits for it");
        }
    });
    pause(Duration::from_millis(200));

    let (mut ours, mut least) = (Vec::new(), Vec::new());
    for (n, (item, floor_item)) in staged.iter().zip(&floor_staged).enumerate() {
        let dropped = now_ns();
        root.drop_in(item);
        ours.push(since(dropped, &clock));
        until("the outcome", Duration::from_secs(60), || root.done() > n as u64);
        pause(Duration::from_millis(10));
        let dropped = now_ns();
        drop_into(&floor_inbox, floor_item);
        least.push(since(dropped, &clock));
        ends.recv().expect("the floor goes on");
        pause(Duration::from_millis(10));
    }
    director.stop();
    worker.join().expect("the floor ends");
    println!("\n{drops} drops each, taking turns");
    for percent in [50.0, 99.0] {
        let (ours, least) = (percentile(&mut ours, percent), percentile(&mut least, percent));
        compare(&format!("drop to first instruction, p{percent}"), "ms", ours, least);
    }
}

fn since(dropped: u64, clock: &Clockings) -> f64 {
    let (began, _) = clock.next().expect("the worker says when it began");
    began.saturating_sub(dropped) as f64 / 1e6
}

fn config(clock: &Clockings) -> String {
    format!(
        r#"
[devices]
use = "cpu"
cpu_slots = 2
[[route]]
name = "latency"
kind = "any"
command = {}
gpus = 0
"#,
        clock.command()
    )
}
