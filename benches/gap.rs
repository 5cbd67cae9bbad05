//! The dispatch gap: from one job's end to the next one's first instruction on the same device, with work waiting. On one
//! CPU slot, on one simulated GPU, on one GPU of the stand-in driver that the tests use, and the floor. Each worker says when it began and, just before it exits, when it
//! ended: the gap holds its exit, its commit and the next one's start.

use std::ffi::OsString;
use std::time::Duration;

mod common;
#[path = "../tests/standin/mod.rs"]
mod standin;

use common::floor::Floor;
use common::{Bench, Clockings, compare, drop_into, number, percentile, stage, until};
use standin::{Driver, Gpu, StandIn, State};

fn main() {
    if common::was_worker() || !common::asked_to_measure() {
        return;
    }
    let (items, rounds) = (number("GAMDOK_BENCH_ITEMS", 500), number("GAMDOK_BENCH_ROUNDS", 3));
    let bench = Bench::new("gap");
    let (mut cpu, mut sim, mut driven, mut least) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let standin = StandIn::at(&bench.dir);
    standin.set(&State { gpus: vec![Gpu::idle(1)], ..State::default() });
    // Without a log of the calls: writing it costs more than answering.
    let driver: Vec<(&str, OsString)> =
        standin.env(Driver::Current).into_iter().filter(|(key, _)| *key != "NVML_STANDIN_LOG").collect();
    for round in 0..rounds {
        least.extend(floor(&bench, round, items));
        cpu.extend(gamdok(&bench, &format!("cpu-{round}"), items, "use = \"cpu\"\ncpu_slots = 1", 0, &[]));
        sim.extend(gamdok(&bench, &format!("sim-{round}"), items, "use = \"sim\"\nsim = { gpus = 1 }", 1, &[]));
        driven.extend(gamdok(&bench, &format!("gpu-{round}"), items, "use = \"gpu\"", 1, &driver));
    }
    println!("\n{items} items a round, {rounds} rounds");
    for percent in [50.0, 99.0] {
        let floor = percentile(&mut least, percent);
        compare(&format!("gap on one CPU slot, p{percent}"), "ms", percentile(&mut cpu, percent), floor);
        compare(&format!("gap on one simulated GPU, p{percent}"), "ms", percentile(&mut sim, percent), floor);
        compare(&format!("gap on one stand-in GPU, p{percent}"), "ms", percentile(&mut driven, percent), floor);
    }
}

fn gamdok(bench: &Bench, name: &str, items: usize, devices: &str, gpus: u32, env: &[(&str, OsString)]) -> Vec<f64> {
    let clock = Clockings::new();
    let command = clock.command();
    let config = format!(
        "[devices]\n{devices}\n[[route]]\nname = \"gap\"\nkind = \"any\"\ncommand = {command}\ngpus = {gpus}\n"
    );
    let root = bench.root(name, &config);
    let staged = root.stage(items);
    let director = root.start_with(env);
    staged.iter().for_each(|item| root.drop_in(item));
    let gaps = gaps(&clock, items);
    until("the last outcome", Duration::from_secs(60), || root.done() >= items as u64);
    director.stop();
    gaps
}

fn floor(bench: &Bench, round: usize, items: usize) -> Vec<f64> {
    let clock = Clockings::new();
    let dir = bench.dir.join(format!("floor-{round}"));
    let staged = stage(&dir.join("staging"), items);
    let words = clock.words();
    let mut floor = Floor::new(&dir, &words.each_ref().map(String::as_str));
    staged.iter().for_each(|item| drop_into(&floor.inbox, item));
    // A socket's queue is short, so somebody reads while the floor works.
    let reader = std::thread::spawn(move || gaps(&clock, items));
    floor.drain(1);
    reader.join().expect("all were heard of")
}

fn gaps(clock: &Clockings, items: usize) -> Vec<f64> {
    let mut before = None;
    let mut gaps = Vec::new();
    for _ in 0..items {
        let (began, ended) = clock.next().expect("the worker says when it began and ended");
        if let Some(before) = before.replace(ended) {
            gaps.push(began.saturating_sub(before) as f64 / 1e6);
        }
    }
    gaps
}
