use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;

use super::*;
use crate::config::Route;
use crate::health::{Condition, What};
use crate::inbox::CandidateKey;
use crate::item::{Attempt, ItemKind, ItemName, Outcome, Reason, Signature};

const WAIT: Duration = Duration::from_secs(20);

mod kills;
mod publishing;
mod recovery;
mod troubles;

/// A root in a folder of its own.
pub(super) struct Place {
    temp: tempfile::TempDir,
    pub(super) root: Arc<Root>,
}

/// A spool on it, whose answers are awaited one by one; health is collected aside.
struct Desk {
    spool: Option<Spool>,
    health: Vec<Check>,
}

impl Place {
    pub(super) fn new() -> Place {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let root = Arc::new(Root::open(temp.path()).unwrap());
        Place { temp, root }
    }

    pub(super) fn ground(&self) -> ground::Ground {
        ground::Ground::new(self.root.clone(), Faults::default()).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.temp.path().join(name)
    }

    fn desk(&self, faults: Faults) -> Desk {
        let spool = start_with(self.root.clone(), Clock::start(), Backlog::default(), faults).unwrap();
        Desk { spool: Some(spool), health: Vec::new() }
    }

    /// The spool that a start has after recovery.
    fn desk_after(&self, recovered: Recovered, faults: Faults) -> Desk {
        let spool = start_with(self.root.clone(), Clock::start(), recovered.backlog, faults).unwrap();
        Desk { spool: Some(spool), health: Vec::new() }
    }

    fn recover(&self) -> Recovered {
        recover::recover_with(&self.root, Clock::start(), Faults::default()).unwrap()
    }

    /// Files what recovery decided; answers with the endings.
    fn file(&self, recovered: Recovered) -> Vec<(Outcome, Option<Reason>, String)> {
        let mut left = recovered.ended;
        let mut spool = start_with(self.root.clone(), Clock::start(), recovered.backlog, Faults::default()).unwrap();
        let mut ends = Vec::new();
        while left > 0 {
            if let Answer::Filed { result, dir, .. } = spool.answers.recv_timeout(WAIT).unwrap() {
                assert!(dir.join("result.json").is_file());
                ends.push((result.outcome, result.reason, result.name));
                left -= 1;
            }
        }
        spool.stop();
        ends
    }

    /// Drops a file and describes it as the scanner would.
    pub(super) fn drop_file(&self, name: impl AsRef<std::ffi::OsStr>, content: &str) -> Candidate {
        let path = self.root.inbox().join(name.as_ref());
        fs::write(&path, content).unwrap();
        candidate(&path, "")
    }

    /// Every file and directory under the root but its state, sorted; a day is `DAY`, an id `ID`.
    fn tree(&self) -> Vec<String> {
        fn walk(dir: &Path, shown: &str, all: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                let name = item::escape(entry.file_name().as_bytes());
                let name = match name.rsplit_once('~') {
                    Some((stem, id)) if id.len() == 26 => format!("{stem}~ID"),
                    _ if name.parse::<jiff::civil::Date>().is_ok() => "DAY".to_owned(),
                    _ => name,
                };
                let path = format!("{shown}{name}");
                if entry.file_type().unwrap().is_dir() {
                    let before = all.len();
                    walk(&entry.path(), &format!("{path}/"), all);
                    if all.len() == before {
                        all.push(format!("{path}/"));
                    }
                } else {
                    all.push(path);
                }
            }
        }
        use crate::item;
        let mut all = Vec::new();
        for name in ["inbox", "claimed", "done", "failed"] {
            walk(&self.path(name), &format!("{name}/"), &mut all);
        }
        all.sort();
        all
    }
}

fn candidate(path: &Path, folder: &str) -> Candidate {
    let stat = fs::symlink_metadata(path).unwrap();
    if stat.is_file() {
        await_no_writer(path);
    }
    let signature = Signature {
        dev: stat.dev(),
        ino: stat.ino(),
        size: stat.size(),
        mtime_ns: i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec()),
        ctime_ns: i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec()),
        blocks: stat.blocks(),
        nlink: stat.nlink(),
        digest: 0,
        entries: 0,
    };
    Candidate {
        key: CandidateKey { folder: folder.to_owned(), name: ItemName::new(path.file_name().unwrap()) },
        kind: if stat.is_dir() { ItemKind::Directory } else { ItemKind::File },
        signature,
        arrived_at: Timestamp::now(),
        route: Arc::new(Route { name: "r".to_owned(), retries: 2, ..recover::no_route() }),
        lease_tested: stat.is_file(),
        companions: Vec::new(),
    }
}

/// A process that another test is just starting holds a copy of each descriptor until it runs its program: what this test
/// has closed may still be open for writing for a moment.
fn await_no_writer(path: &Path) {
    let file = fs::File::open(path).unwrap();
    let deadline = std::time::Instant::now() + WAIT;
    while matches!(crate::sys::lease::take(&file), Ok(crate::sys::lease::Taken::Writer)) {
        assert!(std::time::Instant::now() < deadline, "{} stays open for writing", path.display());
        std::thread::yield_now();
    }
}

fn id() -> JobId {
    JobId(ulid::Ulid::generate())
}

fn ending(outcome: Outcome) -> Ending {
    let reason = (outcome == Outcome::Failed).then_some(Reason::Exit);
    Ending { outcome, reason, message: None, result: None }
}

impl Desk {
    fn tell(&self, task: Task) {
        self.spool.as_ref().unwrap().tasks.send(task).unwrap();
    }

    fn answer(&mut self) -> Answer {
        loop {
            match self.spool.as_ref().unwrap().answers.recv_timeout(WAIT).unwrap() {
                Answer::Health(check) => self.health.push(check),
                Answer::Counted | Answer::Root { .. } => {}
                answer => return answer,
            }
        }
    }

    fn ask(&mut self, task: Task) -> Answer {
        self.tell(task);
        self.answer()
    }

    fn claim(&mut self, candidate: Candidate) -> Result<Box<ClaimedJob>, NotClaimed> {
        match self.ask(Task::Claim { id: id(), candidate, cancelled: false }) {
            Answer::Claimed(job) => Ok(job),
            Answer::NotClaimed { why, .. } => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// Plays a worker that ran attempt `n` and left `out`.
    fn run(&self, place: &Place, job: &ClaimedJob, n: u32, out: &[&str]) -> Arc<JobRecord> {
        let dir = place.root.claimed().join(job.dir.as_str());
        fs::write(dir.join(format!("attempt-{n}.log")), "log").unwrap();
        for name in out {
            fs::write(dir.join("out").join(name), "12345").unwrap();
        }
        let mut record = (*job.record).clone();
        let last = record.attempts.last_mut().unwrap();
        assert_eq!(last.n, n);
        last.ended_at = Some(Timestamp::now());
        last.exit_code = Some(0);
        last.counted = true;
        Arc::new(record)
    }

    fn finish(&mut self, record: Arc<JobRecord>, outcome: Outcome) -> (Box<ResultRecord>, PathBuf) {
        match self.ask(Task::Finish { record, ending: ending(outcome) }) {
            Answer::Finished { result, dir, .. } => (result, dir),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the spool's health is this.
    fn until(&mut self, state: Condition, words: &str) {
        let is_it = |check: &Check| check.what == What::Spool && check.state == state && check.message.contains(words);
        while !self.health.last().is_some_and(is_it) {
            match self.spool.as_ref().unwrap().answers.recv_timeout(WAIT).unwrap() {
                Answer::Health(check) if check.what == What::Spool => self.health.push(check),
                Answer::Health(_) | Answer::Counted | Answer::Root { .. } => {}
                other => panic!("{other:?} before {state:?} {words}"),
            }
        }
    }

    fn said(&self, what: What) -> Vec<Condition> {
        self.health.iter().filter(|check| check.what == what).map(|check| check.state).collect()
    }

    fn end(mut self) -> Ended {
        let mut spool = self.spool.take().unwrap();
        spool.stop();
        spool.tally.read()
    }
}

use super::tally::Ended;

#[test]
fn an_item_goes_through_and_everything_of_it_stays_together() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let job = desk.claim(place.drop_file("a b.wav", "payload")).unwrap();
    let claimed = "claimed/a_b~ID";
    let expected = ["item/a b.wav", "job.json", "lock", "out/"].map(|name| format!("{claimed}/{name}"));
    assert_eq!(place.tree(), [&["done/".to_owned()][..0], &expected].concat());
    let json = fs::read(place.root.claimed().join(job.dir.as_str()).join("job.json")).unwrap();
    assert_eq!(serde_json::from_slice::<JobRecord>(&json).unwrap(), *job.record);
    assert_eq!(job.record.attempts, [Attempt::planned(1)]);
    let record = desk.run(&place, &job, 1, &["x.txt"]);
    let (result, dir) = desk.finish(record, Outcome::Done);
    assert_eq!(fs::read(dir.join("item/a b.wav")).unwrap(), b"payload");
    assert_eq!(result.outputs, [crate::item::Output { path: "x.txt".to_owned(), bytes: 5 }]);
    let written: ResultRecord = serde_json::from_slice(&fs::read(dir.join("result.json")).unwrap()).unwrap();
    assert_eq!((written.id, written.outcome, written.attempts.len()), (result.id, Outcome::Done, 1));
    assert!(dir.starts_with(place.root.done().join(result.finished_at.strftime("%Y-%m-%d").to_string())));
    assert_eq!(desk.end(), Ended { done: 1, ..Ended::default() });
    assert_eq!(tally::count(place.root.path()).unwrap(), Ended { done: 1, ..Ended::default() });
}

#[test]
fn hostile_names_are_carried_as_they_are() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let long = [b'x'; 255];
    let names: [&[u8]; 8] =
        [b"-rf", b"new\nline", b"\xff\xfe", b"~", b"a~01ARZ3NDEKTSV4RRFFQ69G5FAV", b" ", "\u{202e}x".as_bytes(), &long];
    for name in names {
        let name = std::ffi::OsStr::from_bytes(name);
        let job = desk.claim(place.drop_file(name, "x")).unwrap();
        assert_eq!(job.record.item_name().as_os_str(), name);
        assert_eq!(job.record.dir(), job.dir);
        let record = desk.run(&place, &job, 1, &[]);
        let (_, dir) = desk.finish(record, Outcome::Failed);
        assert!(dir.join("item").join(name).is_file(), "{name:?}");
    }
    assert_eq!(desk.end().failed, names.len() as u64);
}

#[test]
fn what_is_not_what_was_inspected_stays_in_the_inbox() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let mut check = |change: &dyn Fn(&Path, &mut Candidate), expected: NotClaimed| {
        let mut candidate = place.drop_file("item", "payload");
        let path = place.root.inbox().join("item");
        change(&path, &mut candidate);
        let before = fs::read(&path).ok();
        assert_eq!(desk.claim(candidate).unwrap_err(), expected);
        assert_eq!(fs::read(&path).ok(), before);
        assert_eq!(fs::read_dir(place.root.claimed()).unwrap().count(), 0);
        let _ = fs::remove_file(&path);
    };
    check(&|path, _| fs::remove_file(path).unwrap(), NotClaimed::Gone);
    check(&|path, _| fs::write(path, "longer payload").unwrap(), NotClaimed::Changed);
    check(
        &|path, _| {
            fs::write(path.with_extension("new"), "payload").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        },
        NotClaimed::Changed,
    );
    check(&|_, candidate| candidate.signature.mtime_ns += 1, NotClaimed::Changed);
    check(&|_, candidate| candidate.key.folder = "absent".to_owned(), NotClaimed::Gone);
    let candidate = place.drop_file("open", "x");
    let writer = fs::File::options().append(true).open(place.root.inbox().join("open")).unwrap();
    assert_eq!(desk.claim(candidate.clone()).unwrap_err(), NotClaimed::Changed);
    drop(writer);
    await_no_writer(&place.root.inbox().join("open"));
    desk.claim(candidate).unwrap();
    desk.end();
}

#[test]
fn directories_and_companions_move_along() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    fs::create_dir_all(place.path("inbox/in/set/deep")).unwrap();
    fs::write(place.path("inbox/in/set/deep/a"), "x").unwrap();
    fs::write(place.path("inbox/in/set.done"), "").unwrap();
    let mut candidate = candidate(&place.path("inbox/in/set"), "in");
    candidate.companions = vec![ItemName::new("set.done"), ItemName::new("absent")];
    let job = desk.claim(candidate).unwrap();
    let expected = ["companions/set.done", "folder.tmp", "item/set/deep/a", "job.json", "lock", "out/"];
    let expected: Vec<_> = expected.iter().map(|name| format!("claimed/set~ID/{name}")).collect();
    assert_eq!(place.tree(), [expected, vec!["inbox/in/".to_owned()]].concat());
    assert_eq!((job.record.kind, job.record.folder.as_str()), (ItemKind::Directory, "in"));
    desk.end();
}

#[test]
fn an_item_that_cannot_go_back_is_a_job_of_its_own() {
    let place = Place::new();
    let ground = place.ground();
    let candidate = place.drop_file("item", "first");
    let folder = record::open_dir(rustix::fs::CWD, place.root.inbox()).unwrap();
    let mut claim = Box::new(claim::Claim::new(&ground, Arc::new(folder), id(), candidate, false));
    claim.carry_out(&ground).unwrap();
    fs::write(place.path("inbox/item"), "second").unwrap();
    let claim::Undo::Kept(kept) = claim.undo(&ground, NotClaimed::Changed) else { panic!("it was put back") };
    assert_eq!(fs::read(place.path("inbox/item")).unwrap(), b"second");
    let job = kept.into_job();
    assert_eq!(fs::read(place.root.claimed().join(job.dir.as_str()).join("item/item")).unwrap(), b"first");
}

#[test]
fn a_retry_finds_an_empty_out_and_the_old_one_beside_it() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let job = desk.claim(place.drop_file("a", "x")).unwrap();
    let mut record = (*desk.run(&place, &job, 1, &["half"])).clone();
    record.attempts.push(Attempt::planned(2));
    let record = Arc::new(record);
    assert!(matches!(desk.ask(Task::Prepare { record: record.clone() }), Answer::Prepared { .. }));
    let expected = ["attempt-1.log", "item/a", "job.json", "lock", "out.aborted.1/half", "out/"];
    assert_eq!(place.tree(), expected.map(|name| format!("claimed/a~ID/{name}")));
    assert!(matches!(desk.ask(Task::Save { record: record.clone() }), Answer::Saved { .. }));
    desk.end();
    let recovered = place.recover();
    assert_eq!(recovered.jobs.len(), 1);
    assert_eq!(recovered.jobs[0].record.attempts, record.attempts);
}

/// The job with its next attempt, as the director plans it.
fn planned(job: ClaimedJob, n: u32) -> ClaimedJob {
    let mut record = (*job.record).clone();
    record.attempts.push(Attempt::planned(n));
    ClaimedJob { record: Arc::new(record), ..job }
}

#[test]
fn a_retry_by_hand_keeps_the_result_and_counts_afresh() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let job = desk.claim(place.drop_file("a", "x")).unwrap();
    let record = desk.run(&place, &job, 1, &["old"]);
    let (_, dir) = desk.finish(record, Outcome::Failed);
    let id = job.record.id;
    assert_eq!(find(&place.root, id).unwrap().unwrap().path(&place.root), dir);
    let Answer::Revived { outcome: Ok(job), .. } = desk.ask(Task::Revive { id }) else { panic!() };
    assert_eq!((job.record.revived_after, job.record.attempts.len(), job.record.tries().count()), (1, 1, 0));
    let job = planned(*job, 2);
    let Answer::Revived { outcome: Err(words), .. } = desk.ask(Task::Revive { id }) else { panic!() };
    assert!(words.contains("no ended job"), "{words}");
    assert!(matches!(desk.ask(Task::Prepare { record: job.record.clone() }), Answer::Prepared { .. }));
    let record = desk.run(&place, &job, 2, &["new"]);
    let (result, _) = desk.finish(record, Outcome::Done);
    assert_eq!(result.attempts.iter().map(|a| a.n).collect::<Vec<_>>(), [1, 2]);
    let expected = [
        "attempt-1.log",
        "attempt-2.log",
        "item/a",
        "job.json",
        "lock",
        "out.aborted.1/old",
        "out/new",
        "result.1.json",
        "result.json",
    ];
    let mut tree = place.tree();
    tree.retain(|path| path.starts_with("done/"));
    assert_eq!(tree, expected.map(|name| format!("done/DAY/a~ID/{name}")));
    assert_eq!(desk.end(), Ended { done: 1, ..Ended::default() });
}

#[test]
fn a_claim_that_the_disk_refuses_leaves_the_item_where_it_was() {
    let points = ["claim.begun", "claim.intended", "claim.moved", "claim.verified", "round.sync", "claim.synced"];
    for (point, errno) in points.into_iter().zip([Errno::NOSPC, Errno::IO, Errno::ROFS].into_iter().cycle()) {
        let place = Place::new();
        let mut desk = place.desk(Faults::failing(point, errno, "1"));
        let candidate = place.drop_file("a", "x");
        assert!(matches!(desk.claim(candidate.clone()), Err(NotClaimed::NoRoom(_))), "{point}");
        assert_eq!(place.tree(), ["claimed/", "done/", "failed/", "inbox/a"][3..], "{point}");
        desk.claim(candidate).unwrap();
        desk.end();
    }
}

#[test]
fn a_finish_that_the_disk_refuses_is_kept_and_done_once() {
    let points = ["finish.begun", "finish.staged", "finish.named", "round.sync", "finish.committed", "finish.moved"];
    for (point, errno) in points.into_iter().zip([Errno::NOSPC, Errno::IO, Errno::ROFS].into_iter().cycle()) {
        for out in [&["x"][..], &[]] {
            // The claim's round is the first.
            let nth = if point == "round.sync" { "2" } else { "1" };
            let place = Place::new();
            let mut desk = place.desk(Faults::failing(point, errno, nth));
            let job = desk.claim(place.drop_file("a", "x")).unwrap();
            let record = desk.run(&place, &job, 1, out);
            let (result, dir) = desk.finish(record, Outcome::Done);
            assert_eq!((result.outcome, result.outputs.len()), (Outcome::Done, out.len()), "{point}");
            assert!(dir.join("result.json").is_file() && !dir.join("result.1.json").exists(), "{point}");
            // A later task is answered after what was said before it.
            let _ = desk.claim(place.drop_file("b", "x"));
            let what = if errno == Errno::NOSPC { What::Space } else { What::Spool };
            assert!(desk.said(what).contains(&Condition::Failed), "{point} {:?}", desk.health);
            assert_eq!(desk.end().done, 1, "{point}");
        }
    }
}

#[test]
fn a_disk_that_keeps_refusing_leaves_the_job_for_the_next_start() {
    let place = Place::new();
    let mut desk = place.desk(Faults::failing("finish.named", Errno::ROFS, "1+"));
    let job = desk.claim(place.drop_file("a", "x")).unwrap();
    let record = desk.run(&place, &job, 1, &[]);
    desk.tell(Task::Finish { record, ending: ending(Outcome::Done) });
    desk.end();
    let recovered = place.recover();
    assert_eq!((recovered.jobs.len(), recovered.ended), (0, 1));
    assert_eq!(place.file(recovered), [(Outcome::Done, None, "a".to_owned())]);
    assert_eq!(place.recover().ended, 0);
}

#[test]
fn outputs_are_published_after_the_commit() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    for expected in ["a.wav/x", "a.wav~2/x"] {
        let mut candidate = place.drop_file("a.wav", "x");
        let into = place.temp.path().join("published");
        Arc::make_mut(&mut candidate.route).publish = Some(into.clone());
        let job = desk.claim(candidate).unwrap();
        let record = desk.run(&place, &job, 1, &["x"]);
        let (_, dir) = desk.finish(record, Outcome::Done);
        assert_eq!(fs::read(into.join(expected)).unwrap(), b"12345");
        assert!(!dir.join("publish.tmp").exists());
    }
    desk.end();
}

#[test]
fn a_worker_cannot_forge_its_result() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    let job = desk.claim(place.drop_file("a", "x")).unwrap();
    let record = desk.run(&place, &job, 1, &[]);
    fs::write(place.root.claimed().join(job.dir.as_str()).join("result.json"), "forged").unwrap();
    let (_, dir) = desk.finish(record, Outcome::Failed);
    assert_eq!(fs::read(dir.join("result.1.json")).unwrap(), b"forged");
    assert!(serde_json::from_slice::<ResultRecord>(&fs::read(dir.join("result.json")).unwrap()).is_ok());
    desk.end();
}

#[test]
fn old_days_are_pruned_and_the_tally_follows() {
    let place = Place::new();
    for (shelf, day, n) in [("done", "2020-01-01", 20), ("failed", "2020-01-02", 1), ("done", "2999-01-01", 1)] {
        for _ in 0..n {
            fs::create_dir_all(place.path(&format!("{shelf}/{day}/a~{}/item", id()))).unwrap();
        }
    }
    fs::create_dir(place.path("done/2020-01-01/not-ours")).unwrap();
    let desk = place.desk(Faults::default());
    let spool = desk.spool.as_ref().unwrap();
    while !matches!(spool.answers.recv_timeout(WAIT).unwrap(), Answer::Counted) {}
    assert_eq!(spool.tally.read(), Ended { done: 21, failed: 1, cancelled: 0 });
    desk.tell(Task::Keep { done: Some(Duration::from_secs(86_400)), failed: None });
    let mut left = u64::MAX;
    let deadline = std::time::Instant::now() + WAIT;
    while left != 1 && std::time::Instant::now() < deadline {
        left = spool.tally.read().done;
        std::thread::yield_now();
    }
    assert_eq!(desk.end(), Ended { done: 1, failed: 1, cancelled: 0 });
    assert!(place.path("done/2020-01-01/not-ours").is_dir());
}

/// `mount` gives it a file system of its own.
#[test]
#[ignore = "needs the right to mount"]
fn a_full_disk_loses_nothing_and_goes_on_by_itself() {
    let mount = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(std::process::Command::new(program).args(args).arg(mount.path()).status().unwrap().success());
    };
    run("mount", &["-t", "tmpfs", "-o", "size=8m", "none"]);
    let temp = tempfile::tempdir_in(mount.path()).unwrap();
    Root::init(temp.path()).unwrap();
    let root = Arc::new(Root::open(temp.path()).unwrap());
    let place = Place { temp, root };
    let mut desk = place.desk(Faults::default());
    let fill = |name: &str| {
        let path = place.path(name);
        let _ = std::io::copy(&mut std::io::repeat(1), &mut fs::File::create(&path).unwrap());
        path
    };
    let job = desk.claim(place.drop_file("a", "x")).unwrap();
    let waiting = place.drop_file("b", "x");
    let record = desk.run(&place, &job, 1, &["x"]);
    // Once with the ballast to give up, once without.
    let filler = fill("filler");
    let (_, dir) = desk.finish(record, Outcome::Done);
    assert!(dir.join("out/x").is_file());
    assert!(matches!(desk.claim(waiting.clone()), Err(NotClaimed::NoRoom(_))));
    let more = fill("more");
    assert!(desk.said(What::Space).contains(&Condition::Failed), "{:?}", desk.health);
    fs::remove_file(filler).unwrap();
    fs::remove_file(more).unwrap();
    while desk.said(What::Space).last() != Some(&Condition::Ok) {
        match desk.spool.as_ref().unwrap().answers.recv_timeout(WAIT).unwrap() {
            Answer::Health(check) => desk.health.push(check),
            other => panic!("{other:?}"),
        }
    }
    let job = desk.claim(waiting).unwrap();
    let record = desk.run(&place, &job, 1, &[]);
    let filler = fill("filler");
    fs::remove_file(place.root.ballast()).unwrap();
    let more = fill("more");
    desk.tell(Task::Finish { record, ending: ending(Outcome::Done) });
    let first = desk.spool.as_ref().unwrap().answers.recv_timeout(WAIT).unwrap();
    assert!(matches!(&first, Answer::Health(check) if check.state == Condition::Failed), "{first:?}");
    fs::remove_file(filler).unwrap();
    fs::remove_file(more).unwrap();
    assert!(matches!(desk.answer(), Answer::Finished { .. }));
    assert_eq!(desk.end().done, 2);
    drop(place);
    run("umount", &[]);
}

/// What a group costs: `cargo test --release spool_costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn spool_costs() {
    let place = Place::new();
    let mut desk = place.desk(Faults::default());
    for n in [1usize, 2, 16, 64, 1, 2, 16, 64] {
        let candidates: Vec<_> = (0..n).map(|i| place.drop_file(format!("item-{i}"), "payload")).collect();
        let began = std::time::Instant::now();
        for candidate in candidates {
            desk.tell(Task::Claim { id: id(), candidate, cancelled: false });
        }
        let mut jobs = Vec::new();
        for _ in 0..n {
            let Answer::Claimed(job) = desk.answer() else { panic!() };
            jobs.push(job);
        }
        let claimed = began.elapsed();
        let records: Vec<_> = jobs.iter().map(|job| desk.run(&place, job, 1, &[])).collect();
        let began = std::time::Instant::now();
        for record in records {
            desk.tell(Task::Finish { record, ending: ending(Outcome::Done) });
        }
        for _ in 0..n {
            desk.answer();
        }
        let finished = began.elapsed();
        println!("{n:3}: claim {:?} an item, finish {:?} an item", claimed / n as u32, finished / n as u32);
    }
    desk.end();
}
