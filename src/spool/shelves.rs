//! `done/` and `failed/`: the day directories, and the move that files a job.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::ground::Ground;
use super::record;
use super::tally::Shelf;
use crate::item::Outcome;

/// Days kept open; more only while jobs of many days are filed at once.
const OPEN: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Shelves {
    open: BTreeMap<(Shelf, String), OwnedFd>,
    /// Days with moves that no round has covered yet, and the shelves of new days.
    unsynced: BTreeSet<(Shelf, String)>,
    new_days: BTreeSet<Shelf>,
}

pub(super) fn open_shelf(ground: &Ground, shelf: Shelf) -> Result<OwnedFd, Errno> {
    let name = shelf.name();
    match record::open_dir(ground.root.dir(), name) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(ground.root.dir(), name, Mode::RWXU)?;
            record::open_dir(ground.root.dir(), name)
        }
        other => other,
    }
}

impl Shelves {
    /// Moves a job's directory from `claimed/` to its day; answers where it lies now.
    pub(super) fn file(&mut self, ground: &Ground, outcome: Outcome, day: &str, dir: &str) -> Result<PathBuf, Errno> {
        let shelf = Shelf::of(outcome);
        let key = (shelf, day.to_owned());
        if self.open.len() >= OPEN && !self.open.contains_key(&key) {
            self.open.clear();
        }
        let mut again = true;
        // A day, or the whole shelf, that someone moved away is open still and isn't the place any more.
        if self.open.get(&key).is_some_and(|place| !is_still_at(ground, place, shelf, day)) {
            self.open.remove(&key);
        }
        loop {
            if !self.open.contains_key(&key) {
                let opened = self.open_day(ground, shelf, day)?;
                self.open.insert(key.clone(), opened);
            }
            let Some(place) = self.open.get(&key) else { return Err(Errno::BADF) };
            match record::rename_new(ground.claimed(), dir, place, dir) {
                Ok(()) => break,
                // A reply that got lost: it is there and no longer here.
                Err(_) if is_at(place, dir) && !is_at(ground.claimed(), dir) => break,
                // Someone removed the day; the open one is nowhere.
                Err(Errno::NOENT) if again && is_at(ground.claimed(), dir) => {
                    self.open.remove(&key);
                    again = false;
                }
                Err(error) => return Err(error),
            }
        }
        self.unsynced.insert(key);
        Ok(ground.root.path().join(shelf.name()).join(day).join(dir))
    }

    fn open_day(&mut self, ground: &Ground, shelf: Shelf, day: &str) -> Result<OwnedFd, Errno> {
        let parent = open_shelf(ground, shelf)?;
        match rustix::fs::mkdirat(&parent, day, Mode::RWXU) {
            Ok(()) => {
                self.new_days.insert(shelf);
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        record::open_dir(&parent, day)
    }

    pub(super) fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// What is to be synced; the targets, where the jobs came from is the caller's.
    pub(super) fn unsynced(&self, ground: &Ground) -> Result<Vec<OwnedFd>, Errno> {
        let mut dirs = Vec::new();
        for key in &self.unsynced {
            match self.open.get(key) {
                Some(day) => dirs.push(rustix::io::fcntl_dupfd_cloexec(day, 0)?),
                None => match record::open_dir(open_shelf(ground, key.0)?, key.1.as_str()) {
                    Ok(day) => dirs.push(day),
                    // Moved away or removed by someone since.
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        for shelf in &self.new_days {
            dirs.push(open_shelf(ground, *shelf)?);
        }
        Ok(dirs)
    }

    /// A round has covered all moves before it.
    pub(super) fn are_synced(&mut self) {
        self.unsynced.clear();
        self.new_days.clear();
    }
}

/// Whether the open directory is the one that the path leads to.
fn is_still_at(ground: &Ground, place: &OwnedFd, shelf: Shelf, day: &str) -> bool {
    let path = format!("{}/{day}", shelf.name());
    let there = rustix::fs::statat(ground.root.dir(), path, AtFlags::SYMLINK_NOFOLLOW);
    let opened = rustix::fs::fstat(place);
    there.is_ok_and(|there| opened.is_ok_and(|opened| (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)))
}

/// Whether anything of this name lies there.
pub(super) fn is_at(dir: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
