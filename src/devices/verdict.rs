//! Whether a device may take work, and if not why, in words for people. Pure: readings and history in, verdict out.
//!
//! The layers, in the order they are asked: taken out by rule, our own lease, health, whether it can be read at all,
//! compute mode, who uses it, whether it has been clean for long enough. A device with room for more passes the same
//! layers as an empty one, so nothing is added to a shared device that turned bad.

use std::fmt;

use super::history::{History, standing};
use super::occupancy::{Occupancy, looked_at, occupancy};
use super::{ComputeMode, Cordon, CordonBy, DeviceKind, Leases, Reading, Snapshot};
use crate::config;
use crate::item;
use crate::units::Moment;

/// Queries that may fail in a row before a device counts as unknown.
const FAILURES: u32 = 3;

/// The verdict on one device. `Display` gives the reason.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Free,
    /// Ours, with or without room for more.
    Leased,
    Busy(String),
    Unhealthy(String),
    Excluded(String),
    Unknown(String),
}

impl Verdict {
    /// All that [`word`](Verdict::word) says.
    pub const WORDS: [&'static str; 6] = ["free", "leased", "busy", "unhealthy", "excluded", "unknown"];

    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Free => "free",
            Verdict::Leased => "leased",
            Verdict::Busy(_) => "busy",
            Verdict::Unhealthy(_) => "unhealthy",
            Verdict::Excluded(_) => "excluded",
            Verdict::Unknown(_) => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Free => f.write_str("idle"),
            Verdict::Leased => f.write_str("ours"),
            Verdict::Busy(why) | Verdict::Unhealthy(why) | Verdict::Excluded(why) | Verdict::Unknown(why) => {
                f.write_str(why)
            }
        }
    }
}

/// Judges one device.
pub fn verdict(
    reading: &Reading,
    history: &History,
    leases: &Leases,
    cordon: Option<&Cordon>,
    snapshot: &Snapshot,
    rules: &config::Devices,
    now: Moment,
) -> Verdict {
    if let Some(why) = &reading.excluded {
        return Verdict::Excluded(why.clone());
    }
    let ours = if leases.held.is_empty() { Verdict::Free } else { Verdict::Leased };
    if reading.kind == DeviceKind::Cpu {
        return cordon.map_or(ours, cordoned);
    }
    // Our own lease comes first, but a lost device is news even then: its worker is ended for it.
    let full = leases.held.len() >= rules.slots.max(1) as usize;
    if full && !reading.health.lost {
        return Verdict::Leased;
    }
    health(reading, history, cordon, now)
        .or_else(|| readable(reading, history, snapshot))
        .or_else(|| compute_mode(reading, leases))
        .or_else(|| in_use(reading, history, leases, rules, now))
        .unwrap_or(ours)
}

fn health(reading: &Reading, history: &History, cordon: Option<&Cordon>, now: Moment) -> Option<Verdict> {
    let sick = standing(&reading.health).or_else(|| history.quarantine()).map(Verdict::Unhealthy);
    sick.or_else(|| cordon.map(cordoned)).or_else(|| history.slowed(now).map(Verdict::Unhealthy))
}

pub(crate) fn cordoned(cordon: &Cordon) -> Verdict {
    let reason = item::escape(cordon.reason.as_bytes());
    let after = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    match cordon.by {
        CordonBy::Hand => Verdict::Unhealthy(format!("cordoned by hand{after}")),
        CordonBy::Failures => Verdict::Unhealthy(format!("cordoned, since several items failed fast on it{after}")),
        CordonBy::OtherDirector => Verdict::Busy(format!("another director of this host uses it{after}")),
    }
}

fn readable(reading: &Reading, history: &History, snapshot: &Snapshot) -> Option<Verdict> {
    if let Some(why) = &snapshot.trouble {
        return Some(Verdict::Unknown(why.clone()));
    }
    let why = reading.failure.as_deref().unwrap_or("no reason given");
    if reading.failures > 0 && !history.has_seen_it() {
        return Some(Verdict::Unknown(format!("the driver hasn't told anything of it yet: {why}")));
    }
    if reading.failures < FAILURES {
        return None;
    }
    Some(Verdict::Unknown(format!("the driver failed to answer {} times in a row: {why}", reading.failures)))
}

fn compute_mode(reading: &Reading, leases: &Leases) -> Option<Verdict> {
    match reading.compute_mode? {
        ComputeMode::Default => None,
        ComputeMode::Prohibited => {
            Some(Verdict::Excluded("compute mode prohibited: the driver refuses every process".to_owned()))
        }
        ComputeMode::ExclusiveProcess | ComputeMode::ExclusiveThread if leases.held.is_empty() => None,
        ComputeMode::ExclusiveProcess | ComputeMode::ExclusiveThread => {
            Some(Verdict::Busy("compute mode exclusive: one process at a time, and ours is on it".to_owned()))
        }
    }
}

fn in_use(
    reading: &Reading,
    history: &History,
    leases: &Leases,
    rules: &config::Devices,
    now: Moment,
) -> Option<Verdict> {
    // After our own worker's end one clean look is enough, but it must be a later one.
    if leases.last_exit.is_some_and(|exit| looked_at(reading) < exit) {
        return Some(Verdict::Busy("its last worker has just ended, and it wasn't looked at since".to_owned()));
    }
    match occupancy(reading, leases, history.baseline(rules), rules, now) {
        Occupancy::Ours(why) | Occupancy::Others { why, .. } => return Some(Verdict::Busy(why)),
        Occupancy::Clean => {}
    }
    history.is_settling().then(|| Verdict::Busy("others used it until a moment ago".to_owned()))
}

/// Who uses a device beside our own workers on it, as far as its processes show that.
pub(crate) fn strangers(
    reading: &Reading,
    history: &History,
    leases: &Leases,
    rules: &config::Devices,
    now: Moment,
) -> Option<String> {
    match occupancy(reading, leases, history.baseline(rules), rules, now) {
        Occupancy::Others { why, listed: true } => Some(why),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
