//! Devices: what is known of them at one moment (`Snapshot`), whether one may take work (`verdict`), where the facts come
//! from (`nvml`, `sim`, `cpu` behind one prober thread), and how a worker is confined to its own (`pin`).

mod allocation;
mod backend;
mod cadence;
pub mod cpu;
mod history;
mod host;
pub mod locks;
mod nvml;
mod occupancy;
pub mod pin;
pub mod prober;
mod procfs;
mod sim;
pub mod verdict;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::item::JobId;
use crate::units::{Bytes, Moment};

pub use cpu::{resolved, slots as cpu_slots};
pub use history::History;
pub use locks::Locks;
pub use pin::{Cores, Pin, pin};
pub use prober::{Ask, Prober};
pub use verdict::{Verdict, verdict};

/// A GPU's UUID (`GPU-…`, `MIG-…`, `SIM-…`), or `cpu`. Indexes change, this doesn't.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct DeviceId(pub String);

impl DeviceId {
    /// The pool of CPU slots.
    pub fn cpu() -> DeviceId {
        DeviceId("cpu".to_owned())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Gpu,
    Mig,
    Cpu,
    Sim,
}

impl DeviceKind {
    /// Whether routes with `gpus >= 1` run on it.
    pub fn is_gpu(self) -> bool {
        self != DeviceKind::Cpu
    }
}

/// Which backend answers: what `status` calls the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostMode {
    Gpu,
    Cpu,
    Sim,
}

/// All devices at one moment; never a mix of two. The CPU pool is always one of them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub taken_at: Moment,
    /// Counts sweeps; a larger number is a later view.
    pub number: u64,
    pub mode: HostMode,
    pub devices: Vec<Reading>,
    /// Why the backend as a whole can't answer, in words for people. The devices are then unknown, not gone.
    pub trouble: Option<String>,
}

/// The facts about one device in one sweep. What the driver can't say is `None`, never 0.
#[derive(Clone, Debug)]
pub struct Reading {
    pub id: DeviceId,
    /// As the driver counts, in PCI order; MIG instances carry their parent's. None for the CPU pool.
    pub index: Option<u32>,
    pub kind: DeviceKind,
    pub name: String,
    /// A MIG instance's GPU.
    pub parent: Option<DeviceId>,
    /// `dddd:bb:dd.f`, lower case.
    pub pci: Option<String>,
    pub memory_total: Option<Bytes>,
    pub memory_used: Option<Bytes>,
    /// When the memory was read.
    pub memory_at: Moment,
    /// Percent, the latest samples, oldest first.
    pub utilization: Vec<u32>,
    /// Compute, MPS and graphics processes; none where they can't be listed.
    pub processes: Option<Vec<GpuProcess>>,
    /// When the processes were read.
    pub processes_at: Moment,
    /// Whether PIDs can be matched with this host's at all (the host's PID namespace, no WSL).
    pub pids_match: bool,
    pub compute_mode: Option<ComputeMode>,
    pub health: Health,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    pub power_w: Option<f64>,
    /// Since the driver was loaded, the whole board.
    pub energy_millijoules: Option<u64>,
    /// When the energy was read.
    pub energy_at: Moment,
    /// Queries in a row that failed: one keeps the old view, three make the device unknown.
    pub failures: u32,
    /// What the last failed query said.
    pub failure: Option<String>,
    /// Taken out by `devices.include`/`exclude`, an inherited CUDA_VISIBLE_DEVICES, or being a MIG parent: the words.
    pub excluded: Option<String>,
}

/// A device of which nothing is known yet.
pub(crate) fn blank(id: DeviceId, kind: DeviceKind, now: Moment) -> Reading {
    Reading {
        id,
        index: None,
        kind,
        name: String::new(),
        parent: None,
        pci: None,
        memory_total: None,
        memory_used: None,
        memory_at: now,
        utilization: Vec::new(),
        processes: None,
        processes_at: now,
        pids_match: true,
        compute_mode: None,
        health: Health::default(),
        temperature: None,
        power_w: None,
        energy_millijoules: None,
        energy_at: now,
        failures: 0,
        failure: None,
        excluded: None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeMode {
    Default,
    ExclusiveProcess,
    ExclusiveThread,
    Prohibited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessKind {
    Compute,
    Graphics,
    Mps,
}

/// A process on a device, with what `/proc` tells of it where PIDs match.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuProcess {
    pub pid: u32,
    pub kind: ProcessKind,
    pub memory: Option<Bytes>,
    pub name: Option<String>,
    pub user: Option<String>,
    /// Its process group, to tell our workers' children.
    pub group: Option<i32>,
    /// The `GAMDOK_ID` in its environment.
    pub job: Option<JobId>,
}

/// What the driver says of a device's condition; all quiet by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Off the bus, or no longer answered for.
    pub lost: bool,
    /// NVML field 230, `GPU_RECOVERY_ACTION`, when it asks for something.
    pub recovery_action: Option<RecoveryAction>,
    /// The last critical Xid that isn't an application's fault.
    pub xid: Option<u64>,
    /// When it was seen, to tell a second one of the same number.
    pub xid_at: Option<Moment>,
    /// Uncorrected ECC errors since the director began to look.
    pub new_uncorrected_ecc: u64,
    pub row_remap_failed: bool,
    /// Hardware slowdown (thermal, power brake) in force.
    pub slowed: Option<String>,
    /// Things worth a line that keep nobody out (remap pending, persistence mode off).
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryAction {
    Reset,
    Reboot,
    DrainP2p,
    DrainAndReset,
}

/// What the verdict needs to know of a device's leases.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    pub held: Vec<Lease>,
    /// When our own last worker on it ended.
    pub last_exit: Option<Moment>,
}

/// A slot given to an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub job: JobId,
    /// Declared by the route.
    pub memory: Option<Bytes>,
    pub since: Moment,
    /// The worker's process group, once it runs.
    pub group: Option<i32>,
}

/// Why a device takes no work although nothing is wrong with it as far as the driver knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Cordon {
    pub by: CordonBy,
    pub since: Moment,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CordonBy {
    /// `gamdok cordon`.
    Hand,
    /// Several items failed fast on it.
    Failures,
    /// Another director of this host holds its lock; tried again in a second.
    OtherDirector,
}
