//! The published view: the state as `status --json` and `list --json` show it. Contract shapes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::devices::HostMode;
use crate::health::Check;

/// One numbered copy of the director's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// Grows with every publication.
    pub number: u64,
    pub status: Status,
    /// Everything that hasn't ended: claimed, running and retrying jobs, then what lies in the inbox (bounded).
    pub live: Vec<Listed>,
}

/// `status --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    pub held: Vec<HeldView>,
    pub health: Vec<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectorState {
    Running,
    Paused,
    Draining,
    Stopped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceView {
    pub id: String,
    pub index: Option<u32>,
    pub kind: crate::devices::DeviceKind,
    pub name: String,
    /// free, leased, busy, unhealthy, excluded, unknown.
    pub verdict: String,
    pub reason: String,
    pub slots: u32,
    /// Job directories' names.
    pub leases: Vec<String>,
    pub memory_total: Option<u64>,
    pub memory_used: Option<u64>,
    pub utilization: Option<u32>,
    pub temperature: Option<u32>,
    pub power_w: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgressView {
    pub fraction: Option<f64>,
    pub message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldView {
    pub name: String,
    pub reason: String,
    pub since: Timestamp,
}

/// One row of `list --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}
