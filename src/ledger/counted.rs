//! What the ledger tells the director of counters, and what it must know for that: the sums over ended jobs go with the
//! number of the last entry that is in them, so that the director adds each later job exactly once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::item::{Counters, JobId};

/// Sums over the jobs that ended, as of one entry.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    pub counters: Counters,
    /// The entries up to this one are in them.
    pub upto: u64,
}

/// Where the writer leaves the sums for the director.
#[derive(Clone, Debug, Default)]
pub struct Counted(Arc<Mutex<Sums>>);

impl Counted {
    pub fn read(&self) -> Sums {
        lock(&self.0).clone()
    }

    /// Answers whether the counters are others than before.
    pub(super) fn write(&self, sums: Sums) -> bool {
        let mut known = lock(&self.0);
        let others = known.counters != sums.counters;
        *known = sums;
        others
    }
}

/// The jobs that the director has claimed, or taken up, and whose end isn't in the file yet.
#[derive(Clone, Debug, Default)]
pub(super) struct InHand(Arc<Mutex<HashSet<JobId>>>);

impl InHand {
    pub(super) fn has(&self, id: JobId) -> bool {
        lock(&self.0).contains(&id)
    }

    pub(super) fn insert(&self, id: JobId) {
        lock(&self.0).insert(id);
    }

    pub(super) fn remove(&self, id: JobId) {
        lock(&self.0).remove(&id);
    }

    /// Entries were lost: any of their ends may never be told.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}

/// A value is whole between two calls, also after a panic.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
