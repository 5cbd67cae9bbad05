//! What the director publishes for `/metrics` beside `status`: sums over routes and devices, of the same moment.

use std::collections::BTreeMap;

use crate::devices::CordonBy;
use crate::inbox::HeldFor;

#[derive(Clone, Debug, Default)]
pub struct Tallies {
    /// Items that haven't ended; the configured routes also when they have none.
    pub routes: BTreeMap<String, RouteTally>,
    /// Held, and no route's.
    pub unrouted: u64,
    /// Why items are held.
    pub held: Vec<(HeldFor, u64)>,
    pub devices: Vec<DeviceTally>,
    /// Whether the inbox was read whole: before that nobody knows what lies there.
    pub scanned: bool,
}

/// How many items of one route are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTally {
    pub arriving: u64,
    pub ready: u64,
    pub held: u64,
    pub claimed: u64,
    pub running: u64,
    pub retrying: u64,
}

impl RouteTally {
    pub(super) fn states(self) -> [(&'static str, u64); 6] {
        let RouteTally { arriving, ready, held, claimed, running, retrying } = self;
        [
            ("arriving", arriving),
            ("ready", ready),
            ("held", held),
            ("claimed", claimed),
            ("running", running),
            ("retrying", retrying),
        ]
    }

    pub(crate) fn add(&mut self, other: RouteTally) {
        self.arriving += other.arriving;
        self.ready += other.ready;
        self.held += other.held;
        self.claimed += other.claimed;
        self.running += other.running;
        self.retrying += other.retrying;
    }
}

/// What `status` doesn't tell of a device.
#[derive(Clone, Debug)]
pub struct DeviceTally {
    pub id: String,
    pub energy_joules: Option<f64>,
    pub cordoned: Option<CordonBy>,
}
