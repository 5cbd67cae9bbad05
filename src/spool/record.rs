//! The files of a job's directory: names, reading, writing. Everything by open directory, nothing by path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::item::{JobId, JobRecord, ResultRecord};

pub(super) const JOB: &str = "job.json";
pub(super) const JOB_TMP: &str = "job.json.tmp";
pub(super) const RESULT: &str = "result.json";
pub(super) const RESULT_TMP: &str = "result.json.tmp";
pub(super) const LOCK: &str = "lock";
pub(super) const ITEM: &str = "item";
pub(super) const OUT: &str = "out";
/// A symbolic link to the name of the intake folder, when that isn't the inbox itself.
pub(super) const FOLDER: &str = "folder.tmp";
pub(super) const COMPANIONS: &str = "companions";

/// No record that this program writes comes near it; a larger one isn't ours.
const LARGEST: u64 = 64 << 20;

pub(super) fn open_dir(at: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Writes a file of ours anew. A worker can write into its job's directory too: what it put under our name (a directory,
/// a FIFO, a link to another file) is set aside, and never written through.
pub(super) fn write(at: impl AsFd, name: &str, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let file = match open_own(&at, name) {
        Ok(Some(file)) => file,
        Ok(None) | Err(Errno::ISDIR | Errno::LOOP | Errno::NXIO | Errno::ACCESS) => {
            set_aside(at.as_fd(), name, &format!("worker.{name}"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&at, name, flags, Mode::RUSR | Mode::WUSR)?
        }
        Err(error) => return Err(error),
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&file, rest) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => rest = &rest[n..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(file)
}

/// Opens it empty; nothing when what stands there isn't a file with this one name.
fn open_own(at: impl AsFd, name: &str) -> Result<Option<OwnedFd>, Errno> {
    // Never waits for a FIFO's other end; truncated only once it is known to be ours.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?;
    let stat = rustix::fs::fstat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() || stat.st_nlink != 1 {
        return Ok(None);
    }
    if stat.st_size > 0 {
        rustix::fs::ftruncate(&file, 0)?;
    }
    Ok(Some(file))
}

/// Reads a regular file; nothing when there is none.
pub(super) fn read(at: impl AsFd, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() || stat.st_size as u64 > LARGEST {
        return Err(Errno::INVAL);
    }
    let mut bytes = vec![0; stat.st_size as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::read(&file, &mut bytes[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// What a record file says.
#[derive(Debug)]
pub(super) enum Read<T> {
    Absent,
    /// Empty, torn, or another job's.
    Torn,
    Whole(T),
}

pub(super) fn read_job(dir: BorrowedFd<'_>, id: JobId) -> Result<Read<JobRecord>, Errno> {
    parsed(read(dir, JOB), |record: &JobRecord| record.id == id)
}

pub(super) fn read_result(dir: BorrowedFd<'_>, name: &str, id: JobId) -> Result<Read<ResultRecord>, Errno> {
    parsed(read(dir, name), |result: &ResultRecord| result.id == id)
}

fn parsed<T: serde::de::DeserializeOwned>(
    bytes: Result<Option<Vec<u8>>, Errno>,
    ours: impl Fn(&T) -> bool,
) -> Result<Read<T>, Errno> {
    Ok(match bytes {
        Ok(None) => Read::Absent,
        // A directory, a link or a monster under this name is not a record of ours.
        Err(Errno::INVAL | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => Read::Torn,
        Err(error) => return Err(error),
        Ok(Some(bytes)) => match serde_json::from_slice::<T>(&bytes) {
            Ok(record) if ours(&record) => Read::Whole(record),
            _ => Read::Torn,
        },
    })
}

pub(super) fn job_json(record: &JobRecord) -> Result<Vec<u8>, Errno> {
    json(record)
}

/// One line, for `grep` and `jq`; ends with a newline, so that a torn one is never whole.
pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Errno> {
    let mut bytes = serde_json::to_vec(value).map_err(|error| {
        // Only a value with keys that aren't text can't be written as JSON; there is none in the records.
        tracing::error!(%error, "a record can't be written as JSON");
        Errno::INVAL
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Moves without ever replacing anything. Where the file system can't promise that, the caller's target lies in a
/// directory that only this thread writes to, so looking first is as good.
pub(super) fn rename_new(
    from: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    to: impl AsFd,
    target: impl rustix::path::Arg + Copy,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(&from, name, &to, target, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match rustix::fs::statat(&to, target, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => rustix::fs::renameat(&from, name, &to, target),
                Err(error) => Err(error),
            }
        }
        other => other,
    }
}

/// Whether a directory has no entries.
pub(super) fn is_empty(dir: impl AsFd) -> Result<bool, Errno> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Moves `out/` aside when an attempt left something in it, and makes it anew.
pub(super) fn set_out_aside(job: BorrowedFd<'_>, attempt: u32) -> Result<(), Errno> {
    match open_dir(job, OUT) {
        // What can't be looked into is no empty one.
        Ok(out) if is_empty(&out).unwrap_or(false) => return Ok(()),
        Ok(_) => set_aside(job, OUT, &format!("out.aborted.{attempt}"))?,
        Err(Errno::NOENT) => {}
        // A worker put something else there, or took its own right to it.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => set_aside(job, OUT, &format!("out.aborted.{attempt}"))?,
        Err(error) => return Err(error),
    }
    rustix::fs::mkdirat(job, OUT, Mode::RWXU)
}

/// Gives the owner of a job's directory back the rights to it that its worker took: without them nothing can be written
/// into it, and it can't be moved.
pub(super) fn regain(at: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Errno::NOTDIR);
    }
    tracing::warn!(job = name, "its worker took the owner's rights to the job's directory; they are given back");
    rustix::fs::chmodat(at, name, Mode::RWXU, AtFlags::empty())
}

/// Renames to `name`, or to `name.2` and on when that is taken.
pub(super) fn set_aside(job: BorrowedFd<'_>, from: &str, name: &str) -> Result<(), Errno> {
    let mut target = name.to_owned();
    for n in 2..10_000 {
        match rename_new(job, from, job, target.as_str()) {
            Err(Errno::EXIST) => target = format!("{name}.{n}"),
            other => return other,
        }
    }
    Err(Errno::EXIST)
}

/// The next free `result.<k>.json`.
pub(super) fn keep_result(job: BorrowedFd<'_>) -> Result<(), Errno> {
    for k in 1..100_000 {
        match rename_new(job, RESULT, job, format!("result.{k}.json").as_str()) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
    Err(Errno::EXIST)
}

pub(super) fn unlink_if_there(at: impl AsFd, name: impl rustix::path::Arg, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(at, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes a job's directory that never got a payload: our own files, and only empty directories.
pub(super) fn remove_empty_job(claimed: BorrowedFd<'_>, dir: &str) -> Result<(), Errno> {
    let job = match open_dir(claimed, dir) {
        Ok(job) => job,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    // The payload's place first: while anything is in it, nothing else is touched.
    for name in [ITEM, COMPANIONS, OUT] {
        unlink_if_there(&job, name, AtFlags::REMOVEDIR)?;
    }
    for name in [JOB_TMP, RESULT_TMP, FOLDER, LOCK, JOB] {
        unlink_if_there(&job, name, AtFlags::empty())?;
    }
    unlink_if_there(claimed, dir, AtFlags::REMOVEDIR)
}
