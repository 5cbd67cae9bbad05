//! From a name to its state: looks, gathers the facts that the judgement asks for, and carries it out.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::FileType;

use super::checks::{self, Done, Order, Said, Task};
use super::folder::{ACTIVE, HELD, Held, NO_ROUTE, Shape, State, Tracked, item_kind};
use super::inspect::{self, Look, Tested};
use super::line::Lead;
use super::matching::{Router, companion};
use super::ready::{Facts, Judgement, Need, Origin, Rules, Track, Writer};
use super::scanner::Core;
use super::signature::{Limits, Tree, WalkError, walk};
use super::{Candidate, HeldFor, WINDOW};
use crate::item::{ItemKind, Signature};

/// A directory that takes longer than this is walked on a thread of its own.
const WALK_HERE: Duration = Duration::from_millis(5);
/// Something in it went away while it was walked: it is being worked on.
const WALK_AGAIN: Duration = Duration::from_secs(1);
/// A failure to read is tried again after this, and a marker without its item told.
const READ_AGAIN: Duration = Duration::from_secs(30);
const ORPHANED: Duration = Duration::from_secs(60);

/// Why a name is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Why {
    /// An event spoke of it.
    Event(Origin),
    /// Its turn came.
    Lead { origin: Origin, ctime_ns: i64 },
    /// Its timer ran out.
    Due,
    /// Its marker or its manifest changed: what was said of it before is void, a check under way too.
    Companion,
    /// A scan found it changed, or a check has spoken.
    Again,
}

/// A directory's walk that was made on a thread.
type Walked = Option<Result<Tree, WalkError>>;

impl Core {
    pub(super) fn look(&mut self, f: usize, name: &OsStr, why: Why) {
        self.look_with(f, name, why, None);
    }

    fn look_with(&mut self, f: usize, name: &OsStr, why: Why, walked: Walked) {
        let Some(place) = &self.folders[f].place else { return };
        let fd = place.fd.clone();
        let (kind, signature) = match inspect::look(&fd, name) {
            Look::Found { kind, signature } => (kind, signature),
            Look::Gone => return self.gone(f, name),
            Look::Failed(error) => return self.fail(f, &error),
        };
        if self.ignore.matches(name, kind) {
            let since = Timestamp::from_nanosecond(signature.ctime_ns).ok();
            self.folders[f].census.ignore(name, || since);
            self.reported.touch();
            return;
        }
        if let Some(owner) = self.folders[f].router.owner(name) {
            return self.look_at_companion(f, name, &owner);
        }
        if !self.expected.is_empty() {
            self.miss(f, name);
        }
        let shape = Shape::of(&signature);
        match self.folders[f].items.get(name) {
            Some(Tracked { state: State::Offered { .. }, shape: before, .. }) if *before == shape => return,
            // Its check will speak.
            Some(Tracked { state: State::Settling { checking: Some(_), .. }, shape: before, .. })
                if *before == shape && why == Why::Due =>
            {
                return;
            }
            // In `--once` mode a name that wasn't there at the start is none of ours; a claim that was undone brings one
            // back that was.
            None if self.until_ns.is_some() && matches!(why, Why::Event(_)) && !self.has_departed(f, name) => return,
            _ => {}
        }
        let before = self.forget(f, name);
        if let Some(Tracked { state: State::Offered { .. }, .. }) = &before {
            self.depart(f, name);
        }
        let item = item_kind(kind);
        let route = item.and_then(|item| self.folders[f].router.find(name, item));
        let (Some(item), Some(route)) = (item, route) else {
            let (why, reason) = match item {
                None => (HeldFor::NotAnItem, inspect::special(kind)),
                Some(_) => (HeldFor::NoRoute, NO_ROUTE),
            };
            let since = before.as_ref().and_then(held_since);
            return self.hold(f, name, shape, Held::new(why, reason, since, None), None);
        };
        let since = before.as_ref().and_then(held_since);
        let track = recall(before, why, &signature);
        let found =
            Found { f, name, kind: item, route, shape, signature, since, lead: matches!(why, Why::Lead { .. }) };
        self.judge(&found, track, &fd, walked);
    }

    fn judge(&mut self, found: &Found<'_>, mut track: Track, fd: &Arc<std::os::fd::OwnedFd>, mut walked: Walked) {
        let &Found { f, name, kind, shape, signature, .. } = found;
        let route = self.folders[f].router.route(found.route).clone();
        let network = self.folders[f].place.as_ref().is_some_and(|place| place.network.is_some());
        let rules = Rules::new(&self.setup.rules, &route.ready, kind, network);
        let marker = route.ready.marker.as_deref().map(OsStr::new);
        let mut facts =
            Facts { kind, signature, newest_ns: signature.ctime_ns, walked: false, writer: None, marker: None };
        loop {
            match track.judge(&facts, &rules, self.times()) {
                Judgement::Ready => return self.ready(found, &facts, track),
                Judgement::Wait(at) => return self.settle(found, track, at, None),
                Judgement::Held { why, reason, retry_at, passing } => {
                    let held = Held {
                        passing,
                        track: Some(track.into()),
                        ..Held::new(why, reason, found.since, Some(found.route))
                    };
                    return self.hold(f, name, shape, held, Some(retry_at));
                }
                Judgement::Need(Need::Tree) => {
                    let limits = Limits { time: WALK_HERE, marker, ..Limits::default() };
                    match walked.take().unwrap_or_else(|| walk(fd, name, limits)) {
                        Ok(tree) if tree.top == signature => {
                            facts.signature = tree.signature;
                            facts.newest_ns = tree.newest_ns;
                            facts.walked = true;
                            facts.marker = tree.has_marker.then_some(true);
                        }
                        // It changed at its top since it was walked.
                        Ok(_) => return self.settle(found, track, self.now() + WALK_AGAIN, None),
                        Err(WalkError::TooSlow(time)) if time == WALK_HERE => {
                            let task = Task::Walk { folder: fd.clone(), marker: marker.map(OsStr::to_owned) };
                            return self.order(found, track, signature, task);
                        }
                        Err(error) if error.is_gone() => {
                            track.touch(Origin::Touched);
                            return self.settle(found, track, self.now() + WALK_AGAIN, None);
                        }
                        Err(WalkError::Io(error)) if self.run_out_of_files(&error) => {
                            return self.settle(found, track, self.now() + WALK_AGAIN, None);
                        }
                        Err(error) => return self.hold_unreadable(found, track, error.to_string()),
                    }
                }
                Judgement::Need(Need::Writer) if network => facts.writer = Some(Writer::Unknowable),
                Judgement::Need(Need::Writer) => match inspect::test_writer(fd, name) {
                    Tested::File { signature, writer } => {
                        facts.signature = signature;
                        facts.newest_ns = signature.ctime_ns;
                        facts.writer = Some(writer);
                        if writer == Writer::Unknowable {
                            self.note_lease_trouble();
                        }
                    }
                    Tested::Gone => return self.gone(f, name),
                    Tested::NotAFile => return self.settle(found, track, self.now() + WALK_AGAIN, None),
                    Tested::Unreadable(error) if self.run_out_of_files(&error) => {
                        return self.settle(found, track, self.now() + WALK_AGAIN, None);
                    }
                    Tested::Unreadable(error) => {
                        return self.hold_unreadable(found, track, format!("can't be read: {error}"));
                    }
                },
                Judgement::Need(Need::Marker) => {
                    let place = companion(name, route.ready.marker.as_deref().unwrap_or_default());
                    let look = inspect::look(fd, &place);
                    facts.marker = Some(matches!(look, Look::Found { kind: FileType::RegularFile, .. }));
                }
                Judgement::Need(Need::Manifest) => {
                    let task = Task::Manifest { folder: fd.clone(), kind };
                    return self.order(found, track, facts.signature, task);
                }
                Judgement::Need(Need::Validator) => {
                    let item = self.folders[f].path.join(Path::new(name));
                    let argv = checks::fill_in(&route.ready.validator, &item, name);
                    let task = Task::Validator { argv, cwd: route.dir.clone() };
                    return self.order(found, track, facts.signature, task);
                }
            }
        }
    }

    fn settle(&mut self, found: &Found<'_>, track: Track, at: crate::units::Moment, checking: Option<u64>) {
        let folder = &mut self.folders[found.f];
        if ACTIVE <= folder.tally.active() {
            // A later scan finds it, when there is room.
            folder.lines[found.route].beyond += 1;
            self.reported.touch();
            return;
        }
        let state = State::Settling { track: Box::new(track), route: found.route, checking };
        let due = checking.is_none().then_some(at);
        self.put(found.f, found.name, state, Shape::of(&found.signature), due);
    }

    /// Gives a check to a thread, and remembers which answer counts.
    fn order(&mut self, found: &Found<'_>, track: Track, signature: Signature, task: Task) {
        let Found { f, name, .. } = *found;
        self.token += 1;
        let token = self.token;
        self.settle(found, track, self.now(), Some(token));
        if self.folders[f].items.contains_key(name) {
            self.checks.order(Order { folder: f, name: name.to_owned(), token, signature, task });
        }
    }

    /// Takes in what a check said, if it is still waited for.
    pub(super) fn learn(&mut self, done: Done) {
        let Done { folder: f, name, token, signature, said } = done;
        let tracked = self.folders.get_mut(f).and_then(|folder| folder.items.get_mut(&name));
        let Some(Tracked { state: State::Settling { track, checking, .. }, .. }) = tracked else { return };
        if *checking != Some(token) {
            return;
        }
        *checking = None;
        match said {
            Said::Walked(walked) => self.look_with(f, &name, Why::Again, Some(walked)),
            Said::Judged(Need::Tree, _) => {
                let failed = WalkError::Io(std::io::Error::other("its walk failed; see the log"));
                self.look_with(f, &name, Why::Again, Some(Err(failed)));
            }
            Said::Judged(need, verdict) => {
                track.learn(need, signature, verdict);
                self.look_with(f, &name, Why::Again, None);
            }
        }
        self.rearm(f, &name);
    }

    fn ready(&mut self, found: &Found<'_>, facts: &Facts, track: Track) {
        let &Found { f, name, shape, .. } = found;
        self.drop_orphans_of(found);
        let healthy = self.trouble.is_none();
        let folder = &mut self.folders[f];
        let ctime_ns = facts.signature.ctime_ns;
        let line = &mut folder.lines[found.route];
        let in_turn = found.lead || !line.has_older_than(ctime_ns);
        if !(healthy && folder.read_whole && in_turn && line.offered < WINDOW) {
            let lead = Lead::new(ctime_ns, name.to_owned(), Origin::Settled);
            let kept = line.admits(lead.ctime_ns);
            line.push(lead);
            let costly = !found.route_of(&folder.router).ready.validator.is_empty()
                || found.route_of(&folder.router).ready.manifest;
            if kept && costly && folder.tally.active() < ACTIVE {
                self.put(f, name, State::Queued { track: Box::new(track) }, shape, None);
            }
            self.reported.touch();
            return;
        }
        let route = found.route_of(&folder.router).clone();
        let candidate = Candidate {
            key: folder.key(name),
            kind: found.kind,
            signature: facts.signature,
            arrived_at: Timestamp::from_nanosecond(ctime_ns).unwrap_or_default(),
            companions: Router::companions(&route, name),
            route,
            lease_tested: facts.writer == Some(Writer::None),
        };
        // Later looks compare with the top of a directory, and with a file as it was under the lease.
        let shape = if found.kind == ItemKind::File { Shape::of(&facts.signature) } else { shape };
        self.put(f, name, State::Offered { route: found.route, held_since: found.since }, shape, None);
        self.offer(f, candidate);
    }

    fn hold_unreadable(&mut self, found: &Found<'_>, track: Track, reason: String) {
        let held = Held::new(HeldFor::Unreadable, reason, found.since, Some(found.route));
        let held = Held { track: Some(track.into()), ..held };
        self.hold(found.f, found.name, found.shape, held, Some(self.now() + READ_AGAIN));
    }

    fn hold(&mut self, f: usize, name: &OsStr, shape: Shape, held: Held, due: Option<crate::units::Moment>) {
        let folder = &mut self.folders[f];
        if HELD <= folder.tally.held {
            folder.census.held_beyond += 1;
            self.reported.touch();
            return;
        }
        self.put(f, name, State::Held(Box::new(held)), shape, due);
    }

    /// A name isn't there any more.
    pub(super) fn gone(&mut self, f: usize, name: &OsStr) {
        if let Some(Tracked { state: State::Offered { .. }, .. }) = self.forget(f, name) {
            self.depart(f, name);
        }
        if self.folders[f].census.ignored.remove(name).is_some() {
            self.reported.touch();
        }
        self.miss(f, name);
    }

    /// An event says that a name left. When it is there again, its own event comes later.
    pub(super) fn look_whether_gone(&mut self, f: usize, name: &OsStr) {
        let Some(place) = &self.folders[f].place else { return };
        if matches!(inspect::look(&place.fd, name), Look::Gone) {
            self.gone(f, name);
        }
    }

    /// A marker or a manifest: its item may be ready now. Without one it is told of after a while.
    fn look_at_companion(&mut self, f: usize, name: &OsStr, owner: &OsStr) {
        let Some(place) = &self.folders[f].place else { return };
        if !matches!(inspect::look(&place.fd, owner), Look::Gone) {
            self.forget(f, name);
            if self.folders[f].items.contains_key(owner) {
                self.look(f, owner, Why::Companion);
            }
            return;
        }
        let now = self.now();
        let shape = Shape::of(&Signature::NONE);
        match self.folders[f].items.get(name).map(|tracked| &tracked.state) {
            Some(State::Held(_)) => {}
            Some(State::Orphan { since }) if ORPHANED <= now.since(*since) => {
                let reason = format!(
                    "a marker or manifest without its item `{}`",
                    crate::item::escape(owner.as_encoded_bytes())
                );
                self.hold(f, name, shape, Held::new(HeldFor::Companion, reason, None, None), None);
            }
            Some(State::Orphan { .. }) => {}
            _ => self.put(f, name, State::Orphan { since: now }, shape, Some(now + ORPHANED)),
        }
    }

    fn drop_orphans_of(&mut self, found: &Found<'_>) {
        let route = found.route_of(&self.folders[found.f].router).clone();
        for companion in Router::companions(&route, found.name) {
            self.forget(found.f, companion.as_os_str());
        }
    }
}

/// One name that may become an item.
struct Found<'a> {
    f: usize,
    name: &'a OsStr,
    kind: ItemKind,
    route: usize,
    /// As it was first looked at; a directory's top.
    shape: Shape,
    signature: Signature,
    /// Since when it is held, if it is.
    since: Option<Timestamp>,
    /// Its turn has come.
    lead: bool,
}

impl Found<'_> {
    fn route_of<'router>(&self, router: &'router Router) -> &'router Arc<crate::config::Route> {
        router.route(self.route)
    }
}

impl Held {
    pub(super) fn new(
        why: HeldFor,
        reason: impl Into<Cow<'static, str>>,
        since: Option<Timestamp>,
        route: Option<usize>,
    ) -> Held {
        let since = since.unwrap_or_else(Timestamp::now);
        Held { why, reason: reason.into(), since, route, passing: false, track: None }
    }
}

fn held_since(before: &Tracked) -> Option<Timestamp> {
    match &before.state {
        State::Held(held) => Some(held.since),
        _ => None,
    }
}

/// What is remembered of the item, in the light of why it is looked at.
fn recall(before: Option<Tracked>, why: Why, signature: &Signature) -> Track {
    let known = before.and_then(|before| match before.state {
        State::Settling { track, .. } | State::Queued { track } => Some(*track),
        State::Held(held) => held.track.map(|track| *track),
        State::Offered { .. } | State::Orphan { .. } => None,
    });
    match why {
        Why::Event(origin) => {
            let mut track = known.unwrap_or_else(|| Track::new(origin));
            track.touch(origin);
            track
        }
        Why::Lead { origin, ctime_ns } => {
            // How it came counts only while it is what came.
            let same = i128::from(ctime_ns) == signature.ctime_ns;
            let origin = if same { origin } else { Origin::Scanned };
            let mut track = known.unwrap_or_else(|| Track::new(origin));
            track.touch(origin);
            track
        }
        Why::Due | Why::Companion => {
            let mut track = known.unwrap_or_else(|| Track::new(Origin::Scanned));
            track.forget_refusals();
            track
        }
        Why::Again => known.unwrap_or_else(|| Track::new(Origin::Scanned)),
    }
}
