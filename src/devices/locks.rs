//! What keeps the directors of one host apart: a `flock` per device, on a file named after its UUID in a folder that all
//! of them know. Held while a lease is, and inherited by the worker, so it outlives a director that is killed.
//!
//! A lock is one open file description: every copy of the descriptor, a child's too, holds it; the last close frees it.
//! Where several folders are usable the lock is taken in each, in the same order, so directors that see only some of
//! them still meet.
//!
//! Who waits for a device that another one uses holds a second lock of it, a shared one on a file beside: its sign, gone
//! with its process. Whoever uses the device looks for signs by asking for that lock alone.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RawMode};
use rustix::io::Errno;

use super::DeviceId;
use crate::units::Moment;

/// Instead of the folders below.
const FOLDER_VARIABLE: &str = "GAMDOK_LOCK_DIR";
const FOLDERS: [&str; 2] = ["/run/lock/gamdok", "/tmp/gamdok-lock"];

/// The device can't be had; the reason in words for people.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Held(pub String);

/// The device locks of one director.
#[derive(Debug, Default)]
pub struct Locks {
    folders: Vec<Folder>,
    /// What live leases hold; a shared device's leases share one lock.
    held: HashMap<DeviceId, Vec<Weak<OwnedFd>>>,
    /// The devices we have been using.
    turns: HashMap<DeviceId, Turn>,
    /// The devices we would like to use, others see that by these locks; and when we last tried.
    waiting: HashMap<DeviceId, (Vec<OwnedFd>, Moment)>,
}

/// How long a director goes on using a device that another one waits for. A hand-over costs up to a second of the
/// device's time, since whoever waits tries once a second.
const TURN: Duration = Duration::from_secs(10);
/// How long it then leaves the device alone before it goes on after all: whoever waits must see it clean twice, a second
/// apart, before it takes it.
const YIELD: Duration = Duration::from_secs(5);
/// A director that hasn't tried for so long waits no more.
const WAITING: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
struct Turn {
    since: Moment,
    yields: Option<Moment>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    dir: OwnedFd,
}

impl Locks {
    /// Opens the folders of this host, and creates them where they are missing.
    pub fn open() -> Locks {
        match std::env::var_os(FOLDER_VARIABLE) {
            Some(folder) => Locks::in_folders(&[PathBuf::from(folder)]),
            None => Locks::in_folders(&FOLDERS.map(PathBuf::from)),
        }
    }

    fn in_folders(paths: &[PathBuf]) -> Locks {
        let mut folders = Vec::new();
        for path in paths {
            match open_folder(path) {
                Ok(dir) => folders.push(Folder { path: path.clone(), dir }),
                Err(error) => tracing::debug!(folder = %path.display(), %error, "no device locks here"),
            }
        }
        if folders.is_empty() {
            let tried: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            tracing::warn!(
                tried = tried.join(", "),
                "no folder for device locks: other directors of this host aren't kept apart; set {FOLDER_VARIABLE}"
            );
        }
        Locks { folders, ..Locks::default() }
    }

    /// The folders in use, for `doctor`; none means that nothing keeps directors apart.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(|folder| folder.path.as_path())
    }

    /// Takes the device's lock for one lease. With work in hand a director would take it again within milliseconds, and
    /// nobody else would ever get it: so after its turn it leaves the device to whoever waits.
    pub fn take(&mut self, id: &DeviceId, now: Moment) -> Result<Vec<Arc<OwnedFd>>, Held> {
        // Our own sign would pass for another's.
        self.waiting.remove(id);
        let turn = self.turns.get(id).copied().filter(|turn| now.since(turn.since) >= TURN);
        if let Some(turn) = turn
            && self.is_awaited(id)
        {
            let since = turn.yields.unwrap_or(now);
            if now.since(since) < YIELD {
                self.turns.insert(id.clone(), Turn { yields: Some(since), ..turn });
                return Err(Held("it is the turn of another one, which waits for it".to_owned()));
            }
            self.turns.remove(id);
        }
        match self.try_hold(id) {
            Ok(fds) => {
                self.turns.entry(id.clone()).or_insert(Turn { since: now, yields: None }).yields = None;
                Ok(fds)
            }
            Err(held) => {
                self.turns.remove(id);
                self.wait_for(id, now);
                Err(held)
            }
        }
    }

    /// Lets the others know that we would like to have a device, until `stop_waiting` or until we have it.
    pub fn wait_for(&mut self, id: &DeviceId, now: Moment) {
        if !has_lock(id) {
            return;
        }
        let (signs, tried) = self.waiting.entry(id.clone()).or_default();
        *tried = now;
        // Where somebody looked for signs at that very moment there was none to be had; the next time there is.
        if signs.len() < self.folders.len() {
            let name = waiting_name(id);
            let sign = |folder: &Folder| folder.try_flock(&name, FlockOperation::NonBlockingLockShared).ok();
            *signs = self.folders.iter().filter_map(sign).collect();
        }
    }

    /// Lets the others know that we don't wait for a device any more, where we haven't tried for some time.
    pub fn stop_waiting(&mut self, now: Moment) {
        self.waiting.retain(|_, (_, tried)| now.since(*tried) < WAITING);
    }

    /// The same for all of them: nothing of ours waits.
    pub fn wait_for_none(&mut self) {
        self.waiting.clear();
    }

    /// Whether another director waits for a device of ours.
    pub fn is_awaited(&self, id: &DeviceId) -> bool {
        if !has_lock(id) {
            return false;
        }
        let name = waiting_name(id);
        let tried = |folder: &Folder| folder.try_flock(&name, FlockOperation::NonBlockingLockExclusive).err();
        self.folders.iter().any(|folder| tried(folder) == Some(Errno::WOULDBLOCK))
    }

    /// Takes the device's lock, or shares the one our own leases hold. The lock lasts as long as the descriptors.
    pub fn try_hold(&mut self, id: &DeviceId) -> Result<Vec<Arc<OwnedFd>>, Held> {
        if !has_lock(id) {
            return Ok(Vec::new());
        }
        let shared: Option<Vec<_>> = self.held.get(id).and_then(|fds| fds.iter().map(Weak::upgrade).collect());
        if let Some(fds) = shared.filter(|fds| fds.len() == self.folders.len()) {
            return Ok(fds);
        }
        let fds: Result<Vec<_>, Held> = self.folders.iter().map(|folder| folder.lock(id).map(Arc::new)).collect();
        let fds = fds?;
        self.held.retain(|_, fds| fds.iter().any(|fd| fd.strong_count() > 0));
        self.held.insert(id.clone(), fds.iter().map(Arc::downgrade).collect());
        Ok(fds)
    }
}

impl Folder {
    fn lock(&self, id: &DeviceId) -> Result<OwnedFd, Held> {
        let name = file_name(id);
        // A file replaced between open and lock is somebody's clean-up; it can't happen forever.
        for _ in 0..16 {
            let file = self.open_file(&name).map_err(|error| self.unusable(&name, error))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if self.is_current(&file, &name) => return Ok(file),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(Held(self.holder(&file))),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.unusable(&name, error)),
            }
        }
        Err(Held(format!("its lock file {} is replaced again and again", self.path.join(&name).display())))
    }

    fn try_flock(&self, name: &OsString, how: FlockOperation) -> Result<OwnedFd, Errno> {
        let file = self.open_file(name)?;
        rustix::fs::flock(&file, how).map(|()| file)
    }

    /// Read-only first, since the kernel refuses O_CREAT on others' files in a sticky folder (fs.protected_regular).
    fn open_file(&self, name: &OsString) -> Result<OwnedFd, Errno> {
        let common = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        for _ in 0..16 {
            match rustix::fs::openat(&self.dir, name, OFlags::RDONLY | common, Mode::empty()) {
                Err(Errno::NOENT) => {}
                opened => return opened,
            }
            let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | common;
            match rustix::fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o666)) {
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    // Whatever our umask: another user's director must be able to open it.
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
                    return Ok(file);
                }
            }
        }
        Err(Errno::AGAIN)
    }

    fn is_current(&self, file: &OwnedFd, name: &OsString) -> bool {
        let locked = rustix::fs::fstat(file);
        let named = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        matches!((locked, named), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// Who holds it, as the kernel lists locks: by the inode, with the PID that took it.
    fn holder(&self, file: &OwnedFd) -> String {
        let pid = rustix::fs::fstat(file).ok().and_then(|stat| {
            let inode = format!(":{}", stat.st_ino);
            let locks = fs::read_to_string("/proc/locks").ok()?;
            let line = locks.lines().find(|line| {
                let mut fields = line.split_ascii_whitespace();
                fields.nth(1) == Some("FLOCK") && fields.nth(3).is_some_and(|file| file.ends_with(&inode))
            })?;
            line.split_ascii_whitespace().nth(4)?.parse::<u32>().ok()
        });
        match pid {
            Some(pid) if pid == std::process::id() => {
                format!("its lock in {} is still held by what an ended worker left behind", self.path.display())
            }
            Some(pid) => format!("its lock in {} was taken by pid {pid}", self.path.display()),
            None => format!("its lock in {} is taken", self.path.display()),
        }
    }

    fn unusable(&self, name: &OsString, error: Errno) -> Held {
        let file = self.path.join(name);
        Held(format!("its lock file {} can't be used: {}", file.display(), io::Error::from(error)))
    }
}

/// Only real GPUs have a lock: CPU slots and simulated devices are each director's own.
fn has_lock(id: &DeviceId) -> bool {
    *id != DeviceId::cpu() && !id.0.starts_with("SIM-")
}

/// A folder for everybody, like `/tmp`: not a link, since anybody may have put one there.
fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    match fs::create_dir(path) {
        // After the umask.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o1777))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    let writable = rustix::fs::accessat(&dir, ".", rustix::fs::Access::WRITE_OK, AtFlags::EACCESS);
    let meta = fs::metadata(path)?;
    let stat = rustix::fs::fstat(dir.as_fd())?;
    if (meta.dev(), meta.ino()) != (stat.st_dev, stat.st_ino) {
        return Err(io::Error::other("it was replaced while it was opened"));
    }
    // A folder only its owner can write is that owner's, and useless for keeping users apart, but one may have been
    // named by hand.
    writable?;
    let mode = stat.st_mode as RawMode & 0o7777;
    if mode & 0o002 == 0 && stat.st_uid == rustix::process::geteuid().as_raw() {
        tracing::debug!(folder = %path.display(), "other users can't create device locks here");
    }
    Ok(dir)
}

/// UUIDs are plain text; what isn't becomes `_`, so that no id can name another place.
fn file_name(id: &DeviceId) -> OsString {
    named(id, "lock")
}

/// Held, shared, by those who would like to have the device.
fn waiting_name(id: &DeviceId) -> OsString {
    named(id, "waiting")
}

fn named(id: &DeviceId, extension: &str) -> OsString {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    let name: String = id.0.chars().take(200).map(safe).collect();
    format!("{name}.{extension}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str) -> DeviceId {
        DeviceId(format!("GPU-{name}"))
    }

    #[test]
    fn two_directors_never_hold_one_device() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a"), dir.path().join("b")];
        let (mut first, mut second) = (Locks::in_folders(&folders), Locks::in_folders(&folders[1..]));
        let held = first.try_hold(&gpu("x")).unwrap();
        assert_eq!(held.len(), 2);
        let refused = second.try_hold(&gpu("x")).unwrap_err();
        assert!(refused.0.starts_with(&format!("its lock in {} ", folders[1].display())), "{refused}");
        assert!(second.try_hold(&gpu("y")).is_ok());
        drop(held);
        assert!(second.try_hold(&gpu("x")).is_ok());
    }

    #[test]
    fn leases_of_a_shared_device_share_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a")];
        let (mut ours, mut theirs) = (Locks::in_folders(&folders), Locks::in_folders(&folders));
        let (one, two) = (ours.try_hold(&gpu("x")).unwrap(), ours.try_hold(&gpu("x")).unwrap());
        drop(one);
        assert!(theirs.try_hold(&gpu("x")).is_err());
        // A worker that inherited it holds on to it.
        let inherited = two[0].try_clone().unwrap();
        drop(two);
        assert!(theirs.try_hold(&gpu("x")).is_err());
        assert!(ours.try_hold(&gpu("x")).is_err());
        drop(inherited);
        assert!(theirs.try_hold(&gpu("x")).is_ok());
    }

    #[test]
    fn directors_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a")];
        let (mut ours, mut theirs) = (Locks::in_folders(&folders), Locks::in_folders(&folders));
        let at = |seconds| Moment(Duration::from_secs(seconds));
        // Alone, a turn has no end.
        for seconds in [0, 5, 100] {
            assert!(ours.take(&gpu("x"), at(seconds)).is_ok(), "{seconds}");
        }
        let held = ours.take(&gpu("x"), at(200)).unwrap();
        assert!(theirs.take(&gpu("x"), at(200)).is_err());
        drop(held);
        assert!(ours.take(&gpu("x"), at(201)).is_err());
        let held = theirs.take(&gpu("x"), at(201)).unwrap();
        // The lock says so now, and the other's turn begins.
        assert!(ours.take(&gpu("x"), at(202)).is_err());
        drop(held);
        drop(theirs.take(&gpu("x"), at(205)).unwrap());
        assert!(theirs.take(&gpu("x"), at(211)).is_err());
        // Whoever waits and doesn't come forfeits it.
        assert!(theirs.take(&gpu("x"), at(215)).is_err());
        assert!(theirs.take(&gpu("x"), at(216)).is_ok());
        // Whoever waits no more is waited for no more.
        ours.stop_waiting(at(230));
        assert!(theirs.take(&gpu("x"), at(231)).is_ok());
    }

    #[test]
    fn whoever_waits_is_seen_until_it_has_the_device_or_waits_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a"), dir.path().join("b")];
        let (mut ours, mut theirs) = (Locks::in_folders(&folders), Locks::in_folders(&folders[1..]));
        let at = |seconds| Moment(Duration::from_secs(seconds));
        assert!(!ours.is_awaited(&gpu("x")));
        theirs.wait_for(&gpu("x"), at(0));
        assert!(ours.is_awaited(&gpu("x")) && !ours.is_awaited(&gpu("y")));
        // Looking takes nothing away, and several may wait.
        ours.wait_for(&gpu("x"), at(0));
        assert!(ours.is_awaited(&gpu("x")));
        theirs.wait_for(&gpu("x"), at(2));
        theirs.stop_waiting(at(4));
        ours.wait_for_none();
        assert!(ours.is_awaited(&gpu("x")));
        theirs.stop_waiting(at(5));
        assert!(!ours.is_awaited(&gpu("x")));
        theirs.wait_for(&gpu("x"), at(6));
        drop(theirs.take(&gpu("x"), at(6)).unwrap());
        assert!(!ours.is_awaited(&gpu("x")));
        // A sign ends with its process.
        theirs.wait_for(&gpu("x"), at(7));
        drop(theirs);
        assert!(!ours.is_awaited(&gpu("x")));
    }

    #[test]
    fn a_sign_that_was_not_to_be_had_is_had_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a")];
        let (ours, mut theirs) = (Locks::in_folders(&folders), Locks::in_folders(&folders));
        let name = waiting_name(&gpu("x"));
        let look = ours.folders[0].try_flock(&name, FlockOperation::NonBlockingLockExclusive).unwrap();
        theirs.wait_for(&gpu("x"), Moment::default());
        drop(look);
        assert!(!ours.is_awaited(&gpu("x")));
        theirs.wait_for(&gpu("x"), Moment::default());
        assert!(ours.is_awaited(&gpu("x")));
    }

    /// One that waited while another one used the device doesn't wait for itself once it is its own.
    #[test]
    fn nobody_leaves_a_device_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a")];
        let mut ours = Locks::in_folders(&folders);
        let at = |seconds| Moment(Duration::from_secs(seconds));
        drop(ours.take(&gpu("x"), at(0)).unwrap());
        ours.wait_for(&gpu("x"), at(20));
        assert!(ours.take(&gpu("x"), at(20)).is_ok());
    }

    #[test]
    fn a_replaced_file_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a");
        let mut locks = Locks::in_folders(std::slice::from_ref(&folder));
        let held = locks.try_hold(&gpu("x")).unwrap();
        fs::remove_file(folder.join("GPU-x.lock")).unwrap();
        assert!(!locks.folders[0].is_current(&held[0], &"GPU-x.lock".into()));
        // Another director takes the new file; ours is no longer the one that counts.
        assert!(Locks::in_folders(&[folder]).try_hold(&gpu("x")).is_ok());
    }

    #[test]
    fn hostile_names_stay_in_the_folder() {
        let check = |id: &str, name: &str| assert_eq!(file_name(&DeviceId(id.into())), *name);
        check("GPU-0a1b-2", "GPU-0a1b-2.lock");
        check("../../etc/passwd\n", "______etc_passwd_.lock");
        check("MIG-GPU-a/1/0", "MIG-GPU-a_1_0.lock");
    }

    #[test]
    fn folders_are_for_everybody_and_links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        let locks = Locks::in_folders(std::slice::from_ref(&real));
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(locks.folders().collect::<Vec<_>>(), [real.as_path()]);
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(Locks::in_folders(&[link]).folders().count(), 0);
    }

    #[test]
    fn only_real_gpus_are_locked() {
        let mut locks = Locks::default();
        assert!(locks.try_hold(&DeviceId::cpu()).unwrap().is_empty());
        assert!(locks.try_hold(&DeviceId("SIM-0".into())).unwrap().is_empty());
        locks.wait_for(&DeviceId::cpu(), Moment::default());
        assert!(locks.waiting.is_empty() && !locks.is_awaited(&DeviceId::cpu()));
    }
}
