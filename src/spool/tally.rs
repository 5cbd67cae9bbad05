//! How many ended jobs lie there: `done`, `failed` and `cancelled` count directories present. Counted when the spool
//! starts and has nothing else to do, kept up with each move, and counted again where someone else changed a day.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::Deserialize;

use super::record;
use crate::item::{JobDir, Outcome};

/// Where ended jobs lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shelf {
    Done,
    Failed,
}

impl Shelf {
    pub const BOTH: [Shelf; 2] = [Shelf::Done, Shelf::Failed];

    pub fn of(outcome: Outcome) -> Shelf {
        match outcome {
            Outcome::Done => Shelf::Done,
            Outcome::Failed | Outcome::Cancelled => Shelf::Failed,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Shelf::Done => "done",
            Shelf::Failed => "failed",
        }
    }
}

/// How many directories of each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
}

impl Ended {
    fn place(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Done => &mut self.done,
            Outcome::Failed => &mut self.failed,
            Outcome::Cancelled => &mut self.cancelled,
        }
    }
}

/// The shared sums; the spool adds, everyone reads.
#[derive(Debug, Default)]
pub struct Tally {
    done: AtomicI64,
    failed: AtomicI64,
    cancelled: AtomicI64,
    /// How many finishes of this run were moved; counted before their outcome is.
    filed: AtomicU64,
    complete: AtomicBool,
}

impl Tally {
    pub fn read(&self) -> Ended {
        let of = |sum: &AtomicI64| sum.load(Ordering::SeqCst).max(0) as u64;
        Ended { done: of(&self.done), failed: of(&self.failed), cancelled: of(&self.cancelled) }
    }

    /// The same, with how many finishes of this run are among them at least: those whose answer isn't heard yet are jobs
    /// still for whoever waits for it.
    pub fn read_with_filed(&self) -> (Ended, u64) {
        let ended = self.read();
        std::sync::atomic::fence(Ordering::SeqCst);
        (ended, self.filed.load(Ordering::SeqCst))
    }

    pub(super) fn files_one(&self) {
        self.filed.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether everything that lay there at the start has been counted.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn add(&self, ended: Ended, sign: i64) {
        for (sum, n) in [(&self.done, ended.done), (&self.failed, ended.failed), (&self.cancelled, ended.cancelled)] {
            if n > 0 {
                sum.fetch_add(sign * n as i64, Ordering::SeqCst);
            }
        }
    }
}

/// Counts what lies under a root, with or without a director.
pub fn count(root: &Path) -> io::Result<Ended> {
    let mut sum = Ended::default();
    for shelf in Shelf::BOTH {
        let dir = match record::open_dir(rustix::fs::CWD, root.join(shelf.name())) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        for day in days(&dir)? {
            let ended = count_day(&dir, shelf, &day)?;
            sum.done += ended.done;
            sum.failed += ended.failed;
            sum.cancelled += ended.cancelled;
        }
    }
    Ok(sum)
}

/// The day directories of a shelf, oldest first.
pub fn days(shelf: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut days = Vec::new();
    for entry in rustix::fs::Dir::read_from(shelf)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name.parse::<jiff::civil::Date>().is_ok_and(|day| day.to_string() == name)
        {
            days.push(name.to_owned());
        }
    }
    days.sort();
    Ok(days)
}

/// The job directories of one day.
pub(super) fn jobs(day: &OwnedFd) -> Result<Vec<JobDir>, Errno> {
    let mut jobs = Vec::new();
    for entry in rustix::fs::Dir::read_from(day)? {
        let entry = entry?;
        jobs.extend(JobDir::parse(OsStr::from_bytes(entry.file_name().to_bytes())).map(|(dir, _)| dir));
    }
    Ok(jobs)
}

fn count_day(dir: &OwnedFd, shelf: Shelf, day: &str) -> Result<Ended, Errno> {
    let mut ended = Ended::default();
    let day = match record::open_dir(dir, day) {
        Ok(day) => day,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(ended),
        Err(error) => return Err(error),
    };
    for entry in rustix::fs::Dir::read_from(&day)? {
        let entry = entry?;
        if let Some((job, _)) = JobDir::parse(OsStr::from_bytes(entry.file_name().to_bytes())) {
            let outcome = if shelf == Shelf::Done { Outcome::Done } else { outcome_of(&day, job.as_str()) };
            *ended.place(outcome) += 1;
        }
    }
    Ok(ended)
}

/// The outcome of a directory in `failed/`; one without a readable result failed.
pub(super) fn outcome_of(day: &OwnedFd, job: &str) -> Outcome {
    #[derive(Deserialize)]
    struct Only {
        outcome: Outcome,
    }
    let read = || {
        let bytes = record::read(record::open_dir(day, job).ok()?, record::RESULT).ok()??;
        Some(serde_json::from_slice::<Only>(&bytes).ok()?.outcome)
    };
    read().unwrap_or(Outcome::Failed)
}

type Key = (Shelf, String);

/// The spool's own books: each day's count, and what the day looked like then.
#[derive(Debug)]
pub(super) struct Books {
    tally: Arc<Tally>,
    counted: BTreeMap<Key, (Mtime, Ended)>,
    todo: BTreeSet<Key>,
    /// Days that this thread changed since they were last looked at.
    touched: BTreeSet<Key>,
}

type Mtime = (i64, u64);

impl Books {
    /// Everything is still to be counted.
    pub(super) fn new(tally: Arc<Tally>) -> Books {
        Books { tally, counted: BTreeMap::new(), todo: BTreeSet::new(), touched: BTreeSet::new() }
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Directories of these outcomes came to a day, or left it.
    pub(super) fn moved(
        &mut self,
        shelf: Shelf,
        day: &str,
        outcomes: &[Outcome],
        came: bool,
        shelf_dir: impl Fn(Shelf) -> Option<OwnedFd>,
    ) {
        let key = (shelf, day.to_owned());
        if self.todo.remove(&key) {
            // Whoever hears of this move next must find it counted.
            return self.count(key, shelf_dir);
        }
        let (_, ended) = self.counted.entry(key.clone()).or_default();
        let mut moved = Ended::default();
        for &outcome in outcomes {
            *moved.place(outcome) += 1;
            let place = ended.place(outcome);
            *place = if came { *place + 1 } else { place.saturating_sub(1) };
        }
        self.tally.add(moved, if came { 1 } else { -1 });
        self.touched.insert(key);
    }

    /// Notes what the days look like after this thread's own changes.
    pub(super) fn settle(&mut self, shelf_dir: impl Fn(Shelf) -> Option<OwnedFd>) {
        for key in std::mem::take(&mut self.touched) {
            let seen = shelf_dir(key.0).and_then(|dir| mtime(&dir, &key.1));
            if let (Some(mtime), Some((known, _))) = (seen, self.counted.get_mut(&key)) {
                *known = mtime;
            }
        }
    }

    /// Finds the days that someone else changed; they are counted again.
    pub(super) fn look(&mut self, shelf_dir: impl Fn(Shelf) -> Option<OwnedFd>) {
        self.settle(&shelf_dir);
        let mut present = BTreeSet::new();
        for shelf in Shelf::BOTH {
            let Some(dir) = shelf_dir(shelf) else { return };
            let Ok(days) = days(&dir) else { return };
            for day in days {
                let key = (shelf, day);
                let known = self.counted.get(&key).map(|(mtime, _)| *mtime);
                if known.is_none() || known != mtime(&dir, &key.1) {
                    self.todo.insert(key.clone());
                }
                present.insert(key);
            }
        }
        for key in self.counted.keys().filter(|key| !present.contains(key)).cloned().collect::<Vec<_>>() {
            if let Some((_, ended)) = self.counted.remove(&key) {
                self.tally.add(ended, -1);
            }
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.todo.is_empty()
    }

    /// Counts one day. True when that was the last.
    pub(super) fn count_one(&mut self, shelf_dir: impl Fn(Shelf) -> Option<OwnedFd>) -> bool {
        if let Some(key) = self.todo.pop_first() {
            self.count(key, shelf_dir);
        }
        if self.todo.is_empty() {
            self.tally.complete.store(true, Ordering::Release);
        }
        self.todo.is_empty()
    }
}

impl Books {
    /// Counts one day anew, in place of what was known of it.
    fn count(&mut self, key: Key, shelf_dir: impl Fn(Shelf) -> Option<OwnedFd>) {
        let Some(dir) = shelf_dir(key.0) else { return };
        // The time first: what changes while we count is found by the next look.
        let seen = mtime(&dir, &key.1).unwrap_or_default();
        match count_day(&dir, key.0, &key.1) {
            Ok(ended) => {
                self.tally.add(ended, 1);
                if let Some((_, before)) = self.counted.insert(key, (seen, ended)) {
                    self.tally.add(before, -1);
                }
            }
            Err(error) => tracing::warn!(day = key.1, %error, "the ended jobs of a day can't be counted"),
        }
    }
}

fn mtime(shelf: &OwnedFd, day: &str) -> Option<Mtime> {
    let stat = rustix::fs::statat(shelf, day, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_mtime, stat.st_mtime_nsec as u64))
}
