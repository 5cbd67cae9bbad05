//! The pool of CPU slots: one device, always there, never asked anything.

use super::{DeviceId, DeviceKind, Reading, blank};
use crate::config;
use crate::units::Moment;

/// The rules with what depends on the host filled in: how many workers run on the CPU, where the configuration doesn't
/// say. That is one per core this process may use (its affinity and its cgroup's quota counted).
pub fn resolved(rules: &config::Devices) -> config::Devices {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    config::Devices { cpu_slots: Some(rules.cpu_slots.unwrap_or_else(cores).max(1)), ..rules.clone() }
}

/// The pool as a device.
pub(super) fn reading(now: Moment) -> Reading {
    Reading { name: "CPU".to_owned(), ..blank(DeviceId::cpu(), DeviceKind::Cpu, now) }
}
