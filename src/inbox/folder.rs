//! One intake folder: what is known of the names in it, the lines of its routes, and the reading of it, a buffer at a
//! time, so that a million names keep nobody waiting. Knows no clock and no channel.
//!
//! Invariants: a name stands in `items` or in a line, in both only while it is queued; `tally` counts `items` by state.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{FileType, Mode, OFlags, RawDir};

use super::fsinfo::{self, Identity};
use super::inspect::{self, Look};
use super::line::{Lead, Line};
use super::matching::Router;
use super::names::Ignore;
use super::ready::{Origin, Track};
use super::{HELD_LISTED, HeldFor};
use crate::config::Route;
use crate::item::{ItemKind, Signature};
use crate::sys::dirs;
use crate::units::Moment;

/// Items that settle or are offered, over all folders; more stay names in the folder until these are through.
pub(super) const ACTIVE: usize = 16_384;
/// Items known to be held; more are found anew by each scan.
pub(super) const HELD: usize = 65_536;
/// Some 1,500 names: read and looked at in a few milliseconds.
const BUFFER: usize = 64 << 10;

pub(super) const NO_ROUTE: &str = "no route matches it; add a route for it, or one that takes every name";

/// What tells one item from the next of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    ino: u64,
    ctime_ns: i64,
}

impl Shape {
    pub(super) fn of(signature: &Signature) -> Shape {
        // 64 bits of nanoseconds last until 2262.
        Shape { ino: signature.ino, ctime_ns: i64::try_from(signature.ctime_ns).unwrap_or(i64::MAX) }
    }

    pub(super) fn arrived_at(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(self.ctime_ns.into()).ok()
    }
}

#[derive(Debug)]
pub(super) enum State {
    Settling {
        track: Box<Track>,
        route: usize,
        /// The check that is waited for.
        checking: Option<u64>,
    },
    /// Ready, its name stands in line; kept for what costly checks said of it.
    Queued {
        track: Box<Track>,
    },
    Offered {
        route: usize,
        /// Since when it was held before: a refusal that comes again is the same one.
        held_since: Option<Timestamp>,
    },
    Held(Box<Held>),
    /// A marker or a manifest without its item, since then.
    Orphan {
        since: Moment,
    },
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) why: HeldFor,
    /// Owned only where it speaks of this one item: thousands are held for the same reason.
    pub(super) reason: Cow<'static, str>,
    pub(super) since: Timestamp,
    pub(super) route: Option<usize>,
    /// It will be taken without anybody's doing.
    pub(super) passing: bool,
    /// None: only a change in the folder or the configuration can mend it.
    pub(super) track: Option<Box<Track>>,
}

#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) state: State,
    pub(super) shape: Shape,
    pub(super) due: Option<Moment>,
    /// The scan that saw it last, or during which it was put here.
    generation: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) settling: usize,
    pub(super) queued: usize,
    pub(super) offered: usize,
    pub(super) held: usize,
    /// Of the held.
    pub(super) passing: usize,
    pub(super) orphans: usize,
    /// The held by the kind of their reason.
    pub(super) held_for: [usize; HeldFor::ALL.len()],
}

/// What is in the table of one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OfRoute {
    pub(super) settling: usize,
    pub(super) held: usize,
}

impl Tally {
    fn count(&mut self, state: &State, way: Way) {
        let change = |count: &mut usize| way.change(count);
        match state {
            State::Settling { .. } => change(&mut self.settling),
            State::Queued { .. } => change(&mut self.queued),
            State::Offered { .. } => change(&mut self.offered),
            State::Held(held) => {
                change(&mut self.held);
                change(&mut self.held_for[held.why.place()]);
                if held.passing {
                    change(&mut self.passing);
                }
            }
            State::Orphan { .. } => change(&mut self.orphans),
        }
    }

    pub(super) fn active(&self) -> usize {
        self.settling + self.queued + self.offered + self.orphans
    }
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

impl Way {
    fn change(self, count: &mut usize) {
        match self {
            Way::In => *count += 1,
            Way::Out => *count -= 1,
        }
    }
}

/// The folder as it was opened.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) identity: Identity,
    /// The name of the network file system it lies on.
    pub(super) network: Option<&'static str>,
}

impl Place {
    pub(super) fn open(path: &Path) -> io::Result<Place> {
        let fd = dirs::open(rustix::fs::CWD, path, OFlags::RDONLY)?;
        // Of the path, after it was opened: a folder replaced in between shows as another identity later.
        let identity = fsinfo::look(path)?.identity;
        let network = fsinfo::network(&fd)?;
        Ok(Place { fd: Arc::new(fd), identity, network })
    }
}

/// What a scan counted beside the items: names that aren't any, and what didn't fit.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Bounded at [`HELD_LISTED`].
    pub(super) ignored: BTreeMap<OsString, Option<Timestamp>>,
    pub(super) ignored_beyond: u64,
    pub(super) held_beyond: u64,
}

impl Census {
    pub(super) fn ignore(&mut self, name: &OsStr, since: impl FnOnce() -> Option<Timestamp>) {
        if self.ignored.contains_key(name) {
            return;
        }
        if self.ignored.len() < HELD_LISTED {
            self.ignored.insert(name.to_owned(), since());
        } else {
            self.ignored_beyond += 1;
        }
    }
}

/// A reading in progress.
#[derive(Debug)]
struct Scan {
    fd: OwnedFd,
    buffer: Vec<MaybeUninit<u8>>,
    lines: Vec<Line>,
    census: Census,
    began: Began,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    pub(super) at: Moment,
    pub(super) wall_ns: i128,
    /// When the folder's names had last changed by then.
    pub(super) changed_ns: i128,
}

/// What a scan goes by.
pub(super) struct Terms<'a> {
    pub(super) ignore: &'a Ignore,
    /// Names that came later don't count.
    pub(super) until_ns: Option<i128>,
    pub(super) now: Timestamp,
}

/// One step of a scan: names that need a look of their own, and whether it was the last.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) looks: Vec<OsString>,
    pub(super) done: Option<Began>,
}

#[derive(Debug)]
pub(super) struct Folder {
    /// Under `inbox/`; empty for the inbox itself.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) router: Router,
    /// Names in it that lead to other intake folders.
    pub(super) reserved: BTreeSet<OsString>,
    /// None: missing, or not to be read at present.
    pub(super) place: Option<Place>,
    pub(super) watched: bool,
    pub(super) lines: Vec<Line>,
    pub(super) census: Census,
    /// Since the configuration was read.
    pub(super) read_whole: bool,
    pub(super) scan_wanted: bool,
    pub(super) next_scan: Moment,
    /// Not to be read again before, only because a line runs low.
    pub(super) refill_at: Moment,
    pub(super) last_scan: Option<Began>,
    /// Ignored names that were warned of.
    pub(super) warned: BTreeSet<OsString>,
    pub(super) items: HashMap<OsString, Tracked>,
    pub(super) tally: Tally,
    /// The same by route.
    pub(super) of_routes: Vec<OfRoute>,
    scan: Option<Box<Scan>>,
    generation: u64,
}

impl Folder {
    /// Of the routes that name it, among all `folders`; a line keeps so many names.
    pub(super) fn new(
        name: &str,
        inbox: &Path,
        routes: &[Arc<Route>],
        folders: &BTreeSet<String>,
        kept: usize,
    ) -> Folder {
        let above = if name.is_empty() { String::new() } else { format!("{name}/") };
        let inner = |other: &String| {
            let first = other.strip_prefix(&above)?.split('/').next();
            first.filter(|first| !first.is_empty()).map(OsString::from)
        };
        let below = folders.range(above.clone()..).take_while(|other| other.starts_with(&above));
        let router = Router::new(name, routes);
        Folder {
            path: if name.is_empty() { inbox.to_owned() } else { inbox.join(name) },
            name: name.to_owned(),
            reserved: below.filter_map(inner).collect(),
            place: None,
            watched: false,
            lines: (0..router.len()).map(|_| Line::new(kept)).collect(),
            of_routes: vec![OfRoute::default(); router.len()],
            router,
            census: Census::default(),
            read_whole: false,
            scan_wanted: true,
            next_scan: Moment::default(),
            refill_at: Moment::default(),
            last_scan: None,
            warned: BTreeSet::new(),
            items: HashMap::new(),
            tally: Tally::default(),
            scan: None,
            generation: 0,
        }
    }

    /// Puts a name in its state; the one before is returned.
    pub(super) fn put(&mut self, name: &OsStr, state: State, shape: Shape, due: Option<Moment>) -> Option<Tracked> {
        self.count(&state, Way::In);
        if let State::Offered { route, .. } = state {
            self.lines[route].offered += 1;
        }
        let tracked = Tracked { state, shape, due, generation: self.generation };
        let before = self.items.insert(name.to_owned(), tracked);
        self.uncount(before)
    }

    pub(super) fn remove(&mut self, name: &OsStr) -> Option<Tracked> {
        let before = self.items.remove(name);
        self.uncount(before)
    }

    fn count(&mut self, state: &State, way: Way) {
        self.tally.count(state, way);
        match state {
            State::Settling { route, .. } => way.change(&mut self.of_routes[*route].settling),
            State::Held(held) => {
                if let Some(route) = held.route {
                    way.change(&mut self.of_routes[route].held);
                }
            }
            State::Queued { .. } | State::Offered { .. } | State::Orphan { .. } => {}
        }
    }

    fn uncount(&mut self, before: Option<Tracked>) -> Option<Tracked> {
        if let Some(before) = &before {
            self.count(&before.state, Way::Out);
            if let State::Offered { route, .. } = before.state {
                self.lines[route].offered -= 1;
            }
        }
        before
    }

    pub(super) fn is_scanning(&self) -> bool {
        self.scan.is_some()
    }

    /// Gives up a reading that can't be trusted any more.
    pub(super) fn abandon_scan(&mut self) {
        self.scan = None;
    }

    pub(super) fn begin_scan(&mut self, at: Moment, wall_ns: i128) -> io::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let changed_ns = fsinfo::look(&self.path)?.changed_ns;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&place.fd, ".", flags, Mode::empty())?;
        self.generation += 1;
        self.scan_wanted = false;
        self.scan = Some(Box::new(Scan {
            fd,
            buffer: vec![MaybeUninit::uninit(); BUFFER],
            lines: self.lines.iter().map(Line::emptied).collect(),
            census: Census::default(),
            began: Began { at, wall_ns, changed_ns },
        }));
        Ok(())
    }

    /// Reads one buffer of names. At the end the lines and the census are the new ones.
    pub(super) fn step_scan(&mut self, terms: &Terms<'_>) -> io::Result<Step> {
        let mut step = Step::default();
        let Some(mut scan) = self.scan.take() else { return Ok(step) };
        let Scan { fd, buffer, lines, census, began } = &mut *scan;
        let mut names = RawDir::new(&*fd, buffer);
        loop {
            match names.next() {
                None => {
                    step.done = Some(*began);
                    break;
                }
                Some(entry) => {
                    let entry = entry?;
                    let name = OsStr::from_bytes(entry.file_name().to_bytes());
                    self.take_in(name, entry.file_type(), fd, lines, census, terms, &mut step.looks)?;
                }
            }
            if names.is_buffer_empty() {
                break;
            }
        }
        if step.done.is_none() {
            self.scan = Some(scan);
            return Ok(step);
        }
        let Scan { lines, census, .. } = *scan;
        for (line, scanned) in self.lines.iter_mut().zip(lines) {
            line.replace_by(scanned);
        }
        self.census = census;
        self.read_whole = true;
        let unseen = self.items.iter().filter(|(_, tracked)| tracked.generation != self.generation);
        step.looks.extend(unseen.map(|(name, _)| name.clone()));
        Ok(step)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a scan, borrowed one by one")]
    fn take_in(
        &mut self,
        name: &OsStr,
        listed: FileType,
        fd: &OwnedFd,
        lines: &mut [Line],
        census: &mut Census,
        terms: &Terms<'_>,
        looks: &mut Vec<OsString>,
    ) -> io::Result<()> {
        if matches!(name.as_bytes(), b"." | b"..") || self.reserved.contains(name) {
            return Ok(());
        }
        // Many file systems tell the kind with the name: an ignored name needs no second look then.
        if listed != FileType::Unknown && terms.ignore.matches(name, listed) {
            let since = || match inspect::look(fd, name) {
                Look::Found { signature, .. } => Timestamp::from_nanosecond(signature.ctime_ns).ok(),
                Look::Gone | Look::Failed(_) => None,
            };
            census.ignore(name, since);
            return Ok(());
        }
        let (kind, signature) = match inspect::look(fd, name) {
            Look::Found { kind, signature } => (kind, signature),
            Look::Gone => return Ok(()),
            Look::Failed(error) => return Err(error),
        };
        if listed == FileType::Unknown && terms.ignore.matches(name, kind) {
            census.ignore(name, || Timestamp::from_nanosecond(signature.ctime_ns).ok());
            return Ok(());
        }
        let shape = Shape::of(&signature);
        if let Some(tracked) = self.items.get_mut(name) {
            tracked.generation = self.generation;
            match tracked.state {
                // Its lead may have been crowded out of the line.
                State::Queued { .. } => {}
                State::Settling { .. } | State::Orphan { .. } => return Ok(()),
                State::Offered { .. } | State::Held(_) => {
                    if tracked.shape != shape {
                        looks.push(name.to_owned());
                    }
                    return Ok(());
                }
            }
        }
        if let Some(owner) = self.router.owner(name) {
            if matches!(inspect::look(fd, &owner), Look::Gone) {
                looks.push(name.to_owned());
            }
            return Ok(());
        }
        if terms.until_ns.is_some_and(|until| until < signature.ctime_ns) {
            return Ok(());
        }
        let Some(item) = item_kind(kind) else {
            self.hold_plain(name, HeldFor::NotAnItem, inspect::special(kind), shape, census, terms.now);
            return Ok(());
        };
        match self.router.find(name, item) {
            None => self.hold_plain(name, HeldFor::NoRoute, NO_ROUTE, shape, census, terms.now),
            Some(route) => {
                let lead_ns = i64::try_from(signature.ctime_ns).unwrap_or(i64::MAX);
                if lines[route].admits(lead_ns) {
                    lines[route].push(Lead::new(signature.ctime_ns, name.to_owned(), Origin::Scanned));
                } else {
                    lines[route].beyond += 1;
                }
            }
        }
        Ok(())
    }

    /// Holds what only a change in the folder or the configuration can mend.
    fn hold_plain(
        &mut self,
        name: &OsStr,
        why: HeldFor,
        reason: &'static str,
        shape: Shape,
        census: &mut Census,
        now: Timestamp,
    ) {
        if HELD <= self.tally.held {
            census.held_beyond += 1;
            return;
        }
        let held = Held { why, reason: reason.into(), since: now, route: None, passing: false, track: None };
        self.put(name, State::Held(Box::new(held)), shape, None);
    }
}

/// What can be an item.
pub(super) fn item_kind(kind: FileType) -> Option<ItemKind> {
    match kind {
        FileType::RegularFile => Some(ItemKind::File),
        FileType::Directory => Some(ItemKind::Directory),
        _ => None,
    }
}
