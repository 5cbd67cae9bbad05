//! The pool of CPU slots: one device, always there, never asked anything.

use super::{DeviceId, DeviceKind, Reading, blank};
use crate::config;
use crate::units::Moment;

/// How many workers run on the CPU: what the configuration says, or one per core this process may use (its affinity
/// and its cgroup's quota counted).
pub fn slots(rules: &config::Devices) -> u32 {
    rules.cpu_slots.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)).max(1)
}

/// The rules with what depends on the host filled in.
pub fn resolved(rules: &config::Devices) -> config::Devices {
    config::Devices { cpu_slots: Some(slots(rules)), ..rules.clone() }
}

/// The pool as a device.
pub(super) fn reading(now: Moment) -> Reading {
    Reading { name: "CPU".to_owned(), ..blank(DeviceId::cpu(), DeviceKind::Cpu, now) }
}
