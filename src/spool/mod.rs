//! The only writer under ROOT: claims, attempts, finishes, recovers. One thread takes all tasks that wait, does them
//! together, and pays for one round of syncs. A kill at any point loses and repeats nothing.

mod claim;
pub mod cordons;
mod desk;
mod fault_points;
mod finish;
mod ground;
mod orphans;
mod outputs;
mod pace;
mod publish;
mod record;
mod recover;
mod retention;
mod revive;
mod shelves;
pub(crate) mod space;
mod spares;
mod sync;
pub mod tally;
mod trouble;
mod unpublished;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use crate::devices::DeviceId;
use crate::health::Check;
use crate::inbox::Candidate;
use crate::item::{Ending, JobDir, JobId, JobRecord, ResultRecord};
use crate::root::Root;
use crate::units::Clock;

pub use fault_points::{FAULT_POINTS, Faults};
pub use pace::{Pace, RoomSeen};
pub use recover::{no_route, recover};
pub use revive::{Place, find};
pub use tally::Tally;

/// What the director asks of the spool. A task that names a job is answered by one [`Answer`] that names it
/// too.
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
    /// How long ended jobs are kept; none: forever. Not answered.
    Keep { done: Option<Duration>, failed: Option<Duration> },
    /// Write down which devices a hand took out, for the next start.
    Cordons { devices: Vec<DeviceId> },
    /// Look whether the root is at its path. Answered by [`Answer::Root`], and again when it is back.
    FindRoot,
    /// End the thread once everything before it is done.
    Stop,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a claim that fails is as rare as its answer is large")]
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
    /// As `Finished`, for a job that only recovery knew: it was committed, cancelled, poison or unrecognised.
    Filed {
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
    /// A job that the start had to leave in `claimed/`: it can run now.
    TakenUp(Box<ClaimedJob>),
    /// So many jobs of an earlier director lie in `claimed/` that could not be taken up or filed, now that it has changed.
    Left(u64),
    /// The cordons are on disk, or why not; it isn't tried again.
    Cordons(Result<(), String>),
    /// The tally is complete, or was corrected: old jobs were removed, or others changed `done/` or `failed/`.
    Counted,
    /// Whether the path leads to the root that was opened.
    Root {
        is_there: bool,
    },
    /// The state of `Spool` or `Space`. Failed: the disk refuses (full, I/O error, read-only), so claims are to pause until
    /// it is ok again; finishes are kept and retried by the spool. Degraded: a warning.
    Health(Check),
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
    /// To run again, in the order of their arrival. A last attempt that was cut off is ended and uncounted; one without
    /// `ended_at` never started, and is the next to run.
    pub jobs: Vec<ClaimedJob>,
    /// Endings that recovery decided or found committed; the thread files them first (`Answer::Filed`).
    pub ended: u64,
    /// Items whose claim had not become durable; they lie in the inbox again.
    pub put_back: u64,
    /// What couldn't be taken up: the thread tries again (`Answer::TakenUp`, `Answer::Filed`).
    pub left: u64,
    /// What the thread is to go on with, for [`start`].
    pub backlog: Backlog,
}

/// What recovery leaves to the thread.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Endings that were decided or found committed.
    ends: Vec<finish::Finish>,
    left: Vec<recover::Left>,
    /// What people should know of things that aren't ours.
    strangers: Option<String>,
}

/// The running spool.
#[derive(Debug)]
pub struct Spool {
    /// Unbounded, and bounded by its users: a job has one task at a time that isn't answered yet.
    pub tasks: Sender<Task>,
    /// One answer a task, and health when it changes.
    pub answers: Receiver<Answer>,
    pub tally: Arc<Tally>,
    pub pace: Arc<Pace>,
    thread: Option<JoinHandle<()>>,
}

impl Spool {
    /// Ends the thread once everything asked before is done; its last answers can be read afterwards.
    pub fn stop(&mut self) {
        let _ = self.tasks.send(Task::Stop);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the spool's thread panicked; the next start finishes what it had begun");
        }
    }
}

/// Starts the thread. `recover` comes first.
pub fn start(root: Arc<Root>, clock: Clock, backlog: Backlog) -> Result<Spool, Errno> {
    start_with(root, clock, backlog, Faults::from_env())
}

fn start_with(root: Arc<Root>, clock: Clock, backlog: Backlog, faults: Faults) -> Result<Spool, Errno> {
    let (tasks, inbox) = crossbeam_channel::unbounded();
    let (outbox, answers) = crossbeam_channel::unbounded();
    let tally = Arc::new(Tally::default());
    let ground = Arc::new(ground::Ground::new(root, faults)?);
    let mut desk = desk::Desk::new(ground, clock, outbox, tally.clone())?;
    let pace = desk.pace();
    desk.take_over(backlog);
    desk.count_first();
    let run = move || desk.run(inbox);
    let thread = std::thread::Builder::new().name("gamdok-spool".to_owned()).spawn(run);
    let thread = thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
    Ok(Spool { tasks, answers, tally, pace, thread: Some(thread) })
}

#[cfg(test)]
mod tests;
