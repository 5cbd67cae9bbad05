//! A hundred thousand items: bounded memory, each once, oldest first.

mod support;

use std::fs;

use support::{World, names};

const ITEMS: usize = 100_000;

/// So many that they can't all be held, few enough to be run: the rest is withdrawn once the order is known.
const RUN: usize = 3_000;

#[test]
fn a_hundred_thousand_items_are_taken_oldest_first_in_bounded_memory() {
    let settings = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
    let world = World::with(settings, "[[route]]\nname = \"work\"\ncommand = [\"true\"]\n");
    let inbox = world.inbox();
    for n in 0..ITEMS {
        // Names say nothing of the order: it is the arrival that counts.
        fs::write(inbox.join(format!("{:06}", (n * 7919) % ITEMS)), b"").expect("an item");
    }
    let service = world.start();
    let status = world.until("enough are done", |status| status["counts"]["done"].as_u64() >= Some(RUN as u64));
    assert!(status["counts"]["ready"].as_u64() > Some(50_000), "{status:#}");
    let peak = peak_memory_kib(service.pid());
    assert_eq!(service.stop(), 0);
    assert!(peak < 96 * 1024, "{peak} KiB");

    let results = world.results();
    let left = names(&inbox);
    assert_eq!(results.len() + left.len() + names(&world.root.join("claimed")).len(), ITEMS);
    // The names of the first ones, by the order in which they were made.
    let arrival = |name: &str| {
        let name: usize = name.parse().expect("a number");
        // 7919 is prime: its inverse modulo ITEMS undoes the shuffle.
        (name * inverse(7919, ITEMS)) % ITEMS
    };
    let last = results.iter().map(|(_, result)| arrival(result["name"].as_str().expect("a name"))).max().expect("some");
    // Claims go at most 64 ahead, in a window of the oldest.
    assert!(last < results.len() + 1_000, "the {last}th was taken among the first {}", results.len());
}

fn inverse(of: usize, modulo: usize) -> usize {
    (1..modulo).find(|candidate| of * candidate % modulo == 1).expect("they are coprime")
}

fn peak_memory_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}
