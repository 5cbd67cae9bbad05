//! The wish to stop, for whoever waits: a channel's `select`, a `poll`, or a look between two steps.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, eventfd};

/// Raised once, and for good. Clones are the same flag.
#[derive(Clone)]
pub struct StopFlag {
    shared: Arc<Shared>,
}

struct Shared {
    /// An eventfd that nobody reads: readable from the order on.
    wake: OwnedFd,
    /// Dropped by the order, which closes `ordered`.
    armed: Mutex<Option<Sender<()>>>,
    ordered: Receiver<()>,
}

impl StopFlag {
    /// Not raised yet.
    pub fn new() -> io::Result<StopFlag> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (armed, ordered) = crossbeam_channel::bounded(0);
        Ok(StopFlag { shared: Arc::new(Shared { wake, armed: Mutex::new(Some(armed)), ordered }) })
    }

    /// Asks all that look at it to stop.
    pub fn order(&self) {
        drop(self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner).take());
        // Full only after 2^64 - 2 orders.
        let _written = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
    }

    /// Whether it was raised.
    pub fn is_ordered(&self) -> bool {
        self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Closed once the stop was ordered; nothing is ever sent.
    pub(super) fn ordered(&self) -> &Receiver<()> {
        &self.shared.ordered
    }
}

/// Readable once the stop was ordered.
impl AsFd for StopFlag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl fmt::Debug for StopFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopFlag").field("ordered", &self.is_ordered()).finish()
    }
}
