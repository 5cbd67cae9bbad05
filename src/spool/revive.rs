//! `retry` of an ended job: its directory goes back to `claimed/`, its result becomes `result.<k>.json`, and its attempts
//! go on numbering. Until the result has its new name, a kill leaves an ended job that the next start files again.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::ground::Ground;
use super::record::{self, Read};
use super::tally::{Shelf, days, jobs};
use super::{ClaimedJob, write};
use crate::item::{JobDir, JobId, JobRecord, Outcome};
use crate::root::Root;

/// A job that ended: where its directory lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub shelf: Shelf,
    pub day: String,
    pub dir: JobDir,
}

impl Place {
    pub fn path(&self, root: &Root) -> PathBuf {
        root.path().join(self.shelf.name()).join(&self.day).join(self.dir.as_str())
    }
}

/// Finds an ended job by its id: from the day of its claim on, since none ends before.
pub fn find(root: &Root, id: JobId) -> Result<Option<Place>, Errno> {
    let claimed_on = jiff::Timestamp::from_millisecond(id.0.timestamp_ms() as i64)
        .map(|at| at.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default();
    for shelf in Shelf::BOTH {
        let dir = match record::open_dir(root.dir(), shelf.name()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        let days = days(&dir)?;
        let (before, after): (Vec<_>, Vec<_>) = days.into_iter().partition(|day| *day < claimed_on);
        // A clock that was set back can put it on an earlier day.
        for day in after.into_iter().chain(before.into_iter().rev()) {
            let Ok(opened) = record::open_dir(&dir, day.as_str()) else { continue };
            let suffix = format!("~{id}");
            if let Some(found) = jobs(&opened)?.into_iter().find(|job| job.as_str().ends_with(&suffix)) {
                return Ok(Some(Place { shelf, day, dir: found }));
            }
        }
    }
    Ok(None)
}

/// A revived job on its way in; durable after the round.
#[derive(Debug)]
pub(super) struct Revived {
    pub(super) place: Place,
    /// What it had ended as.
    pub(super) outcome: Outcome,
    pub(super) day_dir: OwnedFd,
    record: JobRecord,
    job: OwnedFd,
}

pub(super) fn revive(ground: &Ground, id: JobId) -> Result<Revived, String> {
    let words = |error: Errno| format!("job {id} can't be retried now: {error}");
    ground.faults.at("revive.begun").map_err(words)?;
    let place =
        find(&ground.root, id).map_err(words)?.ok_or_else(|| format!("no ended job {id} in done/ or failed/"))?;
    let shelf = record::open_dir(ground.root.dir(), place.shelf.name()).map_err(words)?;
    let day_dir = record::open_dir(&shelf, place.day.as_str()).map_err(words)?;
    let name = place.dir.as_str();
    let job = record::open_dir(&day_dir, name).map_err(words)?;
    let (record, outcome) = next_record(&job, id, &place.dir)?;
    record::rename_new(&day_dir, name, ground.claimed(), name).map_err(words)?;
    let turned = turn_over(ground, &job, &record);
    if let Err(error) = turned {
        // While the result has its name it is an ended job, and belongs where it was.
        if let Err(error) = record::rename_new(ground.claimed(), name, &day_dir, name) {
            tracing::warn!(job = name, %error, "a retry failed half way; the next start files the job again");
        }
        return Err(words(error));
    }
    // It runs again from here on, whatever happens; only a kill can be tested.
    let _ = ground.faults.at("revive.kept");
    Ok(Revived { place, outcome, day_dir, record, job })
}

fn turn_over(ground: &Ground, job: &OwnedFd, record: &JobRecord) -> Result<(), Errno> {
    ground.faults.at("revive.moved")?;
    write::replace(ground, job, record)?;
    ground.faults.at("revive.written")?;
    record::keep_result(std::os::fd::AsFd::as_fd(job))
}

/// The record it goes on with: what was claimed, and the attempts that the result tells of.
fn next_record(job: &OwnedFd, id: JobId, dir: &JobDir) -> Result<(JobRecord, Outcome), String> {
    let words = |error: Errno| format!("job {id} can't be read: {error}");
    let fd = std::os::fd::AsFd::as_fd(job);
    let Read::Whole(mut record) = record::read_job(fd, id).map_err(words)? else {
        return Err(format!(
            "job {id} has no readable job.json: drop its item into the inbox again (it lies in {dir}/item/)"
        ));
    };
    if !is_as_claimed(fd, &record) {
        return Err(format!("job {id} isn't retried: its item is neither a file nor a directory ({dir}/item/)"));
    }
    let Read::Whole(result) = record::read_result(fd, record::RESULT, id).map_err(words)? else {
        return Err(format!("job {id} has no readable result.json; the next start of the director looks at it again"));
    };
    if record.dir() != *dir {
        return Err(format!("job {id}: its job.json speaks of another item than its directory"));
    }
    let last = result.attempts.iter().chain(&record.attempts).filter(|a| a.ended_at.is_some()).map(|a| a.n).max();
    record.revived_after = last.unwrap_or(0);
    // The next one is planned when it starts: that sets aside what lies in `out/`, which was never its own.
    record.attempts = result.attempts;
    record.counters = result.counters;
    record.avoid.clear();
    record.cancelled = false;
    // Its worker may have changed the item: that was its right.
    record.signature = None;
    Ok((record, result.outcome))
}

/// A device, a pipe or a link is never opened, also when it was cancelled out of the inbox and is retried. What is gone is
/// left to its attempt, which says so.
fn is_as_claimed(job: BorrowedFd<'_>, record: &JobRecord) -> bool {
    let name = [record::ITEM.as_bytes(), b"/", record.item_name().as_bytes()].concat();
    match rustix::fs::statat(job, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory),
        Err(error) => error == Errno::NOENT,
    }
}

impl Revived {
    pub(super) fn id(&self) -> JobId {
        self.record.id
    }

    pub(super) fn sync_each(&self) -> Result<(), Errno> {
        super::claim::sync_at(&self.job, record::JOB)?;
        rustix::fs::fsync(&self.job)?;
        rustix::fs::fsync(&self.day_dir)
    }

    pub(super) fn into_job(self) -> Box<ClaimedJob> {
        Box::new(ClaimedJob { record: Arc::new(self.record), dir: self.place.dir })
    }
}
