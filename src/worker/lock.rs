//! A job's `lock` file. The worker's process inherits the `flock` on it and holds it alone: "free" means that nothing
//! which kept its descriptors lives. What it says (attempt, process, boot) finds those that closed theirs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::devices::DeviceId;

/// The content of a job's `lock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub struct LockRecord {
    pub attempt: u32,
    /// The leader of the worker's process group.
    pub pid: i32,
    /// When it started, in clock ticks since the boot: with the boot, what tells it from a later process of that number.
    pub start_ticks: u64,
    pub boot_id: String,
    /// What a director that is killed would else take with it: when the attempt began, and on what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

impl LockRecord {
    /// What the lock of a job says; nothing where none was started, or the write was cut off.
    pub fn read(dir: &Path) -> io::Result<Option<LockRecord>> {
        match open(File::options().read(true), dir).and_then(read_all) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

const NAME: &str = "lock";

/// The worker may have put anything under the name: a link isn't followed, and a FIFO's other end isn't waited for.
fn open(options: &mut OpenOptions, dir: &Path) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(dir.join(NAME))
}

fn read_all(file: File) -> io::Result<Vec<u8>> {
    /// What is longer isn't ours.
    const LONGEST: u64 = 64 << 10;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Says who has a job without holding its lock: a resident worker's process can't inherit one that came later. Its own
/// lock tells whether it lives.
pub(super) fn note(dir: &Path, record: &LockRecord) -> io::Result<()> {
    let file = open(File::options().read(true).write(true).create(true).truncate(false).mode(0o640), dir)?;
    JobLock { file }.write(record)
}

/// The lock, taken. Dropping it leaves it to the processes that inherited it.
#[derive(Debug)]
pub(super) struct JobLock {
    file: File,
}

/// Whether a lock could be had.
#[derive(Debug)]
pub(super) enum Taken {
    Yes(JobLock),
    /// Something of an earlier attempt lives, or is only just going.
    Held,
}

impl JobLock {
    pub(super) fn take(dir: &Path) -> io::Result<Taken> {
        let file = open(File::options().read(true).write(true).create(true).truncate(false).mode(0o640), dir)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Taken::Yes(JobLock { file })),
            Err(Errno::WOULDBLOCK) => Ok(Taken::Held),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Says who holds it.
    pub(super) fn write(&self, record: &LockRecord) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        self.file.write_all_at(&text, 0)?;
        if self.file.metadata()?.len() > text.len() as u64 {
            self.file.set_len(text.len() as u64)?;
        }
        Ok(())
    }
}

/// Whether somebody holds a job's lock.
pub fn is_held(dir: &Path) -> bool {
    let Ok(file) = open(File::options().read(true), dir) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::boot_id;

    #[test]
    fn a_lock_is_held_until_its_last_copy_is_closed_and_says_who_had_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()));
        assert_eq!(LockRecord::read(dir.path()).unwrap(), None);
        let Taken::Yes(lock) = JobLock::take(dir.path()).unwrap() else { panic!("free") };
        let copy = lock.file().try_clone().unwrap();
        let record = |attempt, pid| LockRecord {
            attempt,
            pid,
            start_ticks: 5,
            boot_id: boot_id().to_owned(),
            ..LockRecord::default()
        };
        lock.write(&record(1, 1_000_000)).unwrap();
        lock.write(&record(2, 7)).unwrap();
        drop(lock);
        assert!(is_held(dir.path()));
        assert!(matches!(JobLock::take(dir.path()).unwrap(), Taken::Held));
        drop(copy);
        assert!(!is_held(dir.path()));
        assert_eq!(LockRecord::read(dir.path()).unwrap(), Some(record(2, 7)));
    }
}
