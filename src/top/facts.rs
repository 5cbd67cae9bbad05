//! What is known of the director at one moment, and of the one job that is looked at.

use jiff::Timestamp;

use crate::api::view::{Listed, Shown, Status};

/// More rows of one kind aren't read: the counts tell of the rest.
pub(super) const WAITING: usize = 1000;
pub(super) const HELD: usize = 200;
pub(super) const FAILED: usize = 200;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) at: Timestamp,
    pub(super) status: Status,
    /// Claimed, retrying, ready and arriving, in the order they are worked off.
    pub(super) waiting: Vec<Listed>,
    pub(super) held: Vec<Listed>,
    /// Newest first.
    pub(super) failed: Vec<Listed>,
}

impl Facts {
    /// All that have ended and are there.
    pub(super) fn ended(&self) -> u64 {
        let counts = &self.status.counts;
        counts.done + counts.failed + counts.cancelled
    }

    /// All that wait, also those that aren't listed.
    pub(super) fn waiting_total(&self) -> u64 {
        let counts = &self.status.counts;
        counts.claimed + counts.retrying + counts.ready + counts.arriving
    }
}

/// The job whose view is open, as it stands now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JobFacts {
    /// What was asked for.
    pub(super) name: String,
    pub(super) shown: Result<Box<ShownJob>, String>,
    /// Of the last attempt; none before its process runs.
    pub(super) log: Option<Log>,
}

/// What is shown of a job, in a form that can be compared.
#[derive(Clone, Debug)]
pub(super) struct ShownJob(pub(super) Shown);

impl PartialEq for ShownJob {
    fn eq(&self, other: &ShownJob) -> bool {
        let parts = |it: &ShownJob| (it.0.listed.clone(), it.0.paths.clone(), it.0.result.clone());
        parts(self) == parts(other) && self.0.history == other.0.history
    }
}

/// The last lines of a log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Log {
    pub(super) attempt: u32,
    pub(super) lines: Vec<String>,
}
