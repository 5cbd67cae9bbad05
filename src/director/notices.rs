//! What the director tells those who want to be told, beside items and devices.

use super::Director;
use crate::health::{Check, Condition, What};
use crate::notifier::{self, Tally};

impl Director {
    pub(super) fn notify_as_configured(&mut self) {
        self.notifier.reconfigure(&self.config.notify);
        if self.config.notify.is_empty() {
            self.health.remove(&What::Notify);
        } else {
            let check = self.notifier.health();
            self.set_health(check);
        }
    }

    /// A part without which nothing is taken has failed, or is well again.
    pub(super) fn tell_of_root(&self, before: Option<Condition>, now: &Check) {
        if !matches!(now.what, What::Inbox | What::Spool | What::Space) {
            return;
        }
        let part = now.what.as_str();
        match (before == Some(Condition::Failed), now.state == Condition::Failed) {
            (false, true) => {
                let message = crate::item::shown(&now.message);
                self.notifier.tell(notifier::What::RootUnavailable { part, message });
            }
            (true, false) => self.notifier.tell(notifier::What::RootAvailable { part }),
            _ => {}
        }
    }

    /// Once nothing more happens: what ended last may have been the last.
    pub(super) fn tell_of_rest(&mut self) {
        let stages = self.state.stages();
        let jobs = stages.claimed + stages.running + stages.retrying + stages.committing;
        if self.counts.scanned && jobs + self.counts.arriving + self.counts.ready == 0 {
            self.notifier.at_rest(true, self.ended_so_far());
        }
    }

    pub(super) fn ended_so_far(&self) -> Tally {
        Tally { done: self.summary.done, failed: self.summary.failed, cancelled: self.summary.cancelled }
    }
}
