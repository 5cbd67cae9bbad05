//! Pruning of `done/` and `failed/`, when the configuration asks for it: whole days, some jobs at a time, only when
//! nothing else waits (mass deletes make creating files slow for a while).

use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::ground::Ground;
use super::record;
use super::tally::{self, Shelf};
use crate::item::Outcome;

/// Jobs removed before the queue is looked at again.
const AT_ONCE: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Retention {
    pub(super) done: Option<Duration>,
    pub(super) failed: Option<Duration>,
}

/// What a step removed.
pub(super) struct Removed {
    pub(super) shelf: Shelf,
    pub(super) day: String,
    pub(super) outcomes: Vec<Outcome>,
    /// There is more to do at once.
    pub(super) more: bool,
}

impl Retention {
    /// Whether every job of this day is older than it has to be kept.
    fn is_over(&self, shelf: Shelf, day: &str, now: Timestamp) -> bool {
        let keep = match shelf {
            Shelf::Done => self.done,
            Shelf::Failed => self.failed,
        };
        let Some(keep) = keep else { return false };
        let end = || day.parse::<Date>().ok()?.tomorrow().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
        end().is_some_and(|end| {
            now.duration_since(end.timestamp())
                >= jiff::SignedDuration::try_from(keep).unwrap_or(jiff::SignedDuration::MAX)
        })
    }

    /// Removes some jobs of the oldest day that is over; nothing when there is none.
    pub(super) fn step(&self, ground: &Ground, now: Timestamp) -> Result<Option<Removed>, Errno> {
        for shelf in Shelf::BOTH {
            let dir = match record::open_dir(ground.root.dir(), shelf.name()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            for day in tally::days(&dir)?.into_iter().filter(|day| self.is_over(shelf, day, now)) {
                if let Some(removed) = prune(ground, &dir, shelf, &day)? {
                    return Ok(Some(removed));
                }
            }
        }
        Ok(None)
    }
}

fn prune(ground: &Ground, dir: &OwnedFd, shelf: Shelf, day: &str) -> Result<Option<Removed>, Errno> {
    let opened = record::open_dir(dir, day)?;
    let jobs = tally::jobs(&opened)?;
    let more = jobs.len() > AT_ONCE;
    let mut outcomes = Vec::new();
    for job in jobs.iter().take(AT_ONCE) {
        let outcome = if shelf == Shelf::Done { Outcome::Done } else { tally::outcome_of(&opened, job.as_str()) };
        let path = ground.root.path().join(shelf.name()).join(day).join(job.as_str());
        match std::fs::remove_dir_all(&path) {
            Ok(()) => outcomes.push(outcome),
            Err(error) => tracing::warn!(job = job.as_str(), %error, "an old job can't be removed"),
        }
    }
    if outcomes.is_empty() {
        // Nothing of ours is left; what else lies there stays, and keeps the day.
        let _ = rustix::fs::unlinkat(dir, day, AtFlags::REMOVEDIR);
        return Ok(None);
    }
    if !more {
        let _ = rustix::fs::unlinkat(dir, day, AtFlags::REMOVEDIR);
    }
    Ok(Some(Removed { shelf, day: day.to_owned(), outcomes, more }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_over_when_its_last_second_is_old_enough() {
        let check = |keep_days: u64, day: &str, now: &str, expected: bool| {
            let keep = Some(Duration::from_secs(keep_days * 86_400));
            let retention = Retention { done: keep, failed: None };
            assert_eq!(retention.is_over(Shelf::Done, day, now.parse().unwrap()), expected, "{day} at {now}");
            assert!(!retention.is_over(Shelf::Failed, day, now.parse().unwrap()));
        };
        check(1, "2026-11-20", "2026-11-21T23:59:59Z", false);
        check(1, "2026-11-20", "2026-11-22T00:00:00Z", true);
        check(30, "2026-11-20", "2026-11-22T00:00:00Z", false);
        check(u64::MAX / 86_400, "2026-11-20", "2026-11-22T00:00:00Z", false);
    }
}
