//! A director with nothing to do: how fast it is ready, what it costs to let it run. On CPU slots, and with eight
//! simulated GPUs.

use std::time::Duration;

mod common;

use common::{Bench, median, number, pause};

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let seconds = number("GAMDOK_BENCH_SECONDS", 30);
    let bench = Bench::new("rest");
    at_rest(&bench, "cpu", "use = \"cpu\"", 0, seconds);
    at_rest(&bench, "sim", "use = \"sim\"\nsim = { gpus = 8 }", 1, seconds);
}

fn at_rest(bench: &Bench, name: &str, devices: &str, gpus: u32, seconds: usize) {
    let config = format!(
        "[devices]\n{devices}\n[[route]]\nname = \"rest\"\nkind = \"any\"\ncommand = [\"/bin/true\"]\ngpus = {gpus}\n"
    );
    let root = bench.root(name, &config);
    let mut ready = Vec::new();
    for _ in 0..10 {
        let director = root.start();
        ready.push(director.ready_in.as_secs_f64() * 1000.0);
        director.stop();
    }
    let director = root.start();
    // The first seconds hold the first scan and the first sweeps.
    pause(Duration::from_secs(3));
    let (cpu, switches) = director.used();
    pause(Duration::from_secs(seconds as u64));
    let (cpu_after, switches_after) = director.used();
    let share = (cpu_after - cpu) as f64 / (seconds as f64 * 1e9) * 100.0;
    println!("\n{name}: {} threads", director.threads());
    println!("start to READY=1, median of 10     {:>9.1} ms", median(&mut ready));
    println!("CPU at rest over {seconds} s             {share:>9.3} % of a core");
    println!("voluntary switches a second        {:>9.2}", (switches_after - switches) as f64 / seconds as f64);
    println!("memory at rest (VmRSS)             {:>9.1} MiB", director.kilobytes("VmRSS") as f64 / 1024.0);
    println!("memory at rest without files       {:>9.1} MiB", director.kilobytes("RssAnon") as f64 / 1024.0);
    director.stop();
}
