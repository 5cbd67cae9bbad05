//! What all workers have counted: of jobs that ended, as the ledger knows them or will in a moment, and of those in hand.
//! Each job is in exactly one of these at any moment, so the sums are exact at each.

use std::collections::VecDeque;

use super::Director;
use crate::item::{Counters, JobId};
use crate::ledger::{self, Sums};

/// Changes of the sums over ended jobs that the ledger was told of, until they are in its own sums.
#[derive(Debug, Default)]
pub(super) struct Counting {
    told: VecDeque<(u64, Counters)>,
    /// Of resident workers that had no item then, nor one later.
    of_no_job: Counters,
}

impl Counting {
    /// A job ended, and entry `number` says so.
    fn ended(&mut self, number: u64, counters: &Counters) {
        if !counters.is_empty() {
            self.told.push_back((number, counters.clone()));
            self.bound();
        }
    }

    /// An ended job lives again.
    fn revived(&mut self, number: u64, counters: &Counters) {
        let mut negative = Counters::default();
        negative.take_all(counters);
        self.ended(number, &negative);
    }

    /// The ledger's queue holds so many entries: what is older than these is in its sums with the next ones, or with those
    /// that follow a loss, all at once. So it can be one change.
    fn bound(&mut self) {
        while self.told.len() > ledger::ENTRIES {
            let (Some((_, oldest)), Some((_, next))) = (self.told.pop_front(), self.told.front_mut()) else { return };
            next.add_all(&oldest);
        }
    }

    /// The sums over all ended jobs.
    fn sums(&mut self, known: Sums) -> Counters {
        while self.told.front().is_some_and(|(number, _)| *number <= known.upto) {
            self.told.pop_front();
        }
        let mut sums = known.counters;
        self.told.iter().for_each(|(_, change)| sums.add_all(change));
        sums
    }
}

impl Director {
    pub(super) fn on_count(&mut self, job: JobId, name: &str, by: f64) {
        if !self.state.count(job, name, by) {
            self.counting.of_no_job.add(name, by);
        }
    }

    pub(super) fn note_ended(&mut self, number: u64, counters: &Counters) {
        self.counting.ended(number, counters);
    }

    pub(super) fn note_revived(&mut self, number: u64, counters: &Counters) {
        self.counting.revived(number, counters);
    }

    pub(super) fn counters(&mut self) -> Counters {
        let mut sums = self.counting.sums(self.ledger.counted.read());
        self.state.jobs().for_each(|job| sums.add_all(&job.record.counters));
        sums.add_all(&self.counting.of_no_job);
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sum: f64) -> Counters {
        [("n".to_owned(), sum)].into_iter().collect()
    }

    #[test]
    fn an_ended_job_is_counted_once_before_and_after_the_ledger_knows_it() {
        let mut counting = Counting::default();
        counting.ended(3, &of(5.0));
        counting.ended(4, &Counters::default());
        counting.ended(7, &of(2.0));
        counting.revived(9, &of(5.0));
        let mut check = |known: f64, upto: u64, expected: f64| {
            assert_eq!(counting.sums(Sums { counters: of(known), upto }), of(expected), "{upto}");
        };
        check(100.0, 0, 102.0);
        check(105.0, 3, 102.0);
        check(105.0, 6, 102.0);
        check(107.0, 8, 102.0);
        check(102.0, 9, 102.0);
    }

    #[test]
    fn while_the_ledger_stands_still_memory_does_too() {
        let mut counting = Counting::default();
        let all = ledger::ENTRIES as u64 * 2;
        (1..=all).for_each(|number| counting.ended(number, &of(1.0)));
        assert_eq!(counting.told.len(), ledger::ENTRIES);
        assert_eq!(counting.sums(Sums::default()), of(all as f64));
        // Its queue can't hold an older one.
        let upto = all - ledger::ENTRIES as u64 + 1;
        assert_eq!(counting.sums(Sums { counters: of(upto as f64), upto }), of(all as f64));
    }
}
