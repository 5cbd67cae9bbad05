//! Decides what happens next. Pure: no clock, no channel, no file, no driver call. Invariants: a plan gives a device no
//! more leases than it has slots, gives nothing to a device whose verdict forbids it, and starts a job at most once.

use crate::devices::{DeviceId, Snapshot};
use crate::inbox::CandidateKey;
use crate::item::JobId;
use crate::state::State;

/// What the director is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Read these devices before something is started on them: what is known of them is too old.
    Check { devices: Vec<DeviceId> },
    /// Claim this offer.
    Claim { key: CandidateKey },
    /// The offer can't be taken on this host as it is; hold it for this reason.
    Refuse { key: CandidateKey, reason: String },
    /// Give these devices to the job and start its next attempt.
    Start { job: JobId, on: Vec<DeviceId> },
    /// A running attempt lost its device.
    Stop { job: JobId },
    /// A retry's time has come.
    Due { job: JobId },
}

/// What to do in this state of things; the same answer for the same question.
pub fn plan(_state: &State, _snapshot: &Snapshot) -> Vec<Decision> {
    Vec::new()
}
