//! Room on the root's file system: watermarks for space and file nodes, and the ballast, a file that is given up when a
//! finish finds the disk full, so that what has run can still be committed.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatVfs};
use rustix::io::Errno;

use super::pace::RoomSeen;
use super::record;
use crate::health::{Check, What};
use crate::units::Bytes;

const BALLAST: &str = "ballast";
const BALLAST_SIZE: u64 = 64 << 20;

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// Claims wait; finishes go on.
    Low,
}

#[derive(Debug)]
pub(super) struct Space {
    /// `.gamdok/`.
    state: OwnedFd,
    ballast: bool,
    /// It is to be made when nothing else waits: 64 MiB take a while.
    wanted: u64,
    /// A write failed for want of room since the last time there was enough.
    full: bool,
    last: Option<Check>,
    seen: Option<Level>,
}

/// What the file system says, in bytes and nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    size: u64,
    free: u64,
    /// None: it has no fixed number of nodes.
    nodes: Option<(u64, u64)>,
}

impl Level {
    fn of(fs: &StatVfs) -> Level {
        let nodes = (fs.f_files > 0).then_some((fs.f_files, fs.f_favail));
        Level { size: fs.f_blocks * fs.f_frsize, free: fs.f_bavail * fs.f_frsize, nodes }
    }

    /// Claims wait below this: max(2 %, 5 GB), but never more than 5 % of a small file system.
    fn watermark(&self) -> u64 {
        (self.size / 50).max(5_000_000_000).min(self.size / 20)
    }

    fn ballast(&self) -> u64 {
        BALLAST_SIZE.min(self.size / 50)
    }

    /// Why it is low, if it is.
    fn shortage(&self) -> Option<String> {
        if self.free < self.watermark() {
            let (free, least) = (Bytes(self.free), Bytes(self.watermark()));
            return Some(format!("{free} free on the root's file system, claims need {least}: make room"));
        }
        match self.nodes {
            Some((all, free)) if free < (all / 50).clamp(64, 10_000).min(all / 10) => {
                Some(format!("{free} of {all} file nodes (inodes) free on the root's file system: delete some files"))
            }
            _ => None,
        }
    }
}

/// How much may be written on this file system before claims have to wait.
pub(crate) fn room(fs: &StatVfs) -> u64 {
    let level = Level::of(fs);
    level.free.saturating_sub(level.watermark())
}

impl Space {
    pub(super) fn new(root: impl std::os::fd::AsFd) -> Result<Space, Errno> {
        let state = record::open_dir(root, ".gamdok")?;
        let ballast = rustix::fs::statat(&state, BALLAST, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        Ok(Space { state, ballast, wanted: 0, full: false, last: None, seen: None })
    }

    /// Looks, and answers with what changed for people.
    pub(super) fn look(&mut self) -> (Room, Option<Check>) {
        let level = match rustix::fs::fstatvfs(&self.state) {
            Ok(fs) => *self.seen.insert(Level::of(&fs)),
            Err(error) => {
                self.seen = None;
                let check = Check::degraded(What::Space, format!("cannot see how much room is left: {error}"));
                return (Room::Enough, self.changed(check));
            }
        };
        if let Some(why) = level.shortage() {
            return (Room::Low, self.changed(Check::failed(What::Space, why)));
        }
        if self.full && level.free < level.watermark() + level.ballast() && !self.ballast {
            // Room for claims that would be used up at once, with nothing in reserve.
            let why = format!("{} free after a full disk: make room", Bytes(level.free));
            return (Room::Low, self.changed(Check::failed(What::Space, why)));
        }
        self.full = false;
        let fits = level.free >= level.watermark() + level.ballast();
        self.wanted = if fits && !self.ballast { level.ballast() } else { 0 };
        let check = match fits || self.ballast || level.ballast() == 0 {
            true => Check::ok(What::Space),
            false => Check::degraded(What::Space, "no room for the reserve that lets finishes through a full disk"),
        };
        (Room::Enough, self.changed(check))
    }

    /// What the last look saw.
    pub(super) fn seen(&self) -> Option<RoomSeen> {
        let level = self.seen?;
        Some(RoomSeen { size: level.size, free: level.free, needed: level.watermark() })
    }

    /// Whether the ballast is to be made.
    pub(super) fn wants_ballast(&self) -> bool {
        self.wanted > 0
    }

    pub(super) fn make_ballast(&mut self) {
        let size = std::mem::take(&mut self.wanted);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = rustix::fs::openat(&self.state, BALLAST, flags, Mode::RUSR | Mode::WUSR)
            .and_then(|file| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size.max(1)));
        match made {
            Ok(()) => self.ballast = true,
            // It reserves nothing on a file system that can't allocate ahead; then there is none.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.ballast = true,
            Err(error) => {
                tracing::debug!(%error, "the ballast can't be made");
                let _ = rustix::fs::unlinkat(&self.state, BALLAST, AtFlags::empty());
            }
        }
    }

    /// The disk is full: gives up the ballast. True when there was one, so that it is worth trying again at once.
    pub(super) fn is_full(&mut self, error: Errno) -> (bool, Option<Check>) {
        self.full = true;
        let had = std::mem::take(&mut self.ballast);
        let freed = rustix::fs::unlinkat(&self.state, BALLAST, AtFlags::empty()).is_ok() && had;
        let what = if error == Errno::DQUOT { "the quota is used up" } else { "the disk is full" };
        let why =
            format!("{what}: outcomes wait until there is room, nothing is lost; make room on the root's file system");
        (freed, self.changed(Check::failed(What::Space, why)))
    }

    /// Whether it has to be looked at again without being asked.
    pub(super) fn is_ok(&self) -> bool {
        self.last.as_ref().is_none_or(|check| check.state == crate::health::Condition::Ok)
    }

    /// Whether a small durable write works again.
    pub(super) fn try_writing(&self) -> Result<(), Errno> {
        let file = record::write(&self.state, "spool.tmp", b"gamdok\n")?;
        rustix::fs::fsync(file)?;
        rustix::fs::unlinkat(&self.state, "spool.tmp", AtFlags::empty())
    }

    fn changed(&mut self, check: Check) -> Option<Check> {
        // Said once for a state; the free bytes in its words change all the time.
        if self.last.as_ref().is_some_and(|last| last.state == check.state) {
            return None;
        }
        self.last = Some(check.clone());
        Some(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_wait_below_the_watermark_of_their_file_system() {
        let check = |size: u64, free: u64, nodes, low: bool| {
            let level = Level { size, free, nodes };
            assert_eq!(level.shortage().is_some(), low, "{level:?}");
        };
        let (gib, tib, mib) = (1 << 30, 1 << 40, 1 << 20);
        check(tib, 21 * gib, None, false);
        check(tib, 20 * gib, None, true);
        check(200 * gib, 5 * gib, None, false);
        check(200 * gib, 4 * gib, None, true);
        check(64 * mib, 4 * mib, None, false);
        check(64 * mib, 3 * mib, None, true);
        check(64 * mib, 60 * mib, Some((1000, 100)), false);
        check(64 * mib, 60 * mib, Some((1000, 10)), true);
        check(64 * mib, 60 * mib, Some((10_000_000, 9_000)), true);
    }

    #[test]
    fn the_ballast_is_made_given_up_and_made_again() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join(".gamdok")).unwrap();
        let root = record::open_dir(rustix::fs::CWD, temp.path()).unwrap();
        let mut space = Space::new(&root).unwrap();
        let ballast = temp.path().join(".gamdok/ballast");
        let (room, first) = space.look();
        if room == Room::Low {
            // The machine that runs this has a full disk.
            return;
        }
        assert!(first.is_some() && space.wants_ballast());
        space.make_ballast();
        assert!(ballast.exists() && !space.wants_ballast());
        let (freed, check) = space.is_full(Errno::NOSPC);
        assert!(freed && check.is_some() && !ballast.exists() && !space.is_ok());
        assert!(!space.is_full(Errno::NOSPC).0);
        assert_eq!(space.look().0, Room::Enough);
        space.make_ballast();
        assert!(ballast.exists() && space.is_ok());
    }
}
