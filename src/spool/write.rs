//! Writing a job's record anew: before a later attempt, or for the next start.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::claim::sync_at;
use super::ground::Ground;
use super::record::{self, JOB, JOB_TMP};
use crate::item::JobRecord;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The attempt listed last is about to start: what earlier ones left in `out/` is set aside.
    Prepare,
    Save,
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) record: Arc<JobRecord>,
    pub(super) why: Why,
    job: Option<OwnedFd>,
}

impl Write {
    pub(super) fn new(record: Arc<JobRecord>, why: Why) -> Write {
        Write { record, why, job: None }
    }

    pub(super) fn carry_out(&mut self, ground: &Ground) -> Result<(), Errno> {
        let job = ground.open_job(&self.record, self.record.dir().as_str())?;
        if self.why == Why::Prepare
            && let Some(attempt) = self.record.attempts.last()
            && attempt.n > 1
        {
            record::set_out_aside(std::os::fd::AsFd::as_fd(&job), attempt.n - 1)?;
        }
        replace(ground, &job, &self.record)?;
        self.job = Some(job);
        Ok(())
    }

    pub(super) fn sync_each(&self) -> Result<(), Errno> {
        let Some(job) = &self.job else { return Ok(()) };
        sync_at(job, JOB)?;
        rustix::fs::fsync(job)
    }
}

/// Replaces job.json as a whole.
pub(super) fn replace(ground: &Ground, job: &OwnedFd, record: &JobRecord) -> Result<(), Errno> {
    let file = record::write(job, JOB_TMP, &record::job_json(&ground.stamped(record))?)?;
    ground.faults.at("record.written")?;
    // Durable before it replaces the only other copy.
    rustix::fs::fdatasync(file)?;
    match rustix::fs::renameat(job, JOB_TMP, job, JOB) {
        // A file doesn't replace a directory, which only a worker can have put there.
        Err(Errno::ISDIR) => {
            record::set_aside(std::os::fd::AsFd::as_fd(job), JOB, &format!("worker.{JOB}"))?;
            rustix::fs::renameat(job, JOB_TMP, job, JOB)?;
        }
        other => other?,
    }
    ground.faults.at("record.named")
}
