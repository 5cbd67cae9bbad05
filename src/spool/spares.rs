//! Job directories made ahead, while nothing else is to be done: a claim then renames one, instead of making three
//! directories and a file while its item waits, and has less to make durable. They lie in `.gamdok/spare/`, hold nothing
//! and mean nothing; what an earlier director left of them is removed at the start. Invariant: a spare is whole and
//! durable, or it isn't in the list; without any, a claim makes its own directory.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::claim::sync_at;
use super::ground::Ground;
use super::record;

/// As many items as may arrive at an idle director within a moment; in a stream of them there is no time to make any.
const READY: usize = 4;

#[derive(Debug)]
pub(super) struct Spares {
    /// None: it can't be had, and there are no spares.
    dir: Option<OwnedFd>,
    ready: Vec<String>,
    made: u64,
    paused: bool,
}

impl Spares {
    pub(super) fn new(root: BorrowedFd<'_>) -> Spares {
        let dir = open(root);
        if let Err(error) = &dir {
            tracing::debug!(%error, "no job directories are made ahead");
        }
        Spares { dir: dir.ok(), ready: Vec::new(), made: 0, paused: false }
    }

    /// Moves one to its place in `claimed/`.
    pub(super) fn take(&mut self, ground: &Ground, job: &str) -> Option<OwnedFd> {
        let name = self.ready.pop()?;
        // Its old place isn't synced: found in both after a power cut, it is the job's, and not empty.
        record::rename_new(self.dir.as_ref()?, name.as_str(), ground.claimed(), job).ok()?;
        record::open_dir(ground.claimed(), job).ok()
    }

    pub(super) fn are_wanted(&self) -> bool {
        self.dir.is_some() && !self.paused && self.ready.len() < READY
    }

    pub(super) fn make_one(&mut self, ground: &Ground) {
        let Some(dir) = &self.dir else { return };
        self.made += 1;
        let name = self.made.to_string();
        let made = ground.make_job_in(dir.as_fd(), &name).and_then(|job| {
            [record::LOCK, record::ITEM, record::OUT].iter().try_for_each(|part| sync_at(&job, part))?;
            rustix::fs::fsync(&job)?;
            rustix::fs::fsync(dir)
        });
        match made {
            Ok(()) => self.ready.push(name),
            Err(error) => {
                tracing::debug!(%error, "no job directory could be made ahead");
                self.pause();
            }
        }
    }

    /// None are made until [`Spares::go_on`].
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    pub(super) fn go_on(&mut self) {
        self.paused = false;
    }
}

/// The folder, emptied.
fn open(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let state = record::open_dir(root, ".gamdok")?;
    match rustix::fs::mkdirat(&state, "spare", Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let dir = record::open_dir(&state, "spare")?;
    let mut left = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.parse::<u64>().is_ok() {
            left.push(name);
        }
    }
    for name in left {
        if let Err(error) = record::remove_empty_job(dir.as_fd(), &name) {
            tracing::debug!(name, %error, "a spare directory that isn't empty stays where it is");
        }
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fault_points::Faults;
    use super::*;
    use crate::root::Root;

    #[test]
    fn a_spare_is_a_jobs_directory_and_leftovers_are_removed_unless_something_is_in_them() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("root");
        Root::init(&path).unwrap();
        let root = Arc::new(Root::open(&path).unwrap());
        root.ensure_dirs().unwrap();
        let ground = Ground::new(root.clone(), Faults::default()).unwrap();
        let mut spares = Spares::new(root.dir());
        while spares.are_wanted() {
            spares.make_one(&ground);
        }
        assert_eq!(spares.ready.len(), READY);
        assert!(spares.take(&ground, "a").is_some() && spares.are_wanted());
        for part in ["item", "out", "lock"] {
            assert!(path.join("claimed/a").join(part).exists(), "{part}");
        }
        std::fs::create_dir(path.join("claimed/b")).unwrap();
        assert!(spares.take(&ground, "b").is_none(), "nothing is replaced");

        std::fs::write(path.join(".gamdok/spare/1/item/precious"), "x").unwrap();
        drop(spares);
        let mut spares = Spares::new(root.dir());
        let left: Vec<_> =
            std::fs::read_dir(path.join(".gamdok/spare")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["1"]);
        spares.make_one(&ground);
        assert!(spares.ready.is_empty() && !spares.are_wanted(), "its name is taken");
        spares.go_on();
        spares.make_one(&ground);
        assert_eq!(spares.ready, ["2"]);
        assert!(path.join(".gamdok/spare/1/item/precious").exists());
    }
}
