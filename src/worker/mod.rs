//! Workers: one thread for each attempt while it lasts. It starts the process, listens to it, ends it, kills what it left
//! behind, and reports exactly once, whatever happens.

mod attempt;
pub(crate) mod channel;
mod closure;
mod item_check;
mod launch;
mod lock;
mod log;
pub(crate) mod message;
mod outbox;
mod outputs;
pub(crate) mod process;
pub(crate) mod program;
mod resident;
mod split;
pub(crate) mod strays;
#[cfg(test)]
mod tests;
mod thread;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::item::{JobId, StopWhy};
use crate::root::Root;
use crate::units::{Bytes, Moment};

pub use closure::{Failure, Job, Outcome, Work, start_closure};
pub(crate) use launch::NOT_INHERITED;
pub use launch::{DeviceWords, Expanded, Facts, OF_ONE_ITEM, expand};
pub use lock::{LockRecord, is_held};
pub use resident::{News, ResidentHandle, ResidentLaunch, Task, start_resident};
pub use split::{Residents, SlotLaunch, SplitLaunch};
pub use strays::adopt_orphans;
pub use thread::{Handle, start};

/// The descriptor of the report channel in the worker's process.
pub const CHANNEL_FD: i32 = 3;

/// Where in a job's directory the output of a big line file grows, with its journal: not in `out/`, which is set aside when
/// an attempt is cut. It outlasts the attempt, and goes once a success is durable.
pub const SPLIT_DIR: &str = "split";

/// Everything one attempt needs; prepared by the director, nothing left to decide.
#[derive(Debug)]
pub struct Launch {
    pub job: JobId,
    pub attempt: u32,
    /// The devices of its lease.
    pub on: Vec<crate::devices::DeviceId>,
    /// What all paths here are below.
    pub root: Arc<Root>,
    /// Program and arguments, placeholders filled in. The program is looked up in the environment's PATH.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    pub cwd: PathBuf,
    /// `claimed/<job>`: `lock`, the log, `item/` and `out/` lie in it. The thread takes the lock's `flock`, writes the
    /// attempt and the process group into it, and lets the process inherit it.
    pub dir: PathBuf,
    /// The item's name, for the report channel and the last look at the signature.
    pub item: PathBuf,
    /// What the item must still look like; only before attempt 1.
    pub signature: Option<crate::item::Signature>,
    /// The host-wide device locks, inherited too.
    pub device_locks: Vec<Arc<OwnedFd>>,
    /// Cores to stay on; empty = as the director.
    pub cpus: Vec<usize>,
    pub timeout: Option<Duration>,
    pub kill_grace: Duration,
    /// Patterns that must exist in `out/` for a success.
    pub outputs: Vec<String>,
    pub max_log: Bytes,
    /// A big line file: the command runs once for each batch of its lines.
    pub split: Option<SplitLaunch>,
}

/// What a worker tells the director. Bounded: the last one is sent by `Drop`, so one place a slot is kept for it.
#[derive(Debug)]
pub enum Event {
    /// The process runs, as the leader of its own group; a closure in this very one. Without a number: a process for each
    /// batch.
    Started { job: JobId, attempt: u32, pid: Option<i32>, at: Timestamp },
    /// From the report channel; the latest wins.
    Progress { job: JobId, attempt: u32, fraction: Option<f64>, message: Option<String> },
    /// A counter of the report channel.
    Count { job: JobId, attempt: u32, name: String, by: f64 },
    /// Of a big line file: whether further slots would have something to do.
    Ahead { job: JobId, attempt: u32, ahead: bool },
    /// A further slot of it has left.
    SlotGone { job: JobId, attempt: u32, no: u32 },
    /// The one report.
    Ended(Box<Report>),
    /// Of a resident worker itself.
    Resident { id: JobId, news: News },
}

/// How an attempt ended: facts. Whose fault it was is decided in `fault`.
#[derive(Debug)]
pub struct Report {
    pub job: JobId,
    pub attempt: u32,
    pub pid: Option<i32>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Timestamp,
    /// Monotonic, for "failed fast".
    pub ran: Duration,
    pub end: End,
    /// What the worker said on fd 3 that bears on the outcome.
    pub said: Option<Said>,
    /// Declared outputs that don't exist.
    pub missing_outputs: Vec<String>,
    /// The log's end speaks of GPU or host memory running out.
    pub out_of_memory: bool,
    /// How many other items a resident worker had in hand when it failed without saying for which.
    pub beside: u32,
}

/// How the process ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Exited(i32),
    /// A closure returned, or panicked; what it said tells how it went.
    Returned,
    Signalled(i32),
    /// It was over its time and was ended; how it then died.
    TimedOut {
        exit_code: Option<i32>,
        signal: Option<i32>,
    },
    /// We ended it; how it then died. `None` twice: it never started.
    Stopped {
        why: StopWhy,
        exit_code: Option<i32>,
        signal: Option<i32>,
    },
    /// The process could not be started: the words, and whether the fault is the route's (no such program) or the
    /// host's (no memory, no process slots).
    NotStarted {
        error: String,
        host: bool,
    },
    /// A resident worker didn't say within its time that it is ready.
    NotReady {
        within: Duration,
    },
    /// A resident worker ended before it came to this item.
    NotBegun,
    /// Nothing was started: the root's path leads elsewhere.
    RootAway,
    /// The item isn't what was claimed (attempt 1), or is gone (a retry).
    ItemChanged,
    ItemMissing,
    /// The worker spoke nonsense on fd 3 and was ended.
    Protocol(String),
    /// The item can't be cut into lines: it isn't what it says it is.
    BadInput(String),
    /// A batch of its lines failed for good, after its own retries.
    BatchFailed(String),
    /// What the batches made can't have its name in `out/`: the command put something there itself.
    OutputTaken(String),
    /// Reading or writing in the job's directory failed.
    Io(String),
    /// The worker thread itself failed.
    Panicked,
}

impl End {
    /// The exit code and the signal of a process that ended, as far as there was one.
    pub fn codes(&self) -> (Option<i32>, Option<i32>) {
        match self {
            End::Exited(code) => (Some(*code), None),
            End::Signalled(signal) => (None, Some(*signal)),
            End::TimedOut { exit_code, signal } | End::Stopped { exit_code, signal, .. } => (*exit_code, *signal),
            _ => (None, None),
        }
    }
}

/// The last word on fd 3.
#[derive(Debug)]
pub enum Said {
    Done { result: Option<Box<RawValue>> },
    Failed { error: String, retry: bool },
}

/// When a stop was asked, to the worker's thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StopOrder {
    pub why: StopWhy,
    pub at: Moment,
}
