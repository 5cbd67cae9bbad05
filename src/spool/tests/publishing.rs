use super::*;

/// Finishes `a` with an output that is to be published.
fn finish_published(place: &Place, desk: &mut Desk) -> (Box<ResultRecord>, PathBuf) {
    let mut candidate = place.drop_file("a", "x");
    Arc::make_mut(&mut candidate.route).publish = Some(place.path("published"));
    let job = desk.claim(candidate).unwrap();
    let record = desk.run(place, &job, 1, &["x"]);
    desk.finish(record, Outcome::Done)
}

fn published(place: &Place) -> Vec<String> {
    let Ok(entries) = fs::read_dir(place.path("published")) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // What is being made.
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

fn owed(place: &Place) -> usize {
    unpublished::list(&place.ground()).unwrap().len()
}

#[test]
fn what_could_not_be_published_is_filed_and_published_later_once() {
    for point in ["publish.staged", "publish.named"] {
        let place = Place::new();
        let mut desk = place.desk(Faults::failing(point, Errno::IO, "1"));
        let (result, dir) = finish_published(&place, &mut desk);
        assert!(dir.starts_with(place.root.done()), "{point}");
        let named =
            |check: &Check| check.state == Condition::Degraded && check.message.contains(&result.id.to_string());
        assert!(desk.health.iter().any(named), "{point}: {:?}", desk.health);
        desk.until(Condition::Ok, "");
        assert_eq!((published(&place), owed(&place)), (vec!["a".to_owned()], 0), "{point}");
        assert!(!dir.join("publish.tmp").exists());
        // A clash is one still.
        finish_published(&place, &mut desk);
        assert_eq!(published(&place), ["a", "a~2"], "{point}");
        desk.end();
    }
}

#[test]
fn the_next_start_publishes_what_this_one_could_not() {
    let place = Place::new();
    let mut desk = place.desk(Faults::failing("publish.staged", Errno::IO, "1+"));
    finish_published(&place, &mut desk);
    desk.end();
    assert_eq!((published(&place).len(), owed(&place)), (0, 1));
    for left in [1, 0] {
        let recovered = place.recover();
        assert_eq!((recovered.jobs.len(), recovered.ended, owed(&place)), (0, 0, left));
        let mut desk = place.desk_after(recovered, Faults::default());
        if left > 0 {
            desk.until(Condition::Degraded, "still to be published");
            desk.until(Condition::Ok, "");
        }
        desk.end();
        assert_eq!((published(&place), owed(&place)), (vec!["a".to_owned()], 0));
    }
}

#[test]
fn a_job_retried_by_hand_owes_its_next_outputs_only() {
    let place = Place::new();
    let mut desk = place.desk(Faults::failing("publish.staged", Errno::IO, "1+"));
    let (result, dir) = finish_published(&place, &mut desk);
    let revived = loop {
        match desk.ask(Task::Revive { id: result.id }) {
            Answer::Revived { outcome: Ok(job), .. } => break job,
            // It is just being tried.
            Answer::Revived { outcome: Err(words), .. } => assert!(words.contains("being published"), "{words}"),
            other => panic!("{other:?}"),
        }
    };
    let revived = planned(*revived, 2);
    assert!(!dir.exists() && owed(&place) == 0);
    assert!(matches!(desk.ask(Task::Prepare { record: revived.record.clone() }), Answer::Prepared { .. }));
    let record = desk.run(&place, &revived, 2, &["second"]);
    desk.finish(record, Outcome::Done);
    desk.end();
    let mut desk = place.desk(Faults::default());
    desk.until(Condition::Degraded, "still to be published");
    desk.until(Condition::Ok, "");
    assert_eq!(published(&place), ["a"]);
    assert!(place.path("published/a/second").is_file() && !place.path("published/a/x").exists());
    desk.end();
}

#[test]
fn what_is_still_to_be_published_is_not_pruned() {
    let place = Place::new();
    let mut desk = place.desk(Faults::failing("publish.staged", Errno::IO, "1+"));
    let (_, dir) = finish_published(&place, &mut desk);
    desk.end();
    let name = dir.file_name().unwrap().to_str().unwrap();
    fs::create_dir_all(place.path("done/2020-01-01")).unwrap();
    let old = place.path("done/2020-01-01").join(name);
    fs::rename(&dir, &old).unwrap();
    unpublished::note(&place.ground(), "2020-01-01", name).unwrap();
    fs::create_dir_all(place.path(&format!("done/2020-01-02/b~{}/item", id()))).unwrap();
    let desk = place.desk(Faults::failing("publish.staged", Errno::IO, "1+"));
    desk.tell(Task::Keep { done: Some(Duration::from_secs(86_400)), failed: None });
    let spool = desk.spool.as_ref().unwrap();
    let other = place.path("done/2020-01-02");
    while other.exists() {
        spool.answers.recv_timeout(WAIT).unwrap();
    }
    assert!(old.join("out/x").is_file());
    desk.end();
}
