//! A director with nothing to do: how fast it is ready, what it costs to let it run, and which of its threads wake up. On
//! CPU slots, and with eight GPUs of the stand-in for NVML, whose own work (next to none) is counted as the director's.

use std::ffi::OsString;
use std::time::Duration;

mod common;
#[path = "../tests/standin/mod.rs"]
mod standin;

use common::{Bench, median, number, pause};
use standin::{Driver, Gpu, StandIn};

const GPUS: u8 = 8;

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let seconds = number("GAMDOK_BENCH_SECONDS", 60) as u64;
    let bench = Bench::new("rest");
    at_rest(&bench, "cpu", "cpu", &[], seconds);
    let nvml = StandIn::at(&bench.dir);
    nvml.set(&standin::State { gpus: (0..GPUS).map(Gpu::idle).collect(), ..standin::State::default() });
    let mut env = nvml.env(Driver::Current);
    // The list of calls is for tests; writing it would be most of what is measured.
    env.retain(|(name, _)| *name != "NVML_STANDIN_LOG");
    at_rest(&bench, "gpu", "gpu", &env, seconds);
}

fn at_rest(bench: &Bench, name: &str, backend: &str, env: &[(&'static str, OsString)], seconds: u64) {
    let config = format!(
        "[devices]\nuse = \"{backend}\"\n[[route]]\nname = \"rest\"\nkind = \"any\"\ncommand = [\"/bin/true\"]\n"
    );
    let root = bench.root(name, &config);
    let mut ready = Vec::new();
    for _ in 0..10 {
        let director = root.start_with(env);
        ready.push(director.ready_in.as_secs_f64() * 1000.0);
        director.stop();
    }
    let director = root.start_with(env);
    // The first seconds hold the first scan and the first sweeps.
    pause(Duration::from_secs(3));
    let before = director.used();
    pause(Duration::from_secs(seconds));
    let after = director.used();
    let per_second = |total: u64| total as f64 / seconds as f64;
    println!("\n{name}: {} threads", after.len());
    println!("start to READY=1, median of 10     {:>9.1} ms", median(&mut ready));
    let [mut cpu, mut wakes] = [0, 0];
    for (now, then) in after.iter().zip(&before) {
        let (ran, woke) = (now.cpu_ns - then.cpu_ns, now.wakes - then.wakes);
        [cpu, wakes] = [cpu + ran, wakes + woke];
        if woke > 0 {
            println!(
                "  {:<20} {:>6.2} wake-ups a second {:>9.1} us each",
                now.thread,
                per_second(woke),
                ran as f64 / woke as f64 / 1000.0
            );
        }
    }
    println!("CPU at rest over {seconds} s             {:>9.3} % of a core", per_second(cpu) / 1e7);
    println!("wake-ups a second                  {:>9.2}", per_second(wakes));
    println!("memory at rest (VmRSS)             {:>9.1} MiB", director.kilobytes("VmRSS") as f64 / 1024.0);
    println!("memory at rest without files       {:>9.1} MiB", director.kilobytes("RssAnon") as f64 / 1024.0);
    director.stop();
}
