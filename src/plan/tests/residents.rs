//! Items of resident routes: who is handed over, when a worker is started, and when one has to make room.

use std::time::Duration;

use super::*;
use crate::config::{Batch, Mode};
use crate::state::Resident;

/// Words of a job's line that make its route one of residents: `resident batch=4 wait=5 items=3 idle=60`.
pub(super) fn of_route(route: &mut crate::config::Route, words: &[&str]) {
    if !words.contains(&"resident") {
        return;
    }
    route.mode = Mode::Resident;
    let max_wait = Duration::from_secs(number(words, "wait").unwrap_or(0));
    route.batch = Batch { max_items: number(words, "batch").unwrap_or(1) as u32, max_wait };
    route.resident.max_items = number(words, "items").map(|most| most as u32);
    route.resident.idle_timeout = Duration::from_secs(number(words, "idle").unwrap_or(600));
}

/// A worker a line: `1 of=a on=gpu0` and one of `starting`, `ready=20` (seconds ago, after a load of `load=4`), `retiring`;
/// beside it `has=b,c` (a batch each), `served=2`, `since=30` (idle for so long), `stranger` (somebody else uses the GPU),
/// `awaited` (another director waits for the GPU).
fn host(rule: &str, devices: &[&str], jobs: &[&str], residents: &[&str]) -> Host {
    let mut host = Host::new(rule, devices, jobs);
    host.state.set_routes(host.state.jobs().map(|job| job.route().clone()).collect());
    if let Some(pace) = rule.split_whitespace().find_map(|word| word.strip_prefix("pace=")) {
        host.state.note_pace("a", Duration::from_millis(pace.parse().expect("milliseconds")));
    }
    for line in residents {
        let words: Vec<&str> = line.split_whitespace().collect();
        let id = job_id(words[0].parse::<u64>().expect("a number") + 900);
        let find = |name: &str| *host.names.iter().find(|(_, known)| *known == name).expect("a job of this test").0;
        let of = find(value(&words, "of").expect("of="));
        let route = host.state.job(of).expect("a job").route().clone();
        let on = device_ids(value(&words, "on").expect("on="));
        let has: Vec<JobId> = value(&words, "has").map_or(Vec::new(), |names| names.split(',').map(find).collect());
        let ready = number(&words, "ready").unwrap_or(0) as f64;
        let load = number(&words, "load").unwrap_or(1) as f64;
        host.state.now = seconds(NOW - ready - load);
        host.state.add_resident(id, Resident::new(route, on.clone(), host.state.now));
        host.state.now = seconds(NOW - ready);
        if !words.contains(&"starting") {
            host.state.resident_is_ready(id);
        }
        for job in has {
            host.state.hand_over(&[job], id).expect("a legal step");
            host.state.step(job, Step::Launch).expect("a legal step");
        }
        if words.contains(&"retiring") {
            host.state.resident_retires(id);
        }
        host.state.now = seconds(NOW);
        for reading in host.snapshot.devices.iter_mut().filter(|it| on.contains(&it.id) && words.contains(&"stranger"))
        {
            reading.processes = Some(vec![crate::devices::GpuProcess {
                pid: 411,
                kind: crate::devices::ProcessKind::Compute,
                memory: None,
                name: Some("jupyter".to_owned()),
                user: None,
                group: Some(411),
                job: None,
            }]);
        }
    }
    let awaited = residents.iter().filter(|line| line.contains("awaited"));
    let awaited = awaited
        .flat_map(|line| device_ids(line.split_whitespace().find_map(|it| it.strip_prefix("on=")).expect("on=")));
    host.state.set_awaited(awaited.collect());
    host.state.check().expect("the test's own state holds");
    host
}

#[track_caller]
fn check(rule: &str, devices: &[&str], jobs: &[&str], residents: &[&str], expected: &str) {
    let found = host(rule, devices, jobs, residents).plan();
    // Workers are numbered from 900.
    let found = found.replace("r90", "r");
    assert_eq!(found, expected);
}

#[test]
fn the_first_item_of_a_route_has_a_worker_started_and_the_next_ones_wait_for_it() {
    check("", &["gpu0"], &["a resident"], &[], "warm a on gpu0");
    check("", &["gpu0", "gpu1"], &["a resident", "b resident route=a"], &[], "warm a on gpu0, warm b on gpu1");
    check("", &["gpu0", "gpu1"], &["a resident"], &["1 of=a on=gpu0 starting"], "");
    let two = ["a resident", "b resident route=a"];
    check("", &["gpu0", "gpu1"], &two, &["1 of=a on=gpu0 starting"], "warm b on gpu1");
    check("", &["gpu0"], &two, &["1 of=a on=gpu0 starting"], "");
    // A batch is as good as one item.
    let two = ["a resident batch=4", "b resident route=a batch=4"];
    check("", &["gpu0", "gpu1"], &two, &["1 of=a on=gpu0 starting"], "");
    check("", &["gpu0 stale"], &["a resident"], &[], "check gpu0");
    check("mode=cpu cpu=1", &[], &["a resident gpus=0", "b resident route=a gpus=0"], &[], "warm a on cpu");
    check("", &["gpu0", "gpu1"], &["a resident max=1", "b resident route=a max=1"], &[], "warm a on gpu0");
}

#[test]
fn a_warm_worker_takes_an_item_before_a_cold_device_does() {
    check("", &["gpu0", "gpu1"], &["a resident"], &["1 of=a on=gpu0 ready=9"], "a to r1");
    // Also one whose device hasn't been looked at for long: its own worker is on it.
    check("", &["gpu0 stale", "gpu1"], &["a resident"], &["1 of=a on=gpu0 ready=9"], "a to r1");
    let both = ["1 of=a on=gpu0 ready=9", "2 of=a on=gpu1 ready=9"];
    check("", &["gpu0", "gpu1"], &["a resident", "b resident route=a"], &both, "a to r1, b to r2");
    // A worker of a route that has changed since takes none of it.
    let changed = ["old resident route=a gpus=1 idle=5", "a resident"];
    check("", &["gpu0"], &changed, &["1 of=old on=gpu0 ready=1 has=old"], "");
}

#[test]
fn a_busy_worker_is_waited_for_a_second_and_short_items_go_one_ahead() {
    let two = ["a resident", "b resident route=a"];
    let busy = ["1 of=a on=gpu0 ready=9 has=a"];
    let mut waiting = host("", &["gpu0", "gpu1"], &two, &busy);
    assert_eq!(waiting.plan(), "", "it has only just been claimed");
    assert_eq!(waiting.state.next_change(&waiting.snapshot), Some(seconds(NOW + 1.0)));
    waiting.state.now = seconds(NOW + 1.0);
    assert_eq!(waiting.plan(), "warm b on gpu1", "then another is started");
    check("pace=20", &["gpu0", "gpu1"], &two, &busy, "b to r1");
    check("pace=200", &["gpu0", "gpu1"], &two, &busy, "");
    let three = ["a resident", "b resident route=a", "c resident route=a"];
    check("pace=20", &["gpu0"], &three, &["1 of=a on=gpu0 ready=9 has=a,b"], "");
}

#[test]
fn a_batch_goes_when_it_is_full_or_has_waited_and_is_shared_among_the_warm() {
    let one = ["1 of=a on=gpu0 ready=9"];
    let many = |words: &str| -> Vec<String> {
        ["a", "b", "c"].iter().map(|name| format!("{name} resident route=a {words}")).collect()
    };
    let check = |words: &str, residents: &[&str], expected: &str| {
        let jobs = many(words);
        let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
        check("", &["gpu0", "gpu1"], &jobs, residents, expected);
    };
    check("batch=3 wait=5", &one, "a+b+c to r1");
    check("batch=2 wait=5", &one, "a+b to r1");
    check("batch=4 wait=5", &one, "");
    check("batch=4", &one, "a+b+c to r1");
    check("batch=4", &["1 of=a on=gpu0 ready=9", "2 of=a on=gpu1 ready=9"], "a+c to r1, b to r2");
    check("batch=4 items=2", &one, "a+b to r1");
    let mut halved = host("", &["gpu0"], &["a resident batch=4", "b resident route=a batch=4"], &one);
    halved.state.rewrite(job_id(1), |record| record.batch_limit = Some(1));
    assert_eq!(halved.plan(), "a to r901");
}

#[test]
fn a_worker_goes_when_its_time_is_over() {
    let jobs = ["a resident idle=60 items=5", "b on=gpu1"];
    let check = |residents: &str, expected: &str| {
        let mut host = host("", &["gpu0", "gpu1"], &jobs, &[residents]);
        // The item that lends its route ends.
        host.state.step(job_id(0), Step::Commit { outcome: crate::item::Outcome::Done }).expect("a legal step");
        assert_eq!(host.plan().replace("r90", "r"), expected, "{residents}");
    };
    check("1 of=a on=gpu0 ready=30", "");
    check("1 of=a on=gpu0 ready=60", "retire r1");
    check("1 of=a on=gpu0 ready=30 stranger", "retire r1");
    check("1 of=a on=gpu0 retiring", "");
    check("1 of=a on=gpu0 starting", "");
}

#[test]
fn it_makes_room_for_others_when_it_has_nothing_to_do_or_has_had_its_turn() {
    let idle = ["1 of=a on=gpu0 ready=3"];
    let check_without_a = |other: &str, residents: &[&str], expected: &str| {
        let mut host = host("", &["gpu0"], &["a resident", other], residents);
        host.state.step(job_id(0), Step::Commit { outcome: crate::item::Outcome::Done }).expect("a legal step");
        assert_eq!(host.plan().replace("r90", "r"), expected);
    };
    check_without_a("b", &idle, "retire r1");
    check_without_a("b resident", &idle, "retire r1");
    check_without_a("b", &["1 of=a on=gpu0 retiring"], "");
    // It is wanted by its own route, older and younger than the other item.
    check("", &["gpu0"], &["a resident", "b"], &idle, "a to r1");
    check("", &["gpu0"], &["b", "a resident"], &idle, "a to r1");
    check("", &["gpu0"], &["b prio=1", "a resident"], &idle, "retire r1");
    check("", &["gpu0"], &["b", "a resident"], &["1 of=a on=gpu0 ready=11"], "retire r1");
    // What its start cost is to come in first.
    check("", &["gpu0"], &["b", "a resident"], &["1 of=a on=gpu0 ready=11 load=20"], "a to r1");
    check("", &["gpu0"], &["b", "a resident"], &["1 of=a on=gpu0 ready=60 load=20"], "retire r1");
    // A busy one ends what it has, and one that is still starting is left alone.
    check("", &["gpu0"], &["a resident", "b"], &["1 of=a on=gpu0 ready=60 has=a"], "retire r1");
    check("", &["gpu0"], &["a resident", "b"], &["1 of=a on=gpu0 starting"], "");
    check("", &["gpu0"], &["a resident", "b prio=1"], &["1 of=a on=gpu0 starting"], "retire r1");
    // The other item has a device of its own.
    check("", &["gpu0", "gpu1"], &["a resident", "b"], &["1 of=a on=gpu0 ready=60 has=a"], "b on gpu1");
}

#[test]
fn another_director_is_treated_like_another_route() {
    let idle = |words: &str| format!("1 of=a on=gpu0 {words}");
    let check_without_a = |residents: &[&str], expected: &str| {
        let mut host = host("slots=2", &["gpu0", "gpu1"], &["a resident idle=600", "b on=gpu1"], residents);
        host.state.step(job_id(0), Step::Commit { outcome: crate::item::Outcome::Done }).expect("a legal step");
        assert_eq!(host.plan().replace("r90", "r"), expected, "{residents:?}");
    };
    // Idle, it goes at once; one that starts stays, one that goes isn't sent again.
    check_without_a(&[&idle("ready=3")], "");
    check_without_a(&[&idle("ready=3 awaited")], "retire r1");
    check_without_a(&[&idle("starting awaited")], "");
    check_without_a(&[&idle("retiring awaited")], "");
    // One device at a time, the one that has been idle for longer first, with all that is on it.
    check_without_a(&[&idle("ready=3 awaited"), "2 of=a on=gpu1 ready=3"], "retire r1");
    check_without_a(&[&idle("ready=3 awaited"), "2 of=a on=gpu0 ready=3"], "retire r1, retire r2");
    check_without_a(&[&idle("ready=3 awaited"), "2 of=a on=gpu0 starting"], "");
    check_without_a(&[&idle("retiring awaited"), "2 of=a on=gpu0 ready=3"], "");
    // An item of its own beside it would keep the lock.
    check_without_a(&["1 of=a on=gpu1 ready=3 awaited"], "");
    // With items for it, it has its turn first, and what it has in hand is done.
    check("", &["gpu0"], &["a resident"], &[&idle("ready=9 awaited")], "a to r1");
    check("", &["gpu0"], &["a resident"], &[&idle("ready=11 awaited")], "retire r1");
    check("", &["gpu0"], &["a resident"], &[&idle("ready=11 load=20 awaited")], "a to r1");
    check("", &["gpu0"], &["a resident"], &[&idle("ready=9 awaited has=a")], "");
    check("", &["gpu0"], &["a resident"], &[&idle("ready=11 awaited has=a")], "retire r1");
    // Also while nothing new is started.
    let mut paused = host("", &["gpu0"], &["a resident"], &[&idle("ready=11 awaited")]);
    paused.state.phase = Phase::Paused;
    assert_eq!(paused.plan(), "retire r901");
}

#[test]
fn the_next_device_is_left_once_the_last_could_be_taken() {
    let two = ["1 of=a on=gpu0 ready=3 awaited", "2 of=a on=gpu1 ready=5 awaited"];
    let mut host = host("", &["gpu0", "gpu1"], &["a resident idle=600"], &two);
    host.state.step(job_id(0), Step::Commit { outcome: crate::item::Outcome::Done }).expect("a legal step");
    assert_eq!(host.plan(), "retire r902");
    host.state.resident_retires(job_id(902));
    assert_eq!(host.plan(), "");
    host.state.remove_resident(job_id(902)).expect("it was there");
    host.state.now = seconds(NOW + 4.9);
    assert_eq!(host.plan(), "");
    host.state.now = seconds(NOW + 5.0);
    assert_eq!(host.plan(), "retire r901");
}

#[test]
fn why_an_item_waits_for_its_worker_is_told() {
    let check = |residents: &[&str], jobs: &[&str], expected: &str| {
        let host = host("", &["gpu0"], jobs, residents);
        let (id, _) = host.names.iter().find(|(_, name)| *name == "b").expect("b");
        let job = host.state.job(*id).expect("b is claimed");
        assert_eq!(why_waiting(&host.state, &host.snapshot, job), expected);
    };
    let two = ["a resident", "b resident route=a"];
    check(&["1 of=a on=gpu0 starting"], &two, "the resident worker for it is starting on GPU-0 (1 s so far)");
    check(&["1 of=a on=gpu0 ready=9 has=a"], &two, "the resident workers of its route are busy");
    let batch = ["a resident batch=4 wait=5", "b resident route=a batch=4 wait=5"];
    check(&["1 of=a on=gpu0 ready=9"], &batch, "waits until its batch is full (2 of 4) or max_wait is over");
}
