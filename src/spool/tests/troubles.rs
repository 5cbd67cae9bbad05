use super::*;

#[test]
fn nothing_is_claimed_while_the_path_leads_to_another_root() {
    let outer = tempfile::tempdir().unwrap();
    let (path, away) = (outer.path().join("root"), outer.path().join("away"));
    Root::init(&path).unwrap();
    let place = Place { temp: tempfile::tempdir_in(outer.path()).unwrap(), root: Arc::new(Root::open(&path).unwrap()) };
    let mut desk = place.desk(Faults::default());
    let candidate = place.drop_file("a", "x");
    let entries = |root: &Path| {
        ["inbox", "claimed", "done", "failed"].map(|name| fs::read_dir(root.join(name)).map_or(0, Iterator::count))
    };
    let check = |desk: &mut Desk, what: &str, replace: &dyn Fn()| {
        fs::rename(&path, &away).unwrap();
        replace();
        let before = entries(&path);
        let Err(NotClaimed::NoRoom(words)) = desk.claim(candidate.clone()) else { panic!("claimed: {what}") };
        assert!(words.contains("is not the one that was opened"), "{words}");
        assert_eq!((entries(&path), entries(&away)), (before, [1, 0, 0, 0]), "{what}");
        assert_eq!(desk.health.last().map(|check| check.state), Some(Condition::Failed), "{what}");
        let _ = fs::remove_dir_all(&path);
        fs::rename(&away, &path).unwrap();
        desk.until(Condition::Ok, "");
    };
    check(&mut desk, "nothing there", &|| ());
    check(&mut desk, "an empty mount point", &|| fs::create_dir(&path).unwrap());
    check(&mut desk, "another root", &|| {
        Root::init(&path).unwrap();
        fs::write(path.join("inbox/a"), "another's").unwrap();
    });
    check(&mut desk, "a copy", &|| {
        Root::init(&path).unwrap();
        fs::copy(away.join(".gamdok/root.json"), path.join(".gamdok/root.json")).unwrap();
    });
    desk.claim(candidate.clone()).unwrap();
    desk.end();
}

#[test]
fn one_jobs_trouble_is_told_until_its_own_retry_goes_through() {
    let place = Place::new();
    let mut desk = place.desk(Faults::failing("finish.begun", Errno::ACCESS, "2"));
    let [stuck, slow] = ["stuck", "slow"].map(|name| {
        let job = desk.claim(place.drop_file(name, "x")).unwrap();
        (desk.run(&place, &job, 1, &[]), job)
    });
    // Its place is taken, today and tomorrow.
    let taken = [0, 1].map(|days| {
        let day = (Timestamp::now() + jiff::SignedDuration::from_hours(24 * days)).strftime("%Y-%m-%d").to_string();
        place.root.done().join(day).join(stuck.1.dir.as_str())
    });
    taken.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    desk.tell(Task::Finish { record: stuck.0, ending: ending(Outcome::Done) });
    desk.until(Condition::Degraded, &stuck.1.record.id.to_string());
    desk.tell(Task::Finish { record: slow.0, ending: ending(Outcome::Done) });
    desk.until(Condition::Degraded, &slow.1.record.id.to_string());
    assert!(desk.health.last().unwrap().message.contains(&stuck.1.record.id.to_string()), "{:?}", desk.health);
    assert!(matches!(desk.answer(), Answer::Finished { record, .. } if record.id == slow.1.record.id));
    desk.until(Condition::Degraded, "");
    while desk.health.last().unwrap().message.contains(&slow.1.record.id.to_string()) {
        desk.health.pop();
        desk.until(Condition::Degraded, "");
    }
    assert!(desk.health.last().unwrap().message.contains(&stuck.1.record.id.to_string()), "{:?}", desk.health);
    taken.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    assert!(matches!(desk.answer(), Answer::Finished { record, .. } if record.id == stuck.1.record.id));
    desk.until(Condition::Ok, "");
    desk.end();
}

#[test]
fn a_claimed_directory_that_is_removed_or_replaced_is_found_again() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let (claimed, away) = (place.root.claimed(), place.path("away"));
    let check = |desk: &mut Desk, name: &str, replace: &dyn Fn()| {
        let job = desk.claim(place.drop_file(format!("{name}-before"), "x")).unwrap();
        let record = desk.run(&place, &job, 1, &["x"]);
        replace();
        let next = desk.claim(place.drop_file(format!("{name}-after"), "x")).unwrap();
        assert!(claimed.join(next.dir.as_str()).join("job.json").is_file(), "{name}");
        // What was running has one outcome, in its place.
        let (result, dir) = desk.finish(record, Outcome::Failed);
        assert_eq!((result.outcome, result.outputs.len()), (Outcome::Failed, 0), "{name}");
        assert!(dir.join("result.json").is_file(), "{name}");
        let record = desk.run(&place, &next, 1, &["x"]);
        let (result, dir) = desk.finish(record, Outcome::Done);
        assert_eq!((result.outputs.len(), dir.join("out/x").is_file()), (1, true), "{name}");
        assert_eq!(fs::read_dir(&claimed).unwrap().count(), 0, "{name}");
        assert_eq!(desk.said(What::Spool), [], "{name}");
        let _ = fs::remove_dir_all(&away);
    };
    check(&mut desk, "removed", &|| fs::remove_dir_all(&claimed).unwrap());
    check(&mut desk, "removed and made", &|| {
        fs::remove_dir_all(&claimed).unwrap();
        fs::create_dir(&claimed).unwrap();
    });
    check(&mut desk, "moved away", &|| fs::rename(&claimed, &away).unwrap());
    desk.end();
}

#[test]
fn while_claimed_is_no_directory_nothing_is_claimed_and_it_is_said() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    fs::remove_dir(place.root.claimed()).unwrap();
    fs::write(place.root.claimed(), "a file").unwrap();
    let candidate = place.drop_file("a", "x");
    let Err(NotClaimed::NoRoom(words)) = desk.claim(candidate.clone()) else { panic!("claimed") };
    assert!(words.contains("claimed/ can't be opened: it is no directory"), "{words}");
    desk.until(Condition::Failed, "claimed/ can't be opened");
    fs::remove_file(place.root.claimed()).unwrap();
    desk.until(Condition::Ok, "");
    desk.claim(candidate).unwrap();
    desk.end();
}

#[test]
fn whether_the_root_is_at_its_path_is_answered_and_its_return_too() {
    let outer = tempfile::tempdir().unwrap();
    let (path, away) = (outer.path().join("root"), outer.path().join("away"));
    Root::init(&path).unwrap();
    let place = Place { temp: tempfile::tempdir_in(outer.path()).unwrap(), root: Arc::new(Root::open(&path).unwrap()) };
    let desk = place.desk(Faults::default());
    let answers = &desk.spool.as_ref().unwrap().answers;
    let is_there = || loop {
        if let Answer::Root { is_there } = answers.recv_timeout(WAIT).unwrap() {
            return is_there;
        }
    };
    desk.tell(Task::FindRoot);
    assert!(is_there());
    fs::rename(&path, &away).unwrap();
    desk.tell(Task::FindRoot);
    assert!(!is_there());
    fs::rename(&away, &path).unwrap();
    assert!(is_there());
    desk.end();
}
