//! Pruning of `done/` and `failed/`, when the configuration asks for it: some jobs at a time, only when nothing else waits
//! (mass deletes make creating files slow for a while). A day that is over goes without a look at its jobs; of the day
//! that is ending each job is asked when it ended.

use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::ground::Ground;
use super::record;
use super::tally::{self, Shelf};
use crate::item::{JobDir, JobId, Outcome};

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

/// How much of a day's jobs is older than it has to be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    None,
    /// Those that ended by then.
    EndedBy(Timestamp),
    All,
}

impl Retention {
    /// How often to look: a tenth of the shortest time, so that nothing stays much longer than it was to. None: never.
    pub(super) fn period(&self) -> Option<Duration> {
        let shortest = self.done.into_iter().chain(self.failed).min()?;
        Some((shortest / 10).clamp(Duration::from_secs(1), Duration::from_secs(3600)))
    }

    fn over(&self, shelf: Shelf, day: &str, now: Timestamp) -> Over {
        let keep = match shelf {
            Shelf::Done => self.done,
            Shelf::Failed => self.failed,
        };
        let limit = || {
            // A time that reaches before all time keeps everything.
            let keep = jiff::SignedDuration::try_from(keep?).ok()?;
            let limit = now.checked_sub(keep).ok()?;
            let begun = day.parse::<Date>().ok()?;
            let start = |day: Date| Some(day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp());
            Some((limit, start(begun)?, start(begun.tomorrow().ok()?)?))
        };
        match limit() {
            Some((limit, _, end)) if end <= limit => Over::All,
            Some((limit, begun, _)) if begun <= limit => Over::EndedBy(limit),
            _ => Over::None,
        }
    }

    /// Removes some jobs of the oldest day that is over and aren't needed yet; nothing when there is none.
    pub(super) fn step(
        &self,
        ground: &Ground,
        now: Timestamp,
        is_needed: impl Fn(JobId) -> bool,
    ) -> Result<Option<Removed>, Errno> {
        for shelf in Shelf::BOTH {
            let dir = match record::open_dir(ground.root.dir(), shelf.name()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            for day in tally::days(&dir)? {
                let over = self.over(shelf, &day, now);
                if over != Over::None
                    && let Some(removed) = prune(ground, &dir, shelf, &day, over, &is_needed)?
                {
                    return Ok(Some(removed));
                }
            }
        }
        Ok(None)
    }
}

fn prune(
    ground: &Ground,
    dir: &OwnedFd,
    shelf: Shelf,
    day: &str,
    over: Over,
    is_needed: &impl Fn(JobId) -> bool,
) -> Result<Option<Removed>, Errno> {
    let opened = record::open_dir(dir, day)?;
    let jobs = tally::jobs(&opened)?;
    let is_over = |job: &&JobDir| match over {
        Over::None => false,
        Over::EndedBy(limit) => ended_at(&opened, job).is_some_and(|at| at <= limit),
        Over::All => true,
    };
    let chosen: Vec<&JobDir> =
        jobs.iter().filter(|job| !job.id().is_some_and(is_needed)).filter(is_over).take(AT_ONCE).collect();
    let all = chosen.len() == jobs.len();
    let more = chosen.len() == AT_ONCE && !all;
    let mut outcomes = Vec::new();
    for job in chosen {
        let outcome = if shelf == Shelf::Done { Outcome::Done } else { tally::outcome_of(&opened, job.as_str()) };
        let path = ground.root.path().join(shelf.name()).join(day).join(job.as_str());
        match std::fs::remove_dir_all(&path) {
            Ok(()) => outcomes.push(outcome),
            Err(error) => tracing::warn!(job = job.as_str(), %error, "an old job can't be removed"),
        }
    }
    if all && over == Over::All {
        // Nothing of ours is left; what else lies there stays, and keeps the day.
        let _ = rustix::fs::unlinkat(dir, day, AtFlags::REMOVEDIR);
    }
    Ok((!outcomes.is_empty()).then(|| Removed { shelf, day: day.to_owned(), outcomes, more }))
}

/// When the job's result was written; nothing for one that has none, which stays as long as its day.
fn ended_at(day: &OwnedFd, job: &JobDir) -> Option<Timestamp> {
    let path = format!("{}/{}", job.as_str(), record::RESULT);
    let stat = rustix::fs::statat(day, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Timestamp::new(stat.st_mtime, stat.st_mtime_nsec as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_over_when_its_last_second_is_old_enough() {
        let check = |keep_s: u64, day: &str, now: &str, expected: &str| {
            let retention = Retention { done: Some(Duration::from_secs(keep_s)), failed: None };
            let now = now.parse().unwrap();
            let over = match retention.over(Shelf::Done, day, now) {
                Over::EndedBy(limit) => limit.to_string(),
                other => format!("{other:?}"),
            };
            assert_eq!(over, expected, "{day} at {now}");
            assert_eq!(retention.over(Shelf::Failed, day, now), Over::None);
        };
        const DAY: u64 = 86_400;
        check(DAY, "2026-11-20", "2026-11-20T23:59:59Z", "None");
        check(DAY, "2026-11-20", "2026-11-21T23:59:59Z", "2026-11-20T23:59:59Z");
        check(DAY, "2026-11-20", "2026-11-22T00:00:00Z", "All");
        check(30 * DAY, "2026-11-20", "2026-11-22T00:00:00Z", "None");
        check(1, "2026-11-20", "2026-11-20T12:00:01Z", "2026-11-20T12:00:00Z");
        check(u64::MAX / DAY, "2026-11-20", "2026-11-22T00:00:00Z", "None");
    }

    #[test]
    fn it_looks_a_tenth_of_the_shortest_time_apart() {
        let check = |done: Option<u64>, failed: Option<u64>, expected: Option<u64>| {
            let retention = Retention { done: done.map(Duration::from_secs), failed: failed.map(Duration::from_secs) };
            assert_eq!(retention.period(), expected.map(Duration::from_secs));
        };
        check(None, None, None);
        check(Some(1), None, Some(1));
        check(Some(86_400), Some(600), Some(60));
        check(None, Some(86_400 * 30), Some(3600));
    }
}
