//! What every step of the spool stands on: the open directories, the boot, the fault points.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::fault_points::Faults;
use super::record;
use crate::item::JobRecord;
use crate::proc::boot_id;
use crate::root::Root;

const CLAIMED: &str = "claimed";

#[derive(Debug)]
pub(super) struct Ground {
    pub(super) root: Arc<Root>,
    pub(super) faults: Faults,
    /// Empty where the kernel doesn't tell.
    pub(super) boot_id: String,
    pub(super) network: bool,
    /// Opened anew when somebody replaces the directory.
    claimed: RwLock<Arc<OwnedFd>>,
}

impl Ground {
    pub(super) fn new(root: Arc<Root>, faults: Faults) -> Result<Ground, Errno> {
        let claimed = RwLock::new(Arc::new(record::open_dir(root.dir(), CLAIMED)?));
        let network = root.is_network();
        Ok(Ground { root, faults, boot_id: boot_id().to_owned(), network, claimed })
    }

    pub(super) fn claimed(&self) -> Arc<OwnedFd> {
        self.claimed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks whether `claimed/` is the directory that is open. One that took its place is opened instead, a missing one is
    /// made again: what lay in the old one went with it. Answers in words why there is none to work in.
    pub(super) fn find_claimed(&self) -> Result<(), String> {
        let open = self.claimed();
        match self.is_at_its_place(&open) {
            Ok(true) => return Ok(()),
            Ok(false) | Err(Errno::NOENT) => {}
            Err(error) => return Err(no_claimed(error)),
        }
        let found = self.open_or_make_claimed().map_err(no_claimed)?;
        let on = |dir: BorrowedFd<'_>| rustix::fs::fstat(dir).map(|stat| stat.st_dev).map_err(no_claimed);
        if on(found.as_fd())? != on(self.root.dir())? {
            return Err("something is mounted over claimed/: unmount it; nothing is claimed until then".to_owned());
        }
        tracing::warn!(
            "claimed/ was removed or replaced: the one that lies there now is used, and the jobs of the old one are gone with it"
        );
        *self.claimed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
        Ok(())
    }

    fn is_at_its_place(&self, open: &OwnedFd) -> Result<bool, Errno> {
        let there = rustix::fs::statat(self.root.dir(), CLAIMED, AtFlags::SYMLINK_NOFOLLOW)?;
        let ours = rustix::fs::fstat(open)?;
        Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
    }

    fn open_or_make_claimed(&self) -> Result<OwnedFd, Errno> {
        match record::open_dir(self.root.dir(), CLAIMED) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(self.root.dir(), CLAIMED, Mode::RWXU)?;
                rustix::fs::fsync(self.root.dir())?;
                record::open_dir(self.root.dir(), CLAIMED)
            }
            other => other,
        }
    }

    /// A job's directory, for writing into.
    pub(super) fn open_claimed(&self, dir: &str) -> Result<OwnedFd, Errno> {
        let opened = match record::open_dir(self.claimed(), dir) {
            Err(Errno::ACCESS) => None,
            other => Some(other?),
        };
        if let Some(job) = opened
            && Mode::from_raw_mode(rustix::fs::fstat(&job)?.st_mode).contains(Mode::RWXU)
        {
            return Ok(job);
        }
        record::regain(self.claimed().as_fd(), dir)?;
        record::open_dir(self.claimed(), dir)
    }

    /// A job's directory, made again when someone took it away: its outcome needs a place.
    pub(super) fn open_job(&self, job: &JobRecord, dir: &str) -> Result<OwnedFd, Errno> {
        let opened = match self.open_claimed(dir) {
            // Something else stands there now. Names with a dot are never taken for jobs.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                record::set_aside(self.claimed().as_fd(), dir, &format!(".worker.{dir}"))?;
                Err(Errno::NOENT)
            }
            other => other,
        };
        match opened {
            Err(Errno::NOENT) => {
                tracing::error!(
                    job = dir,
                    "the job's directory is gone from claimed/; it is made again, without its item"
                );
                self.make_job(dir)?;
                let made = record::open_dir(self.claimed(), dir)?;
                record::write(&made, record::JOB, &record::job_json(job)?)?;
                Ok(made)
            }
            other => other,
        }
    }

    /// Makes a job's directory with what it must have before a payload moves in.
    pub(super) fn make_job(&self, dir: &str) -> Result<OwnedFd, Errno> {
        self.make_job_in(self.claimed().as_fd(), dir)
    }

    pub(super) fn make_job_in(&self, place: BorrowedFd<'_>, dir: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::mkdirat(place, dir, Mode::RWXU)?;
        let job = record::open_dir(place, dir)?;
        rustix::fs::mkdirat(&job, record::ITEM, Mode::RWXU)?;
        rustix::fs::mkdirat(&job, record::OUT, Mode::RWXU)?;
        record::write(&job, record::LOCK, b"")?;
        Ok(job)
    }

    /// The record as it is to be written: by this boot.
    pub(super) fn stamped<'a>(&self, record: &'a JobRecord) -> std::borrow::Cow<'a, JobRecord> {
        if record.boot_id == self.boot_id {
            return std::borrow::Cow::Borrowed(record);
        }
        std::borrow::Cow::Owned(JobRecord { boot_id: self.boot_id.clone(), ..record.clone() })
    }
}

fn no_claimed(error: Errno) -> String {
    let why = match error {
        Errno::NOTDIR | Errno::LOOP => "it is no directory".to_owned(),
        error => error.to_string(),
    };
    format!("claimed/ can't be opened: {why}; nothing is claimed until it can")
}
