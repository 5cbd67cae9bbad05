//! The interface's clients: how many there are, what they were answered, and which of them were cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a client was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It didn't send its request in time, or didn't read what it asked for.
    Slow,
    /// What it sent is no HTTP, or too much of it.
    Malformed,
}

impl Cut {
    pub(super) const ALL: [Cut; 2] = [Cut::Slow, Cut::Malformed];

    pub(super) fn word(self) -> &'static str {
        match self {
            Cut::Slow => "slow",
            Cut::Malformed => "malformed",
        }
    }
}

/// Answers by the code's first digit.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Debug, Default)]
pub struct Clients {
    connected: AtomicU64,
    /// All that ever were.
    accepted: AtomicU64,
    refused: AtomicU64,
    responses: [AtomicU64; 5],
    cut: [AtomicU64; 2],
}

/// One that is connected, until this is dropped.
#[derive(Debug)]
pub struct Connected(Arc<Clients>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    pub fn come_in(self: &Arc<Clients>) -> Connected {
        self.connected.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Connected(self.clone())
    }

    /// One couldn't be let in at all.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_response(&self, status: u16) {
        if let Some(class) = usize::from(status / 100).checked_sub(1).and_then(|at| self.responses.get(at)) {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn count_cut(&self, why: Cut) {
        self.cut[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn responses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CLASSES.into_iter().zip(self.responses.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    pub(super) fn cut(&self) -> impl Iterator<Item = (Cut, u64)> {
        Cut::ALL.into_iter().zip(self.cut.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_and_go_and_are_remembered() {
        let clients = Arc::new(Clients::default());
        let (one, two) = (clients.come_in(), clients.come_in());
        assert_eq!((clients.connected(), clients.accepted()), (2, 2));
        drop((one, two));
        assert_eq!((clients.connected(), clients.accepted()), (0, 2));
        for status in [200, 204, 404, 503, 0, 700] {
            clients.count_response(status);
        }
        assert_eq!(clients.responses().map(|(_, count)| count).collect::<Vec<_>>(), [0, 2, 0, 1, 1]);
        clients.count_cut(Cut::Malformed);
        assert_eq!(clients.cut().collect::<Vec<_>>(), [(Cut::Slow, 0), (Cut::Malformed, 1)]);
    }
}
