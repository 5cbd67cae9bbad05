use super::*;

/// Claims an item, lets `change` do to its directory what a kill could leave, and recovers twice.
fn check_recovery(change: impl Fn(&Path, &mut JobRecord), expected: Expected) {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let job = desk.claim(place.drop_file("a", "x")).unwrap();
    desk.end();
    let dir = place.root.claimed().join(job.dir.as_str());
    let mut record = (*job.record).clone();
    change(&dir, &mut record);
    if record != *job.record {
        fs::write(dir.join("job.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    }
    let first = place.recover();
    let second = place.recover();
    let again = |recovered: &Recovered| {
        let attempts = |job: &ClaimedJob| job.record.attempts.iter().map(|a| (a.n, a.reason)).collect::<Vec<_>>();
        recovered.jobs.iter().map(attempts).collect::<Vec<_>>()
    };
    assert_eq!((again(&first), first.ended), (again(&second), second.ended));
    match expected {
        Expected::Next(attempts) => assert_eq!(again(&second), [attempts]),
        Expected::Ends(outcome, reason) => {
            assert_eq!(again(&second), [[]; 0]);
            assert_eq!(place.file(second), [(outcome, reason, "a".to_owned())]);
            assert!(place.tree().iter().any(|path| path.ends_with("/item/a")), "{:?}", place.tree());
        }
        Expected::InTheInbox => assert_eq!(place.tree(), ["inbox/a"]),
        Expected::Nothing => assert_eq!(place.tree(), [""; 0]),
    }
    assert!(place.tree().iter().filter(|path| path.ends_with("/a")).count() <= 1);
}

enum Expected {
    /// It runs again, with these attempts behind it; one without a reason is the next.
    Next(Vec<(u32, Option<Reason>)>),
    Ends(Outcome, Option<Reason>),
    InTheInbox,
    Nothing,
}

fn touch(dir: &Path, name: &str) {
    fs::write(dir.join(name), "").unwrap();
}

fn cut_off(n: u32) -> Attempt {
    let mut attempt = Attempt::planned(n);
    attempt.ended_at = Some(Timestamp::now());
    attempt.reason = Some(Reason::Orphaned);
    attempt
}

#[test]
fn recovery_follows_its_table() {
    use Expected::*;
    let result = |dir: &Path, name: &str, record: &JobRecord, outcome| {
        let finish = finish::Finish::new(Arc::new(record.clone()), ending(outcome));
        fs::write(dir.join(name), serde_json::to_vec(&finish.write_up(outputs::Outputs::default())).unwrap()).unwrap();
    };
    check_recovery(|_, _| {}, Next(vec![(1, None)]));
    check_recovery(|dir, _| fs::remove_file(dir.join("item/a")).unwrap(), Nothing);
    check_recovery(|dir, _| touch(dir, "attempt-1.log"), Next(vec![(1, Some(Reason::Orphaned))]));
    check_recovery(
        |dir, record| {
            touch(dir, "out/half");
            touch(dir, "attempt-1.log");
            record.attempts = vec![cut_off(1), Attempt::planned(2)];
        },
        Next(vec![(1, Some(Reason::Orphaned)), (2, None)]),
    );
    check_recovery(|_, record| record.boot_id = "another".to_owned(), Next(vec![(1, Some(Reason::Orphaned))]));
    check_recovery(|_, record| record.cancelled = true, Ends(Outcome::Cancelled, Some(Reason::Cancelled)));
    check_recovery(
        |_, record| record.attempts = (1..=11).map(cut_off).collect(),
        Ends(Outcome::Failed, Some(Reason::Poison)),
    );
    check_recovery(
        |_, record| {
            record.attempts = (1..=12).map(cut_off).collect();
            record.revived_after = 11;
            record.attempts[11].reason = Some(Reason::Timeout);
        },
        Next((1..=12).map(|n| (n, Some(if n == 12 { Reason::Timeout } else { Reason::Orphaned }))).collect()),
    );
    check_recovery(
        |_, record| {
            record.attempts = (1..=3).map(cut_off).collect();
            record.attempts.iter_mut().for_each(|a| (a.counted, a.reason) = (true, Some(Reason::Signal)));
        },
        Ends(Outcome::Failed, Some(Reason::Signal)),
    );
    // Committed, or staged when only the director was killed.
    check_recovery(|dir, record| result(dir, "result.json", record, Outcome::Done), Ends(Outcome::Done, None));
    check_recovery(|dir, record| result(dir, "result.json.tmp", record, Outcome::Done), Ends(Outcome::Done, None));
    check_recovery(
        |dir, record| {
            result(dir, "result.json.tmp", record, Outcome::Done);
            record.boot_id = "another".to_owned();
        },
        Next(vec![(1, Some(Reason::Orphaned))]),
    );
    // Torn.
    check_recovery(|dir, _| touch(dir, "result.json"), Next(vec![(1, None)]));
    check_recovery(|dir, _| fs::write(dir.join("result.json"), "{\"id\":").unwrap(), Next(vec![(1, None)]));
    check_recovery(|dir, _| touch(dir, "job.json"), InTheInbox);
    check_recovery(|dir, _| fs::write(dir.join("job.json"), [0; 300]).unwrap(), InTheInbox);
    let unrecognised = || Ends(Outcome::Failed, Some(Reason::Unrecognised));
    check_recovery(|dir, _| fs::write(dir.join("job.json"), "{\"id\":").unwrap(), unrecognised());
    check_recovery(|dir, _| fs::remove_file(dir.join("job.json")).unwrap(), unrecognised());
    check_recovery(
        |dir, _| {
            touch(dir, "job.json");
            touch(dir, "attempt-1.log");
        },
        unrecognised(),
    );
    check_recovery(|_, record| record.name_b64 = ItemName::new("b").base64(), unrecognised());
}

#[test]
fn an_item_with_its_name_taken_does_not_go_back() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let job = desk.claim(place.drop_file("a", "first")).unwrap();
    desk.end();
    touch(&place.root.claimed().join(job.dir.as_str()), "job.json");
    place.drop_file("a", "second");
    let recovered = place.recover();
    assert_eq!(place.file(recovered), [(Outcome::Failed, Some(Reason::Unrecognised), "a".to_owned())]);
    assert_eq!(fs::read(place.path("inbox/a")).unwrap(), b"second");
}

#[test]
fn what_gamdok_did_not_make_is_left_and_said() {
    let place = Place::new();
    fs::create_dir(place.path("claimed/mine")).unwrap();
    touch(&place.path("claimed"), "note.txt");
    touch(&place.path("claimed"), ".gamdok-probe-1-file");
    let recovered = place.recover();
    let mut desk = place.desk_after(recovered, Faults::default());
    desk.until(Condition::Degraded, "2 in claimed/");
    assert!(place.path("claimed/mine").is_dir());
    desk.end();
}

#[test]
fn a_job_that_must_be_left_is_taken_up_by_the_same_director_once_it_is_free() {
    let check = |at_the_start: (&str, Errno), words: &str, cancelled: bool, again: bool| {
        let place = Place::new();
        let mut desk = place.desk(Faults::default());
        let Answer::Claimed(job) = desk.ask(Task::Claim { id: id(), candidate: place.drop_file("a", "x"), cancelled })
        else {
            panic!("not claimed")
        };
        desk.end();
        let faults = Faults::failing(at_the_start.0, at_the_start.1, "1");
        let recovered = recover::recover_with(&place.root, Clock::start(), faults).unwrap();
        assert_eq!((recovered.jobs.len(), recovered.ended, recovered.left), (0, 0, 1));
        // As long as it isn't free, the running one's first look is no better.
        let faults = if again { Faults::failing("recover.looked", Errno::IO, "1") } else { Faults::default() };
        let mut desk = place.desk_after(recovered, faults);
        desk.until(Condition::Degraded, words);
        assert!(desk.health.last().unwrap().message.starts_with(job.dir.as_str()), "{:?}", desk.health);
        match desk.answer() {
            Answer::TakenUp(taken) => assert_eq!((taken.record.id, cancelled), (job.record.id, false)),
            Answer::Left(0) if cancelled => {
                let Answer::Filed { result, .. } = desk.answer() else { panic!("not filed") };
                assert_eq!(result.outcome, Outcome::Cancelled);
            }
            other => panic!("{other:?}"),
        }
        if !cancelled {
            assert!(matches!(desk.answer(), Answer::Left(0)));
            desk.until(Condition::Ok, "");
        }
        desk.end();
    };
    check(("recover.looked", Errno::IO), "can't be ended", false, false);
    check(("recover.looked", Errno::IO), "can't be ended", true, true);
    check(("recover.job", Errno::ACCESS), "can't be recovered yet", false, true);
}

#[test]
fn what_outlived_the_director_is_ended_before_its_item_runs_again() {
    let check = |env: bool, lock: bool, ignore_term: bool| {
        let place = Place::new();
        let mut desk = place.desk(Faults::default());
        let mut candidate = place.drop_file("a", "x");
        Arc::make_mut(&mut candidate.route).kill_grace = Duration::from_millis(50);
        let job = desk.claim(candidate).unwrap();
        desk.end();
        let dir = place.root.claimed().join(job.dir.as_str());
        touch(&dir, "attempt-1.log");
        let script = if ignore_term { "trap '' TERM; echo; while :; do sleep 60; done" } else { "echo; exec sleep 60" };
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdout(std::process::Stdio::piped()).env_remove("GAMDOK_ID");
        if env {
            command.env("GAMDOK_ID", job.record.id.to_string());
        }
        if lock {
            // As the worker does it: the process inherits the locked file.
            let file = fs::File::options().write(true).open(dir.join("lock")).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
            command.stdin(file);
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let recovered = place.recover();
        assert_eq!(recovered.jobs.len(), 1);
        assert!(child.try_wait().unwrap().is_some(), "it lives: env {env}, lock {lock}");
    };
    check(true, false, false);
    check(false, true, false);
    check(true, true, true);
}
