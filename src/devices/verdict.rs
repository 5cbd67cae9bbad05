//! Whether a device may take work, and if not why, in words for people. Pure: readings and history in, verdict out.

use std::fmt;

use super::{Cordon, Leases, Reading, Snapshot};
use crate::config;
use crate::units::Moment;

/// What must be remembered between sweeps of one device.
#[derive(Clone, Debug, Default)]
pub struct History {}

impl History {
    /// Takes in the next reading of the device.
    pub fn observe(&mut self, _reading: &Reading, _leases: &Leases, _rules: &config::Devices) {}
}

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
    _reading: &Reading,
    _history: &History,
    _leases: &Leases,
    _cordon: Option<&Cordon>,
    _snapshot: &Snapshot,
    _rules: &config::Devices,
    _now: Moment,
) -> Verdict {
    Verdict::Free
}
