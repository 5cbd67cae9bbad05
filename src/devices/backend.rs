//! Where devices come from: NVML, a simulation, or nothing but the CPU. All three are choices in the configuration, so
//! tests run what users run.

use std::sync::Arc;

use super::nvml::{self, Nvml};
use super::sim::Sim;
use super::{DeviceId, HostMode, Reading, host};
use crate::config;
use crate::devices::allocation::Allocation;
use crate::units::{Clock, Moment};

/// What to read of a device; the costs differ by a factor of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looks {
    pub(super) memory: bool,
    /// Utilisation and pending events.
    pub(super) activity: bool,
    /// 40 µs to milliseconds under the driver's one lock, by what runs.
    pub(super) processes: bool,
    /// Temperature, power, slowdowns.
    pub(super) sensors: bool,
    /// The costliest: 3 ms on an H200, which no launch should wait for.
    pub(super) energy: bool,
    pub(super) health: bool,
}

impl Looks {
    pub(super) const NONE: Looks =
        Looks { memory: false, activity: false, processes: false, sensors: false, energy: false, health: false };
    pub(super) const MEMORY: Looks = Looks { memory: true, ..Looks::NONE };
    pub(super) const LIST: Looks = Looks { processes: true, ..Looks::NONE };
    /// Before a launch and after an exit. No utilisation: it speaks of the last second.
    pub(super) const CHECK: Looks = Looks { memory: true, processes: true, ..Looks::NONE };

    /// The same with what may have befallen the device.
    pub(super) const EXAMINATION: Looks = Looks { activity: true, health: true, ..Looks::CHECK };

    pub(super) fn and(self, other: Looks) -> Looks {
        Looks {
            memory: self.memory | other.memory,
            activity: self.activity | other.activity,
            processes: self.processes | other.processes,
            sensors: self.sensors | other.sensors,
            energy: self.energy | other.energy,
            health: self.health | other.health,
        }
    }
}

/// The backend as a whole can't go on.
#[derive(Debug, PartialEq)]
pub(super) enum Gone {
    /// It failed; the words for people. It is opened again after a pause.
    Failed(String),
    /// It wants to be opened afresh, at once.
    Reopen,
}

/// How often a backend wants to be asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// Only when something asks: its devices don't change by themselves.
    Still,
    /// Everything, again and again.
    Every(std::time::Duration),
    /// By the cadence made for a driver.
    Driver,
}

/// One source of devices, owned by the prober's thread.
pub(super) trait Backend {
    fn mode(&self) -> HostMode;

    fn pace(&self) -> Pace;

    /// Finds out which devices there are.
    fn enumerate(&mut self, clock: &Clock) -> Result<(), Gone>;

    /// Reads one device; a query that fails is noted in its reading.
    fn look(&mut self, id: &DeviceId, looks: Looks, clock: &Clock) -> Result<(), Gone>;

    /// Its utilisation speaks of a worker that has ended.
    fn forget_activity(&mut self, id: &DeviceId);

    /// Whether a process that was listed on it has ended since, as far as this host can tell without the driver.
    fn has_seen_an_end(&self, _id: &DeviceId) -> bool {
        false
    }

    /// What is known of the devices; without the CPU pool, which is always there.
    fn readings(&self) -> Vec<Reading>;

    /// Something happened that asks for another enumeration, or another look at a device's health.
    fn wishes(&mut self) -> Wishes {
        Wishes::default()
    }

    fn reconfigure(&mut self, rules: &Arc<config::Devices>, allocation: Allocation);
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Wishes {
    pub(super) enumerate: bool,
    pub(super) health: Vec<DeviceId>,
}

/// What a configuration leads to on this host, right now.
pub(super) enum Opened {
    Cpu,
    Sim(Box<Sim>),
    Nvml(Box<Nvml>),
    /// There ought to be GPUs, and they can't be reached: the words for people.
    Trouble(String),
}

/// Opens the backend that the configuration names. `auto` is NVML with at least one GPU; no NVIDIA GPU in the host is
/// the CPU; a GPU without a working NVML is trouble, not the CPU.
pub(super) fn open(rules: &config::Devices, allocation: &Allocation, now: Moment) -> Opened {
    match rules.backend {
        config::Backend::Cpu => Opened::Cpu,
        config::Backend::Sim => Opened::Sim(Box::new(Sim::open(rules, now))),
        config::Backend::Gpu => match nvml::open() {
            Ok((nvml, count)) if count > 0 => Opened::Nvml(Box::new(nvml)),
            Ok(_) => Opened::Trouble("the NVIDIA driver works, but lists no GPU".to_owned()),
            Err(why) => Opened::Trouble(why),
        },
        config::Backend::Auto if allocation.names_no_gpu() => {
            tracing::info!("CUDA_VISIBLE_DEVICES names no GPU: running on CPU slots");
            Opened::Cpu
        }
        config::Backend::Auto => match nvml::open() {
            Ok((nvml, count)) if count > 0 => Opened::Nvml(Box::new(nvml)),
            answer if host::has_nvidia_gpu() => {
                let why = answer.err().unwrap_or_else(|| "the driver lists none".to_owned());
                let help = "set devices.use = \"cpu\" to run on CPU slots instead";
                Opened::Trouble(format!("this host has an NVIDIA GPU that can't be reached: {why}; {help}"))
            }
            Ok(_) => Opened::Cpu,
            Err(why) => {
                tracing::debug!(why, "no NVML and no NVIDIA GPU: running on CPU slots");
                Opened::Cpu
            }
        },
    }
}

/// The backend of a host without GPUs.
pub(super) struct CpuOnly;

impl Backend for CpuOnly {
    fn mode(&self) -> HostMode {
        HostMode::Cpu
    }

    fn pace(&self) -> Pace {
        Pace::Still
    }

    fn enumerate(&mut self, _clock: &Clock) -> Result<(), Gone> {
        Ok(())
    }

    fn look(&mut self, _id: &DeviceId, _looks: Looks, _clock: &Clock) -> Result<(), Gone> {
        Ok(())
    }

    fn forget_activity(&mut self, _id: &DeviceId) {}

    fn readings(&self) -> Vec<Reading> {
        Vec::new()
    }

    fn reconfigure(&mut self, _rules: &Arc<config::Devices>, _allocation: Allocation) {}
}
