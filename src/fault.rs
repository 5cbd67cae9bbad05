//! Whose fault was it? From how an attempt ended to what follows for the item and its device. Pure.

use std::time::Duration;

use crate::item::{Ending, JobRecord, Reason};
use crate::worker::Report;

/// What follows from an attempt's end.
#[derive(Debug)]
pub struct Assessment {
    /// For the attempt's record.
    pub reason: Option<Reason>,
    pub counted: bool,
    /// The attempt ran on the device and failed in a way that may be the device's fault.
    pub against_device: bool,
    pub next: Next,
}

#[derive(Debug)]
pub enum Next {
    Finish(Ending),
    /// Try again after this long, elsewhere if `avoid`.
    Retry {
        after: Duration,
        avoid: bool,
    },
    /// The director ends: the job stays in `claimed/` for the next start.
    Requeue,
}

/// Assesses one report against the job's record (whose last attempt is the one reported) and its route.
pub fn assess(_record: &JobRecord, _report: &Report, _device_lost: bool) -> Assessment {
    Assessment { reason: None, counted: true, against_device: false, next: Next::Requeue }
}
