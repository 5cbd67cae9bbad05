//! Jobs that ended since somebody last looked: a job may come and go between two publications. Bounded; the director never
//! waits here, and pays nothing when nobody looks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::view::Listed;

/// What lies here unread; more is counted only.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Somebody looks.
    open: AtomicBool,
    page: Mutex<Page>,
}

/// What was noted, and how much more there was.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) rows: Vec<Listed>,
    pub(super) more: u64,
}

impl Journal {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, row: impl FnOnce() -> Listed) {
        if !self.open.load(Ordering::Relaxed) {
            return;
        }
        let mut page = self.page();
        if page.rows.len() < MOST { page.rows.push(row()) } else { page.more += 1 }
    }

    /// From here on, with an empty page; or no longer.
    pub(super) fn open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
        self.take();
    }

    pub(super) fn take(&self) -> Page {
        std::mem::take(&mut *self.page())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_costs_nothing_unread() {
        let journal = Journal::default();
        journal.note(|| unreachable!("nobody looks"));
        journal.open(true);
        (0..MOST + 3).for_each(|_| journal.note(Listed::empty));
        let Page { rows, more } = journal.take();
        assert_eq!((rows.len(), more), (MOST, 3));
        journal.note(Listed::empty);
        assert_eq!(journal.take().rows.len(), 1);
        journal.open(false);
        journal.note(|| unreachable!("nobody looks"));
    }
}
