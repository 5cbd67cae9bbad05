//! What the thread does when nothing else waits: durable moves, counting, the ballast, room, old jobs.

use jiff::Timestamp;

use super::super::Answer;
use super::super::shelves;
use super::super::space::Room;
use super::{Desk, HOUSEKEEPING, RECHECK};
use crate::units::Moment;

impl Desk {
    pub(super) fn look_at_space(&mut self) -> Room {
        let (room, check) = self.space.look();
        if let Some(seen) = self.space.seen() {
            self.pace.saw(seen);
        }
        check.into_iter().for_each(|check| self.answer(Answer::Health(check)));
        self.recheck_at = (!self.space.is_ok()).then(|| self.clock.now() + RECHECK);
        if self.space.is_ok() {
            self.spares.go_on();
        } else {
            self.spares.pause();
        }
        room
    }

    /// What is done when nothing else is.
    pub(super) fn idle(&mut self, now: Moment) {
        if self.trailing_at.is_some_and(|at| at <= now) {
            let how = self.syncer.how(1, 0);
            let mut refused = Vec::new();
            self.round(&mut Vec::new(), how, &mut refused);
            // A move that isn't durable is made again at the next start.
            self.trailing_at = None;
            return;
        }
        let ground = self.ground.clone();
        let shelf_dir = |shelf| shelves::open_shelf(&ground, shelf).ok();
        if self.counting {
            if self.books.count_one(shelf_dir) {
                self.counting = false;
                self.answer(Answer::Counted);
            }
        } else if self.space.wants_ballast() {
            self.space.make_ballast();
        } else if self.pruning && self.trailing_at.is_none() {
            self.prune();
        } else if let Some(period) = self.retention.period()
            && self.prune_at <= now
        {
            self.prune_at = now + period;
            self.pruning = true;
        } else if self.housekeeping_at <= now {
            self.housekeeping_at = now + HOUSEKEEPING;
            if self.space.is_ok() {
                self.spares.go_on();
            }
            self.look_at_space();
            self.look_at_strangers();
            self.books.look(shelf_dir);
            self.counting = self.books.has_work();
        }
    }

    fn prune(&mut self) {
        match self.retention.step(&self.ground, Timestamp::now(), |id| self.publishing.is_owed(id)) {
            Ok(Some(removed)) => {
                let shelf_dir = |shelf| shelves::open_shelf(&self.ground, shelf).ok();
                self.books.moved(removed.shelf, &removed.day, &removed.outcomes, false, shelf_dir);
                tracing::info!(
                    shelf = removed.shelf.name(),
                    day = removed.day,
                    more = removed.more,
                    "removed old jobs"
                );
                self.answer(Answer::Counted);
            }
            Ok(None) => self.pruning = false,
            Err(error) => {
                tracing::warn!(%error, "old jobs can't be removed");
                self.pruning = false;
            }
        }
    }
}
