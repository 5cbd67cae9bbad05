//! The published view: the state as `status --json` and `list --json` show it. Contract shapes.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::devices::{DeviceKind, HostMode, Reading, Snapshot, Verdict};
use crate::health::Check;
use crate::item::{Attempt, Counters, JobId, JobRecord, ResultRecord, escape};
use crate::metrics::Tallies;
use crate::plan;
use crate::state::{State, Warmth};

/// One numbered copy of the director's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// Grows with every publication.
    pub number: u64,
    pub status: Status,
    /// Everything that hasn't ended: claimed, running and retrying jobs, then what lies in the inbox (bounded).
    pub live: Vec<Listed>,
    /// For `/metrics`.
    #[serde(skip)]
    pub tallies: Tallies,
}

/// `status --json`.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Status {
    pub version: String,
    pub pid: Option<u32>,
    pub root: String,
    pub mode: HostMode,
    pub state: DirectorState,
    pub uptime_s: Option<f64>,
    pub counts: Counts,
    pub devices: Vec<DeviceView>,
    pub running: Vec<RunningView>,
    #[serde(default)]
    pub residents: Vec<ResidentView>,
    pub held: Vec<HeldView>,
    pub health: Vec<Check>,
    /// What the workers of all items counted, those that have ended and those that run.
    #[serde(default)]
    pub counters: Counters,
    /// The server's clients. Told by the server itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<super::tally::ApiView>,
}

impl Status {
    /// Of a root of which nothing is known yet.
    pub fn empty(root: String, mode: HostMode, state: DirectorState) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: None,
            root,
            mode,
            state,
            uptime_s: None,
            counts: Counts::default(),
            devices: Vec::new(),
            running: Vec::new(),
            residents: Vec::new(),
            held: Vec::new(),
            health: Vec::new(),
            counters: Counters::default(),
            api: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DirectorState {
    Running,
    Paused,
    Draining,
    Stopped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Counts {
    pub arriving: u64,
    pub ready: u64,
    pub held: u64,
    pub claimed: u64,
    pub running: u64,
    pub retrying: u64,
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Temporary names in the inbox: not taken, not forgotten.
    pub ignored: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceView {
    pub id: String,
    pub index: Option<u32>,
    pub kind: crate::devices::DeviceKind,
    pub name: String,
    /// free, leased, busy, unhealthy, excluded, unknown.
    pub verdict: String,
    pub reason: String,
    pub slots: u32,
    /// Slots that are given out, to attempts or resident workers.
    #[serde(default)]
    pub taken: u32,
    /// Job directories' names.
    pub leases: Vec<String>,
    pub memory_total: Option<u64>,
    pub memory_used: Option<u64>,
    pub utilization: Option<u32>,
    pub temperature: Option<u32>,
    pub power_w: Option<f64>,
}

impl DeviceView {
    /// One device of the snapshot, with the verdict on it.
    pub fn new(state: &State, reading: &Reading, snapshot: &Snapshot) -> DeviceView {
        let verdict = state.verdict(reading, snapshot);
        let leases = state.device(&reading.id).map(|device| device.leases.held.as_slice()).unwrap_or_default();
        let slots = state.slots(reading);
        // CPU slots are many: the pool is leased once none is free.
        let full = reading.kind != DeviceKind::Cpu || leases.len() >= slots as usize;
        let word = if verdict == Verdict::Leased && !full { Verdict::Free.word() } else { verdict.word() };
        let reason = match &verdict {
            Verdict::Leased => {
                let mut taken = format!("{} of {slots} slot{} taken", leases.len(), if slots == 1 { "" } else { "s" });
                let idle = leases.iter().filter_map(|lease| state.resident(lease.job)).filter(|it| it.jobs.is_empty());
                for resident in idle {
                    let what = if resident.warmth == Warmth::Starting { "a starting" } else { "an idle" };
                    taken.push_str(&format!(", by {what} worker of `{}`", resident.route.name));
                }
                // What a lease outranks keeps the next one out all the same.
                match plan::for_more(state, snapshot, reading) {
                    Verdict::Free | Verdict::Leased => taken,
                    other => format!("{taken}, takes no more: {other}"),
                }
            }
            other => other.to_string(),
        };
        let name = |id: JobId| match state.job(id) {
            Some(job) => job.record.dir().to_string(),
            None => id.to_string(),
        };
        // A resident worker has the jobs it was handed, or none.
        let jobs = |lease: &crate::devices::Lease| match state.resident(lease.job) {
            Some(resident) => resident.jobs.iter().map(|(job, _)| name(*job)).collect(),
            None => vec![name(lease.job)],
        };
        DeviceView {
            id: reading.id.to_string(),
            index: reading.index,
            kind: reading.kind,
            name: reading.name.clone(),
            verdict: word.to_owned(),
            reason: crate::item::shown(&reason),
            slots,
            taken: leases.len() as u32,
            leases: leases.iter().flat_map(jobs).collect(),
            memory_total: reading.memory_total.map(|bytes| bytes.0),
            memory_used: reading.memory_used.map(|bytes| bytes.0),
            utilization: reading.utilization.last().copied(),
            temperature: reading.temperature,
            power_w: reading.power_w,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunningView {
    pub id: String,
    pub job: String,
    pub name: String,
    pub route: String,
    pub devices: Vec<String>,
    pub attempt: u32,
    pub pid: Option<i32>,
    pub started_at: Option<Timestamp>,
    pub progress: Option<ProgressView>,
    /// When it is thought to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// A resident worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResidentView {
    pub id: String,
    pub route: String,
    pub devices: Vec<String>,
    /// starting, idle, busy, retiring.
    pub state: String,
    pub pid: Option<i32>,
    /// Attempts that it ended.
    pub served: u32,
    /// Job directories' names.
    pub jobs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProgressView {
    pub fraction: Option<f64>,
    pub message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeldView {
    pub name: String,
    pub reason: String,
    pub since: Timestamp,
}

/// One row of `list --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Listed {
    /// None for what lies in the inbox.
    pub id: Option<String>,
    pub job: Option<String>,
    pub name: String,
    pub route: Option<String>,
    pub state: String,
    pub attempts: u32,
    pub devices: Vec<String>,
    pub arrived_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// Of a failure, of holding, or why it waits.
    pub reason: Option<String>,
    /// The intake folder, when it isn't the inbox itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub folder: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_b64: Option<String>,
    /// When it is thought to start and to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// From the running times of its route; what isn't known is absent. See [`crate::estimate`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Estimate {
    /// Of what waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Span {
    pub from: Timestamp,
    pub to: Timestamp,
}

impl Listed {
    /// A row of which nothing is known.
    pub fn empty() -> Listed {
        Listed {
            id: None,
            job: None,
            name: String::new(),
            route: None,
            state: String::new(),
            attempts: 0,
            devices: Vec::new(),
            arrived_at: None,
            finished_at: None,
            reason: None,
            folder: String::new(),
            name_b64: None,
            estimate: None,
        }
    }

    /// A job in `claimed/`, with the word for where it stands and why it waits.
    pub fn live(record: &JobRecord, state: &str, reason: Option<String>) -> Listed {
        let begun = |attempt: &&Attempt| attempt.started_at.is_some();
        Listed {
            id: Some(record.id.to_string()),
            job: Some(record.dir().to_string()),
            name: record.name.clone(),
            route: Some(record.route.name.clone()),
            state: state.to_owned(),
            attempts: record.attempts.iter().filter(begun).count() as u32,
            devices: devices_of(&record.attempts),
            arrived_at: record.arrived_at,
            finished_at: None,
            reason,
            folder: record.folder.clone(),
            name_b64: Some(record.name_b64.clone()),
            estimate: None,
        }
    }

    /// A job with its outcome. `job` is its directory's name, which stays what it was.
    pub fn ended(result: &ResultRecord, job: &str) -> Listed {
        Listed {
            id: Some(result.id.to_string()),
            job: Some(job.to_owned()),
            name: result.name.clone(),
            route: result.route.clone(),
            state: result.outcome.as_str().to_owned(),
            attempts: result.attempts.len() as u32,
            devices: devices_of(&result.attempts),
            arrived_at: result.arrived_at,
            finished_at: Some(result.finished_at),
            // The word; `show` has the message.
            reason: result.reason.map(|reason| reason.to_string()).or_else(|| result.message.clone()),
            folder: String::new(),
            name_b64: Some(result.name_b64.clone()),
            estimate: None,
        }
    }
}

/// The devices of the last attempt that had any.
fn devices_of(attempts: &[Attempt]) -> Vec<String> {
    let last = attempts.iter().rev().find(|attempt| !attempt.devices.is_empty());
    last.map(|attempt| attempt.devices.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

/// `show --json`: the row of `list`, where it lies, and how it went.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Shown {
    #[serde(flatten)]
    pub listed: Listed,
    pub paths: Paths,
    /// result.json, once there is one.
    pub result: Option<serde_json::Value>,
    /// The attempts, as job.json or result.json tells them.
    #[serde(default)]
    pub history: Vec<Attempt>,
}

/// Absolute. What doesn't exist is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Paths {
    pub dir: Option<String>,
    pub item: Option<String>,
    pub out: Option<String>,
    /// One of each attempt, in their order.
    pub logs: Vec<String>,
}

/// A path as JSON text: as it is, or escaped when it isn't UTF-8.
pub fn path_text(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    path.to_str().map(str::to_owned).unwrap_or_else(|| escape(path.as_os_str().as_bytes()))
}

/// The answer of `/v1/changes`: enough to know whether to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Change {
    pub number: u64,
    pub state: DirectorState,
    pub counts: Counts,
}
