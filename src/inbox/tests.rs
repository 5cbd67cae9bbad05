//! The scanner as a whole, on real folders. Every wait is for a notice.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::matching::plain_route;
use super::*;
use crate::config::{Route, RouteKind, Watch};
use crate::health::{Check, Condition, What};
use crate::units::Bytes;

/// Long enough for any machine; no test waits for it to pass.
const LIMIT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);

struct World {
    dir: tempfile::TempDir,
    setup: Setup,
    scanner: Option<Scanner>,
    /// Offered and not asked for yet.
    offered: Vec<Candidate>,
    withdrawn: Vec<CandidateKey>,
    missing: Vec<(CandidateKey, u64)>,
    counts: Counts,
    health: Vec<Check>,
    claims: std::cell::Cell<usize>,
}

impl World {
    fn new(settle: Duration) -> World {
        let dir = tempfile::tempdir().unwrap();
        let inbox = dir.path().join("inbox");
        fs::create_dir(&inbox).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        let sentinel = dir.path().join("root.json");
        fs::write(&sentinel, "{}").unwrap();
        let rules = InboxRules {
            settle: Some(settle),
            ignore: Vec::new(),
            watch: Watch::Auto,
            poll_interval: Duration::from_secs(5),
        };
        let setup = Setup {
            inbox,
            rules: Arc::new(rules),
            routes: vec![Arc::new(plain_route("all"))],
            once: false,
            clock: Clock::start(),
            sentinel,
        };
        World {
            dir,
            setup,
            scanner: None,
            offered: Vec::new(),
            withdrawn: Vec::new(),
            missing: Vec::new(),
            counts: Counts::default(),
            health: Vec::new(),
            claims: Default::default(),
        }
    }

    fn route(mut self, change: impl FnOnce(&mut Route)) -> World {
        let mut route = plain_route("all");
        change(&mut route);
        self.setup.routes = vec![Arc::new(route)];
        self
    }

    fn rules(mut self, change: impl FnOnce(&mut InboxRules)) -> World {
        change(Arc::make_mut(&mut self.setup.rules));
        self
    }

    /// Starts, and waits until the folders were read.
    fn start(mut self) -> World {
        self.scanner = Some(start(self.setup.clone()).unwrap());
        self.until("a whole scan", |world| world.counts.scanned.then_some(()));
        self
    }

    fn answer(&self, answer: Answer) {
        self.scanner.as_ref().unwrap().answers.send(answer).unwrap();
    }

    /// Takes in notices until `found` finds what it looks for.
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut World) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let notice = self.scanner.as_ref().unwrap().notices.recv_deadline(deadline);
            match notice.unwrap_or_else(|_| panic!("never came: {what}; {:?} {:?}", self.counts, self.health)) {
                Notice::Offered(items) => self.offered.extend(items),
                Notice::Withdrawn(keys) => {
                    self.offered.retain(|candidate| !keys.contains(&candidate.key));
                    self.withdrawn.extend(keys);
                }
                Notice::Missing(items) => self.missing.extend(items),
                Notice::Counts(counts) => self.counts = counts,
                Notice::Health(health) => self.health = health,
            }
        }
    }

    fn offer(&mut self) -> Candidate {
        self.until("an offer", |world| (!world.offered.is_empty()).then(|| world.offered.remove(0)))
    }

    fn offered_name(&mut self) -> String {
        self.offer().key.name.escaped()
    }

    fn held(&mut self, name: &str) -> HeldItem {
        let name = ItemName::new(name);
        self.until("a held item", |world| world.counts.held.iter().find(|held| held.key.name == name).cloned())
    }

    fn condition(&mut self, what: What, state: Condition) {
        self.until("a state of health", |world| {
            world.health.iter().any(|check| check.what == what && check.state == state).then_some(())
        });
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.setup.inbox.join(name)
    }

    fn rename_in(&self, name: impl AsRef<Path>) {
        let outside = self.dir.path().join("out/new");
        fs::write(&outside, "payload").unwrap();
        fs::rename(outside, self.path(name)).unwrap();
    }

    /// Does what a claim does, and answers.
    fn claim(&self, candidate: &Candidate) {
        let name = candidate.key.name.as_os_str();
        self.claims.set(self.claims.get() + 1);
        let claimed = self.dir.path().join("out").join(format!("claimed.{}", self.claims.get()));
        fs::rename(self.path(name), claimed).unwrap();
        self.answer(Answer::Taken(vec![candidate.key.clone()]));
    }
}

#[test]
fn a_file_renamed_in_is_offered_without_settling() {
    let mut world = World::new(HOUR).start();
    world.rename_in("a.wav");
    let candidate = world.offer();
    assert_eq!(candidate.key, CandidateKey { folder: String::new(), name: ItemName::new("a.wav") });
    assert_eq!((candidate.kind, candidate.signature.size), (ItemKind::File, 7));
    assert_eq!(candidate.signature, signature::of_path(&world.path("a.wav")).unwrap());
}

#[test]
fn a_directory_renamed_in_is_offered_without_settling() {
    let mut world = World::new(HOUR).start();
    let outside = world.dir.path().join("album");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("one"), "1").unwrap();
    fs::rename(&outside, world.path("album")).unwrap();
    let candidate = world.offer();
    assert_eq!((candidate.kind, candidate.signature.entries), (ItemKind::Directory, 1));
    assert!(candidate.signature.is_same_payload(&signature::of_path(&world.path("album")).unwrap()));
}

#[test]
fn a_file_being_written_waits_for_its_writer() {
    let mut world = World::new(SOON).start();
    let mut writer = fs::File::create(world.path("slow")).unwrap();
    writer.write_all(b"some").unwrap();
    // Each of these settles in its turn, while the first one doesn't.
    for fence in ["x", "y", "z"] {
        fs::write(world.path(fence), fence).unwrap();
        assert_eq!(world.offered_name(), fence);
    }
    drop(writer);
    assert_eq!(world.offered_name(), "slow");
}

#[test]
fn a_hard_link_is_held_until_its_other_name_is_gone() {
    let mut world = World::new(SOON).start();
    let outside = world.dir.path().join("out/published");
    fs::write(&outside, "x").unwrap();
    fs::hard_link(&outside, world.path("linked")).unwrap();
    assert!(world.held("linked").reason.contains("2 hard links"));
    fs::remove_file(&outside).unwrap();
    assert_eq!(world.offered_name(), "linked");
}

#[test]
fn special_files_are_held_and_never_opened() {
    let world = World::new(SOON);
    let folder = fs::File::open(&world.setup.inbox).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(&folder, "fifo", rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut world = world.start();
    std::os::unix::fs::symlink("/etc/passwd", world.path("link")).unwrap();
    assert!(world.held("fifo").reason.contains("FIFO"));
    assert!(world.held("link").reason.contains("symbolic link"));
    // A file in the link's place is an item like any other.
    world.rename_in("link");
    assert_eq!(world.offered_name(), "link");
}

#[test]
fn names_are_bytes() {
    let mut world = World::new(HOUR).start();
    let long = vec![b'n'; 255];
    for name in [&b"new\nline"[..], b"\xff\xfe\x80", b"-rf", b" ", b"{item}", b"*", &long] {
        world.rename_in(OsStr::from_bytes(name));
        let candidate = world.offer();
        assert_eq!(candidate.key.name.as_bytes(), name);
        world.claim(&candidate);
    }
}

#[test]
fn temporary_names_are_counted_and_listed_and_taken_under_their_final_name() {
    let mut world = World::new(HOUR).start();
    world.rename_in("a.wav.part");
    world.until("an ignored name", |world| (world.counts.ignored == 1).then_some(()));
    assert_eq!(world.counts.ignored_names[0].key.name.escaped(), "a.wav.part");
    fs::rename(world.path("a.wav.part"), world.path("a.wav")).unwrap();
    assert_eq!(world.offered_name(), "a.wav");
    world.until("no ignored name", |world| (world.counts.ignored == 0).then_some(()));
}

#[test]
fn what_no_route_takes_is_held() {
    let mut world = World::new(SOON).route(|route| route.patterns = vec!["*.wav".to_owned()]);
    fs::write(world.path("a.mp3"), "x").unwrap();
    world = world.start();
    assert!(world.held("a.mp3").reason.contains("no route matches"));
    let mut routes = vec![plain_route("late")];
    routes[0].kind = RouteKind::File;
    let routes = routes.into_iter().map(Arc::new).collect();
    world.answer(Answer::Reconfigure { rules: world.setup.rules.clone(), routes });
    let candidate = world.offer();
    assert_eq!((candidate.key.name.escaped().as_str(), candidate.route.name.as_str()), ("a.mp3", "late"));
}

#[test]
fn an_inbox_renamed_away_and_made_again_is_found_again() {
    let mut world = World::new(Duration::ZERO).start();
    let away = world.dir.path().join("away");
    fs::rename(&world.setup.inbox, &away).unwrap();
    world.condition(What::Inbox, Condition::Failed);
    fs::create_dir(&world.setup.inbox).unwrap();
    world.condition(What::Inbox, Condition::Ok);
    world.rename_in("a");
    assert_eq!(world.offered_name(), "a");
    // What is dropped into the old one is nobody's business.
    fs::write(away.join("old"), "x").unwrap();
    world.rename_in("b");
    assert_eq!(world.offered_name(), "b");
}

#[test]
fn without_the_sentinel_nothing_is_offered() {
    let mut world = World::new(Duration::ZERO).start();
    let sentinel = world.setup.sentinel.clone();
    fs::remove_file(&sentinel).unwrap();
    world.answer(Answer::Rescan);
    world.condition(What::Inbox, Condition::Failed);
    world.rename_in("a");
    fs::write(&sentinel, "{}").unwrap();
    world.condition(What::Inbox, Condition::Ok);
    assert_eq!(world.offered_name(), "a");
}

#[test]
fn what_lies_on_another_mount_than_the_root_is_told() {
    let mut world = World::new(HOUR).route(|route| {
        route.folder = "side".to_owned();
        route.patterns = vec!["a".to_owned()];
    });
    fs::create_dir(world.path("side")).unwrap();
    world = world.start();
    world.condition(What::Inbox, Condition::Ok);
    let check = |world: &mut World, path: &Path, condition: Condition| {
        let away = world.dir.path().join("away");
        fs::rename(path, &away).unwrap();
        std::os::unix::fs::symlink("/proc/sys", path).unwrap();
        world.answer(Answer::Rescan);
        let told = |check: &Check| check.state == condition && check.message.contains("on another mount than the root");
        world.until("it is told", |world| world.health.iter().any(told).then_some(()));
        fs::remove_file(path).unwrap();
        fs::rename(&away, path).unwrap();
        world.answer(Answer::Rescan);
        world.condition(What::Inbox, Condition::Ok);
    };
    let (side, inbox) = (world.path("side"), world.setup.inbox.clone());
    check(&mut world, &side, Condition::Degraded);
    check(&mut world, &inbox, Condition::Failed);
    world.rename_in("side/a");
    assert_eq!(world.offered_name(), "a");
}

#[test]
fn what_settles_is_not_forgotten_while_the_inbox_is_away() {
    let mut world = World::new(Duration::from_millis(300)).start();
    fs::write(world.path("a"), "x").unwrap();
    world.until("a settling item", |world| (world.counts.arriving == 1).then_some(()));
    let away = world.dir.path().join("away");
    fs::rename(&world.setup.inbox, &away).unwrap();
    world.condition(What::Inbox, Condition::Failed);
    fs::rename(&away, &world.setup.inbox).unwrap();
    assert_eq!(world.offered_name(), "a");
}

#[test]
fn a_dead_inbox_is_no_reason_to_spin() {
    let world = World::new(SOON);
    let (notices, _heard) = crossbeam_channel::unbounded();
    let mut core = scanner::Core::new(world.setup.clone(), notices, Arc::default());
    while core.work() {}
    fs::write(world.path("a"), "x").unwrap();
    core.look(0, OsStr::new("a"), judging::Why::Event(ready::Origin::Touched));
    fs::remove_file(&world.setup.sentinel).unwrap();
    core.check_places();
    core.flush();
    assert!(core.trouble.is_some());
    assert_eq!(core.next_deadline(), core.next_tick.min(core.reported.due().unwrap_or(core.next_tick)));
}

#[test]
fn lost_events_are_made_good_by_a_scan() {
    let world = World::new(Duration::ZERO).rules(|rules| rules.watch = Watch::Poll);
    let (notices, heard) = crossbeam_channel::unbounded();
    let mut core = scanner::Core::new(world.setup.clone(), notices, Arc::default());
    while core.work() {}
    world.rename_in("unheard");
    while core.work() {}
    core.flush();
    let offered = |notice: &Notice| matches!(notice, Notice::Offered(_));
    assert!(!heard.try_iter().any(|notice| offered(&notice)), "nobody told of it");
    core.watching.ear.hear(Ok(notify::Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan)));
    while core.work() {}
    core.flush();
    assert!(heard.try_iter().any(|notice| offered(&notice)));
}

#[test]
fn without_events_the_folder_is_read_again_and_again() {
    let mut world = World::new(Duration::ZERO).rules(|rules| {
        rules.watch = Watch::Poll;
        rules.poll_interval = SOON;
    });
    world = world.start();
    for name in ["a", "b"] {
        world.rename_in(name);
        let candidate = world.offer();
        assert_eq!(candidate.key.name.escaped(), name);
        world.claim(&candidate);
    }
}

#[test]
fn a_backlog_is_offered_oldest_first_each_once() {
    const FILES: usize = 20_000;
    let world = World::new(Duration::ZERO);
    for n in 0..FILES {
        // Names in another order than their arrival.
        fs::File::create(world.path(format!("{:05}", (n * 7919) % FILES))).unwrap();
    }
    let mut world = world.start();
    let mut last = None;
    for _ in 0..FILES {
        let candidate = world.offer();
        let now = (candidate.arrived_at, candidate.key.name.clone());
        assert!(last.as_ref().is_none_or(|last| *last < now), "{now:?} after {last:?}");
        last = Some(now);
        world.claim(&candidate);
    }
    world.until("an empty inbox", |world| (world.counts.ready == 0 && world.counts.arriving == 0).then_some(()));
    assert!(world.offered.is_empty());
}

#[test]
fn no_more_than_the_window_is_offered() {
    let world = World::new(Duration::ZERO);
    for n in 0..2 * WINDOW {
        fs::File::create(world.path(n.to_string())).unwrap();
    }
    let mut world = world.start();
    world.until("all counted", |world| (world.counts.ready == 2 * WINDOW as u64).then_some(()));
    world.until("a window", |world| (world.offered.len() == WINDOW).then_some(()));
    assert_eq!(world.counts.ready_names.len(), WINDOW);
}

#[test]
fn once_is_what_lay_there_at_the_start() {
    let mut world = World::new(Duration::ZERO);
    world.setup.once = true;
    fs::write(world.path("a"), "x").unwrap();
    fs::write(world.path("b"), "x").unwrap();
    std::os::unix::fs::symlink("a", world.path("held")).unwrap();
    let mut world = world.start();
    world.rename_in("late");
    for name in ["a", "b"] {
        let candidate = world.offer();
        assert_eq!(candidate.key.name.escaped(), name);
        assert!(!world.counts.drained);
        world.claim(&candidate);
    }
    world.until("the end", |world| world.counts.drained.then_some(()));
    assert!(world.offered.is_empty());
}

#[test]
fn an_empty_inbox_is_drained_at_once() {
    let mut world = World::new(HOUR);
    world.setup.once = true;
    let mut world = world.start();
    world.until("the end", |world| world.counts.drained.then_some(()));
}

#[test]
fn what_its_producer_takes_back_is_withdrawn() {
    let mut world = World::new(HOUR).start();
    world.rename_in("a");
    let candidate = world.offer();
    fs::remove_file(world.path("a")).unwrap();
    world.until("a withdrawal", |world| world.withdrawn.contains(&candidate.key).then_some(()));
}

#[test]
fn a_name_dropped_again_is_offered_again() {
    let mut world = World::new(HOUR).start();
    let mut inodes = Vec::new();
    for _ in 0..50 {
        world.rename_in("same");
        let candidate = world.offer();
        fs::rename(world.path("same"), world.dir.path().join("out").join(inodes.len().to_string())).unwrap();
        inodes.push(candidate.signature.ino);
        // The next one of the name arrives before the answer to the one before.
        world.rename_in("same");
        world.answer(Answer::Taken(vec![candidate.key]));
        let next = world.offer();
        assert_ne!(next.signature.ino, inodes[inodes.len() - 1]);
        world.claim(&next);
    }
}

#[test]
fn a_refused_item_is_held_and_offered_again() {
    let mut world = World::new(HOUR).start();
    world.rename_in("a");
    let key = world.offer().key;
    let refusal = |retry_in| Answer::Refused {
        key: key.clone(),
        why: HeldFor::Unclaimable,
        reason: "not now".to_owned(),
        retry_in,
    };
    let started = jiff::Timestamp::now();
    world.answer(refusal(SOON));
    assert_eq!(world.offered_name(), "a");
    let offered_again = jiff::Timestamp::now();
    world.counts.held.clear();
    world.answer(refusal(HOUR));
    // It is held since the first refusal.
    let since = world.held("a").since;
    assert!(started <= since && since < offered_again, "{started} {since} {offered_again}");
}

#[test]
fn an_unsettled_item_settles_again() {
    let mut world = World::new(SOON).start();
    world.rename_in("a");
    let key = world.offer().key;
    world.answer(Answer::Unsettled(key));
    assert_eq!(world.offered_name(), "a");
}

#[test]
fn an_item_changed_after_its_offer_is_withdrawn_and_settles_again() {
    let mut world = World::new(SOON).start();
    world.rename_in("a");
    let candidate = world.offer();
    fs::write(world.path("a"), "more than before").unwrap();
    let again = world.offer();
    assert!(world.withdrawn.contains(&candidate.key));
    assert_eq!(again.signature.size, 16);
}

#[test]
fn a_directory_made_in_place_is_taken_when_it_rests() {
    let mut world = World::new(SOON).start();
    fs::create_dir(world.path("made")).unwrap();
    fs::write(world.path("made/one"), "1").unwrap();
    let candidate = world.until("the whole directory", |world| {
        let whole = |candidate: &Candidate| candidate.signature.entries == 1;
        world.offered.iter().find(|candidate| whole(candidate)).cloned()
    });
    assert_eq!(candidate.kind, ItemKind::Directory);
}

#[test]
fn an_intake_folder_may_come_later_and_is_no_item() {
    let mut world = World::new(HOUR).route(|route| route.folder = "side".to_owned()).start();
    world.condition(What::Inbox, Condition::Degraded);
    fs::create_dir(world.path("side")).unwrap();
    world.condition(What::Inbox, Condition::Ok);
    world.rename_in("side/a");
    let candidate = world.offer();
    assert_eq!((candidate.key.folder.as_str(), candidate.key.name.escaped().as_str()), ("side", "a"));
    assert_eq!(world.counts.held_total, 0);
}

#[test]
fn conditions_of_the_route_are_waited_for() {
    let mut world = World::new(SOON)
        .route(|route| {
            route.ready.marker = Some(".done".to_owned());
            route.ready.manifest = true;
            route.ready.min_bytes = Bytes(3);
            route.ready.validator = ["test", "-e", "{item}.approved"].map(str::to_owned).into();
            route.patterns = vec!["*.wav".to_owned()];
        })
        .start();
    let reason = |world: &mut World, part: &str| {
        world.until(part, |world| world.counts.held.iter().any(|held| held.reason.contains(part)).then_some(()));
    };
    fs::write(world.path("a.wav"), "x").unwrap();
    reason(&mut world, "asks for at least");
    fs::write(world.path("a.wav"), "payload").unwrap();
    reason(&mut world, "waits for its marker");
    fs::write(world.path("a.wav.done"), "").unwrap();
    reason(&mut world, "waits for its manifest");
    fs::write(world.path("a.wav.manifest.json"), r#"{"bytes":7}"#).unwrap();
    reason(&mut world, "refused it (exit 1)");
    fs::write(world.path("a.wav.approved"), "").unwrap();
    // What the validator looks at is no file of ours: only a change of the item or a person's wish asks it again.
    world.answer(Answer::Rescan);
    let candidate = world.offer();
    assert_eq!(candidate.companions, [ItemName::new("a.wav.done"), ItemName::new("a.wav.manifest.json")]);
    let held: Vec<String> = world.counts.held.iter().map(|held| held.key.name.escaped()).collect();
    assert!(!held.iter().any(|name| name.ends_with(".done") || name.ends_with(".json")), "{held:?}");
}

#[test]
fn a_burst_of_renames_is_offered_whole() {
    const FILES: usize = 5000;
    // On a slow machine the queue may overflow, and a scan finds the rest.
    let mut world = World::new(SOON).start();
    for n in 0..FILES {
        world.rename_in(n.to_string());
    }
    let mut seen: Vec<OsString> = Vec::new();
    for _ in 0..FILES {
        let candidate = world.offer();
        seen.push(candidate.key.name.as_os_str().to_owned());
        world.claim(&candidate);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), FILES);
}

#[test]
fn a_marker_without_its_item_is_no_item() {
    let mut world = World::new(SOON).route(|route| route.ready.marker = Some(".done".to_owned()));
    fs::write(world.path("a.done"), "").unwrap();
    world = world.start();
    // Its item may still come, and is found marked.
    world.rename_in("a");
    let candidate = world.offer();
    assert_eq!(candidate.companions, [ItemName::new("a.done")]);
    assert_eq!((world.counts.held_total, world.counts.arriving), (0, 0));
}

#[test]
fn a_dropped_scanner_ends() {
    let mut world = World::new(SOON).start();
    let scanner = world.scanner.take().unwrap();
    let notices = scanner.notices.clone();
    assert!(scanner.silent_for(world.setup.clock.now()) < LIMIT);
    drop(scanner);
    while notices.recv_timeout(LIMIT).is_ok() {}
    assert_eq!(notices.try_recv().unwrap_err(), crossbeam_channel::TryRecvError::Disconnected);
}

#[test]
fn an_expected_item_that_goes_is_missed_once() {
    use std::os::unix::fs::MetadataExt as _;
    let key = |name: &str| CandidateKey { folder: String::new(), name: ItemName::new(name) };
    let check = |watch: Watch, settle: Duration| {
        let poll = |rules: &mut InboxRules| (rules.watch, rules.poll_interval) = (watch, Duration::from_millis(100));
        let mut world = World::new(settle).rules(poll).start();
        let expect = |world: &World, name: &str, inode: u64| {
            world.answer(Answer::Expected { key: key(name), inode });
            (key(name), inode)
        };
        // One that nobody ever saw, one that another file took the place of, one that is there and then goes.
        let never = expect(&world, "never", 7);
        world.rename_in("there");
        let inode = |world: &World| fs::metadata(world.path("there")).unwrap().ino();
        let replaced = expect(&world, "there", inode(&world) + 1);
        let missing = |world: &mut World, item: &(CandidateKey, u64)| {
            world.until("that it is missed", |world| world.missing.contains(item).then_some(()));
        };
        missing(&mut world, &never);
        missing(&mut world, &replaced);
        let ours = expect(&world, "there", inode(&world));
        let other = expect(&world, "other", 9);
        missing(&mut world, &other);
        assert!(!world.missing.contains(&ours));
        fs::remove_file(world.path("there")).unwrap();
        missing(&mut world, &ours);
        // What was taken isn't missed; nor is anything twice.
        world.answer(Answer::Taken(vec![key("there")]));
        let last = expect(&world, "last", 9);
        missing(&mut world, &last);
        assert_eq!(world.missing, [never, replaced, other, ours, last]);
    };
    check(Watch::Auto, HOUR);
    check(Watch::Auto, Duration::ZERO);
    check(Watch::Poll, HOUR);
}
