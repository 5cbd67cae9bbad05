//! A hundred thousand items: bounded memory, each counted, oldest first, and none starved by those that nobody takes.

mod support;

use std::fs::{self, File};

use serde_json::Value;

use support::{World, names};

/// More than the scanner remembers (65,536 names in line, as many held ones).
const ITEMS: usize = 100_000;
/// So many lie there at the start; the rest is renamed in while the director works.
const AT_START: usize = 70_000;
/// Few enough to be run.
const RUN: usize = 1000;
/// What a million waiting items may take.
const MEMORY_KIB: u64 = 64 * 1024;

#[test]
fn a_hundred_thousand_items_are_taken_oldest_first_in_bounded_memory() {
    let settings = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
    let world = World::with(settings, "[[route]]\nname = \"work\"\ncommand = [\"true\"]\n");
    let inbox = world.inbox();
    // Names say nothing of the order: it is the arrival that counts.
    let name = |n: usize| format!("{:06}", (n * 7919) % ITEMS);
    for n in 0..AT_START {
        File::create_new(inbox.join(name(n))).expect("an item");
    }
    let service = world.start();
    // Faster than anyone can listen: the kernel's queue and the scanner's own may run over meanwhile.
    let staged = world.scratch("staged");
    for n in AT_START..ITEMS {
        File::create_new(&staged).expect("an item");
        fs::rename(&staged, inbox.join(name(n))).expect("dropped");
    }
    let status = world.until("all are counted", |status| {
        let counted = ["arriving", "ready", "claimed", "running", "done"].map(|state| count(status, state));
        // What waits is counted by scans, what moves on by events: for a moment an item may stand in both.
        counted.iter().sum::<usize>() >= ITEMS && count(status, "done") >= RUN
    });
    assert_eq!((count(&status, "held"), count(&status, "failed")), (0, 0), "{status:#}");
    let peak = peak_memory_kib(service.pid());
    assert_eq!(service.stop(), 0);
    assert!(peak < MEMORY_KIB, "{peak} KiB");

    let results = world.results();
    let left = names(&inbox);
    assert_eq!(results.len() + left.len() + names(&world.root.join("claimed")).len(), ITEMS);
    // 7919 is prime: its inverse modulo ITEMS undoes the shuffle.
    let undo = inverse(7919, ITEMS);
    let arrival = |name: &str| (name.parse::<usize>().expect("a number") * undo) % ITEMS;
    let last = results.iter().map(|(_, result)| arrival(result["name"].as_str().expect("a name"))).max().expect("some");
    // Claims go at most 64 ahead, in a window of the oldest.
    assert!(last < results.len() + 1_000, "the {last}th was taken among the first {}", results.len());
}

#[test]
fn what_no_route_takes_is_counted_in_bounded_memory_and_starves_nobody() {
    let world = World::new("[[route]]\nname = \"sound\"\nmatch = [\"*.wav\"]\ncommand = [\"true\"]\n");
    let inbox = world.inbox();
    for n in 0..AT_START {
        File::create_new(inbox.join(format!("{n:06}.odd"))).expect("an item");
    }
    for n in 0..20 {
        world.drop_file(format!("old-{n}.wav"), b"sound");
    }
    let service = world.start();
    world.drop_file("new.wav", b"sound");
    let status =
        world.until("all are held or done", |status| count(status, "held") == AT_START && count(status, "done") == 21);
    let inbox_health =
        status["health"].as_array().expect("a list").iter().find(|it| it["what"] == "inbox").expect("it");
    assert_eq!(inbox_health["state"], "degraded", "{status:#}");
    assert_eq!(status["held"].as_array().map(Vec::len), Some(1000), "a sample is listed");
    let peak = peak_memory_kib(service.pid());
    assert_eq!(service.stop(), 0);
    assert!(peak < MEMORY_KIB, "{peak} KiB");
}

fn count(status: &Value, state: &str) -> usize {
    status["counts"][state].as_u64().expect("a count") as usize
}

fn inverse(of: usize, modulo: usize) -> usize {
    (1..modulo).find(|candidate| of * candidate % modulo == 1).expect("they are coprime")
}

/// Without the pages of the program itself: a debug build has tens of megabytes of them.
fn peak_memory_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let of = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).expect(key);
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    };
    of("VmHWM:").saturating_sub(of("RssFile:"))
}
