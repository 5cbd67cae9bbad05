//! How long the spool's rounds take and how much room it last saw, for whoever wants to know; it waits for none of them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Histogram;

/// Seconds.
const BOUNDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug)]
pub struct Pace {
    /// All that is done for one group of tasks.
    pub rounds: Histogram,
    /// Its syncs, by one call for the file system.
    pub whole: Histogram,
    /// Its syncs, one by one.
    pub each: Histogram,
    size: AtomicU64,
    free: AtomicU64,
    needed: AtomicU64,
}

/// Bytes on the root's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomSeen {
    pub size: u64,
    pub free: u64,
    /// Claims wait below this.
    pub needed: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            rounds: Histogram::new(BOUNDS),
            whole: Histogram::new(BOUNDS),
            each: Histogram::new(BOUNDS),
            size: AtomicU64::new(0),
            free: AtomicU64::new(0),
            needed: AtomicU64::new(0),
        }
    }
}

impl Pace {
    pub(super) fn saw(&self, room: RoomSeen) {
        self.free.store(room.free, Ordering::Relaxed);
        self.needed.store(room.needed, Ordering::Relaxed);
        // Last: who finds a size finds the others.
        self.size.store(room.size, Ordering::Release);
    }

    /// None before anybody looked.
    pub fn room(&self) -> Option<RoomSeen> {
        let size = self.size.load(Ordering::Acquire);
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (size > 0).then(|| RoomSeen { size, free: of(&self.free), needed: of(&self.needed) })
    }
}
