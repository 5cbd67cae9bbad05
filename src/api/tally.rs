//! What the server counts of its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::metrics::{Clients, Cut};

/// `status`'s `api`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiView {
    /// Connections at present.
    pub clients: u64,
    /// Event streams at present.
    pub streams: u64,
    /// Clients that were cut: too slow to send, to read, or to follow the events.
    pub dropped_clients: u64,
    /// Requests that the guard of the TCP side refused.
    pub refused_requests: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    clients: AtomicU64,
    streams: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    /// What `/metrics` tells of the same.
    told: Arc<Clients>,
}

/// One that is counted as long as it is there.
#[derive(Debug)]
pub(super) struct Present<'a>(&'a AtomicU64);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    pub(super) fn new(told: Arc<Clients>) -> Tally {
        Tally { told, ..Tally::default() }
    }

    pub(super) fn client(&self) -> Present<'_> {
        self.clients.fetch_add(1, Ordering::Relaxed);
        Present(&self.clients)
    }

    /// None when there are that many already.
    pub(super) fn stream(&self, most: u64) -> Option<Present<'_>> {
        if self.streams.fetch_add(1, Ordering::Relaxed) >= most {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Present(&self.streams))
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.told.count_cut(Cut::Slow);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> ApiView {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ApiView {
            clients: of(&self.clients),
            streams: of(&self.streams),
            dropped_clients: of(&self.dropped),
            refused_requests: of(&self.refused),
        }
    }
}
