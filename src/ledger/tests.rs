//! The ledger as a whole: a root with job directories, the writer's thread, and readers beside it.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::atomic::Ordering;

use jiff::{Timestamp, ToSpan as _};

use super::*;
use crate::config::{Route, RouteKind};
use crate::devices::DeviceId;
use crate::health::{Condition, What};
use crate::item::{Attempt, ItemKind, ItemName, JobDir, JobId, Outcome, Reason};
use crate::units::Bytes;

const SOON: Duration = Duration::from_secs(30);
const DAYS: [&str; 3] = ["2026-11-20", "2026-11-21", "2026-11-22"];

/// A root, and a clock that gives each job its own moment.
struct World {
    root: tempfile::TempDir,
    made: u64,
}

/// A job in its directory, as the director knows it.
struct Made {
    record: Arc<JobRecord>,
    result: Option<Arc<ResultRecord>>,
    dir: PathBuf,
}

impl World {
    fn new() -> World {
        let root = tempfile::tempdir().expect("a folder");
        for dir in ["claimed", "done", "failed", ".gamdok"] {
            fs::create_dir(root.path().join(dir)).expect("made");
        }
        World { root, made: 0 }
    }

    fn start(&self) -> Ledger {
        start(Setup::of_root(self.root.path())).expect("a thread")
    }

    /// Starts, and waits until every directory was read.
    fn started(&self) -> Ledger {
        let ledger = self.start();
        while ledger.health.recv_timeout(SOON).expect("it becomes healthy").state != Condition::Ok {}
        ledger
    }

    fn reader(&self) -> Reader {
        Reader::open(&file_of(self.root.path())).expect("a ledger")
    }

    fn rows(&self) -> Vec<Row> {
        self.reader().list(&Wanted::default()).expect("rows")
    }

    /// Makes a job without its directory.
    fn job(&mut self, name: &[u8], outcome: Option<(Outcome, usize)>) -> Made {
        self.made += 1;
        let at = |seconds: i64| {
            Timestamp::UNIX_EPOCH + 490_000.hours() + (self.made as i64 * 10 + seconds).seconds() + 7.nanoseconds()
        };
        let id = JobId(ulid::Ulid::from_parts(1_764_000_000_000 + self.made, u128::from(self.made)));
        let name = ItemName::new(std::ffi::OsString::from_vec(name.to_vec()));
        let attempts: Vec<Attempt> = (1..=1 + self.made as u32 % 3)
            .map(|n| Attempt {
                devices: vec![DeviceId::cpu(), DeviceId(format!("GPU-{}", self.made % 4))],
                pid: Some(4000 + n as i32),
                started_at: Some(at(1)),
                ended_at: Some(at(2)),
                exit_code: Some(i32::from(outcome.is_none())),
                reason: Some(Reason::Exit),
                peak_gpu_memory: Some(u64::from(n) << 30),
                energy_joules: Some(1.5),
                counted: true,
                ..Attempt::planned(n)
            })
            .collect();
        let record = JobRecord {
            id,
            name: name.escaped(),
            name_b64: name.base64(),
            folder: if self.made.is_multiple_of(2) { "scans".to_owned() } else { String::new() },
            kind: ItemKind::File,
            route: Arc::new(route(if self.made.is_multiple_of(5) { "rare" } else { "usual" })),
            arrived_at: Some(at(0)),
            claimed_at: at(1),
            boot_id: "a boot".to_owned(),
            signature: None,
            attempts,
            avoid: Vec::new(),
            cancelled: false,
            revived_after: 0,
            batch_limit: None,
            counters: Default::default(),
        };
        let result = outcome.map(|(outcome, _)| ResultRecord {
            outcome,
            reason: (outcome != Outcome::Done).then_some(Reason::Exit),
            message: (outcome != Outcome::Done).then(|| "it ended with exit code 3".to_owned()),
            finished_at: at(3),
            result: serde_json::value::RawValue::from_string("{\"text\":\"well\"}".to_owned()).ok(),
            ..ended(&record)
        });
        let place = match outcome {
            None => "claimed".to_owned(),
            Some((Outcome::Done, day)) => format!("done/{}", DAYS[day]),
            Some((_, day)) => format!("failed/{}", DAYS[day]),
        };
        let dir = self.root.path().join(place).join(JobDir::new(&name, id).as_str());
        Made { record: Arc::new(record), result: result.map(Arc::new), dir }
    }

    /// Some of everything, in their directories.
    fn fill(&mut self) -> Vec<Made> {
        let names: [&[u8]; 9] = [
            b"plain.wav",
            b"\xff\xfe not text \x80",
            "감독~01ARZ3NDEKTSV4RRFFQ69G5FAV.txt".as_bytes(),
            b"-rf",
            b"line\nfeed\x1b[31m'; DROP TABLE jobs; --",
            "right\u{202e}to left".as_bytes(),
            b"%_*?[x]",
            b".hidden",
            &[b'x'; 255],
        ];
        let ends = [
            None,
            Some((Outcome::Done, 0)),
            Some((Outcome::Done, 2)),
            Some((Outcome::Failed, 1)),
            Some((Outcome::Cancelled, 2)),
        ];
        let all = names.iter().flat_map(|name| ends.map(|end| (*name, end)));
        all.map(|(name, end)| self.job(name, end).laid()).collect()
    }
}

impl Made {
    /// Writes its directory.
    fn laid(self) -> Made {
        fs::create_dir_all(self.dir.join("out")).expect("made");
        let put = |name: &str, text: String| fs::write(self.dir.join(name), text).expect("written");
        put("job.json", serde_json::to_string(&*self.record).expect("JSON"));
        if let Some(result) = &self.result {
            put("result.json", serde_json::to_string(&**result).expect("JSON"));
        }
        self
    }

    fn entry(&self) -> Entry {
        let (record, dir) = (self.record.clone(), self.dir.clone());
        match &self.result {
            Some(result) => Entry::Ended { record, result: result.clone(), dir },
            None => Entry::Claimed { record, dir },
        }
    }
}

fn route(name: &str) -> Route {
    let command = vec!["/bin/true".to_owned()];
    Route { kind: RouteKind::Any, gpus: 0, gpu_memory: Some(Bytes(1)), ..Route::new(name, command, "/") }
}

/// Lets the writer work until something holds; each answer follows one more of its steps.
fn until(ledger: &Ledger, what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        assert!(ledger.entries.flush(SOON), "the writer answers");
        if holds() {
            return;
        }
    }
    panic!("it never came to be that {what}");
}

#[test]
fn what_is_read_from_the_directories_equals_what_the_director_told() {
    let mut world = World::new();
    let ledger = world.started();
    for made in world.fill() {
        ledger.entries.send(made.entry());
    }
    assert!(ledger.entries.flush(SOON));
    let told = world.rows();
    let attempts: Vec<_> = told.iter().map(|row| world.reader().attempts(row.id).expect("attempts")).collect();
    ledger.stop();
    fs::remove_file(file_of(world.root.path())).expect("removed");
    let ledger = world.started();
    assert_eq!(told.len(), 45);
    assert_eq!(world.rows(), told);
    for (row, attempts) in told.iter().zip(attempts) {
        assert!(!attempts.is_empty());
        assert_eq!(world.reader().attempts(row.id).expect("attempts"), attempts);
    }
    assert!(world.reader().is_complete().expect("said"));
    ledger.stop();
}

#[test]
fn whatever_happens_to_the_file_the_rows_come_back() {
    let mut world = World::new();
    world.fill();
    world.started().stop();
    let file = file_of(world.root.path());
    let (rows, whole) = (world.rows(), fs::read(&file).expect("the file"));
    let check = |what: &str, aside: bool, bytes: Option<Vec<u8>>| {
        match bytes {
            Some(bytes) => fs::write(&file, bytes).expect("written"),
            None => fs::remove_file(&file).expect("removed"),
        }
        world.started().stop();
        assert_eq!(world.rows(), rows, "{what}");
        let broken = file.with_file_name("ledger.sqlite.broken.1");
        assert_eq!(fs::remove_file(broken).is_ok(), aside, "{what}");
    };
    check("untouched", false, Some(whole.clone()));
    check("deleted", false, None);
    check("emptied", false, Some(Vec::new()));
    check("cut in a page", true, Some(whole[..whole.len() - 100].to_vec()));
    check("cut between pages", true, Some(whole[..8192].to_vec()));
    check("something else", true, Some(b"GIF89a".repeat(2000)));
    check("zeros", true, Some(vec![0; whole.len()]));
    let mut middle = whole.clone();
    middle[4096..].fill(0xa5);
    check("overwritten behind its first page", true, Some(middle));
}

#[test]
fn directories_that_vanish_or_move_are_followed() {
    let mut world = World::new();
    let made = world.fill();
    let ledger = world.started();
    let before = world.rows().len();
    let of = |place: &str| made.iter().filter(|made| made.dir.starts_with(world.root.path().join(place))).count();
    // One job, one whole day, and one that a person moved back by hand.
    fs::remove_dir_all(&made[0].dir).expect("removed");
    fs::remove_dir_all(world.root.path().join("failed").join(DAYS[1])).expect("removed");
    let moved = world.root.path().join("claimed").join(made[1].dir.file_name().expect("a name"));
    fs::rename(&made[1].dir, &moved).expect("moved");
    ledger.entries.send(Entry::Reconcile);
    let after = before - 1 - of(&format!("failed/{}", DAYS[1]));
    until(&ledger, "the rows follow", || world.rows().len() == after);
    until(&ledger, "the moved one is found", || {
        let row = world.reader().get(made[1].record.id).expect("read").expect("a row");
        row.dir(world.root.path()) == moved && row.state == "claimed" && row.finished_at.is_none()
    });
    ledger.stop();
}

#[test]
fn entries_that_found_no_room_are_mended() {
    let mut world = World::new();
    let ledger = world.started();
    let known = world.job(b"again", Some((Outcome::Failed, 2))).laid();
    ledger.entries.send(known.entry());
    assert!(ledger.entries.flush(SOON));
    // It was retried and ended otherwise, and others came: none of it was heard of.
    let mut result = (**known.result.as_ref().expect("a result")).clone();
    result.outcome = Outcome::Cancelled;
    fs::write(known.dir.join("tmp"), serde_json::to_string(&result).expect("JSON")).expect("written");
    fs::rename(known.dir.join("tmp"), known.dir.join("result.json")).expect("renamed");
    world.fill();
    ledger.entries.dropped.fetch_add(46, Ordering::Release);
    until(&ledger, "all are there", || world.rows().len() == 46);
    until(&ledger, "the known one is read again", || {
        world.reader().get(known.record.id).expect("read").expect("a row").state == "cancelled"
    });
    // The rows are there a little before all is said to be well.
    let said = || ledger.health.recv_timeout(SOON).expect("its state").state;
    assert_eq!([said(), said()], [Condition::Degraded, Condition::Ok]);
    ledger.stop();
}

#[test]
fn a_file_that_is_deleted_under_the_writer_is_made_again() {
    let mut world = World::new();
    let made = world.fill();
    let ledger = world.started();
    fs::remove_file(file_of(world.root.path())).expect("removed");
    ledger.entries.send(made[0].entry());
    until(&ledger, "all are there again", || file_of(world.root.path()).exists() && world.rows().len() == made.len());
    ledger.stop();
}

#[test]
fn ten_thousand_rows_page_without_gaps_or_repeats() {
    let mut world = World::new();
    let ledger = world.started();
    let mut ids: Vec<JobId> = (0..10_000)
        .map(|n: usize| {
            let made = world.job(format!("item-{n}").as_bytes(), Some((Outcome::Done, n % 3)));
            ledger.entries.send(made.entry());
            made.record.id
        })
        .collect();
    assert!(ledger.entries.flush(SOON));
    ids.reverse();
    let reader = world.reader();
    let check = |route: Option<&str>, size: u32, ids: Vec<JobId>| {
        let mut wanted = Wanted {
            state: Some("done".to_owned()),
            route: route.map(str::to_owned),
            limit: Some(size),
            ..Wanted::default()
        };
        let mut seen = Vec::new();
        loop {
            let page = reader.list(&wanted).expect("a page");
            seen.extend(page.iter().map(|row| row.id));
            wanted.before = page.last().map(|row| row.id);
            if page.len() < size as usize {
                break;
            }
        }
        assert!(seen == ids, "{route:?} by {size}");
    };
    check(None, 1000, ids.clone());
    check(None, 333, ids.clone());
    let rare = |id: &JobId| id.0.random().is_multiple_of(5);
    check(Some("rare"), 170, ids.into_iter().filter(rare).collect());
    assert_eq!(reader.counts().expect("counts"), [("done".to_owned(), 10_000)].into());
    ledger.stop();
}

#[test]
fn jobs_are_found_by_what_people_call_them() {
    let mut world = World::new();
    let ledger = world.started();
    let names: [&[u8]; 4] = [b"one.wav", b"twice.wav", b"twice.wav", b"\xffodd\n"];
    let made: Vec<Made> = names.iter().map(|name| world.job(name, Some((Outcome::Done, 1)))).collect();
    for made in &made {
        ledger.entries.send(made.entry());
    }
    assert!(ledger.entries.flush(SOON));
    let reader = world.reader();
    let check = |text: &[u8], found: &[usize]| {
        let text = std::ffi::OsString::from_vec(text.to_vec());
        let ids: Vec<JobId> = reader.find(&text, 8).expect("an answer").iter().map(|row| row.id).collect();
        let wanted: Vec<JobId> = found.iter().map(|&at| made[at].record.id).collect();
        assert_eq!(ids, wanted, "{text:?}");
    };
    let id = |at: usize| made[at].record.id.to_string();
    check(id(0).as_bytes(), &[0]);
    check(id(0).to_lowercase().as_bytes(), &[0]);
    check(&id(3).as_bytes()[..9], &[3, 2, 1, 0]);
    check(made[1].record.dir().as_str().as_bytes(), &[1]);
    check(b"one.wav", &[0]);
    check(b"twice.wav", &[2, 1]);
    check(b"\xffodd\n", &[3]);
    check(b"\\xffodd\\n", &[3]);
    check(b"nobody", &[]);
    check(b"", &[]);
    check(b"' OR 1 --", &[]);
    ledger.stop();
}

#[test]
fn a_reader_reads_while_the_writer_writes_and_after_it_was_cut_off() {
    let mut world = World::new();
    let ledger = world.started();
    let reader = world.reader();
    for _ in 0..20 {
        let made: Vec<Made> = (0..50).map(|_| world.job(b"x", None)).collect();
        made.iter().for_each(|made| _ = ledger.entries.send(made.entry()));
        assert!(reader.list(&Wanted::default()).expect("rows").len().is_multiple_of(50));
        assert!(ledger.entries.flush(SOON));
    }
    assert_eq!(reader.list(&Wanted::default()).expect("rows").len(), 1000);
    // A copy of the files as they are now is what a power cut leaves.
    let copy = World::new();
    for suffix in ["", "-wal"] {
        let name = format!("ledger.sqlite{suffix}");
        let from = file_of(world.root.path()).with_file_name(&name);
        fs::copy(from, file_of(copy.root.path()).with_file_name(&name)).expect("copied");
    }
    assert_eq!(copy.rows().len(), 1000);
    let ledger_of_copy = copy.started();
    assert_eq!(copy.rows(), [], "no directory stands behind any of them");
    ledger_of_copy.stop();
    ledger.stop();
}

#[test]
fn a_directory_without_readable_records_is_still_listed() {
    let mut world = World::new();
    let made = world.job(b"torn.txt", Some((Outcome::Failed, 1)));
    fs::create_dir_all(&made.dir).expect("made");
    fs::write(made.dir.join("result.json"), "{\"id\":").expect("written");
    std::os::unix::fs::symlink("/dev/zero", made.dir.join("job.json")).expect("linked");
    // Not jobs: another name, a file, a day that is none.
    fs::create_dir_all(world.root.path().join("done/lost+found/x")).expect("made");
    fs::create_dir_all(made.dir.with_file_name("someone's folder")).expect("made");
    let stray = world.job(b"file", Some((Outcome::Failed, 1)));
    fs::write(&stray.dir, "").expect("written");
    let ledger = world.started();
    let rows = world.rows();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].id, rows[0].state.as_str()), (made.record.id, "failed"));
    assert_eq!(rows[0].name.escaped(), "torn");
    ledger.stop();
}

/// Claims, ends, second tries and deletions in any order, some of which the ledger never hears of.
#[test]
fn after_any_history_the_index_is_what_the_directories_tell() {
    for seed in 1..=8_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice = |sides: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % sides
        };
        let mut world = World::new();
        let ledger = world.started();
        let tell = |job: &Made, luck: u64| match luck {
            0 => _ = ledger.entries.dropped.fetch_add(1, Ordering::Release),
            _ => _ = ledger.entries.send(job.entry()),
        };
        let mut jobs: Vec<Made> = Vec::new();
        for step in 0..300 {
            if jobs.is_empty() || dice(3) == 0 {
                let name = format!("{seed}-{step}");
                jobs.push(world.job(name.as_bytes(), None).laid());
                tell(&jobs[jobs.len() - 1], dice(4));
            } else {
                let at = dice(jobs.len() as u64) as usize;
                let job = &mut jobs[at];
                let name = job.dir.file_name().expect("a name").to_owned();
                let (to, next) = match (dice(8), &job.result) {
                    (0, _) => {
                        fs::remove_dir_all(&job.dir).expect("removed");
                        jobs.swap_remove(at);
                        ledger.entries.send(Entry::Reconcile);
                        continue;
                    }
                    (_, Some(_)) => (world.root.path().join("claimed"), None),
                    (way, None) => {
                        let outcome = if way < 4 { Outcome::Done } else { Outcome::Failed };
                        let message = Some(format!("in step {step}"));
                        let counters =
                            [("steps".to_owned(), f64::from(step as u32)), (format!("of {}", step % 7), 1.0)];
                        let counters = counters.into_iter().collect();
                        let result = ResultRecord { outcome, message, counters, ..ended(&job.record) };
                        let place = if outcome == Outcome::Done { "done" } else { "failed" };
                        (world.root.path().join(place).join(DAYS[step % 3]), Some(Arc::new(result)))
                    }
                };
                fs::create_dir_all(&to).expect("made");
                let result_file = job.dir.join("result.json");
                match &next {
                    Some(result) => fs::write(&result_file, serde_json::to_string(&**result).expect("JSON")),
                    None => fs::remove_file(&result_file),
                }
                .expect("changed");
                let to = to.join(name);
                fs::rename(&job.dir, &to).expect("moved");
                (job.dir, job.result) = (to, next);
                tell(job, dice(4));
            }
        }
        let setup = Setup { file: world.root.path().join("other.sqlite"), ..Setup::of_root(world.root.path()) };
        let file = setup.file.clone();
        let other = start(setup).expect("a thread");
        while other.health.recv_timeout(SOON).expect("it becomes healthy").state != Condition::Ok {}
        other.stop();
        let other = Reader::open(&file).expect("a ledger");
        let told = other.list(&Wanted::default()).expect("rows");
        let mut counters = crate::item::Counters::default();
        jobs.iter().filter_map(|job| job.result.as_ref()).for_each(|result| counters.add_all(&result.counters));
        assert_eq!((told.len(), other.counters().expect("sums")), (jobs.len(), counters.clone()));
        (0..1000).any(|_| ledger.entries.flush(SOON) && world.rows() == told);
        assert_eq!(world.reader().counters().expect("sums"), counters, "seed {seed}");
        // Once nothing is owed, the director is told the same.
        (0..1000).any(|_| ledger.entries.flush(SOON) && ledger.counted.read().counters == counters);
        assert_eq!(ledger.counted.read().counters, counters, "seed {seed}");
        for (row, told) in world.rows().iter().zip(&told) {
            assert_eq!(row, told, "seed {seed}");
        }
        assert_eq!(world.rows().len(), told.len(), "seed {seed}");
        ledger.stop();
    }
}

fn ended(record: &JobRecord) -> ResultRecord {
    ResultRecord {
        id: record.id,
        name: record.name.clone(),
        name_b64: record.name_b64.clone(),
        route: Some(record.route.name.clone()),
        outcome: Outcome::Done,
        reason: None,
        message: None,
        arrived_at: record.arrived_at,
        claimed_at: Some(record.claimed_at),
        finished_at: record.claimed_at + 5.seconds(),
        attempts: record.attempts.clone(),
        outputs: Vec::new(),
        result: None,
        counters: Default::default(),
    }
}

/// The director adds each job that it told of to the sums that don't have it yet: a job that is read from its directory
/// before its end is told must not be in them.
#[test]
fn a_job_in_hand_is_counted_with_its_end_and_not_before() {
    let mut world = World::new();
    let ledger = world.started();
    let check = |pages: Option<f64>, when: &str| {
        let read = || ledger.counted.read().counters.get("pages");
        (0..1000).any(|_| ledger.entries.flush(SOON) && read() == pages);
        assert_eq!(read(), pages, "{when}");
    };
    let laid = |mut made: Made, pages: f64| {
        let counters = [("pages".to_owned(), pages)].into_iter().collect();
        made.result = Some(Arc::new(ResultRecord { counters, ..ended(&made.record) }));
        made.laid()
    };
    // The newest day is read first: when theirs is counted, ours was passed by.
    let theirs = laid(world.job(b"theirs", Some((Outcome::Done, 0))), 4.0);
    let ours = laid(world.job(b"ours", Some((Outcome::Done, 1))), 3.0);
    let claimed = || Entry::Claimed { record: ours.record.clone(), dir: world.root.path().join("claimed/ours") };
    ledger.entries.send(claimed());
    ledger.entries.send(Entry::Reconcile);
    check(Some(4.0), "what somebody laid there is");
    ledger.entries.send(ours.entry());
    check(Some(7.0), "its end was told");
    let again = ledger.entries.send(ours.entry());
    check(Some(7.0), "and told again");
    assert!(again <= ledger.counted.read().upto);
    fs::remove_dir_all(&theirs.dir).expect("removed");
    ledger.entries.send(Entry::Reconcile);
    check(Some(3.0), "removed by hand");
    ledger.entries.send(claimed());
    check(None, "it lives again");
    ledger.stop();
}

/// Makes twenty jobs, of which the nth waited n seconds and ran for ten times as long.
fn paced(world: &mut World, ledger: &Ledger) {
    for n in 1..=20 {
        let mut made = world.job(format!("item-{n}").as_bytes(), Some((Outcome::Done, 0)));
        let record = Arc::make_mut(&mut made.record);
        record.route = Arc::new(Route { gpu_memory: Some(Bytes(1 << 30)), ..route("paced") });
        let arrived = record.arrived_at.expect("a time");
        record.attempts = vec![Attempt {
            devices: vec![DeviceId(format!("GPU-{}", n % 2))],
            started_at: Some(arrived + n.seconds()),
            ended_at: Some(arrived + (11 * n).seconds()),
            peak_gpu_memory: (n > 15).then_some((n as u64) << 27),
            energy_joules: (n > 18).then_some(10.0),
            counted: true,
            ..Attempt::planned(1)
        }];
        let attempts = record.attempts.clone();
        let result = made.result.as_mut().map(Arc::make_mut).expect("a result");
        (result.attempts, result.route) = (attempts, Some("paced".to_owned()));
        ledger.entries.send(made.laid().entry());
    }
    assert!(ledger.entries.flush(SOON));
}

#[test]
fn percentiles_are_exact_and_the_same_with_and_without_a_ledger() {
    let mut world = World::new();
    let ledger = world.started();
    paced(&mut world, &ledger);
    let failed = world.job(b"failed", Some((Outcome::Failed, 1))).laid();
    ledger.entries.send(failed.entry());
    assert!(ledger.entries.flush(SOON));
    let window = Window { since: None, until: Timestamp::MAX };
    let of = |written: bool| History::open(world.root.path(), written).expect("a past").stats(&window).expect("told");
    let stats = of(true);
    let route = stats.routes.iter().find(|it| it.route.as_deref() == Some("paced")).expect("the route");
    let spread = |p50: f64, p95: f64, max: f64| Spread { count: 20, p50: Some(p50), p95: Some(p95), max: Some(max) };
    // The nearest ranks of twenty are the tenth and the nineteenth.
    assert_eq!(route.waiting, spread(10.0, 19.0, 20.0));
    assert_eq!(route.running, spread(100.0, 190.0, 200.0));
    assert_eq!((route.jobs.done, route.attempts.done, route.jobs.total()), (20, 20, 20));
    assert!((route.gpu_hours - 2100.0 / 3600.0).abs() < 1e-9 && route.cpu_hours == 0.0, "{route:?}");
    assert_eq!((route.energy_joules, route.energy_attempts), (Some(20.0), 2));
    // 2.5 GiB, of 1 GiB declared; eight of these are a GiB.
    assert_eq!((route.peak_gpu_memory, route.declared_gpu_memory), (Some(20 << 27), Some(1 << 30)));
    assert_eq!(route.over_declared, 5);
    let device = stats.devices.iter().find(|it| it.device == "GPU-1" && it.attempts.done > 0).expect("the device");
    assert_eq!((device.attempts.done, device.running.p50, device.running.p95), (10, Some(90.0), Some(190.0)));
    assert_eq!(stats.total.failures.get("exit"), Some(&stats.total.attempts.failed));
    assert_eq!(stats.total.waiting.count, 21);
    // Its writer hasn't closed it: the directories are read.
    assert_eq!(of(false), stats);
    ledger.stop();
    assert_eq!(of(false), stats);
    // Cut to the window: what ended in it, and of its hours those that lie in it.
    let last = stats_since(&world, "paced", 60);
    assert!(last.jobs.total() < 20 && last.gpu_hours < 1.0);
}

/// Of what ended in the last seconds of the jobs' own time.
fn stats_since(world: &World, route: &str, seconds: i64) -> OfRoute {
    let past = History::open(world.root.path(), false).expect("a past");
    let newest = past.longest(&Filter::default(), 1).expect("read")[0].ended_at.expect("a time");
    let window = Window { since: Some(newest - seconds.seconds()), until: Timestamp::MAX };
    let stats = past.stats(&window).expect("told");
    let found = stats.routes.into_iter().find(|it| it.route.as_deref() == Some(route)).expect("the route");
    assert!(found.gpu_hours <= f64::from(found.attempts.total() as u32) * seconds as f64 / 3600.0 + 1e-9, "{found:?}");
    found
}

#[test]
fn attempts_come_in_order_each_once_in_pages() {
    let mut world = World::new();
    let ledger = world.started();
    for n in 0..1200 {
        ledger.entries.send(world.job(format!("item-{n}").as_bytes(), Some((Outcome::Failed, n % 3))).entry());
    }
    assert!(ledger.entries.flush(SOON));
    let past = History::open(world.root.path(), true).expect("a past");
    let read = |filter: &Filter, order: Direction, limit: Option<usize>| {
        let mut found = Vec::new();
        past.each(filter, order, limit, |row| {
            found.push((row.started_at, row.id, row.attempt));
            Ok::<(), HistoryError>(())
        })
        .expect("read");
        found
    };
    let all = read(&Filter::default(), Direction::OldestFirst, None);
    assert_eq!(all.len(), 2400);
    assert!(all.is_sorted() && all.windows(2).all(|pair| pair[0] != pair[1]));
    let mut newest = read(&Filter::default(), Direction::NewestFirst, None);
    newest.reverse();
    assert_eq!(newest, all);
    assert_eq!(read(&Filter::default(), Direction::NewestFirst, Some(1500)).len(), 1500);
    let check = |filter: Filter, expected: usize| {
        assert_eq!(read(&filter, Direction::OldestFirst, None).len(), expected, "{filter:?}");
    };
    check(Filter { route: Some("rare".to_owned()), ..Filter::default() }, 480);
    check(Filter { device: Some("GPU-1".to_owned()), ..Filter::default() }, 600);
    check(Filter { device: Some("cp".to_owned()), ..Filter::default() }, 2400);
    check(Filter { device: Some("%".to_owned()), ..Filter::default() }, 0);
    check(Filter { outcomes: vec!["failed".to_owned(), "done".to_owned()], ..Filter::default() }, 2400);
    check(Filter { reason: Some("signal".to_owned()), ..Filter::default() }, 0);
    check(Filter { since: all[1200].0.map(|at| at + 1.seconds()), ..Filter::default() }, 1200);
    check(Filter { until: all[1200].0, ..Filter::default() }, 1200);
    ledger.stop();
}

/// A device's samples, one a second from a minute on.
fn sampled(minute: i64, seconds: i64) -> Entry {
    let sample = |second: i64| Sample {
        at: (30_000_000 + minute) * 60 + second,
        device: "GPU-1".to_owned(),
        utilization: Some(50),
        memory: Some(1 << 30),
        temperature: None,
        power: None,
        verdict: "leased",
        leases: 1,
    };
    let device = Sampled { id: "GPU-1".to_owned(), index: Some(1), name: "G".to_owned(), memory_total: None };
    Entry::Sampled(Samples { devices: vec![device], samples: (0..seconds).map(sample).collect() })
}

fn minutes(world: &World) -> u64 {
    let past = History::open(world.root.path(), true).expect("a past");
    let at = |minute: i64| Timestamp::from_second((30_000_000 + minute) * 60).expect("a time");
    past.seen(at(0), at(100_000), 100_000).expect("read").len() as u64
}

#[test]
fn samples_outlive_another_schema_and_as_far_as_can_be_read_a_broken_file() {
    let mut world = World::new();
    world.fill();
    let ledger = world.started();
    // Enough for many pages.
    for minute in 0..20_000 {
        ledger.entries.send(sampled(minute, 2));
    }
    assert!(ledger.entries.flush(SOON));
    ledger.stop();
    assert_eq!(minutes(&world), 20_000);
    let file = file_of(world.root.path());
    let change = |sql: &str| {
        rusqlite::Connection::open(&file).expect("the file").execute_batch(sql).expect("changed");
    };
    change("UPDATE meta SET value = '2' WHERE key = 'schema'; DROP TABLE jobs; CREATE TABLE odd (x)");
    world.started().stop();
    assert_eq!((minutes(&world), world.rows().len()), (20_000, 45), "another schema");
    // Samples as a later version keeps them aren't touched.
    change("UPDATE meta SET value = '9' WHERE key IN ('schema', 'samples')");
    world.started().stop();
    assert_eq!((minutes(&world), world.rows().len()), (0, 45), "a later version's samples");
    let aside = file.with_file_name("ledger.sqlite.broken.1");
    fs::rename(&aside, &file).expect("it lies aside");
    change("UPDATE meta SET value = '1' WHERE key = 'samples'");
    world.started().stop();
    assert_eq!(minutes(&world), 20_000, "and come back");

    // Some pages in the middle are overwritten.
    let mut bytes = fs::read(&file).expect("the file");
    let at = bytes.len() / 4096 / 2 * 4096;
    bytes[at..at + 8 * 4096].fill(0xa5);
    fs::write(&file, &bytes).expect("written");
    change_meta_to_unclean(&file);
    let ledger = world.start();
    let mut said = Vec::new();
    while said.last().is_none_or(|check: &Check| check.state != Condition::Ok) {
        said.push(ledger.health.recv_timeout(SOON).expect("it becomes healthy"));
    }
    ledger.stop();
    let kept = minutes(&world);
    assert!(aside.exists() && kept > 5_000 && world.rows().len() == 45, "{kept} {said:?}");
    let told = said.iter().any(|check| check.message.contains("device samples"));
    assert!(told, "{said:?}");
}

/// As a kill leaves it: then it is looked through when it is opened.
fn change_meta_to_unclean(file: &Path) {
    let connection = rusqlite::Connection::open(file).expect("the file");
    connection.execute_batch("UPDATE meta SET value = '0' WHERE key = 'clean'").expect("its first pages are whole");
}

#[test]
fn samples_wait_for_a_file_that_can_be_written() {
    let mut world = World::new();
    world.fill();
    // What SQLite can neither use nor remove.
    let log = file_of(world.root.path()).with_file_name("ledger.sqlite-wal");
    fs::create_dir(&log).expect("something else lies there");
    let ledger = world.start();
    let said = || ledger.health.recv_timeout(SOON).expect("it says so");
    let check = said();
    assert_eq!((check.what, check.state), (What::Ledger, Condition::Degraded));
    ledger.entries.send(sampled(1, 60));
    assert!(ledger.entries.flush(SOON), "nobody waits for it");
    // All that was is told from the directories.
    let past = History::open(world.root.path(), false).expect("a past");
    let stats = past.stats(&Window { since: None, until: Timestamp::MAX }).expect("told");
    assert_eq!((stats.total.jobs.total(), stats.devices.is_empty()), (36, false));
    fs::remove_dir(&log).expect("removed");
    while said().state != Condition::Ok {}
    assert!(ledger.entries.flush(SOON));
    assert_eq!((minutes(&world), world.rows().len()), (1, 45));
    ledger.stop();
}

#[test]
fn the_director_hears_how_long_items_took() {
    let mut world = World::new();
    let ledger = world.started();
    paced(&mut world, &ledger);
    ledger.entries.send(world.job(b"failed", Some((Outcome::Failed, 0))).laid().entry());
    ledger.stop();
    let ledger = world.started();
    let paces = ledger.paces.recv_timeout(SOON).expect("told");
    let mut took: Vec<i64> = paces.iter().map(|it| (it.ended_at - it.started_at).get_seconds()).collect();
    took.sort_unstable();
    // Those that failed aren't among them.
    assert_eq!(took, (1..=20).map(|n| n * 10).collect::<Vec<i64>>());
    ledger.stop();
}
