//! Four greatest common divisors by the naive loop, which keeps a core busy: one after the other, on the pool's threads,
//! and in processes that the pool starts. The results are the same; the times tell what each costs on this machine.
//!
//! `cargo run --release --example gcd_pool`

use std::error::Error;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use gamdok::{Pool, Slots};

const PAIRS: [(u64, u64); 4] = [(1963309, 2265973), (2030677, 3814172), (1551645, 2229620), (2039045, 2020802)];

type Gcds = Result<Vec<u64>, Box<dyn Error>>;

/// So often, that the work outweighs what starting a thread or a process costs.
const TIMES: usize = 10;

fn work(pair: (u64, u64)) -> u64 {
    (0..TIMES).map(|_| gcd(black_box(pair))).fold(0, |_, found| found)
}

/// On purpose: from the smaller number down.
fn gcd((a, b): (u64, u64)) -> u64 {
    (1..=a.min(b)).rev().find(|i| a.is_multiple_of(*i) && b.is_multiple_of(*i)).unwrap_or(1)
}

fn main() -> Result<(), Box<dyn Error>> {
    // What the processes do: this program, started with two numbers.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [a, b] = &words[..] {
        println!("{}", work((a.parse()?, b.parse()?)));
        return Ok(());
    }
    let pool = Pool::builder().name("gcd").build()?;
    println!("{} CPUs, {} slots", Slots::cpu_count(), pool.slots());
    let serial = timed("serial", || Ok(PAIRS.into_iter().map(work).collect()))?;
    let threads = timed("threads", || Ok(pool.map(PAIRS, work).collect::<Result<_, _>>()?))?;
    let processes = timed("processes", || {
        let program = std::env::current_exe()?;
        let said = pool.map(PAIRS, move |(a, b)| Command::new(&program).args([a, b].map(|n| n.to_string())).output());
        said.map(|said| Ok(String::from_utf8(said??.stdout)?.trim().parse()?)).collect()
    })?;
    assert_eq!(serial, threads);
    assert_eq!(serial, processes);
    println!("ok: three ways, the same divisors: {serial:?}");
    Ok(())
}

fn timed(way: &str, work: impl FnOnce() -> Gcds) -> Gcds {
    let begun = Instant::now();
    let found = work()?;
    println!("{way:<10} {:>8.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    Ok(found)
}
