//! What `/metrics` tells Prometheus: counts kept at the edges, and the published view. Invariants: who counts never waits
//! (atomics only, no lock that a scrape could hold); a scrape wakes nobody else up and asks nobody; the number of series is
//! bounded, and no label holds an item's name or words for people; what isn't known is absent.

mod clients;
mod histogram;
mod page;
mod routes;
mod scrape;
mod tally;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use clients::{Clients, Cut};
pub use histogram::Histogram;
pub use routes::{MOST_ROUTES, OTHERS, RouteCounts, Routes};
pub use scrape::{Format, scrape};
pub use tally::{DeviceTally, RouteTally, Tallies};

use crate::{inbox, ledger, notifier, spool};

/// From a worker's end to the next start on its device, in seconds.
const GAPS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// What is counted, and where parts count for themselves.
#[derive(Debug)]
pub struct Metrics {
    pub routes: Routes,
    /// From a worker's end to the next start on its device, while items waited.
    pub gaps: Histogram,
    pub clients: Arc<Clients>,
    pub sources: Sources,
}

/// The counts of parts that know nothing of metrics.
#[derive(Debug, Default)]
pub struct Sources {
    pub scans: Arc<inbox::ScanTimes>,
    pub spool: Arc<spool::Pace>,
    pub ledger: Arc<ledger::Lag>,
    pub notifier: Arc<notifier::Sent>,
    /// Events that a program's slow subscribers lost.
    pub events_dropped: Arc<AtomicU64>,
}

impl Metrics {
    pub fn new(sources: Sources) -> Metrics {
        Metrics { routes: Routes::default(), gaps: Histogram::new(GAPS), clients: Arc::default(), sources }
    }
}
