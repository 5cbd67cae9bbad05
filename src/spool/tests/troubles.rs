use super::*;

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
