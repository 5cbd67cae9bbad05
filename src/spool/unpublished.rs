//! `.gamdok/unpublished/`: a link for each job that was filed before its outputs could be published, so that a start finds
//! them without a look at all of `done/`. The mark in the job's directory is what counts; a link that leads nowhere is
//! dropped. Invariant: a job is moved away from `claimed/` unpublished only when its link is durable.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::ground::Ground;
use super::record;
use crate::item::{JobDir, JobId};

const NAME: &str = "unpublished";

/// Where a filed job lies, below the root.
pub(super) fn place(day: &str, job: &str) -> String {
    format!("done/{day}/{job}")
}

pub(super) fn note(ground: &Ground, day: &str, job: &str) -> Result<(), Errno> {
    let state = record::open_dir(ground.root.dir(), ".gamdok")?;
    match rustix::fs::mkdirat(&state, NAME, Mode::RWXU) {
        Ok(()) => rustix::fs::fsync(&state)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let links = record::open_dir(&state, NAME)?;
    // An older one may name another day.
    record::unlink_if_there(&links, job, AtFlags::empty())?;
    rustix::fs::symlinkat(format!("../../{}", place(day, job)), &links, job)?;
    rustix::fs::fsync(&links)?;
    ground.faults.at("publish.noted")
}

/// One that stays leads to a job without a mark, and is dropped by a later start.
pub(super) fn forget(ground: &Ground, job: &str) {
    let gone = open(ground).and_then(|links| record::unlink_if_there(links, job, AtFlags::empty()));
    match gone {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => tracing::debug!(job, %error, "the link to a published job stays"),
    }
}

/// The jobs noted, each with its day.
pub(super) fn list(ground: &Ground) -> Result<Vec<(JobId, JobDir, String)>, Errno> {
    let links = match open(ground) {
        Ok(links) => links,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut noted = Vec::new();
    for entry in rustix::fs::Dir::read_from(&links)? {
        let entry = entry?;
        let Some((dir, id)) = JobDir::parse(OsStr::from_bytes(entry.file_name().to_bytes())) else { continue };
        let Ok(target) = rustix::fs::readlinkat(&links, entry.file_name(), Vec::new()) else { continue };
        let day = target.to_str().ok().and_then(|target| target.strip_prefix("../../done/")?.split('/').next());
        // Whatever isn't a day leads nowhere.
        let day = day.filter(|day| day.parse::<jiff::civil::Date>().is_ok()).unwrap_or("none").to_owned();
        noted.push((id, dir, day));
    }
    Ok(noted)
}

fn open(ground: &Ground) -> Result<OwnedFd, Errno> {
    record::open_dir(record::open_dir(ground.root.dir(), ".gamdok")?, NAME)
}
