//! What is remembered of one device between sweeps: whether others used it and for how long it has been clean since, how
//! much memory it holds when idle, and which faults it is watched for. Pure: it is told, and answers.

use std::time::Duration;

use super::occupancy::{Occupancy, looked_at, median, occupancy};
use super::{Health, Leases, Reading, RecoveryAction};
use crate::config;
use crate::units::{Bytes, Moment};

/// How far above its learned idle value a device still counts as idle.
const IDLE_MARGIN: Bytes = Bytes(256 << 20);

/// An untouched device must hold its memory this steadily, and this long, before that counts as its idle value.
const STEADY: Bytes = Bytes(64 << 20);
const LEARNING: Duration = Duration::from_secs(300);

/// How long a device stays out after a fault was last seen; doubles with each spell.
const QUARANTINE: Duration = Duration::from_secs(300);
const LONGEST_QUARANTINE: Duration = Duration::from_secs(6 * 3600);

/// No new work for this long after the hardware last slowed itself down.
const SLOWED: Duration = Duration::from_secs(60);

/// What must be remembered between sweeps of one device.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The sweep last taken in.
    seen_at: Option<Moment>,
    /// Others used it, and it hasn't settled since.
    unsettled: bool,
    /// The first and the last of the clean sweeps in a row.
    clean: Option<(Moment, Moment)>,
    /// Anything of ours or a listed process was ever on it: what it holds now says nothing about its idle value.
    touched: bool,
    /// What it holds while nobody has used it, and since when.
    steady: Option<(Bytes, Moment)>,
    idle_memory: Option<Bytes>,
    faults: Faults,
    slowed: Option<(String, Moment)>,
}

#[derive(Clone, Debug, Default)]
struct Faults {
    quarantine: Option<Quarantine>,
    spells: u32,
    xid: Option<(u64, Option<Moment>)>,
    uncorrected_ecc: u64,
}

#[derive(Clone, Debug)]
struct Quarantine {
    why: String,
    /// When the fault was last seen.
    bad_at: Moment,
    span: Duration,
}

impl History {
    /// Takes in the next reading of the device. The same reading twice changes nothing.
    pub fn observe(&mut self, reading: &Reading, leases: &Leases, rules: &config::Devices) {
        let at = reading.memory_at.max(reading.processes_at);
        self.faults.observe(&reading.health, at);
        if let Some(why) = &reading.health.slowed {
            self.slowed = Some((why.clone(), at));
        }
        // A failed query shows an old view again; it proves nothing.
        if reading.failures > 0 || self.seen_at.is_some_and(|seen| at <= seen) {
            return;
        }
        // A list older than our worker's end shows that worker, and nobody would know it as ours any more.
        if leases.last_exit.is_some_and(|exit| looked_at(reading) < exit) {
            return;
        }
        self.seen_at = Some(at);
        let found = occupancy(reading, leases, self.baseline(rules), rules, at);
        self.touched |= !leases.held.is_empty()
            || leases.last_exit.is_some()
            || matches!(found, Occupancy::Others { listed: true, .. });
        self.learn(reading, rules, at);
        match found {
            Occupancy::Clean => {
                let since = self.clean.map_or(at, |(since, _)| since);
                self.clean = Some((since, at));
                if at.since(since) >= rules.idle.settle && at > since {
                    self.unsettled = false;
                }
            }
            Occupancy::Ours(_) => self.clean = None,
            Occupancy::Others { .. } => {
                self.clean = None;
                self.unsettled = true;
            }
        }
    }

    /// Used memory up to this much is a device at rest.
    pub fn baseline(&self, rules: &config::Devices) -> Bytes {
        let learned = self.idle_memory.map_or(Bytes(0), |idle| idle + IDLE_MARGIN);
        rules.idle.max_memory_used.max(learned)
    }

    /// At least one sweep of it succeeded.
    pub(super) fn has_seen_it(&self) -> bool {
        self.seen_at.is_some()
    }

    /// Others used it until a moment ago: it must be seen clean twice.
    pub(super) fn is_settling(&self) -> bool {
        self.unsettled
    }

    /// Why it is kept out although its last reading may look well.
    pub(super) fn quarantine(&self) -> Option<String> {
        let quarantine = self.faults.quarantine.as_ref()?;
        let span = humantime::format_duration(quarantine.span);
        Some(format!("{}; kept out until nothing has happened for {span}", quarantine.why))
    }

    /// A fault of its own was seen not long ago: what failed on it meanwhile may have failed for that.
    pub fn is_faulty(&self) -> bool {
        self.faults.quarantine.is_some()
    }

    /// The hardware slowed itself down within the last minute.
    pub(super) fn slowed(&self, now: Moment) -> Option<String> {
        let (why, at) = self.slowed.as_ref()?;
        (now.since(*at) < SLOWED).then(|| format!("slowed down by its hardware ({why}): no new work for a minute"))
    }

    /// Some boxes idle above every sensible limit. What a device holds, steadily and with nobody on it, before anybody
    /// was seen on it is its idle value; later values could as well be what a killed process left behind.
    fn learn(&mut self, reading: &Reading, rules: &config::Devices, at: Moment) {
        let Some(used) = reading.memory_used.filter(|_| !self.touched && reading.pids_match) else {
            self.steady = None;
            return;
        };
        let quiet = median(&reading.utilization).is_none_or(|percent| percent <= rules.idle.max_utilization);
        let most = Bytes((2 << 30).max(reading.memory_total.map_or(0, |total| total.0 / 32)));
        if reading.processes.is_none() || !quiet || used > most {
            self.steady = None;
            return;
        }
        match self.steady {
            Some((value, since)) if value.0.abs_diff(used.0) <= STEADY.0 => {
                if at.since(since) >= LEARNING {
                    self.idle_memory = Some(used);
                }
            }
            _ => self.steady = Some((used, at)),
        }
    }
}

impl Faults {
    fn observe(&mut self, health: &Health, at: Moment) {
        let fault = standing(health).or_else(|| self.happened(health));
        self.uncorrected_ecc = health.new_uncorrected_ecc;
        self.xid = health.xid.map(|xid| (xid, health.xid_at));
        match (fault, &mut self.quarantine) {
            (Some(why), Some(quarantine)) => {
                quarantine.why = why;
                quarantine.bad_at = quarantine.bad_at.max(at);
            }
            (Some(why), none) => {
                let span = QUARANTINE.saturating_mul(1 << self.spells.min(16)).min(LONGEST_QUARANTINE);
                self.spells += 1;
                *none = Some(Quarantine { why, bad_at: at, span });
            }
            (None, Some(quarantine)) if at.since(quarantine.bad_at) >= quarantine.span => self.quarantine = None,
            (None, _) => {}
        }
    }

    /// What is new since the last reading.
    fn happened(&self, health: &Health) -> Option<String> {
        if let Some(xid) = health.xid
            && self.xid != Some((xid, health.xid_at))
        {
            return Some(match xid_words(xid) {
                Some(words) => format!("Xid {xid}: {words}"),
                None => format!("Xid {xid}"),
            });
        }
        let errors = health.new_uncorrected_ecc.checked_sub(self.uncorrected_ecc).filter(|&errors| errors > 0)?;
        let noun = if errors == 1 { "error" } else { "errors" };
        Some(format!("{errors} new uncorrected memory {noun} (ECC)"))
    }
}

/// A fault that lasts as long as the driver says so.
pub(super) fn standing(health: &Health) -> Option<String> {
    if health.lost {
        return Some("lost: fell off the bus, or no longer listed by the driver".to_owned());
    }
    if let Some(action) = health.recovery_action {
        let wish = match action {
            RecoveryAction::Reset => "a reset",
            RecoveryAction::Reboot => "a reboot of the host",
            RecoveryAction::DrainP2p => "its peer traffic to be drained",
            RecoveryAction::DrainAndReset => "draining and a reset",
        };
        return Some(format!("the driver asks for {wish} (GPU_RECOVERY_ACTION)"));
    }
    health.row_remap_failed.then(|| "row remapping failed: its memory is worn out".to_owned())
}

fn xid_words(xid: u64) -> Option<&'static str> {
    Some(match xid {
        48 => "double-bit memory error",
        63 => "row remapping recorded",
        64 => "row remapping failed",
        74 => "NVLink error",
        79 => "fell off the bus",
        92 => "many single-bit memory errors",
        94 => "contained memory error",
        95 => "uncontained memory error",
        119 | 120 => "its system processor doesn't answer",
        154 => "recovery action changed",
        _ => return None,
    })
}
