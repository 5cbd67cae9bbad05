//! Outputs of a committed item, linked (copied across file systems) into a folder that the route names. On a thread of
//! its own: the folder may lie on a slow mount. Invariant: the copy is made under a hidden name and appears whole; a kill
//! at any point leaves what is needed to do it again, once: the mark tells which directory was about to get which name.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::fault_points::Faults;
use super::ground::Ground;
use super::record;
use crate::item::{ItemName, JobId, escape};

/// Stands in the job's directory from before the commit until the outputs are published.
const MARK: &str = "publish.tmp";

const PIECE: u64 = 16 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Mark {
    /// The name it was about to get.
    target_b64: Option<String>,
    /// The directory that was to get it: whatever else has that name is another's.
    ino: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Order {
    pub(super) id: JobId,
    pub(super) name: ItemName,
    /// Open, so that a move doesn't matter.
    pub(super) job: OwnedFd,
    pub(super) into: PathBuf,
}

/// The publisher's word to the spool: done, or why not.
pub(super) type Published = (JobId, Result<(), String>);

pub(super) fn intend(job: BorrowedFd<'_>) -> Result<(), Errno> {
    record::write(job, MARK, &record::json(&Mark::default())?).map(drop)
}

pub(super) fn is_intended(job: impl AsFd) -> Result<bool, Errno> {
    match rustix::fs::statat(job, MARK, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends when the spool drops its sender.
pub(super) fn run(orders: Receiver<Order>, answers: Sender<Published>, ground: &Ground, progress: &AtomicU64) {
    for order in orders {
        let outcome = order.carry_out(&ground.faults, progress).map_err(|error| {
            format!(
                "the outputs of `{}` (job {}) are not in `{}`: {error}; they lie in the job's out/",
                order.name.escaped(),
                order.id,
                escape(order.into.as_os_str().as_encoded_bytes())
            )
        });
        if answers.send((order.id, outcome)).is_err() {
            return;
        }
    }
}

impl Order {
    pub(super) fn carry_out(&self, faults: &Faults, progress: &AtomicU64) -> io::Result<()> {
        progress.fetch_add(1, Ordering::Relaxed);
        std::fs::create_dir_all(&self.into)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let into = rustix::fs::open(&self.into, flags, Mode::empty())?;
        let hidden = format!(".gamdok-{}.tmp", self.id);
        let half_done = rustix::fs::statat(&into, &hidden, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if !half_done && self.is_published(&into)? {
            rustix::fs::fsync(&into)?;
            return self.unmark();
        }
        if half_done {
            // From a publisher that was cut off; the name can only be ours.
            intend(self.job.as_fd())?;
            std::fs::remove_dir_all(self.into.join(&hidden))?;
        }
        rustix::fs::mkdirat(&into, &hidden, Mode::from_raw_mode(0o777))?;
        let copied = (|| {
            let target = record::open_dir(&into, hidden.as_str())?;
            copy_tree(&record::open_dir(&self.job, record::OUT)?, &target, progress)?;
            faults.at("publish.staged")?;
            self.give_name(&into, &target, &hidden)
        })();
        if copied.is_err() && !self.is_published(&into)? {
            // First the mark: another directory may get the number of the one that is removed.
            intend(self.job.as_fd())?;
            let _ = std::fs::remove_dir_all(self.into.join(&hidden));
        }
        copied?;
        faults.at("publish.named")?;
        self.unmark()
    }

    fn is_published(&self, into: &OwnedFd) -> io::Result<bool> {
        let mark: Mark = match record::read(&self.job, MARK)? {
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            None => return Ok(true),
        };
        let Some(target) = mark.target_b64.and_then(|text| ItemName::from_base64(&text)) else { return Ok(false) };
        Ok(is_named(into, target.as_bytes(), mark.ino))
    }

    /// The item's name, or the first of `~2`, `~3`… that is free.
    fn give_name(&self, into: &OwnedFd, made: &OwnedFd, hidden: &str) -> io::Result<()> {
        let ino = Some(rustix::fs::fstat(made)?.st_ino);
        for n in 1..100_000u32 {
            let mut target = self.name.as_bytes().to_vec();
            if n > 1 {
                target.extend_from_slice(format!("~{n}").as_bytes());
            }
            let there = rustix::fs::statat(into, target.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_ok();
            if there {
                continue;
            }
            let mark = Mark { target_b64: Some(BASE64.encode(&target)), ino };
            // Durable before the name is.
            rustix::fs::fdatasync(record::write(&self.job, MARK, &record::json(&mark)?)?)?;
            match record::rename_new(into, hidden, into, target.as_slice()) {
                Ok(()) => return Ok(rustix::fs::fsync(into)?),
                // A reply that got lost.
                Err(_) if is_named(into, &target, ino) => return Ok(rustix::fs::fsync(into)?),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("every name is taken"))
    }

    fn unmark(&self) -> io::Result<()> {
        Ok(record::unlink_if_there(&self.job, MARK, AtFlags::empty())?)
    }
}

fn is_named(into: &OwnedFd, name: &[u8], ino: Option<u64>) -> bool {
    rustix::fs::statat(into, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| Some(stat.st_ino) == ino)
}

fn copy_tree(from: &OwnedFd, to: &OwnedFd, progress: &AtomicU64) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        progress.fetch_add(1, Ordering::Relaxed);
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o777))?;
                copy_tree(&record::open_dir(from, name)?, &record::open_dir(to, name)?, progress)?;
            }
            FileType::Symlink => {
                rustix::fs::symlinkat(rustix::fs::readlinkat(from, name, Vec::new())?, to, name)?;
            }
            FileType::RegularFile => {
                // Another file system, or one without hard links.
                if rustix::fs::linkat(from, name, to, name, AtFlags::empty()).is_err() {
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let mut source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
                    let mut target = File::from(rustix::fs::openat(to, name, flags, mode)?);
                    // In pieces, so that a copy that is slow can be told from one that hangs.
                    while io::copy(&mut (&mut source).take(PIECE), &mut target)? > 0 {
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    target.sync_all()?;
                }
            }
            other => tracing::warn!(name = escape(name.to_bytes()), kind = ?other, "a special file is not published"),
        }
    }
    Ok(rustix::fs::fsync(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(temp: &std::path::Path) -> Order {
        std::fs::create_dir_all(temp.join("job/out/sub")).unwrap();
        std::fs::write(temp.join("job/out/sub/a"), "1").unwrap();
        std::fs::write(temp.join("job/out/b"), "22").unwrap();
        let job = record::open_dir(rustix::fs::CWD, temp.join("job")).unwrap();
        intend(job.as_fd()).unwrap();
        Order { id: JobId(ulid::Ulid::generate()), name: ItemName::new("x.wav"), job, into: temp.join("into") }
    }

    fn published(temp: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(temp.join("into")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn outputs_appear_once_and_a_clash_gets_a_number() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("into/x.wav")).unwrap();
        let order = order(temp.path());
        order.carry_out(&Faults::default(), &AtomicU64::default()).unwrap();
        assert_eq!(published(temp.path()), ["x.wav", "x.wav~2"]);
        assert_eq!(std::fs::read(temp.path().join("into/x.wav~2/sub/a")).unwrap(), b"1");
        assert!(!is_intended(&order.job).unwrap());
        order.carry_out(&Faults::default(), &AtomicU64::default()).unwrap();
        assert_eq!(published(temp.path()), ["x.wav", "x.wav~2"]);
    }

    #[test]
    fn a_cut_at_any_point_is_made_good_once() {
        for point in ["publish.staged", "publish.named"] {
            let temp = tempfile::tempdir().unwrap();
            let order = order(temp.path());
            order.carry_out(&Faults::failing(point, Errno::IO, "1"), &AtomicU64::default()).unwrap_err();
            assert!(is_intended(&order.job).unwrap());
            if point == "publish.staged" {
                // Another's item of the same name comes first.
                std::fs::create_dir(temp.path().join("into/x.wav")).unwrap();
            }
            order.carry_out(&Faults::default(), &AtomicU64::default()).unwrap();
            let expected = if point == "publish.staged" { &["x.wav", "x.wav~2"][..] } else { &["x.wav"] };
            assert_eq!(published(temp.path()), expected, "{point}");
        }
    }

    #[test]
    fn anothers_directory_under_the_name_it_was_to_get_is_not_taken_for_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let order = order(temp.path());
        std::fs::create_dir_all(temp.path().join("into/x.wav")).unwrap();
        for ino in [None, Some(1)] {
            let mark = Mark { target_b64: Some(BASE64.encode("x.wav")), ino };
            record::write(&order.job, MARK, &record::json(&mark).unwrap()).unwrap();
            order.carry_out(&Faults::default(), &AtomicU64::default()).unwrap();
        }
        assert_eq!(published(temp.path()), ["x.wav", "x.wav~2", "x.wav~3"]);
    }
}
