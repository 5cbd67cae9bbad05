//! What every step of the spool stands on: the open directories, the boot, the fault points.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::fault_points::Faults;
use super::record;
use crate::item::JobRecord;
use crate::proc::boot_id;
use crate::root::Root;

#[derive(Debug)]
pub(super) struct Ground {
    pub(super) root: Arc<Root>,
    pub(super) faults: Faults,
    /// Empty where the kernel doesn't tell.
    pub(super) boot_id: String,
    pub(super) network: bool,
    claimed: OwnedFd,
}

impl Ground {
    pub(super) fn new(root: Arc<Root>, faults: Faults) -> Result<Ground, Errno> {
        let claimed = record::open_dir(root.dir(), "claimed")?;
        let network = root.is_network();
        Ok(Ground { root, faults, boot_id: boot_id().to_owned(), network, claimed })
    }

    pub(super) fn claimed(&self) -> BorrowedFd<'_> {
        self.claimed.as_fd()
    }

    /// A job's directory, for writing into.
    pub(super) fn open_claimed(&self, dir: &str) -> Result<OwnedFd, Errno> {
        let opened = match record::open_dir(&self.claimed, dir) {
            Err(Errno::ACCESS) => None,
            other => Some(other?),
        };
        if let Some(job) = opened
            && Mode::from_raw_mode(rustix::fs::fstat(&job)?.st_mode).contains(Mode::RWXU)
        {
            return Ok(job);
        }
        record::regain(self.claimed(), dir)?;
        record::open_dir(&self.claimed, dir)
    }

    /// A job's directory, made again when someone took it away: its outcome needs a place.
    pub(super) fn open_job(&self, job: &JobRecord, dir: &str) -> Result<OwnedFd, Errno> {
        let opened = match self.open_claimed(dir) {
            // Something else stands there now. Names with a dot are never taken for jobs.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                record::set_aside(self.claimed(), dir, &format!(".worker.{dir}"))?;
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
                let made = record::open_dir(&self.claimed, dir)?;
                record::write(&made, record::JOB, &record::job_json(job)?)?;
                Ok(made)
            }
            other => other,
        }
    }

    /// Makes a job's directory with what it must have before a payload moves in.
    pub(super) fn make_job(&self, dir: &str) -> Result<OwnedFd, Errno> {
        self.make_job_in(self.claimed.as_fd(), dir)
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
