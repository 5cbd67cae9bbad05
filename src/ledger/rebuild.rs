//! Compares the ledger with the directories and mends it: reads the jobs it doesn't know, forgets those whose directory
//! is gone. Done in small steps, so that entries that arrive meanwhile never wait long; memory doesn't grow with the
//! number of jobs.
//!
//! Every row is read at the moment it is written, on the writer's thread: what the director does to a job after that is
//! an entry that comes after it.

use std::collections::BTreeSet;
use std::fs::{self, ReadDir};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::counted::InHand;
use super::row::{Account, CLAIMED};
use super::tables::Tables;
use crate::item::JobDir;

/// How many directory entries or rows one step looks at.
const STEP: usize = 256;

/// A directory's time is believed once it is this much older than the clock: later changes within one tick of the
/// file system's clock don't show in it.
const SETTLED_NS: i64 = 2_000_000_000;

#[derive(Debug, thiserror::Error)]
pub(super) enum SurveyError {
    #[error(transparent)]
    Ledger(#[from] rusqlite::Error),
    #[error("cannot read `{}`: {source}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
}

/// One comparison, from its first step to its last.
pub(super) struct Survey {
    root: PathBuf,
    /// Places still to be read: newest days last, since they are taken from the end.
    places: Vec<String>,
    /// All that were there at the start.
    present: BTreeSet<String>,
    /// Entries may have been lost: known jobs whose directory changed since then (nanoseconds) are read again.
    since: Option<i64>,
    /// Whether an unchanged time of a day directory proves that it is unchanged.
    trust_times: bool,
    /// Jobs whose end the director will tell: read before that, they would be counted twice.
    in_hand: InHand,
    stage: Stage,
    pub(super) read: u64,
    pub(super) forgotten: u64,
}

enum Stage {
    /// Which places are there?
    Begin,
    Next,
    /// Reading a place's directories.
    Reading {
        place: String,
        entries: Box<ReadDir>,
        changed_at: Option<i64>,
    },
    /// Looking for rows of this place that have no directory any more.
    Checking {
        place: String,
        after: String,
        changed_at: Option<i64>,
    },
    /// Looking for places that have rows and no directory.
    Orphans {
        after: String,
    },
}

#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    More,
    Finished,
}

impl Survey {
    pub(super) fn new(root: &Path, since: Option<i64>, trust_times: bool, in_hand: InHand) -> Survey {
        Survey {
            root: root.to_owned(),
            places: Vec::new(),
            present: BTreeSet::new(),
            since,
            trust_times,
            in_hand,
            stage: Stage::Begin,
            read: 0,
            forgotten: 0,
        }
    }

    /// Whether it makes good for lost entries.
    pub(super) fn mends(&self) -> bool {
        self.since.is_some()
    }

    /// Does a little more.
    pub(super) fn step(&mut self, tables: Tables<'_>) -> Result<Progress, SurveyError> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Next) {
            Stage::Begin => {
                self.find_places()?;
                Stage::Next
            }
            Stage::Next => match self.places.pop() {
                Some(place) => self.enter(place, tables)?,
                None => Stage::Orphans { after: String::new() },
            },
            Stage::Reading { place, mut entries, changed_at } => {
                let (more, whole) = self.read_some(&place, &mut entries, tables)?;
                let changed_at = changed_at.filter(|_| whole);
                if more {
                    Stage::Reading { place, entries, changed_at }
                } else {
                    Stage::Checking { place, after: String::new(), changed_at }
                }
            }
            Stage::Checking { place, after, changed_at } => match self.check_some(&place, &after, tables)? {
                Some(after) => Stage::Checking { place, after, changed_at },
                None => {
                    tables.set_day(&place, changed_at)?;
                    Stage::Next
                }
            },
            Stage::Orphans { after } => match tables.place_after(&after)? {
                None => return Ok(Progress::Finished),
                Some(place) if self.present.contains(&place) => Stage::Orphans { after: place },
                // Its rows go one step at a time; then it isn't found again.
                Some(place) => match self.check_some(&place, "", tables)? {
                    Some(_) => Stage::Orphans { after },
                    None => {
                        tables.set_day(&place, None)?;
                        Stage::Orphans { after: place }
                    }
                },
            },
        };
        Ok(Progress::More)
    }

    fn find_places(&mut self) -> Result<(), SurveyError> {
        let mut days: Vec<(String, String)> = Vec::new();
        for parent in ["done", "failed"] {
            let path = self.root.join(parent);
            for entry in read_dir(&path)?.into_iter().flatten() {
                let name = entry.map_err(|source| SurveyError::Directory { path: path.clone(), source })?.file_name();
                let Some(day) = name.to_str().filter(|name| name.parse::<jiff::civil::Date>().is_ok()) else {
                    continue;
                };
                days.push((day.to_owned(), format!("{parent}/{day}")));
            }
        }
        days.sort();
        self.places = days.into_iter().map(|(_, place)| place).collect();
        self.places.push(CLAIMED.to_owned());
        self.present = self.places.iter().cloned().collect();
        Ok(())
    }

    fn enter(&mut self, place: String, tables: Tables<'_>) -> Result<Stage, SurveyError> {
        let path = self.root.join(&place);
        // The time is taken before the reading: what changes during it makes the next survey read again.
        let changed_at = fs::metadata(&path).ok().map(|meta| changed_at(&meta));
        let settled = changed_at.filter(|at| {
            let now = super::tables::nanoseconds(jiff::Timestamp::now()).unwrap_or(i64::MAX);
            self.trust_times && place != CLAIMED && at.saturating_add(SETTLED_NS) < now
        });
        if settled.is_some() && tables.day(&place)? == settled {
            return Ok(Stage::Next);
        }
        Ok(match read_dir(&path)? {
            Some(entries) => Stage::Reading { place, entries: Box::new(entries), changed_at: settled },
            None => Stage::Checking { place, after: String::new(), changed_at: None },
        })
    }

    /// Reads the directories of a place that the ledger doesn't know. Answers whether there are more, and whether all of
    /// these are known now.
    fn read_some(
        &mut self,
        place: &str,
        entries: &mut ReadDir,
        tables: Tables<'_>,
    ) -> Result<(bool, bool), SurveyError> {
        let path = self.root.join(place);
        let mut whole = true;
        for _ in 0..STEP {
            let Some(entry) = entries.next() else { return Ok((false, whole)) };
            let entry = entry.map_err(|source| SurveyError::Directory { path: path.clone(), source })?;
            let Some((job, id)) = JobDir::parse(&entry.file_name()) else { continue };
            if self.is_known(place, &job, tables.place_of(id)?.as_ref()) {
                continue;
            }
            if place != CLAIMED && self.in_hand.has(id) {
                whole = false;
                continue;
            }
            let read = Account::read(&self.root, place, &job, id);
            match read.map_err(|source| SurveyError::Directory { path: path.join(job.as_str()), source })? {
                Some(account) => {
                    tables.put(&account)?;
                    self.read += 1;
                }
                None => continue,
            }
        }
        Ok((true, whole))
    }

    fn is_known(&self, place: &str, job: &JobDir, known: Option<&(String, String)>) -> bool {
        match known {
            Some((at, name)) if at == place && name == job.as_str() => {
                let path = self.root.join(place).join(name);
                // A claimed job's row says what its directory can't: how it stands. Only an ended one can be out of date.
                place == CLAIMED
                    || !self.since.is_some_and(|since| {
                        fs::symlink_metadata(path).is_ok_and(|meta| since <= changed_at(&meta).max(modified_at(&meta)))
                    })
            }
            // Two directories with one id: the one that is known stands as long as it exists.
            Some((at, name)) => !is_gone(&self.root.join(at).join(name)),
            None => false,
        }
    }

    /// Forgets rows of a place whose directory is gone; answers where to go on, if there is more.
    fn check_some(&mut self, place: &str, after: &str, tables: Tables<'_>) -> rusqlite::Result<Option<String>> {
        let jobs = tables.jobs_at(place, after, STEP)?;
        for (id, job) in &jobs {
            if is_gone(&self.root.join(place).join(job)) {
                tables.forget(id)?;
                self.forgotten += 1;
            }
        }
        Ok(jobs.into_iter().nth(STEP - 1).map(|(id, _)| id))
    }
}

/// The entries of a directory; nothing when there is none.
fn read_dir(path: &Path) -> Result<Option<ReadDir>, SurveyError> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(SurveyError::Directory { path: path.to_owned(), source }),
    }
}

/// Certainly not there; a directory that can't be looked at may be.
fn is_gone(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    fs::symlink_metadata(path).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

fn changed_at(meta: &fs::Metadata) -> i64 {
    meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec())
}

fn modified_at(meta: &fs::Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}
