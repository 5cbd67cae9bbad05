//! One item and its life: the name it was dropped with, the job it becomes, its attempts, its result, and the lifecycle
//! with every arrow that exists. Pure: no clock, no file.

mod counters;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::config::Route;
use crate::devices::DeviceId;
use crate::units::Moment;

pub use counters::{Counters, Sum, plus};

/// The identity of a job: a ULID, given at the claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(#[serde(with = "ulid_text")] pub Ulid);

/// As people know it, in logs too.
impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = ulid::DecodeError;

    fn from_str(text: &str) -> Result<JobId, ulid::DecodeError> {
        Ulid::from_string(text).map(JobId)
    }
}

mod ulid_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use ulid::Ulid;

    pub(super) fn serialize<S: Serializer>(id: &Ulid, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&id.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Ulid, D::Error> {
        let text = String::deserialize(from)?;
        Ulid::from_string(&text).map_err(D::Error::custom)
    }
}

/// The name of a job's directory: up to 64 safe ASCII bytes of the item's stem, `~`, and the ULID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobDir(String);

impl JobDir {
    /// The longest readable part, in bytes.
    pub const STEM: usize = 64;

    pub fn new(name: &ItemName, id: JobId) -> JobDir {
        let stem = name.stem();
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+');
        let readable = stem.as_bytes().iter().take(Self::STEM).map(|&byte| if safe(byte) { byte as char } else { '_' });
        // A directory name that starts with a dot would be hidden from the people who look for it.
        let readable: String = readable.collect::<String>().trim_start_matches(['.', '-']).to_owned();
        JobDir(format!("{readable}~{id}"))
    }

    /// Reads a directory's name; nothing when it isn't a job's.
    pub fn parse(name: &OsStr) -> Option<(JobDir, JobId)> {
        let text = name.to_str()?;
        let (_, id) = text.rsplit_once('~')?;
        // Canonical only: ULID text is case-insensitive, a directory's name is not.
        let id: JobId = id.parse().ok().filter(|parsed: &JobId| parsed.to_string() == id)?;
        Some((JobDir(text.to_owned()), id))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The job that it is of.
    pub fn id(&self) -> Option<JobId> {
        self.0.rsplit_once('~')?.1.parse().ok()
    }
}

impl fmt::Display for JobDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name an item was dropped with: any bytes but `/` and NUL, without its folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemName(OsString);

impl ItemName {
    pub fn new(name: impl Into<OsString>) -> ItemName {
        ItemName(name.into())
    }

    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// For people and JSON: control and bidirectional characters, backslashes and bytes that aren't UTF-8 are escaped.
    pub fn escaped(&self) -> String {
        escape(self.as_bytes())
    }

    /// The raw bytes in padded base64.
    pub fn base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    pub fn from_base64(text: &str) -> Option<ItemName> {
        let bytes = BASE64.decode(text).ok()?;
        let valid =
            !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.iter().any(|b| matches!(b, b'/' | 0));
        valid.then(|| ItemName(OsString::from_vec(bytes)))
    }

    /// The name without its last extension; the whole name when it has none.
    pub fn stem(&self) -> &OsStr {
        std::path::Path::new(&self.0).file_stem().unwrap_or(&self.0)
    }

    /// The last extension, without the dot; empty when there is none.
    pub fn extension(&self) -> &OsStr {
        std::path::Path::new(&self.0).extension().unwrap_or_default()
    }
}

/// Words that are text already, fit to be shown: as [`escape`], but backslashes stand for themselves, so that what holds
/// escaped names isn't escaped twice.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| if c == '\\' { shown.push(c) } else { escape_char(c, &mut shown) });
    shown
}

/// Escapes what a terminal or a reader could take for something else.
pub fn escape(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| escape_char(c, &mut shown));
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

fn escape_char(c: char, shown: &mut String) {
    match c {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        '\\' => shown.push_str("\\\\"),
        c if c.is_control() || is_invisible(c) => {
            let _ = write!(shown, "\\u{{{:x}}}", c as u32);
        }
        c => shown.push(c),
    }
}

/// Characters that reorder or hide their neighbours (Unicode TR 36, Trojan Source).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{061c}' | '\u{feff}')
}

/// Whether an item is one file or one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    File,
    Directory,
}

/// What an item looked like when it was found ready; equal signatures mean that nothing touched it in between. For a
/// directory, `size` and `digest` cover the whole tree (order-independent sum over its entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
    pub blocks: u64,
    pub nlink: u64,
    /// Directories only: the sum over the entries, and how many there are.
    pub digest: u128,
    pub entries: u64,
}

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It lies in `done/`.
    Done,
    /// It lies in `failed/`, with a reason.
    Failed,
    /// Somebody wished so; it lies in `failed/`.
    Cancelled,
}

impl Outcome {
    /// The word of `result.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// Why an attempt or an item didn't succeed; the words of result.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Exit,
    Signal,
    Timeout,
    Spawn,
    MissingOutput,
    OutOfMemory,
    Reported,
    Protocol,
    Poison,
    Invalid,
    Changed,
    ItemMissing,
    DeviceLost,
    Orphaned,
    Io,
    Cancelled,
    Unrecognised,
}

impl Reason {
    pub const ALL: [Reason; 17] = [
        Reason::Exit,
        Reason::Signal,
        Reason::Timeout,
        Reason::Spawn,
        Reason::MissingOutput,
        Reason::OutOfMemory,
        Reason::Reported,
        Reason::Protocol,
        Reason::Poison,
        Reason::Invalid,
        Reason::Changed,
        Reason::ItemMissing,
        Reason::DeviceLost,
        Reason::Orphaned,
        Reason::Io,
        Reason::Cancelled,
        Reason::Unrecognised,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Exit => "exit",
            Reason::Signal => "signal",
            Reason::Timeout => "timeout",
            Reason::Spawn => "spawn",
            Reason::MissingOutput => "missing-output",
            Reason::OutOfMemory => "out-of-memory",
            Reason::Reported => "reported",
            Reason::Protocol => "protocol",
            Reason::Poison => "poison",
            Reason::Invalid => "invalid",
            Reason::Changed => "changed",
            Reason::ItemMissing => "item-missing",
            Reason::DeviceLost => "device-lost",
            Reason::Orphaned => "orphaned",
            Reason::Io => "io",
            Reason::Cancelled => "cancelled",
            Reason::Unrecognised => "unrecognised",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One try at a job, as it stands in job.json and result.json. Unknown is `None`, never 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Attempt {
    pub n: u32,
    pub devices: Vec<DeviceId>,
    pub pid: Option<i32>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub reason: Option<Reason>,
    pub peak_gpu_memory: Option<u64>,
    pub energy_joules: Option<f64>,
    /// Whether it used up one of the item's tries; the device's and the host's faults don't.
    pub counted: bool,
}

impl Attempt {
    /// An attempt of which nothing is known yet.
    pub fn planned(n: u32) -> Attempt {
        Attempt {
            n,
            devices: Vec::new(),
            pid: None,
            started_at: None,
            ended_at: None,
            exit_code: None,
            signal: None,
            reason: None,
            peak_gpu_memory: None,
            energy_joules: None,
            counted: false,
        }
    }
}

/// `job.json`: what a job is, written before its payload is moved. It carries the route it was claimed with, so that a
/// changed configuration doesn't change a claimed job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    pub name: String,
    pub name_b64: String,
    /// The intake folder under `inbox/`; empty for the inbox itself.
    pub folder: String,
    pub kind: ItemKind,
    pub route: Arc<Route>,
    pub arrived_at: Option<Timestamp>,
    pub claimed_at: Timestamp,
    /// The boot in which the record was written: a process of an earlier boot can't be alive.
    pub boot_id: String,
    /// As inspected in the inbox; moving the item has set its ctime since. None after a retry by hand: the worker that
    /// had it may have changed it.
    pub signature: Option<Signature>,
    /// Ended attempts, then the one that may be running. Attempt 1 is listed from the claim on: it is on disk before
    /// the process starts without a second round of fsyncs.
    pub attempts: Vec<Attempt>,
    /// Devices the next attempt avoids where it can.
    #[serde(default)]
    pub avoid: Vec<DeviceId>,
    /// Cancelled while it lay in the inbox: it is claimed only to be filed.
    #[serde(default)]
    pub cancelled: bool,
    /// How many attempts lay behind it when it was last retried by hand: its tries are counted from there.
    #[serde(default)]
    pub revived_after: u32,
    /// The largest batch it may be part of: a batch failed as a whole, and nobody knows for which of its items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_limit: Option<u32>,
    /// What its attempts have counted so far, all of them: every message counts, of failed attempts too.
    #[serde(default, skip_serializing_if = "Counters::is_empty")]
    pub counters: Counters,
}

impl JobRecord {
    /// The raw name; the escaped one where the base64 was damaged.
    pub fn item_name(&self) -> ItemName {
        ItemName::from_base64(&self.name_b64).unwrap_or_else(|| ItemName::new(&self.name))
    }

    pub fn dir(&self) -> JobDir {
        JobDir::new(&self.item_name(), self.id)
    }

    /// The attempts since the last retry by hand: what the fault rules look at.
    pub fn tries(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.n > self.revived_after)
    }
}

/// One file in `out/`, as result.json lists it. `path` is relative to `out/`, escaped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    pub path: String,
    pub bytes: u64,
}

/// `result.json`: the one outcome of an item. Durable, it is the commit point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultRecord {
    pub id: JobId,
    pub name: String,
    pub name_b64: String,
    /// The route's name; null when no route was ever known.
    pub route: Option<String>,
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    pub message: Option<String>,
    pub arrived_at: Option<Timestamp>,
    pub claimed_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub attempts: Vec<Attempt>,
    pub outputs: Vec<Output>,
    pub result: Option<Box<serde_json::value::RawValue>>,
    /// What all its attempts counted. Not there when they counted nothing, or when it is older than counters.
    #[serde(default, skip_serializing_if = "Counters::is_empty")]
    pub counters: Counters,
}

/// How an ended job is to be committed; `spool` turns it into a [`ResultRecord`].
#[derive(Clone, Debug)]
pub struct Ending {
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    pub message: Option<String>,
    /// JSON the worker reported.
    pub result: Option<Box<serde_json::value::RawValue>>,
}

/// Where a claimed job stands. A stage carries what is known there and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// The spool is moving it in.
    Claiming,
    /// Ready to start attempt `next` on whatever the planner finds.
    Claimed { next: u32, since: Moment },
    /// Leased; attempt `n` is being made durable before its process starts.
    Preparing { n: u32, on: Vec<DeviceId>, since: Moment },
    /// A worker carries attempt `n`.
    Running { n: u32, on: Vec<DeviceId>, since: Moment },
    /// Its worker was told to stop and will report.
    Stopping { n: u32, on: Vec<DeviceId>, why: StopWhy, since: Moment },
    /// Attempt `next` waits for its time.
    Retrying { next: u32, at: Moment },
    /// Its result is being made durable.
    Committing { outcome: Outcome },
    /// Its directory lies in `done/` or `failed/`.
    Ended { outcome: Outcome },
    /// It went away before it was moved in: the producer withdrew it, or the claim failed and it is back in the inbox.
    Withdrawn,
}

/// Why a running attempt is stopped from outside the item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopWhy {
    /// Someone asked for it by name.
    Cancelled,
    /// The director ends; the job stays in `claimed/` and the attempt isn't counted.
    Shutdown,
    /// Its device was lost under it.
    DeviceLost,
}

/// What can happen to a claimed job.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The claim is durable.
    Claimed,
    /// The claim found nothing, or was undone.
    Withdraw,
    /// The planner gave it devices.
    Lease { on: Vec<DeviceId> },
    /// The attempt is on disk and a worker has it.
    Launch,
    /// The lease could not be kept (another director's, say) before the process started.
    Unlease,
    /// The worker must end.
    Stop { why: StopWhy },
    /// The worker ended and another attempt is due at a moment.
    Retry { at: Moment },
    /// The time of the next attempt has come.
    Due,
    /// It has its outcome.
    Commit { outcome: Outcome },
    /// The director ends before the job does: nothing runs, it stays in `claimed/`.
    Requeue,
    /// The directory was moved to its place.
    Filed,
}

/// A step that the lifecycle has no arrow for: a mistake in the director, never in the input.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no step {step:?} from {stage:?}")]
pub struct IllegalStep {
    pub stage: Stage,
    pub step: Step,
}

impl Stage {
    /// The whole lifecycle of a claimed job. A step with no arm here is refused.
    pub fn after(&self, step: Step, now: Moment) -> Result<Stage, IllegalStep> {
        use Stage::*;
        match (self.clone(), step) {
            (Claiming, Step::Claimed) => Ok(Claimed { next: 1, since: now }),
            (Claiming, Step::Withdraw) => Ok(Withdrawn),
            (Claimed { next, .. }, Step::Lease { on }) => Ok(Preparing { n: next, on, since: now }),
            (Claimed { .. } | Retrying { .. }, Step::Commit { outcome }) => Ok(Committing { outcome }),
            (Preparing { n, on, .. }, Step::Launch) => Ok(Running { n, on, since: now }),
            // Its attempt never began, also when it was told to stop meanwhile; a cancelled one is committed instead. What
            // a resident worker had in line when it ended never began either.
            (
                Preparing { n, .. }
                | Running { n, .. }
                | Stopping { n, why: StopWhy::Shutdown | StopWhy::DeviceLost, .. },
                Step::Unlease,
            ) => Ok(Claimed { next: n, since: now }),
            // The resident worker that was started for it never got ready.
            (Claimed { next, .. }, Step::Retry { at }) => Ok(Retrying { next: next + 1, at }),
            // The spool already writes the attempt; the stop is carried out when the worker starts, or instead of it.
            (Preparing { n, on, since } | Running { n, on, since }, Step::Stop { why }) => {
                Ok(Stopping { n, on, why, since })
            }
            // The first reason to stop stands, but for a person's wish, which ends the item for good.
            (Stopping { n, on, why: _, since }, Step::Stop { why: StopWhy::Cancelled }) => {
                Ok(Stopping { n, on, why: StopWhy::Cancelled, since })
            }
            (stage @ Stopping { .. }, Step::Stop { .. }) => Ok(stage),
            (Running { n, .. } | Stopping { n, .. } | Preparing { n, .. }, Step::Retry { at }) => {
                Ok(Retrying { next: n + 1, at })
            }
            (Running { .. } | Stopping { .. } | Preparing { .. }, Step::Commit { outcome }) => {
                Ok(Committing { outcome })
            }
            (Running { n, .. } | Stopping { n, .. }, Step::Requeue) => Ok(Claimed { next: n + 1, since: now }),
            (Preparing { n, .. }, Step::Requeue) => Ok(Claimed { next: n, since: now }),
            (Retrying { next, at }, Step::Due) if at <= now => Ok(Claimed { next, since: now }),
            (Committing { outcome }, Step::Filed) => Ok(Ended { outcome }),
            (stage, step) => Err(IllegalStep { stage, step }),
        }
    }

    /// The devices it holds.
    pub fn leased(&self) -> &[DeviceId] {
        match self {
            Stage::Preparing { on, .. } | Stage::Running { on, .. } | Stage::Stopping { on, .. } => on,
            _ => &[],
        }
    }

    /// The word for it in `list` and `status`.
    pub fn word(&self) -> &'static str {
        match self {
            Stage::Claiming | Stage::Claimed { .. } => "claimed",
            Stage::Preparing { .. } | Stage::Running { .. } | Stage::Stopping { .. } => "running",
            // Its process has ended, its outcome isn't durable yet.
            Stage::Committing { .. } => "running",
            Stage::Retrying { .. } => "retrying",
            Stage::Ended { outcome } => outcome.as_str(),
            Stage::Withdrawn => "ready",
        }
    }
}
