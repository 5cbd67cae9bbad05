//! The folders as places: whether they are there and the same as before, the watch on them, and when they are read.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use crossbeam_channel::Receiver;
use jiff::{SignedDuration, Timestamp};

use super::folder::{Folder, Place, Terms};
use super::fsinfo;
use super::judging::Why;
use super::scanner::Core;
use super::watch::{Ear, Hint, Watch};
use crate::config;
use crate::sys::{dirs, files};
use crate::units::Moment;

/// Between two looks at the identity of the folders: an event tells of most changes, but of none when something is
/// mounted over them.
const TICK: Duration = Duration::from_secs(5);
/// The same while the inbox can't be read.
const TICK_IN_TROUBLE: Duration = Duration::from_secs(1);
/// Between two scans where events tell of what happens.
const SCAN: Duration = Duration::from_secs(60);
/// A folder whose names changed less than this before a scan may have changed after it within the clock's grain.
const GRAIN_NS: i128 = 2_000_000_000;
const WATCH_RETRY: Duration = Duration::from_secs(1);
const WATCH_RETRY_SLOWEST: Duration = Duration::from_secs(300);
/// Between two scans that only refill a line.
const REFILL: Duration = Duration::from_secs(1);
/// So many files the reading and judging of a folder has open at a time, the watch included. Without them nothing could be
/// offered, and what is running needs those that are left.
const FILES: usize = 8;
const STALE_PARTIAL: SignedDuration = SignedDuration::from_hours(24);

/// The watch, or why there is none and when it is tried again.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) ear: Ear,
    pub(super) heard: Receiver<Hint>,
    watch: Option<Watch>,
    pub(super) trouble: Option<String>,
    retry_at: Option<Moment>,
    retry_in: Duration,
}

impl Watching {
    pub(super) fn new() -> Watching {
        let (ear, heard) = Ear::new();
        Watching { ear, heard, watch: None, trouble: None, retry_at: None, retry_in: WATCH_RETRY }
    }

    pub(super) fn drop_watch(&mut self) {
        self.watch = None;
        self.trouble = None;
        self.retry_at = None;
    }

    /// Goes without events until the next try.
    pub(super) fn fail(&mut self, why: String, now: Moment) {
        self.watch = None;
        self.trouble = Some(why);
        self.retry_at = Some(now + self.retry_in);
        self.retry_in = (self.retry_in * 2).min(WATCH_RETRY_SLOWEST);
    }

    pub(super) fn retry_now(&mut self) {
        if self.retry_at.is_some() {
            self.retry_at = Some(Moment::default());
        }
    }

    fn retry_due(&self, now: Moment) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }
}

impl Core {
    /// Looks whether the inbox and its folders are there and the same. Never gives up: what is missing is looked for
    /// again, and what comes back is read anew.
    pub(super) fn check_places(&mut self) {
        let now = self.now();
        self.forget_departed();
        let trouble = self.find_trouble();
        if trouble != self.trouble {
            match &trouble {
                Some(why) => tracing::error!(%why, "the inbox can't be read; nothing is taken until it can"),
                None => tracing::info!("the inbox is readable again"),
            }
        }
        self.trouble = trouble;
        if self.trouble.is_some() {
            for folder in &mut self.folders {
                folder.leave();
            }
            self.next_tick = now + TICK_IN_TROUBLE;
            return;
        }
        let mut changed = false;
        for f in 0..self.folders.len() {
            changed |= self.check_place(f);
        }
        let lost = self.folders.iter().any(|folder| folder.place.is_some() && !folder.watched);
        if changed || (lost && self.watching.retry_due(now)) {
            self.watch_anew();
        }
        if !self.folders.iter().any(|folder| folder.watched) {
            // Nobody can hear anything: the old watch's names are of no use.
            self.watching.watch = None;
        }
        let tick = now + TICK;
        self.next_tick = self.watching.retry_at.map_or(tick, |at| at.min(tick).max(now + WATCH_RETRY));
        self.reported.touch();
    }

    fn find_trouble(&self) -> Option<String> {
        if let Err(why) = files::are_free(FILES) {
            return Some(why);
        }
        let sentinel = &self.setup.sentinel;
        if let Err(error) = rustix::fs::stat(sentinel) {
            let error = io::Error::from(error);
            let path = crate::item::escape(sentinel.as_os_str().as_bytes());
            return Some(format!("`{path}` is missing ({error}): is the root's file system mounted?"));
        }
        let inbox = &self.setup.inbox;
        let path = crate::item::escape(inbox.as_os_str().as_bytes());
        let state = sentinel.parent().and_then(|state| fsinfo::look(state).ok());
        match fsinfo::look(inbox) {
            Ok(seen) if state.is_some_and(|state| !seen.identity.is_on_mount_of(&state.identity)) => Some(format!(
                "`{path}` lies on another mount than the root, so nothing can be moved out of it: unmount what is mounted over it"
            )),
            Ok(_) => None,
            Err(error) => Some(format!("`{path}` can't be read: {error}")),
        }
    }

    /// Opens the folder where it is new or another; true when it was.
    fn check_place(&mut self, f: usize) -> bool {
        let folder = &mut self.folders[f];
        match (fsinfo::look(&folder.path), &folder.place) {
            (Ok(seen), Some(place)) if seen.identity == place.identity => false,
            (Ok(_), before) => {
                if before.is_some() {
                    tracing::warn!(folder = folder.shown(), "the folder was replaced by another; it is read anew");
                }
                folder.leave();
                match Place::open(&folder.path) {
                    Ok(place) => {
                        folder.place = Some(place);
                        folder.scan_wanted = true;
                        true
                    }
                    Err(error) => {
                        let shown = folder.shown();
                        if folder.name.is_empty() {
                            self.trouble = Some(format!("`{shown}` can't be opened: {error}"));
                        }
                        tracing::warn!(folder = shown, %error, "the folder can't be opened");
                        false
                    }
                }
            }
            (Err(_), None) => false,
            (Err(error), Some(_)) => {
                tracing::warn!(folder = folder.shown(), %error, "the folder is missing");
                folder.leave();
                // The inbox is there and this folder in it isn't: so are its items.
                for line in &mut folder.lines {
                    *line = line.emptied_but_offered();
                }
                let names: Vec<_> = folder.items.keys().cloned().collect();
                for name in names {
                    self.gone(f, &name);
                }
                true
            }
        }
    }

    /// Makes the watch anew, then has everything read: what happened in between shows in the scan.
    fn watch_anew(&mut self) {
        let now = self.now();
        for folder in &mut self.folders {
            folder.watched = false;
            folder.scan_wanted |= folder.place.is_some();
        }
        if self.setup.rules.watch == config::Watch::Poll {
            self.watching.drop_watch();
            return;
        }
        let mut watch = match Watch::new(&self.watching.ear) {
            Ok(watch) => watch,
            Err(why) => {
                tracing::warn!(%why, "no events of the inbox; it is read again and again instead");
                return self.watching.fail(why, now);
            }
        };
        let mut failed = None;
        for folder in self.folders.iter_mut().filter(|folder| folder.place.is_some()) {
            match watch.add(&folder.path) {
                Ok(()) => folder.watched = true,
                Err(why) => {
                    let shown = folder.shown();
                    tracing::warn!(folder = shown, %why, "no events of the folder; it is read again and again instead");
                    failed = Some(format!("`{shown}`: {why}"));
                }
            }
        }
        match failed {
            None => {
                self.watching.trouble = None;
                self.watching.retry_at = None;
                self.watching.retry_in = WATCH_RETRY;
            }
            Some(why) => self.watching.fail(why, now),
        }
        // After the new one is in force, so that nothing falls between the two.
        self.watching.watch = Some(watch);
    }

    /// Reads some more of the folders that are to be read; true when there is more to read at once.
    pub(super) fn scan_some(&mut self) -> bool {
        if self.trouble.is_some() {
            return false;
        }
        let now = self.now();
        let mut busy = false;
        for f in 0..self.folders.len() {
            if self.folders[f].place.is_none() {
                continue;
            }
            if !self.folders[f].is_scanning() && !self.begin_scan(f, now) {
                continue;
            }
            let terms = Terms {
                ignore: &self.ignore,
                until_ns: self.until_ns.filter(|_| self.scanned || self.folders[f].read_whole),
                now: Timestamp::now(),
            };
            match self.folders[f].step_scan(&terms) {
                Ok(step) => {
                    for name in step.looks {
                        self.look(f, &name, Why::Again);
                    }
                    match step.done {
                        Some(began) => self.end_scan(f, began),
                        None => busy = true,
                    }
                }
                Err(error) => self.fail(f, &error),
            }
            busy |= self.folders[f].scan_wanted;
        }
        busy
    }

    /// Begins to read a folder if it is time to.
    fn begin_scan(&mut self, f: usize, now: Moment) -> bool {
        let cadence = self.cadence(&self.folders[f]);
        let wall_ns = self.times().wall_ns;
        let folder = &mut self.folders[f];
        let low = folder.wants_refill() && folder.refill_at <= now;
        if !folder.scan_wanted && !low {
            if now < folder.next_scan {
                return false;
            }
            folder.next_scan = now + cadence;
            if folder.is_unchanged() {
                return false;
            }
        }
        match folder.begin_scan(now, wall_ns) {
            Ok(()) => true,
            Err(error) => {
                self.fail(f, &error);
                false
            }
        }
    }

    fn end_scan(&mut self, f: usize, began: super::folder::Began) {
        let now = self.now();
        let took = now.since(began.at);
        self.scans.took.count(took);
        let cadence = self.cadence(&self.folders[f]);
        let folder = &mut self.folders[f];
        folder.last_scan = Some(began);
        folder.next_scan = now + cadence;
        folder.refill_at = now + REFILL.max(took);
        tracing::debug!(folder = folder.shown(), ?took, items = folder.items.len(), "the folder was read");
        folder.warn_of_stale_partials();
        self.scanned |= self.folders.iter().all(|folder| folder.read_whole || folder.place.is_none());
        self.miss_all(f);
        self.reported.touch();
    }

    fn cadence(&self, folder: &Folder) -> Duration {
        let remote = folder.place.as_ref().is_some_and(|place| place.network.is_some());
        // A watch on a network file system tells only what this host does there.
        let hears = folder.watched && (!remote || self.setup.rules.watch == config::Watch::Events);
        if hears { SCAN } else { self.setup.rules.poll_interval }
    }

    /// Reading the folder failed: EIO, ESTALE, a lost mount. Nothing that is known is thrown away.
    pub(super) fn fail(&mut self, f: usize, error: &io::Error) {
        if self.run_out_of_files(error) {
            return self.folders[f].leave();
        }
        let folder = &mut self.folders[f];
        let why = format!("`{}` can't be read: {error}", folder.shown());
        tracing::error!(%why, "the inbox can't be read; it is tried again each second");
        folder.leave();
        if self.trouble.is_none() {
            self.trouble = Some(why);
        }
        self.next_tick = self.now() + TICK_IN_TROUBLE;
        self.reported.touch();
    }

    /// Whether it failed for want of open files. That is no fault of the item or the folder: nothing is taken until there are
    /// some again.
    pub(super) fn run_out_of_files(&mut self, error: &io::Error) -> bool {
        let Some(errno) = rustix::io::Errno::from_io_error(error).filter(|errno| files::has_run_out(*errno)) else {
            return false;
        };
        if self.trouble.is_none() {
            let why = files::shortage(errno);
            tracing::error!(%why, "the inbox can't be read; it is tried again each second");
            self.trouble = Some(why);
        }
        self.next_tick = self.now() + TICK_IN_TROUBLE;
        self.reported.touch();
        true
    }

    pub(super) fn note_lease_trouble(&mut self) {
        if self.lease_trouble.is_none() {
            let why = "some items belong to other users, so open writers can't be seen; only quiet time tells that they \
                       are complete (run as the producers' user, or with CAP_LEASE)";
            tracing::warn!(why, "no lease test");
            self.lease_trouble = Some(why.to_owned());
        }
    }
}

impl Folder {
    pub(super) fn shown(&self) -> String {
        crate::item::escape(self.path.as_os_str().as_bytes())
    }

    /// Lets go of the folder as it was; what is known of its items stays.
    fn leave(&mut self) {
        self.place = None;
        self.watched = false;
        self.last_scan = None;
        self.abandon_scan();
    }

    /// Whether a scan can be spared: no name changed since the last one. Another host's changes may show late.
    fn is_unchanged(&self) -> bool {
        let Some(last) = &self.last_scan else { return false };
        let local = self.place.as_ref().is_some_and(|place| place.network.is_none());
        let seen = fsinfo::look(&self.path);
        local && seen.is_ok_and(|seen| seen.changed_ns == last.changed_ns) && GRAIN_NS <= last.wall_ns - last.changed_ns
    }

    /// Whether somebody put a link in its place that leads elsewhere by their will.
    pub(super) fn is_foreign_link(&self) -> bool {
        let opened = dirs::open(rustix::fs::CWD, &self.path, rustix::fs::OFlags::PATH);
        opened.is_err_and(|error| error == dirs::FOREIGN_LINK)
    }

    /// A temporary name that stays is a transfer that was cut off, or a finished file that its producer misnamed.
    fn warn_of_stale_partials(&mut self) {
        let now = Timestamp::now();
        let old = |since: &Timestamp| STALE_PARTIAL <= now.duration_since(*since);
        let ignored = &self.census.ignored;
        self.warned.retain(|name| ignored.contains_key(name));
        for (name, _) in ignored.iter().filter(|(_, since)| since.as_ref().is_some_and(old)) {
            // Dot names are kept by habit and not worth a word.
            if !name.as_bytes().starts_with(b".") && self.warned.insert(name.clone()) {
                let name = shown(name);
                tracing::warn!(name, "a temporary name lies in the inbox for more than a day; it is never taken");
            }
        }
    }
}

fn shown(name: &OsStr) -> String {
    crate::item::escape(name.as_bytes())
}
