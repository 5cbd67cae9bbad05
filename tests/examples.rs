//! Each origin of the project as a program of its own (`examples/*.rs`): it runs, and its own check holds.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Cargo builds the examples with the tests, beside the folder that these are in.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let built = test.parent().and_then(|deps| deps.parent()).expect("a target folder").join("examples").join(name);
    assert!(built.is_file(), "{} isn't built: run `cargo test`, or `cargo build --examples`", built.display());
    built
}

/// Runs an example and looks for these lines in what it prints, in this order.
#[track_caller]
fn check(name: &str, lines: &[&str]) {
    let output = Command::new(example(name)).stdin(Stdio::null()).output().expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{printed}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let mut rest = printed.lines();
    for line in lines {
        assert!(rest.any(|printed| printed == *line), "`{line}` isn't printed, or not there:\n{printed}");
    }
}

#[test]
fn a_director_deals_out_to_its_workers() {
    let ok = "ok: the same 30 tasks both ways, each done once";
    check("director_worker", &["30 tasks pass the check, 3 don't", ok]);
}

#[test]
fn the_director_goes_on_while_workers_end() {
    let ok = "ok: reaped in the order in which they ended, [2, 0, 1]";
    check("nonblocking_reap", &["worker 2 ended by itself and said `done`", "2 still run", "0 still run", ok]);
}

#[test]
fn three_producers_and_six_consumers_lose_nothing() {
    let ok = "ok: 3000 items made by 3 producers, each taken exactly once by 6 consumers";
    check("producer_consumer", &[ok]);
}

#[test]
fn five_workers_count_exactly() {
    let exact = ["under a lock:         500000", "one indivisible step: 500000"];
    check("exact_counter", &[exact[0], exact[1], "ok: 5 workers x 100000 increments = 500000"]);
}

#[test]
fn a_resident_keeps_its_state() {
    check("running_minimum", &["sent 22: the least so far is 4", "ok: one worker, 4 items, [10, 4, 4, -1]"]);
}

#[test]
fn divisors_are_the_same_three_ways() {
    check("gcd_pool", &["ok: three ways, the same divisors: [1, 1, 5, 1]"]);
}

#[test]
fn slots_events_and_buffers_hold_back() {
    let slots = "ok: five tasks ended, never more than two at a time";
    let event = "ok: the event is set, then the waiter goes on";
    check("slots_and_events", &[slots, event, "ok: 100 items went through 10 places in order"]);
}

#[test]
fn a_function_runs_over_many_inputs() {
    check("map_and_starmap", &["starmap:  [32, 9, 1000]", "ok: every result in the place of its input"]);
}

#[test]
fn a_sentinel_ends_a_pipe_and_a_queue() {
    let pipe = "ok: the pipe's worker ended at the sentinel, with its writer still open";
    check("pipe_and_queue", &[pipe, "ok: the queue's worker ended at the sentinel, with its sender still open"]);
}

#[test]
fn all_workers_write_one_table() {
    check("shared_results", &["dog: 2", "the: 3", "ok: 14 words by 4 workers, none lost"]);
}

#[test]
fn a_million_lines_become_one_gzip_file() {
    check("gzip_batches", &["ok: 200 members of 5000 lines, 1000000 lines in order"]);
}
