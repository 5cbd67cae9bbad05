use std::sync::Arc;

use jiff::Timestamp;

use super::*;
use crate::units::Moment;
use crate::world::fixtures::{arrival, job_id, record, route, rules, seconds};

/// A history in a few words: past attempts as `exit@gpu0` (counted) or `(device-lost@gpu0)` (not counted).
fn past(record: &mut JobRecord, attempts: &str) {
    record.attempts.clear();
    for word in attempts.split_whitespace() {
        let counted = !word.starts_with('(');
        let word = word.trim_matches(['(', ')']);
        let (reason, device) = word.split_once('@').unwrap_or((word, "cpu"));
        let mut attempt = Attempt::planned(record.attempts.len() as u32 + 1);
        attempt.devices = vec![DeviceId(device.to_owned())];
        attempt.counted = counted;
        attempt.reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason);
        attempt.exit_code = (reason == "exit").then_some(if counted { 1 } else { EXIT_LATER });
        attempt.ended_at = Some(arrival(1));
        record.attempts.push(attempt);
    }
}

/// What a report looks like when nothing but the end is told.
fn report(end: End) -> Report {
    Report {
        job: job_id(1),
        attempt: 1,
        pid: Some(7),
        started_at: Some(arrival(1)),
        ended_at: Timestamp::UNIX_EPOCH,
        ran: Duration::from_secs(60),
        end,
        said: None,
        missing_outputs: Vec::new(),
        out_of_memory: false,
        beside: 0,
    }
}

/// An end in a few words, beside what was said: `exit 3`, `signal 9`, `timeout`, `oom`, `missing`, `done`, `failed`, `final`, …
fn told(words: &str) -> (Report, bool) {
    let stopped = |why| End::Stopped { why, exit_code: None, signal: Some(15) };
    let mut told = report(End::Exited(0));
    let mut lost = false;
    for word in words.split_whitespace() {
        let number = || word.trim_start_matches(char::is_alphabetic).parse::<i32>().expect(word);
        match word.trim_end_matches(|c: char| c.is_ascii_digit()) {
            "exit" => told.end = End::Exited(number()),
            "returned" => told.end = End::Returned,
            "signal" => told.end = End::Signalled(number()),
            "timeout" => told.end = End::TimedOut { exit_code: None, signal: Some(9) },
            "cancelled" => told.end = stopped(StopWhy::Cancelled),
            "shutdown" => told.end = stopped(StopWhy::Shutdown),
            "stopped-lost" => told.end = stopped(StopWhy::DeviceLost),
            "no-program" => told.end = End::NotStarted { error: "no such file".to_owned(), host: false },
            "no-process" => told.end = End::NotStarted { error: "out of processes".to_owned(), host: true },
            "beside" => told.beside = number() as u32,
            "not-begun" => told.end = End::NotBegun,
            "root-away" => told.end = End::RootAway,
            "not-ready" => told.end = End::NotReady { within: Duration::from_secs(300) },
            "changed" => told.end = End::ItemChanged,
            "gone" => told.end = End::ItemMissing,
            "protocol" => told.end = End::Protocol("not JSON".to_owned()),
            "io" => told.end = End::Io("can't write the log: no space".to_owned()),
            "batch" => told.end = End::BatchFailed("batch 17 (lines 85001-90000): exit code 3".to_owned()),
            "taken" => told.end = End::OutputTaken("its command wrote `a.txt` itself".to_owned()),
            "damaged" => told.end = End::BadInput("cannot read `x.gz`: it is cut off".to_owned()),
            "panicked" => told.end = End::Panicked,
            "oom" => told.out_of_memory = true,
            "missing" => told.missing_outputs = vec!["*.txt".to_owned()],
            "fast" => told.ran = Duration::from_secs(1),
            "lost" => lost = true,
            "done" => {
                let result = serde_json::value::RawValue::from_string("{\"a\":1}".to_owned()).expect("JSON");
                told.said = Some(Said::Done { result: Some(result) });
            }
            "failed" => told.said = Some(Said::Failed { error: "bad\x1bheader".to_owned(), retry: true }),
            "final" => told.said = Some(Said::Failed { error: "not audio".to_owned(), retry: false }),
            other => panic!("no end `{other}`"),
        }
    }
    (told, lost)
}

fn shown(assessment: &Assessment) -> String {
    let reason = assessment.reason.map_or("none", Reason::as_str);
    let counted = if assessment.counted { "counted" } else { "uncounted" };
    let against = if assessment.against_device { ", against device" } else { "" };
    let next = match &assessment.next {
        Next::Requeue => "requeue".to_owned(),
        Next::Unlease => "as if never handed over".to_owned(),
        Next::Halve { limit } => format!("again in batches of {limit}"),
        Next::Retry { after, avoid } => {
            format!("retry in {}s{}", after.as_secs_f64(), if *avoid { " elsewhere" } else { "" })
        }
        Next::Finish(ending) => {
            let reason = ending.reason.map_or(String::new(), |reason| format!(" {reason}"));
            let message = ending.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
            format!("{}{reason}{message}", ending.outcome.as_str())
        }
    };
    format!("{reason} {counted}{against}; {next}")
}

/// The third attempt of an item with `retries = 2` is its last.
#[track_caller]
fn check(history: &str, end: &str, expected: &str) {
    assert_eq!(shown(&assessed(history, end, 2)), expected);
}

fn assessed(history: &str, end: &str, retries: u32) -> Assessment {
    let mut route = route("r");
    (route.retries, route.timeout) = (retries, Some(Duration::from_secs(1800)));
    let mut record = record(1, Arc::new(route));
    past(&mut record, history);
    let n = record.attempts.len() as u32 + 1;
    let mut now = Attempt::planned(n);
    now.devices = vec![DeviceId("gpu9".to_owned())];
    record.attempts.push(now);
    let (mut told, lost) = told(end);
    told.attempt = n;
    assess(&record, &told, lost)
}

#[test]
fn a_retry_by_hand_gives_all_tries_again() {
    let check = |behind: u32, end: &str, expected: &str| {
        let mut record = record(1, Arc::new(Route { retries: 2, ..route("r") }));
        past(&mut record, "exit@gpu0 exit@gpu1 (device-lost@gpu2) exit@gpu3 exit@gpu4");
        record.attempts.push(Attempt { devices: vec![DeviceId("gpu9".to_owned())], ..Attempt::planned(6) });
        record.revived_after = behind;
        let (mut told, lost) = told(end);
        told.attempt = 6;
        assert_eq!(shown(&assess(&record, &told, lost)), expected);
    };
    check(0, "exit3", "exit counted, against device; failed exit: exit code 3 after attempt 5 of 3");
    check(5, "exit3", "exit counted, against device; retry in 5s");
    check(4, "exit3", "exit counted, against device; retry in 10s");
    check(5, "exit1 lost", "device-lost uncounted, against device; retry in 0s elsewhere");
    check(5, "oom exit1", "out-of-memory uncounted, against device; retry in 5s elsewhere");
}

#[test]
fn a_batch_that_fails_as_a_whole_blames_nobody_until_one_stands_alone() {
    check("", "signal11 beside15", "none uncounted; again in batches of 8");
    check("exit@gpu0", "exit1 beside2", "none uncounted; again in batches of 2");
    check("", "timeout beside1", "none uncounted; again in batches of 1");
    check("", "signal11 beside0", "signal counted, against device; retry in 5s");
    check("", "signal11 beside3 lost", "device-lost uncounted, against device; retry in 0s elsewhere");
    check("", "cancelled beside3", "cancelled uncounted; cancelled cancelled: cancelled during attempt 1");
    check("", "shutdown beside3", "none uncounted; requeue");
    check("exit@gpu0", "not-begun", "none uncounted; as if never handed over");
    check("exit@gpu0", "root-away", "none uncounted; as if never handed over");
    check("", "not-ready", "timeout counted, against device; retry in 5s");
}

#[test]
fn success_is_exit_0_with_all_outputs_and_nothing_said_against_it() {
    check("", "exit0", "none counted; done");
    check("", "exit0 done", "none counted; done");
    check("", "exit0 lost", "none counted; done");
    check("", "exit0 oom", "none counted; done");
    check("", "exit0 missing", "missing-output counted; retry in 5s");
    check("", "returned done", "none counted; done");
    check("", "returned missing", "missing-output counted; retry in 5s");
    check("", "returned failed", "reported counted; retry in 5s");
    check("", "returned final", "reported counted; failed reported: not audio");
    check("", "returned failed oom", "out-of-memory uncounted, against device; retry in 5s elsewhere");
    check("", "returned failed lost", "device-lost uncounted, against device; retry in 0s elsewhere");
    check("", "exit0 failed", "reported counted; retry in 5s");
    check("", "exit3 done", "exit counted, against device; retry in 5s");
    let Next::Finish(ending) = assessed("", "exit0 done", 2).next else { panic!("it is done") };
    assert_eq!(ending.result.map(|result| result.get().to_owned()).as_deref(), Some("{\"a\":1}"));
}

#[test]
fn the_items_own_failures_are_counted_and_bounded() {
    check("", "exit3", "exit counted, against device; retry in 5s");
    check("exit", "exit3", "exit counted, against device; retry in 10s");
    check("exit exit", "exit3", "exit counted, against device; failed exit: exit code 3 after attempt 3 of 3");
    check(
        "exit signal",
        "signal9",
        "signal counted, against device; failed signal: killed by signal 9 (SIGKILL) after attempt 3 of 3",
    );
    check(
        "exit exit",
        "timeout",
        "timeout counted, against device; failed timeout: over its time of 30m after attempt 3 of 3",
    );
    check(
        "exit exit",
        "exit0 missing",
        "missing-output counted; failed missing-output: no output matches *.txt after attempt 3 of 3",
    );
    check("exit exit", "no-program", "spawn uncounted; retry in 5s");
    check("(spawn)", "no-program", "spawn uncounted; retry in 10s");
    check(
        "(spawn) (spawn)",
        "no-program",
        "spawn uncounted; failed spawn: can't start: no such file after attempt 3 of 3",
    );
    check(
        "exit exit",
        "protocol",
        "protocol counted; failed protocol: broke the protocol of fd 3: not JSON after attempt 3 of 3",
    );
    check("exit exit", "exit0 failed", "reported counted; failed reported: bad\\u{1b}header after attempt 3 of 3");
    check(
        "exit exit",
        "exit3 failed",
        "exit counted, against device; failed exit: bad\\u{1b}header (exit code 3) after attempt 3 of 3",
    );
    // What wasn't its fault doesn't use up its tries.
    check("(device-lost@gpu0) exit@gpu9", "exit3", "exit counted, against device; retry in 10s");
    assert_eq!(shown(&assessed("", "exit3", 0)), "exit counted, against device; failed exit: exit code 3");
}

#[test]
fn backoff_doubles_up_to_its_bound() {
    let after = |history: &str| match assessed(history, "exit3", 99).next {
        Next::Retry { after, .. } => after.as_secs(),
        other => panic!("{other:?}"),
    };
    let mut history = String::new();
    let mut waits = Vec::new();
    for _ in 0..9 {
        waits.push(after(&history));
        history.push_str("exit@gpu9 ");
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
    assert_eq!(after(&"exit@gpu9 ".repeat(90)), 600, "no overflow");
}

#[test]
fn the_last_word_of_a_worker_is_final() {
    check("", "exit0 final", "reported counted; failed reported: not audio");
    check("", "exit3 final", "reported counted; failed reported: not audio");
    check("", "timeout final", "reported counted; failed reported: not audio");
    check("", "batch", "exit counted; failed exit: batch 17 (lines 85001-90000): exit code 3");
    check("", "batch lost", "device-lost uncounted, against device; retry in 0s elsewhere");
    let full = "batch 17 (lines 85001-90000): exit code 3";
    let first = "out-of-memory uncounted, against device; retry in 5s elsewhere";
    check("", "batch oom", first);
    check("exit", "batch oom", first);
    let second = format!("out-of-memory counted; failed out-of-memory: out of memory: {full}");
    check("(out-of-memory@gpu0)", "batch oom", &second);
    check("", "taken", "missing-output counted; failed missing-output: its command wrote `a.txt` itself");
    check("", "damaged", "invalid counted; failed invalid: cannot read `x.gz`: it is cut off");
    check("", "exit65", "exit counted; failed exit: exit code 65");
    check("", "exit65 failed", "exit counted; failed exit: bad\\u{1b}header (exit code 65)");
    check("", "exit3 final lost", "device-lost uncounted, against device; retry in 0s elsewhere");
}

#[test]
fn try_later_waits_longer_each_time_and_isnt_counted() {
    check("", "exit75", "exit uncounted; retry in 5s");
    check("(exit) (exit)", "exit75", "exit uncounted; retry in 20s");
    check("exit exit", "exit75", "exit uncounted; retry in 5s");
    let later = "(exit) ".repeat(9);
    check(
        &later,
        "exit75",
        "exit uncounted; failed exit: gave up after 10 attempts that weren't held against it; the last: exit code 75 (try later)",
    );
}

#[test]
fn out_of_memory_is_forgiven_once() {
    check("", "exit1 oom", "out-of-memory uncounted, against device; retry in 5s elsewhere");
    check("(out-of-memory@gpu0)", "exit1 oom", "out-of-memory counted, against device; retry in 5s elsewhere");
    check("", "signal9 oom", "out-of-memory uncounted, against device; retry in 5s elsewhere");
    check(
        "exit exit (out-of-memory@gpu0)",
        "exit1 oom",
        "out-of-memory counted, against device; failed out-of-memory: out of memory after attempt 3 of 3",
    );
}

#[test]
fn the_devices_and_the_hosts_faults_arent_the_items() {
    check("", "stopped-lost", "device-lost uncounted, against device; retry in 0s elsewhere");
    check("", "exit1 lost", "device-lost uncounted, against device; retry in 0s elsewhere");
    check("(device-lost@gpu9)", "signal6 lost", "device-lost uncounted, against device; retry in 5s elsewhere");
    check("", "no-process", "spawn uncounted; retry in 5s");
    check("", "io", "io uncounted; retry in 5s");
    check("(io)", "panicked", "io uncounted; retry in 10s");
    check(
        &"(io) ".repeat(9),
        "io",
        "io uncounted; failed io: gave up after 10 attempts that weren't held against it; the last: can't write the log: no space",
    );
}

#[test]
fn stops_follow_their_reason() {
    check("", "cancelled", "cancelled uncounted; cancelled cancelled: cancelled during attempt 1");
    check("", "cancelled lost", "cancelled uncounted; cancelled cancelled: cancelled during attempt 1");
    check("", "shutdown", "none uncounted; requeue");
    check("", "changed", "changed counted; failed changed: it was changed between its claim and its first attempt");
    check("exit", "gone", "item-missing counted; failed item-missing: an earlier attempt consumed or removed the item");
}

#[test]
fn a_director_restarted_often_poisons_nothing() {
    let mut history = "none ".repeat(12);
    history = history.replace("none", "(none)");
    check(&history, "exit75", "exit uncounted; retry in 5s");
}

#[test]
fn failing_fast_goes_elsewhere() {
    check("", "exit3 fast", "exit counted, against device; retry in 5s elsewhere");
    check("", "exit0 missing fast", "missing-output counted; retry in 5s");
}

#[test]
fn what_fails_on_one_device_after_the_other_is_poison() {
    let poison = "failed poison: failed on 3 different devices; the last time:";
    check(
        "(device-lost@gpu0) (device-lost@gpu1)",
        "exit1 lost",
        &format!("device-lost uncounted, against device; {poison} lost gpu9 under it"),
    );
    check(
        "(device-lost@gpu0) (device-lost@gpu9)",
        "exit1 lost",
        "device-lost uncounted, against device; retry in 10s elsewhere",
    );
    check("(device-lost@gpu0) exit@gpu1", "exit3", &format!("exit counted, against device; {poison} exit code 3"));
    // The bound on its own tries is the better story.
    check(
        "exit@gpu0 exit@gpu1",
        "exit3",
        "exit counted, against device; failed exit: exit code 3 after attempt 3 of 3",
    );
    // Neither a host's fault nor a wish to wait speaks against a device.
    check("(io@gpu0) (exit@gpu1)", "exit3", "exit counted, against device; retry in 5s");
}

#[test]
fn several_devices_of_one_attempt_are_one_place() {
    let mut record = record(1, Arc::new(route("r")));
    record.attempts[0].devices = (0..8).map(|n| DeviceId(format!("gpu{n}"))).collect();
    assert!(matches!(assess(&record, &report(End::Exited(3)), false).next, Next::Retry { .. }));
}

#[test]
fn a_workers_words_are_cut_and_escaped() {
    let mut told = report(End::Exited(0));
    told.said = Some(Said::Failed { error: "é".repeat(5000), retry: false });
    let Next::Finish(ending) = assess(&record(1, Arc::new(route("r"))), &told, false).next else { panic!("final") };
    let message = ending.message.expect("a message");
    assert!(message.len() <= MAX_WORDS + '…'.len_utf8() && message.ends_with("é…"));
}

/// Events in a few words: `3s` moves the clock; `fail gpu0 1 a` is job 1 of route a failing fast there (`slow` instead: not
/// fast), `ok gpu1 a` a success. Says after which events which device was cordoned.
#[track_caller]
fn check_cordons(events: &[&str], expected: &[&str]) {
    let mut state = State::new(rules());
    let mut cordons = Vec::new();
    for event in events {
        let words: Vec<&str> = event.split_whitespace().collect();
        let device = |name: &str| DeviceId(name.to_owned());
        match words[..] {
            ["ok", on, route] => note_success(&mut state, &device(on), route),
            [how, on, job, route] => {
                let job = job_id(job.parse().expect(job));
                if let Some(why) = cordon_after_failure(&mut state, &device(on), job, route, how == "fail") {
                    assert!(why.contains("in a row"), "{why}");
                    cordons.push(*event);
                }
            }
            _ => state.now = state.now + humantime::parse_duration(event).expect(event),
        }
    }
    assert_eq!(cordons, expected);
}

#[test]
fn a_device_that_fails_several_items_fast_is_cordoned() {
    let fails = ["fail g0 1 a", "fail g0 2 a", "ok g1 a", "fail g0 3 a"];
    check_cordons(&fails, &["fail g0 3 a"]);
    // A script that fails everywhere is no device's fault.
    check_cordons(&["fail g0 1 a", "fail g0 2 a", "fail g0 3 a", "fail g0 4 a"], &[]);
    check_cordons(&["fail g0 1 a", "fail g0 2 a", "fail g0 3 a", "ok g1 b", "fail g0 4 a"], &[]);
    check_cordons(
        &["fail g0 1 a", "fail g0 2 b", "ok g1 b", "fail g0 3 a", "ok g1 a", "fail g0 4 b"],
        &["fail g0 4 b"],
    );
    // Good news from before the streak is old news.
    check_cordons(&["ok g1 a", "5s", "fail g0 1 a", "fail g0 2 a", "fail g0 3 a"], &[]);
    // The same item again says nothing new.
    check_cordons(&["fail g0 1 a", "ok g1 a", "fail g0 1 a", "fail g0 1 a"], &[]);
    // Success there, or a failure that took its time, ends the streak.
    check_cordons(&["fail g0 1 a", "fail g0 2 a", "ok g1 a", "ok g0 a", "fail g0 3 a"], &[]);
    check_cordons(&["fail g0 1 a", "fail g0 2 a", "ok g1 a", "slow g0 3 a", "fail g0 4 a"], &[]);
    // The CPU pool is what remains.
    check_cordons(&["fail cpu 1 a", "fail cpu 2 a", "ok g1 a", "fail cpu 3 a"], &[]);
    // Success on the CPU tells nothing about GPUs.
    check_cordons(&["fail g0 1 a", "fail g0 2 a", "ok cpu a", "fail g0 3 a"], &[]);
}

#[test]
fn a_cordon_for_failures_ends_by_itself_later_each_time() {
    use crate::devices::{Cordon, CordonBy, HostMode, Snapshot};
    let mut state = State::new(rules());
    let id = DeviceId("GPU-0".to_owned());
    let look = |state: &mut State, now: Moment| {
        let devices = vec![crate::world::fixtures::reading(crate::devices::DeviceKind::Gpu, 0, now)];
        state.now = now;
        state.observe(&Snapshot { taken_at: now, number: 1, mode: HostMode::Gpu, devices, trouble: None });
        state.device(&DeviceId("GPU-0".to_owned())).is_some_and(|device| device.cordon.is_some())
    };
    let mut now = 0.0;
    for minutes in [5.0, 10.0, 20.0] {
        let device = state.device_mut(&id);
        device.cordons += 1;
        device.cordon = Some(Cordon { by: CordonBy::Failures, since: seconds(now), reason: "x".to_owned() });
        assert!(look(&mut state, seconds(now + minutes * 60.0 - 1.0)), "{minutes} minutes aren't over");
        now += minutes * 60.0;
        assert!(!look(&mut state, seconds(now)), "{minutes} minutes are over");
    }
    let device = state.device_mut(&id);
    device.cordon = Some(Cordon { by: CordonBy::Hand, since: seconds(now), reason: "x".to_owned() });
    assert!(look(&mut state, seconds(now + 1e7)), "what a person did is undone by a person");
}

#[test]
fn what_is_left_of_a_backoff_is_kept_over_a_restart() {
    let check = |history: &str, passed: u64, left: u64| {
        let route = Route { backoff: Duration::from_secs(4), ..route("r") };
        let mut record = record(1, Arc::new(route));
        past(&mut record, history);
        let now = arrival(1) + Duration::from_secs(passed);
        assert_eq!(rest(&record, now), Duration::from_secs(left), "{history} after {passed} s");
    };
    check("", 0, 0);
    check("exit", 0, 4);
    check("exit", 3, 1);
    check("exit", 9, 0);
    check("exit exit", 1, 7);
    check("(exit) (exit) (exit)", 0, 16);
    check("exit (orphaned)", 0, 0);
}
