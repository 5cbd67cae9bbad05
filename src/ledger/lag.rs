//! How far the ledger is behind, for whoever wants to know.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Lag {
    sent: AtomicU64,
    /// Entries up to this one are in the file, or what the directories told instead of them.
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Lag {
    pub(super) fn is_sent(&self, number: u64) {
        self.sent.fetch_max(number, Ordering::Relaxed);
    }

    pub(super) fn is_written(&self, number: u64) {
        self.written.fetch_max(number, Ordering::Relaxed);
    }

    pub(super) fn is_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub fn behind(&self) -> u64 {
        let written = self.written.load(Ordering::Relaxed);
        self.sent.load(Ordering::Relaxed).saturating_sub(written)
    }

    /// Entries that found no room, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
