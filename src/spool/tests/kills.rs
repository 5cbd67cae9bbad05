//! Kills at every fault point, each followed by a start: the process that dies is this test binary, run again.

use std::process::{Command, Stdio};

use super::*;

/// Carries two items through whatever is still to do with them; as the killed one and as the one that starts after it.
fn live(root: Arc<Root>, faults: Faults, recovery: Faults) {
    let recovered = recover::recover_with(&root, Clock::start(), recovery).unwrap();
    let spool = start_with(root.clone(), Clock::start(), recovered.backlog, faults).unwrap();
    let mut desk = Desk { spool: Some(spool), health: Vec::new() };
    let mut left = recovered.ended;
    while left > 0 {
        assert!(matches!(desk.answer(), Answer::Filed { .. }));
        left -= 1;
    }
    for job in recovered.jobs {
        carry(&mut desk, &root, job);
    }
    for name in ["a", "b"] {
        let path = root.inbox().join(name);
        if path.exists() {
            let mut candidate = candidate(&path, "");
            let marker = ItemName::new(format!("{name}.done"));
            candidate.companions.extend(root.inbox().join(marker.as_os_str()).exists().then_some(marker));
            Arc::make_mut(&mut candidate.route).publish = Some(root.path().join("published"));
            let job = desk.claim(candidate).unwrap();
            carry(&mut desk, &root, *job);
        }
    }
    desk.end();
}

/// Plays the worker: `a` succeeds at once, `b` fails, is tried again, fails, and is retried by hand.
fn carry(desk: &mut Desk, root: &Root, job: ClaimedJob) {
    let dir = root.claimed().join(job.dir.as_str());
    let mut record = (*job.record).clone();
    let id = record.id;
    loop {
        if record.attempts.last().is_none_or(|last| last.ended_at.is_some()) {
            record.attempts.push(Attempt::planned(record.attempts.len() as u32 + 1));
        }
        let n = record.attempts.len() as u32;
        if n > 1 {
            assert!(matches!(desk.ask(Task::Prepare { record: Arc::new(record.clone()) }), Answer::Prepared { .. }));
        }
        assert!(dir.join("item").join(&record.name).is_file());
        assert_eq!(fs::read_dir(dir.join("out")).unwrap().count(), 0);
        fs::write(dir.join(format!("attempt-{n}.log")), "").unwrap();
        fs::write(dir.join("out/result"), "12345").unwrap();
        let last = record.attempts.last_mut().unwrap();
        (last.ended_at, last.counted) = (Some(Timestamp::now()), true);
        if record.name == "a" || n > 1 {
            break;
        }
    }
    let outcome = if record.name == "a" || record.revived_after > 0 { Outcome::Done } else { Outcome::Failed };
    desk.finish(Arc::new(record), outcome);
    if outcome == Outcome::Failed {
        let Answer::Revived { outcome: Ok(job), .. } = desk.ask(Task::Revive { id }) else { panic!() };
        carry(desk, root, *job);
    }
}

#[test]
#[ignore = "run by the test below, in a process that is killed"]
fn a_life_that_ends_early() {
    let Some(root) = std::env::var_os("GAMDOK_TEST_ROOT") else { return };
    let root = Arc::new(Root::open(Path::new(&root)).unwrap());
    live(root, Faults::from_env(), Faults::from_env());
}

/// Runs a life with a fault; true when it was killed.
fn killed(place: &Place, fault: &str, sync: &str) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    // Reached when outputs can't be published at first.
    let error = fault.starts_with("publish.noted").then_some(("GAMDOK_FAULT_ERR", "publish.staged:5:1"));
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "spool::tests::kills::a_life_that_ends_early", "--ignored"])
        .env("GAMDOK_TEST_ROOT", place.temp.path())
        .env("GAMDOK_FAULT", fault)
        .env("GAMDOK_FAULT_SYNC", sync)
        .envs(error)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{fault}: {status}");
    status.signal() == Some(9)
}

#[test]
fn a_kill_at_any_point_leaves_exactly_one_outcome() {
    for point in FAULT_POINTS {
        for (nth, sync) in [(1, "each"), (1, "whole"), (2, "whole")] {
            let place = Place::new();
            for name in ["a", "b"] {
                place.drop_file(name, &format!("payload of {name}"));
            }
            place.drop_file("a.done", "");
            let fault = format!("{point}:{nth}");
            if point.starts_with("recover.") {
                // Something must lie there to recover: a cut attempt, an intent, or a claim that never was recorded.
                killed(&place, if *point == "recover.set-aside" { "finish.begun" } else { "claim.moved" }, sync);
                for job in fs::read_dir(place.root.claimed()).unwrap() {
                    let job = job.unwrap().path();
                    if *point == "recover.put-back" {
                        fs::write(job.join("job.json"), "").unwrap();
                    } else if *point == "recover.removed" {
                        fs::rename(job.join("item/a"), place.path("inbox/a")).unwrap();
                    }
                }
            }
            let was_killed = killed(&place, &fault, sync);
            let only_each = *point == "finish.outputs-synced" && sync == "whole";
            assert!(was_killed || nth > 1 || only_each, "{fault} is never passed");
            live(place.root.clone(), Faults::default(), Faults::default());
            let ends = |shelf: &str, name: &str| {
                let tree = place.tree();
                tree.iter().filter(|path| path.starts_with(&format!("{shelf}/DAY/{name}~ID/item/"))).count()
            };
            // Killed between its failure and the retry by hand, `b` stays failed: nobody asked the next director.
            let b = (ends("done", "b"), ends("failed", "b"));
            assert!(ends("done", "a") == 1 && ends("failed", "a") == 0, "{fault}: {:#?}", place.tree());
            assert!(b == (1, 0) || b == (0, 1), "{fault}: {:#?}", place.tree());
            let tree = place.tree();
            assert!(!tree.iter().any(|path| path.starts_with("claimed/")), "{fault}: {tree:#?}");
            assert!(!tree.iter().any(|path| path == "inbox/a" || path == "inbox/b"), "{fault}: {tree:#?}");
            let published = fs::read_dir(place.path("published")).unwrap().map(|e| e.unwrap().file_name());
            let mut published: Vec<_> = published.filter(|name| name != "b").collect();
            published.sort();
            assert_eq!(published, ["a"], "{fault}");
            for path in walk_payloads(place.temp.path()) {
                let name = path.file_name().unwrap().to_str().unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), format!("payload of {name}"), "{fault}");
            }
        }
    }
}

/// The `item/<name>` files in `done/` and `failed/`.
fn walk_payloads(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for shelf in ["done", "failed"] {
        for day in fs::read_dir(root.join(shelf)).unwrap().flatten() {
            for job in fs::read_dir(day.path()).unwrap().flatten() {
                found.extend(fs::read_dir(job.path().join("item")).unwrap().flatten().map(|entry| entry.path()));
            }
        }
    }
    found
}
