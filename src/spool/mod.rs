//! The only writer under ROOT: claims, attempts, finishes, recovers. One thread takes all tasks that wait, does them
//! together, and pays for one round of syncs. A kill at any point loses and repeats nothing.

use std::path::PathBuf;
use std::sync::Arc;

use crate::inbox::Candidate;
use crate::item::{Ending, JobDir, JobId, JobRecord, ResultRecord};

/// What the director asks of the spool. Every task is answered by one [`Answer`] with the same job.
#[derive(Debug)]
pub enum Task {
    /// Move the item into a job of its own.
    Claim { id: JobId, candidate: Candidate, cancelled: bool },
    /// Make a later attempt durable before its process starts: the ended ones in `record`, then the planned one.
    Prepare { record: Arc<JobRecord> },
    /// Commit the outcome and move the directory to its place.
    Finish { record: Arc<JobRecord>, ending: Ending },
    /// Write the record down for the next start; nothing runs (shutdown, or a retry that waits).
    Save { record: Arc<JobRecord> },
    /// `retry` of an ended job: its result becomes `result.<k>.json`, the directory goes back to `claimed/`.
    Revive { id: JobId },
    /// End the thread once everything before it is done.
    Stop,
}

#[derive(Debug)]
pub enum Answer {
    /// Durable: attempt 1 may start at once.
    Claimed(Box<ClaimedJob>),
    /// The item stays in the inbox, or is gone from it.
    NotClaimed {
        id: JobId,
        candidate: Candidate,
        why: NotClaimed,
    },
    Prepared {
        id: JobId,
    },
    /// Durable and in its place.
    Finished {
        record: Arc<JobRecord>,
        result: Box<ResultRecord>,
        dir: PathBuf,
    },
    Saved {
        id: JobId,
    },
    Revived {
        id: JobId,
        outcome: Result<Box<ClaimedJob>, String>,
    },
    /// The spool can't write at present (full disk, I/O error): claims are to pause; finishes are kept and retried by it.
    Health(crate::health::Check),
}

/// A job in `claimed/`, freshly claimed, revived or recovered.
#[derive(Debug)]
pub struct ClaimedJob {
    pub record: Arc<JobRecord>,
    pub dir: JobDir,
}

#[derive(Debug, PartialEq)]
pub enum NotClaimed {
    /// Withdrawn by its producer, or never there.
    Gone,
    /// Not what was inspected, or a writer is at it.
    Changed,
    /// It lies there and can't be taken; hold it for this reason.
    Refused(String),
    /// No room, or the file system refuses to write: pause claiming, try again later.
    NoRoom(String),
}

/// What a start found in `claimed/`.
#[derive(Debug, Default)]
pub struct Recovered {
    /// To run again, in the order of their arrival. Their last attempt, cut off, is ended and uncounted.
    pub jobs: Vec<ClaimedJob>,
    /// Endings that recovery itself decided (poison, unrecognised, cancelled); already tasks of the spool.
    pub ended: u64,
}
