//! The scanner's loop: hints, answers, checks and the time come in; looks, offers and counts go out. One thread, which may
//! hang on a dead mount without anybody else hanging with it.
//!
//! Invariants: an item is offered once until it is answered, withdrawn or changed; a withdrawal of an item goes out before
//! the offer of the next one of its name; nothing is offered out of a folder that wasn't read whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use super::checks::{Checks, Done};
use super::folder::{ACTIVE, Folder, Held, State};
use super::inspect::{self, Look};
use super::judging::Why;
use super::names::Ignore;
use super::places::Watching;
use super::ready::{Now, Origin};
use super::report::Reported;
use super::watch::{Happened, Hint};
use super::{Answer, Candidate, CandidateKey, HeldFor, Notice, ScanTimes, Scanner, Setup, WINDOW};
use crate::config::Route;
use crate::item::ItemName;
use crate::units::{Clock, Moment};

/// Hints taken in before anything else is looked at again.
const BATCH: usize = 512;
/// A withdrawal waits this long: nearly always the item left because it was claimed, and the answer says so.
const WITHDRAW_AFTER: Duration = Duration::from_millis(100);
/// After a look that could not be made.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the answer to an offer that was taken back may still come.
const OWED: Duration = Duration::from_secs(60);
/// Differences of the clocks beyond this are jumps.
const JUMP_NS: i128 = 1_000_000_000;

/// Starts the scanner's thread.
pub fn start(setup: Setup) -> io::Result<Scanner> {
    // Unbounded both: offers are bounded by the window, answers by the offers.
    let (notify, notices) = crossbeam_channel::unbounded();
    let (answers, answered) = crossbeam_channel::unbounded();
    let beat = Arc::new(AtomicU64::new(millis(setup.clock.now())));
    let core = Core::new(setup, notify, beat.clone());
    let scans = core.scans.clone();
    std::thread::Builder::new().name("inbox scanner".to_owned()).spawn(move || core.run(&answered))?;
    Ok(Scanner { notices, answers, scans, beat })
}

fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.0.as_millis()).unwrap_or(u64::MAX)
}

/// An offered item that isn't there any more, and whose offer wasn't answered.
#[derive(Debug)]
struct Departed {
    at: Moment,
    told: bool,
}

/// All that the scanner's thread knows.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) setup: Setup,
    pub(super) ignore: Ignore,
    pub(super) folders: Vec<Folder>,
    pub(super) by_path: HashMap<PathBuf, usize>,
    timers: BTreeSet<(Moment, usize, OsString)>,
    departed: HashMap<(usize, OsString), Departed>,
    departures: VecDeque<(Moment, usize, OsString)>,
    pub(super) checks: Checks,
    pub(super) token: u64,
    pub(super) watching: Watching,
    /// The inbox can't be read at present, and why.
    pub(super) trouble: Option<String>,
    pub(super) next_tick: Moment,
    /// Why the lease test can't be made.
    pub(super) lease_trouble: Option<String>,
    times: Times,
    /// In `--once` mode: what came later doesn't count.
    pub(super) until_ns: Option<i128>,
    /// How many items were taken, as far as it was told.
    pub(super) taken: u64,
    pub(super) scanned: bool,
    notices: Sender<Notice>,
    offered: Vec<Candidate>,
    withdrawn: Vec<CandidateKey>,
    /// By their inodes, until they are taken; and those that went before.
    pub(super) expected: HashMap<CandidateKey, u64>,
    missing: Vec<(CandidateKey, u64)>,
    pub(super) reported: Reported,
    pub(super) scans: Arc<ScanTimes>,
    beat: Arc<AtomicU64>,
}

impl Core {
    pub(super) fn new(setup: Setup, notices: Sender<Notice>, beat: Arc<AtomicU64>) -> Core {
        let until_ns = setup.once.then(wall_ns);
        let times = Times::read(&setup.clock);
        let mut core = Core {
            ignore: Ignore::new(&setup.rules.ignore),
            setup,
            folders: Vec::new(),
            by_path: HashMap::new(),
            timers: BTreeSet::new(),
            departed: HashMap::new(),
            departures: VecDeque::new(),
            checks: Checks::new(),
            token: 0,
            watching: Watching::new(),
            trouble: None,
            next_tick: Moment::default(),
            lease_trouble: None,
            times,
            until_ns,
            taken: 0,
            scanned: false,
            notices,
            offered: Vec::new(),
            withdrawn: Vec::new(),
            expected: HashMap::new(),
            missing: Vec::new(),
            reported: Reported::default(),
            scans: Arc::default(),
            beat,
        };
        core.lay_out();
        core
    }

    /// The folders, as the routes name them. The inbox itself is always one: what lies in it is never ignored silently.
    fn lay_out(&mut self) {
        let mut routes: BTreeMap<&str, Vec<Arc<Route>>> = BTreeMap::from([("", Vec::new())]);
        for route in &self.setup.routes {
            routes.entry(&route.folder).or_default().push(route.clone());
        }
        let names: BTreeSet<String> = routes.keys().map(|&name| name.to_owned()).collect();
        let kept = super::line::kept(self.setup.routes.len());
        let folder = |(name, routes): (&str, Vec<_>)| Folder::new(name, &self.setup.inbox, &routes, &names, kept);
        self.folders = routes.into_iter().map(folder).collect();
        self.by_path = self.folders.iter().enumerate().map(|(at, folder)| (folder.path.clone(), at)).collect();
    }

    fn run(mut self, answers: &Receiver<Answer>) {
        let hints = self.watching.heard.clone();
        let checked = self.checks.answers.clone();
        loop {
            let busy = self.work();
            self.flush();
            self.beat.store(millis(self.now()), Ordering::Relaxed);
            let wait = if busy { Duration::ZERO } else { self.next_deadline().since(self.now()) };
            select! {
                recv(answers) -> it => match it {
                    Ok(Answer::Stop) | Err(_) => return,
                    Ok(answer) => self.take_answer(answer),
                },
                recv(hints) -> it => if let Ok(hint) = it { self.take_hint(&hint) },
                recv(checked) -> it => if let Ok(done) = it { self.take_check(done) },
                default(wait) => {}
            }
            for answer in answers.try_iter() {
                if matches!(answer, Answer::Stop) {
                    return;
                }
                self.take_answer(answer);
            }
            for hint in hints.try_iter().take(BATCH) {
                self.take_hint(&hint);
            }
            for done in checked.try_iter() {
                self.take_check(done);
            }
        }
    }

    /// Does what is due; true when there is more to do at once.
    pub(super) fn work(&mut self) -> bool {
        self.notice_jumps();
        let now = self.now();
        if self.watching.ear.take_lost() {
            self.watching.fail("the watch ended; see the log".to_owned(), now);
            self.folders.iter_mut().for_each(|folder| folder.watched = false);
            self.want_scans();
            self.next_tick = now;
        }
        if self.watching.ear.take_rescan() {
            tracing::info!("events of the inbox were lost; its folders are read again");
            self.want_scans();
        }
        if self.next_tick <= now {
            self.check_places();
        }
        self.run_timers();
        let scanning = self.scan_some();
        let filling = self.fill();
        self.tell_departures();
        scanning || filling
    }

    pub(super) fn now(&self) -> Moment {
        self.setup.clock.now()
    }

    /// The times a judgement is made at.
    pub(super) fn times(&self) -> Now {
        let moment = self.now();
        let steady = self.times.jumped_at.map_or(Duration::from_secs(1 << 40), |at| moment.since(at));
        Now { moment, wall_ns: wall_ns(), steady }
    }

    /// The wall clock was set: ages can't be believed for a while. The machine slept: events may be lost.
    fn notice_jumps(&mut self) {
        let times = Times::read(&self.setup.clock);
        if JUMP_NS < (times.wall_ns - self.times.wall_ns).abs() {
            tracing::info!("the wall clock was set; ages of items count from now on");
            self.times.jumped_at = Some(self.now());
        }
        if JUMP_NS < times.slept_ns - self.times.slept_ns {
            tracing::info!("the machine slept; the inbox is read again");
            self.want_scans();
            self.next_tick = Moment::default();
        }
        self.times = Times { jumped_at: self.times.jumped_at, ..times };
    }

    pub(super) fn want_scans(&mut self) {
        for folder in &mut self.folders {
            folder.scan_wanted = true;
        }
    }

    pub(super) fn next_deadline(&self) -> Moment {
        let mut at = self.next_tick;
        let mut sooner = |other: Moment| at = at.min(other);
        if let Some((due, ..)) = self.departures.front() {
            sooner(*due);
        }
        if let Some(due) = self.reported.due() {
            sooner(due);
        }
        // Nothing of the inbox can be done while it can't be read.
        if self.trouble.is_some() {
            return at;
        }
        if let Some((due, ..)) = self.timers.first() {
            at = at.min(*due);
        }
        let mut sooner = |other: Moment| at = at.min(other);
        for folder in self.folders.iter().filter(|folder| folder.place.is_some()) {
            sooner(folder.next_scan);
            if folder.wants_refill() {
                sooner(folder.refill_at);
            }
        }
        at
    }

    // Hints.

    fn take_hint(&mut self, hint: &Hint) {
        if hint.what == Happened::Flagged {
            return;
        }
        if self.by_path.contains_key(&hint.path) {
            // The folder itself: moved, removed or unmounted.
            self.next_tick = Moment::default();
            return;
        }
        let folder = hint.path.parent().and_then(|parent| self.by_path.get(parent)).copied();
        let (Some(f), Some(name)) = (folder, hint.path.file_name()) else { return };
        if self.folders[f].reserved.contains(name) {
            self.next_tick = Moment::default();
            return;
        }
        match hint.what {
            Happened::RenamedIn => self.look(f, name, Why::Event(Origin::RenamedIn)),
            Happened::Touched => self.look(f, name, Why::Event(Origin::Touched)),
            Happened::Gone => self.look_whether_gone(f, name),
            Happened::Flagged => {}
        }
    }

    // Answers.

    fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Taken(keys) => {
                self.taken += keys.len() as u64;
                self.reported.touch();
                keys.iter().for_each(|key| self.take_taken(key));
            }
            Answer::Expected { key, inode } => {
                let place = self.place_of(&key).map(|(f, name)| (f, name.to_owned()));
                self.expected.insert(key, inode);
                // It may have gone before this came.
                if let Some((f, name)) = place {
                    self.miss(f, &name);
                }
            }
            Answer::Refused { key, why, reason, retry_in } => self.take_refusal(&key, why, reason, retry_in),
            Answer::Unsettled(key) => {
                if let Some((f, name)) = self.place_of(&key) {
                    let offered = |tracked: &super::folder::Tracked| matches!(tracked.state, State::Offered { .. });
                    // It may be settling again already, when an event was faster than the answer.
                    if self.folders[f].items.get(name).is_none_or(offered) {
                        // When the claim was undone, its return was offered already.
                        self.forget(f, name);
                        self.withdraw(key.clone());
                        self.departed.remove(&(f, name.to_owned()));
                        self.look(f, name, Why::Event(Origin::Touched));
                    }
                }
            }
            Answer::Reconfigure { rules, routes } => self.reconfigure(rules, routes),
            Answer::Rescan => {
                self.want_scans();
                self.next_tick = Moment::default();
                self.watching.retry_now();
                self.look_at_held();
            }
            // Handled by the loop.
            Answer::Stop => {}
        }
        self.reported.touch();
    }

    fn place_of<'key>(&self, key: &'key CandidateKey) -> Option<(usize, &'key OsStr)> {
        // In the order of their names, by which they were laid out.
        let f = self.folders.binary_search_by(|folder| folder.name.as_str().cmp(&key.folder)).ok()?;
        Some((f, key.name.as_os_str()))
    }

    fn take_taken(&mut self, key: &CandidateKey) {
        self.expected.remove(key);
        let Some((f, name)) = self.place_of(key) else { return };
        let owed = self.departed.remove(&(f, name.to_owned())).is_some();
        let Some(tracked) = self.folders[f].items.get(name) else { return };
        if !matches!(tracked.state, State::Offered { .. }) {
            return;
        }
        let Some(place) = &self.folders[f].place else {
            self.forget(f, name);
            return;
        };
        match inspect::look(&place.fd, name) {
            Look::Found { .. } if owed => {}
            Look::Found { .. } => {
                // Something lies there under the taken name, and no event told of it: offer it as what it is now.
                self.forget(f, name);
                self.withdraw(key.clone());
                self.look(f, name, Why::Again);
            }
            Look::Gone | Look::Failed(_) => {
                self.forget(f, name);
            }
        }
    }

    fn take_refusal(&mut self, key: &CandidateKey, why: HeldFor, reason: String, retry_in: Duration) {
        let Some((f, name)) = self.place_of(key) else { return };
        self.departed.remove(&(f, name.to_owned()));
        let Some(tracked) = self.folders[f].items.get(name) else { return };
        let State::Offered { route, held_since } = tracked.state else { return };
        let shape = tracked.shape;
        let held = Held {
            why,
            reason: reason.into(),
            since: held_since.unwrap_or_else(Timestamp::now),
            route: Some(route),
            passing: false,
            track: Some(super::ready::Track::new(Origin::Settled).into()),
        };
        let due = self.now() + retry_in;
        self.withdraw(key.clone());
        self.put(f, name, State::Held(Box::new(held)), shape, Some(due));
    }

    fn reconfigure(&mut self, rules: Arc<crate::config::Inbox>, routes: Vec<Arc<Route>>) {
        let now = self.now();
        for (f, folder) in self.folders.iter().enumerate() {
            for (name, tracked) in &folder.items {
                if matches!(tracked.state, State::Offered { .. }) {
                    self.withdrawn.push(folder.key(name));
                    self.departed.insert((f, name.clone()), Departed { at: now, told: true });
                }
            }
        }
        self.flush();
        self.setup.rules = rules;
        self.setup.routes = routes;
        self.ignore = Ignore::new(&self.setup.rules.ignore);
        self.timers.clear();
        let before: Vec<String> = self.folders.iter().map(|folder| folder.name.clone()).collect();
        self.lay_out();
        // What is owed is known by the folder's place in the list, which may have changed.
        let moved = |f: usize| self.folders.iter().position(|folder| folder.name == before[f]);
        let departed = std::mem::take(&mut self.departed);
        self.departed = departed.into_iter().filter_map(|((f, name), it)| Some(((moved(f)?, name), it))).collect();
        self.departures.clear();
        // The watch is made anew with the folders, on the next look at their places.
        self.watching.drop_watch();
        self.lease_trouble = None;
        self.token += 1;
        self.next_tick = now;
    }

    // The table of items.

    /// Puts an item in its state, with its timer.
    pub(super) fn put(
        &mut self,
        f: usize,
        name: &OsStr,
        state: State,
        shape: super::folder::Shape,
        due: Option<Moment>,
    ) {
        let before = self.folders[f].put(name, state, shape, due);
        if let Some(at) = before.and_then(|before| before.due) {
            self.timers.remove(&(at, f, name.to_owned()));
        }
        if let Some(at) = due {
            self.timers.insert((at, f, name.to_owned()));
        }
        self.reported.touch();
    }

    /// Forgets an item, its timer too.
    pub(super) fn forget(&mut self, f: usize, name: &OsStr) -> Option<super::folder::Tracked> {
        let before = self.folders[f].remove(name)?;
        if let Some(at) = before.due {
            self.timers.remove(&(at, f, name.to_owned()));
        }
        self.reported.touch();
        Some(before)
    }

    fn run_timers(&mut self) {
        let now = self.now();
        if self.trouble.is_some() {
            return;
        }
        for _ in 0..BATCH {
            let Some((at, f, name)) = self.timers.pop_first() else { return };
            if now < at {
                self.timers.insert((at, f, name));
                return;
            }
            if let Some(tracked) = self.folders[f].items.get_mut(&name) {
                tracked.due = None;
            }
            self.look(f, &name, Why::Due);
            self.rearm(f, &name);
        }
    }

    /// What still settles and could not be looked at (its folder is away) is looked at again.
    pub(super) fn rearm(&mut self, f: usize, name: &OsStr) {
        let at = self.now() + LOOK_AGAIN;
        let Some(tracked) = self.folders[f].items.get_mut(name) else { return };
        let waits = match &tracked.state {
            State::Settling { checking, .. } => checking.is_none(),
            State::Held(held) => held.track.is_some(),
            State::Orphan { .. } => true,
            State::Queued { .. } | State::Offered { .. } => false,
        };
        if waits && tracked.due.is_none() {
            tracked.due = Some(at);
            self.timers.insert((at, f, name.to_owned()));
        }
    }

    /// Looks at everything held for a reason that may have gone.
    fn look_at_held(&mut self) {
        for f in 0..self.folders.len() {
            let held = |(name, tracked): (&OsString, &super::folder::Tracked)| {
                matches!(tracked.state, State::Held(_)).then(|| name.clone())
            };
            let names: Vec<OsString> = self.folders[f].items.iter().filter_map(held).collect();
            for name in names {
                self.look(f, &name, Why::Due);
            }
        }
    }

    // Offers.

    /// Takes the oldest names out of the lines while the windows have room; true when there is more to take at once.
    fn fill(&mut self) -> bool {
        if self.trouble.is_some() {
            return false;
        }
        let mut more = false;
        for f in 0..self.folders.len() {
            if !self.folders[f].read_whole || self.folders[f].place.is_none() {
                continue;
            }
            for route in 0..self.folders[f].lines.len() {
                for _ in 0..WINDOW {
                    let folder = &mut self.folders[f];
                    if !folder.has_room(route) {
                        break;
                    }
                    let Some(lead) = folder.lines[route].pop() else { break };
                    let queued = |tracked: &super::folder::Tracked| matches!(tracked.state, State::Queued { .. });
                    if folder.items.get(&*lead.name).is_none_or(queued) {
                        self.look(f, &lead.name, Why::Lead { origin: lead.origin, ctime_ns: lead.ctime_ns });
                    }
                    self.reported.touch();
                }
                let folder = &self.folders[f];
                more |= folder.has_room(route) && !folder.lines[route].is_empty();
            }
        }
        more
    }

    pub(super) fn offer(&mut self, f: usize, candidate: Candidate) {
        let left = self.departed.get_mut(&(f, candidate.key.name.as_os_str().to_owned()));
        if let Some(departed) = left.filter(|departed| !departed.told) {
            departed.told = true;
            self.withdraw(candidate.key.clone());
        }
        self.offered.push(candidate);
    }

    /// Takes an offer back. Withdrawals are sent first, so what wasn't sent yet isn't sent at all.
    fn withdraw(&mut self, key: CandidateKey) {
        self.offered.retain(|candidate| candidate.key != key);
        self.withdrawn.push(key);
    }

    /// An offered item went away, or another one has its name.
    pub(super) fn depart(&mut self, f: usize, name: &OsStr) {
        let at = self.now();
        self.departed.insert((f, name.to_owned()), Departed { at, told: false });
        self.departures.push_back((at + WITHDRAW_AFTER, f, name.to_owned()));
    }

    fn tell_departures(&mut self) {
        let now = self.now();
        while self.departures.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, f, name)) = self.departures.pop_front() else { return };
            let key = self.folders[f].key(&name);
            if let Some(departed) = self.departed.get_mut(&(f, name)).filter(|departed| !departed.told) {
                departed.told = true;
                self.withdraw(key);
            }
        }
    }

    /// Whether an offer of this name was never answered.
    pub(super) fn has_departed(&self, f: usize, name: &OsStr) -> bool {
        self.departed.contains_key(&(f, name.to_owned()))
    }

    /// Looks whether an expected item has gone.
    pub(super) fn miss(&mut self, f: usize, name: &OsStr) {
        let Some(place) = self.folders[f].place.as_ref().filter(|_| !self.expected.is_empty()) else { return };
        let key = self.folders[f].key(name);
        let Some(inode) = self.expected.get(&key).copied() else { return };
        let is_it = |found: u64| [0, inode].contains(&found) || inode == 0;
        match inspect::look(&place.fd, name) {
            Look::Found { signature, .. } if is_it(signature.ino) => {}
            Look::Failed(_) => {}
            Look::Found { .. } | Look::Gone => {
                self.expected.remove(&key);
                self.missing.push((key, inode));
            }
        }
    }

    /// The same for all that are expected in a folder: nobody may have told of one that went.
    pub(super) fn miss_all(&mut self, f: usize) {
        let theirs = self.expected.keys().filter(|key| key.folder == self.folders[f].name);
        let names: Vec<OsString> = theirs.map(|key| key.name.as_os_str().to_owned()).collect();
        names.iter().for_each(|name| self.miss(f, name));
    }

    /// Answers that never came aren't waited for for ever.
    pub(super) fn forget_departed(&mut self) {
        let now = self.now();
        self.departed.retain(|_, departed| now.since(departed.at) < OWED);
    }

    /// Sends what has come together; whoever listened may be gone, which the answers' channel tells.
    pub(super) fn flush(&mut self) {
        if !self.withdrawn.is_empty() {
            let _ = self.notices.send(Notice::Withdrawn(std::mem::take(&mut self.withdrawn)));
        }
        if !self.missing.is_empty() {
            let _ = self.notices.send(Notice::Missing(std::mem::take(&mut self.missing)));
        }
        if !self.offered.is_empty() {
            let _ = self.notices.send(Notice::Offered(std::mem::take(&mut self.offered)));
        }
        if let Some(health) = self.new_health() {
            let _ = self.notices.send(Notice::Health(health));
        }
        if let Some(counts) = self.new_counts() {
            let _ = self.notices.send(Notice::Counts(counts));
        }
    }

    fn take_check(&mut self, done: Done) {
        self.checks.ended();
        self.learn(done);
    }
}

impl Folder {
    pub(super) fn key(&self, name: &OsStr) -> CandidateKey {
        CandidateKey { folder: self.name.clone(), name: ItemName::new(name) }
    }

    /// Another item of the route can be looked at and offered.
    pub(super) fn has_room(&self, route: usize) -> bool {
        self.lines[route].offered < WINDOW && self.tally.active() < ACTIVE
    }

    pub(super) fn wants_refill(&self) -> bool {
        !self.is_scanning()
            && self.tally.active() < ACTIVE / 4 * 3
            && self.lines.iter().any(super::line::Line::wants_refill)
    }
}

/// The clocks against each other, to notice when one of them jumps.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The wall clock's lead over our own.
    wall_ns: i128,
    /// How long the machine has slept.
    slept_ns: i128,
    jumped_at: Option<Moment>,
}

impl Times {
    fn read(clock: &Clock) -> Times {
        let own = i128::try_from(clock.now().0.as_nanos()).unwrap_or(i128::MAX);
        let slept_ns = clock_ns(ClockId::Boottime) - clock_ns(ClockId::Monotonic);
        Times { wall_ns: wall_ns() - own, slept_ns, jumped_at: None }
    }
}

fn wall_ns() -> i128 {
    clock_ns(ClockId::Realtime)
}

fn clock_ns(clock: ClockId) -> i128 {
    let time = clock_gettime(clock);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}
