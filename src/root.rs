//! The root directory: its paths, the sentinel that proves it is the right one, the lock that keeps it to one director,
//! and the probe that finds out by real renames whether items can move through it. Invariant: only `init` makes a root;
//! where the sentinel is missing, nothing is created and nothing is concluded.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::item::escape;
use crate::proc::ProcStat;

/// The layout that this program writes and understands.
const VERSION: u32 = 1;

/// An existing root.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    dir: OwnedFd,
    sentinel: Sentinel,
}

/// `.gamdok/root.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sentinel {
    uuid: String,
    version: u32,
}

/// What `init` did.
#[derive(Clone, Debug, PartialEq)]
pub struct InitReport {
    pub root: PathBuf,
    /// What was made, in order; empty when everything was there.
    pub made: Vec<PathBuf>,
    /// It was a root already.
    pub existed: bool,
}

/// Why a root can't be used; ends the program with [`RootError::exit_code`].
#[derive(Debug)]
pub struct RootError {
    kind: Kind,
    message: String,
    help: String,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Unavailable,
    Held,
}

impl RootError {
    pub(crate) fn unavailable(message: impl Into<String>, help: impl Into<String>) -> RootError {
        RootError { kind: Kind::Unavailable, message: message.into(), help: help.into() }
    }

    /// 4: another director holds it. 5: it is unavailable.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Held => 4,
            Kind::Unavailable => 5,
        }
    }

    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self.kind {
            Kind::Held => "root-held",
            Kind::Unavailable => "root-unavailable",
        }
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhelp: {}", self.message, self.help)
    }
}

impl std::error::Error for RootError {}

/// A path as it may be printed.
pub fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

impl Root {
    /// Below the root: the directories of resident workers.
    pub(crate) const RESIDENTS: &str = ".gamdok/residents";

    /// Makes `dir` a root: the directories and the sentinel. Overwrites nothing; what is there stays as it is.
    pub fn init(dir: &Path) -> Result<InitReport, RootError> {
        let root = absolute(dir)?;
        let failed = |path: &Path, error: &io::Error| {
            RootError::unavailable(
                format!("cannot create `{}`: {error}", shown(path)),
                "choose a folder that this user may write to, on a file system with room",
            )
        };
        let mut made = Vec::new();
        let mut make = |path: PathBuf, mode: u32| -> Result<(), RootError> {
            match std::fs::create_dir(&path) {
                // Not at creation: the umask would take the group's bits away.
                Ok(()) => {
                    std::fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|e| failed(&path, &e))?
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
                Err(error) => return Err(failed(&path, &error)),
            }
            made.push(path);
            Ok(())
        };
        if let Some(parent) = root.parent() {
            std::fs::create_dir_all(parent).map_err(|e| failed(parent, &e))?;
        }
        make(root.clone(), 0o750)?;
        make(root.join("inbox"), 0o770)?;
        for name in ["claimed", "done", "failed", ".gamdok"] {
            make(root.join(name), 0o700)?;
        }
        let path = root.join(".gamdok/root.json");
        let existed = Sentinel::read(&path, &root).map(|found| found.is_some())?;
        if !existed {
            Sentinel { uuid: fresh_uuid(), version: VERSION }.write(&path).map_err(|e| failed(&path, &e))?;
            made.push(path);
        }
        Ok(InitReport { root, made, existed })
    }

    /// Opens a root for a director: the sentinel is there, and it can be written to. Creates nothing.
    pub fn open(dir: &Path) -> Result<Root, RootError> {
        let root = Root::open_for_reading(dir)?;
        match rustix::fs::accessat(&root.dir, ".gamdok", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => Ok(root),
            Err(Errno::ROFS) => Err(RootError::unavailable(
                format!("the root `{}` is on a file system that is mounted read-only", shown(&root.path)),
                "remount it for writing (the kernel log tells whether an error made it read-only)",
            )),
            Err(error) => Err(RootError::unavailable(
                format!("the root `{}` cannot be written to: {error}", shown(&root.path)),
                "run gamdok as the user who owns it, or correct its owner with chown",
            )),
        }
    }

    /// Opens a root to look at it.
    pub fn open_for_reading(dir: &Path) -> Result<Root, RootError> {
        let path = absolute(dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| {
            let help = match error {
                Errno::NOENT => {
                    format!("mount it, name another with --root, or make one with `gamdok init {}`", shown(&path))
                }
                _ => "check the mount and the permissions of its parent folders".to_owned(),
            };
            RootError::unavailable(format!("cannot open the root `{}`: {error}", shown(&path)), help)
        })?;
        let sentinel = Sentinel::read(&path.join(".gamdok/root.json"), &path)?.ok_or_else(|| {
            RootError::unavailable(
                format!("`{}` is not a gamdok root: it has no .gamdok/root.json", shown(&path)),
                format!(
                    "if its file system isn't mounted, mount it; if it is to become a root, run `gamdok init {}`",
                    shown(&path)
                ),
            )
        })?;
        Ok(Root { path, dir: opened, sentinel })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn uuid(&self) -> &str {
        &self.sentinel.uuid
    }

    /// The open directory itself: paths below it resolve the same when the root is renamed.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn inbox(&self) -> PathBuf {
        self.path.join("inbox")
    }

    pub fn claimed(&self) -> PathBuf {
        self.path.join("claimed")
    }

    pub fn done(&self) -> PathBuf {
        self.path.join("done")
    }

    pub fn failed(&self) -> PathBuf {
        self.path.join("failed")
    }

    pub fn state(&self) -> PathBuf {
        self.path.join(".gamdok")
    }

    pub fn socket(&self) -> PathBuf {
        self.path.join(".gamdok/sock")
    }

    /// Where resident workers have their directories.
    pub fn residents(&self) -> PathBuf {
        self.path.join(Root::RESIDENTS)
    }

    pub fn lock_file(&self) -> PathBuf {
        self.path.join(".gamdok/lock")
    }

    pub fn ledger(&self) -> PathBuf {
        self.path.join(".gamdok/ledger.sqlite")
    }

    pub fn ballast(&self) -> PathBuf {
        self.path.join(".gamdok/ballast")
    }

    /// Whether it lies on a network file system.
    pub fn is_network(&self) -> bool {
        rustix::fs::fstatfs(&self.dir).is_ok_and(|fs| is_network(fs.f_type as u64))
    }

    /// Whether the path still leads to what was opened: nothing was unmounted, mounted over it, moved or replaced. A copy
    /// with the same sentinel isn't the same root.
    pub fn is_intact(&self) -> bool {
        let path = self.path.join(".gamdok/root.json");
        let same_file = || {
            let there = rustix::fs::stat(&path);
            let ours = rustix::fs::statat(&self.dir, ".gamdok/root.json", AtFlags::empty());
            there.is_ok_and(|there| ours.is_ok_and(|ours| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)))
        };
        matches!(Sentinel::read(&path, &self.path), Ok(Some(found)) if found == self.sentinel) && same_file()
    }

    /// Takes the root for this process, until the guard is dropped or the process ends.
    pub fn lock(&self) -> Result<Guard, RootError> {
        let path = self.lock_file();
        let failed = |error: io::Error| {
            RootError::unavailable(
                format!("cannot lock the root `{}`: {error}", shown(&self.path)),
                "check the permissions of .gamdok/ and the room on its file system",
            )
        };
        // Again when the file was replaced between the open and the lock: the lock would be of a file nobody sees.
        for _ in 0..8 {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => self.wait_for_last_copy(&mut file)?,
                Err(error) => return Err(failed(error.into())),
            }
            let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
            let ours = file.metadata().map_err(failed)?;
            if !std::fs::metadata(&path).is_ok_and(|seen| same(ours, seen)) {
                continue;
            }
            let pid = std::process::id();
            // For people only; the lock is what counts, so a full disk doesn't keep a director from starting.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{pid}"));
            return Ok(Guard { _file: file });
        }
        Err(failed(io::Error::other("the lock file keeps being replaced")))
    }

    /// Of a director that was killed a child may hold the lock for a moment, until it runs its program: between the two it
    /// has all that the director had open.
    fn wait_for_last_copy(&self, file: &mut File) -> Result<(), RootError> {
        let until = Instant::now() + LAST_COPY;
        loop {
            let pid = holder_in(file);
            let runs = |pid: u32| ProcStat::read(pid.cast_signed()).is_some_and(|stat| !stat.is_dead());
            let is_gone = pid.is_some_and(|pid| !runs(pid));
            if !is_gone || until <= Instant::now() {
                return Err(self.held(pid));
            }
            std::thread::park_timeout(LAST_COPY / 100);
            match rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) => {}
                Err(_) => return Err(self.held(pid)),
            }
        }
    }

    fn held(&self, pid: Option<u32>) -> RootError {
        let by = pid.map_or_else(|| "another director".to_owned(), |pid| format!("another director (process {pid})"));
        RootError {
            kind: Kind::Held,
            message: format!("{by} already runs on the root `{}`", shown(&self.path)),
            help: "one director serves a root: see it with `gamdok status`, end it with `gamdok drain`, or use another --root"
                .to_owned(),
        }
    }

    /// Makes the service's own directories where they are missing. Never the inbox: a missing one may be a mount.
    pub fn ensure_dirs(&self) -> Result<(), RootError> {
        for name in ["claimed", "done", "failed"] {
            match rustix::fs::mkdirat(&self.dir, name, Mode::RWXU) {
                Ok(()) => tracing::info!(dir = name, "made a missing directory"),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(self.unusable(name, error)),
            }
        }
        Ok(())
    }

    /// Makes the intake folders that a configuration names, where they are missing; with the inbox's own mode, so that
    /// whoever may drop there may drop here. Only below an inbox that is there: a missing one may be a mount. Answers which
    /// were made, and what couldn't be.
    pub fn make_folders<'f>(&self, folders: impl IntoIterator<Item = &'f str>) -> (Vec<String>, Vec<String>) {
        let (mut made, mut failed) = (Vec::new(), Vec::new());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inbox = rustix::fs::openat(&self.dir, "inbox", flags, Mode::empty());
        let Some(inbox) = inbox.ok().filter(|_| self.is_intact()) else { return (made, failed) };
        let mode = rustix::fs::fstat(&inbox).map_or(Mode::RWXU, |stat| Mode::from_raw_mode(stat.st_mode));
        for folder in folders.into_iter().filter(|folder| !folder.is_empty()) {
            // Not at creation: the umask would take the group's bits away.
            let outcome = rustix::fs::mkdirat(&inbox, folder, Mode::RWXU)
                .and_then(|()| rustix::fs::chmodat(&inbox, folder, mode, AtFlags::empty()));
            match outcome {
                Ok(()) => made.push(folder.to_owned()),
                Err(Errno::EXIST) => {}
                Err(error) => failed.push(format!("cannot make the intake folder `inbox/{folder}`: {error}")),
            }
        }
        (made, failed)
    }

    /// Finds out by real renames whether files and directories can move inbox -> claimed -> done -> failed and back.
    pub fn probe(&self) -> Result<Probe, RootError> {
        // The scanner ignores names that start with a dot.
        let mut noreplace = true;
        for kind in ["file", "dir"] {
            // Always the same, under the root's lock: what a killed director left of it is found and removed.
            let name = format!(".gamdok-probe-{kind}");
            self.remove_probe(&name);
            let outcome = self.probe_one(&name, kind == "dir", &mut noreplace);
            self.remove_probe(&name);
            outcome?;
        }
        Ok(Probe { noreplace, network: self.is_network() })
    }

    fn remove_probe(&self, name: &str) {
        for place in PLACES {
            let path = format!("{place}/{name}");
            let _ = rustix::fs::unlinkat(&self.dir, &path, AtFlags::empty());
            let _ = rustix::fs::unlinkat(&self.dir, &path, AtFlags::REMOVEDIR);
        }
    }

    fn probe_one(&self, name: &str, dir: bool, noreplace: &mut bool) -> Result<(), RootError> {
        let first = format!("inbox/{name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let made = if dir {
            rustix::fs::mkdirat(&self.dir, &first, Mode::RWXU)
        } else {
            rustix::fs::openat(&self.dir, &first, flags, Mode::RUSR | Mode::WUSR).map(drop)
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.unusable("inbox", error)),
        }
        for (from, to) in PLACES.iter().zip(PLACES[1..].iter().chain(&PLACES[..1])) {
            let (source, target) = (format!("{from}/{name}"), format!("{to}/{name}"));
            let moved = match rustix::fs::renameat_with(&self.dir, &source, &self.dir, &target, RenameFlags::NOREPLACE)
            {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    *noreplace = false;
                    rustix::fs::renameat(&self.dir, &source, &self.dir, &target)
                }
                other => other,
            };
            moved.map_err(|error| self.immovable(from, to, error))?;
        }
        Ok(())
    }

    fn unusable(&self, name: &str, error: Errno) -> RootError {
        let help = match error {
            Errno::NOENT => {
                format!("the folder is missing: mount it, or create it with `mkdir {}/{name}`", shown(&self.path))
            }
            Errno::ACCESS | Errno::PERM => {
                format!("give this user the right to write there, e.g. `chown $USER {}/{name}`", shown(&self.path))
            }
            Errno::NOSPC | Errno::DQUOT => "make room on its file system".to_owned(),
            Errno::ROFS => "remount its file system for writing".to_owned(),
            _ => "see the kernel log and check its file system".to_owned(),
        };
        RootError::unavailable(format!("cannot write to `{}/{name}`: {error}", shown(&self.path)), help)
    }

    fn immovable(&self, from: &str, to: &str, error: Errno) -> RootError {
        let help = match error {
            Errno::XDEV => {
                "inbox/, claimed/, done/ and failed/ must lie on one mount: mount the whole root, not its folders, \
                 and not on an image's lower layer"
            }
            Errno::ACCESS | Errno::PERM => {
                "give this user the right to write in both folders; a sticky inbox (chmod +t) keeps it from moving others' items"
            }
            Errno::NOSPC | Errno::DQUOT => "make room on its file system",
            Errno::ROFS => "remount its file system for writing",
            _ => "see the kernel log and check its file system",
        };
        let root = shown(&self.path);
        RootError::unavailable(format!("cannot move from `{root}/{from}` to `{root}/{to}`: {error}"), help)
    }
}

/// Where an item moves, in this order.
/// How long such a child may take: it only has to be scheduled.
const LAST_COPY: Duration = Duration::from_secs(5);

/// Who wrote itself into the lock file.
fn holder_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.take(32).read_to_string(&mut text)).ok()?;
    text.trim().parse().ok()
}

const PLACES: [&str; 4] = ["inbox", "claimed", "done", "failed"];

/// What the root's file system can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// `renameat2` with `RENAME_NOREPLACE` works; else the fallbacks are used.
    pub noreplace: bool,
    pub network: bool,
}

/// Holds the root for this process.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

impl Sentinel {
    fn read(path: &Path, root: &Path) -> Result<Option<Sentinel>, RootError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let message = format!("cannot read `{}`: {error}", shown(path));
                return Err(RootError::unavailable(message, "check the mount and the permissions of .gamdok/"));
            }
        };
        let found: Sentinel = serde_json::from_slice(&bytes).map_err(|error| {
            RootError::unavailable(
                format!("the sentinel `{}` is damaged: {error}", shown(path)),
                "restore it from a backup, or move it away and run `gamdok init` (items and history stay)",
            )
        })?;
        if found.version > VERSION {
            return Err(RootError::unavailable(
                format!("the root `{}` has layout version {}, this gamdok knows {VERSION}", shown(root), found.version),
                "use a newer gamdok",
            ));
        }
        Ok(Some(found))
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("json.tmp");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        serde_json::to_writer(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        // A link, not a rename: whoever came first keeps their sentinel.
        let linked = std::fs::hard_link(&temporary, path);
        match linked {
            Ok(()) => std::fs::remove_file(&temporary)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => std::fs::remove_file(&temporary)?,
            // No hard links here (some FUSE and SMB mounts).
            Err(_) => std::fs::rename(&temporary, path)?,
        }
        match path.parent() {
            Some(state) => File::open(state)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn absolute(dir: &Path) -> Result<PathBuf, RootError> {
    std::path::absolute(dir).map_err(|error| {
        let message = format!("cannot make `{}` an absolute path: {error}", shown(dir));
        RootError::unavailable(message, "name the root with --root DIR")
    })
}

fn fresh_uuid() -> String {
    if let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/random/uuid") {
        return text.trim().to_owned();
    }
    let hex = format!("{:032x}", u128::from_be_bytes(ulid::Ulid::generate().to_bytes()));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Network and user-space file systems, by the magic number of `statfs`.
pub fn is_network(magic: u64) -> bool {
    // NFS, SMB, SMB2, CIFS, FUSE, 9p, Ceph, Lustre, GPFS, AFS.
    const MAGICS: [u32; 10] = [
        0x6969,
        0x517B,
        0xFE53_4D42,
        0xFF53_4D42,
        0x6573_5546,
        0x0102_1997,
        0x00C3_6400,
        0x0BD0_0BD0,
        0x4750_4653,
        0x5346_414F,
    ];
    MAGICS.contains(&(magic as u32))
}

/// So often the list of locks is read before nobody is said to hold one.
const LOOKS: usize = 8;

/// The director that holds a root's lock, with its process as far as the lock's file names it. Only looked at (proc(5),
/// `/proc/locks`): taking the lock, even for a moment, would keep a director from starting.
pub(crate) fn holder(root: &Path) -> Option<Option<i32>> {
    let path = root.join(".gamdok/lock");
    let inode = std::fs::metadata(&path).ok()?.ino();
    let named = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    // 1: FLOCK  ADVISORY  WRITE 4711 08:02:131099 0 EOF
    let is_it = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of_inode = words.get(5).and_then(|place| place.rsplit(':').next()?.parse::<u64>().ok()) == Some(inode);
        let by_named = named.is_none_or(|pid: i32| words.get(4).and_then(|word| word.parse().ok()) == Some(pid));
        words.get(1) == Some(&"FLOCK") && words.get(3) == Some(&"WRITE") && of_inode && by_named
    };
    // The kernel writes the list in pages: a lock let go elsewhere in between moves the rest up, and one is left out.
    let seen = || std::fs::read_to_string("/proc/locks").is_ok_and(|locks| locks.lines().any(is_it));
    (0..LOOKS).any(|_| seen()).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn init_makes_a_root_once_and_overwrites_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("deep/root");
        let report = Root::init(&dir).unwrap();
        assert!(!report.existed);
        assert_eq!(report.made.len(), 7);
        for (name, expected) in
            [("", 0o750), ("inbox", 0o770), ("claimed", 0o700), ("done", 0o700), ("failed", 0o700), (".gamdok", 0o700)]
        {
            assert_eq!(mode(&dir.join(name)), expected, "{name}");
        }
        let before = std::fs::read(dir.join(".gamdok/root.json")).unwrap();
        let again = Root::init(&dir).unwrap();
        assert_eq!((again.existed, again.made.len()), (true, 0));
        assert_eq!(before, std::fs::read(dir.join(".gamdok/root.json")).unwrap());
    }

    #[test]
    fn init_takes_an_existing_folder_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("inbox")).unwrap();
        std::fs::set_permissions(temp.path().join("inbox"), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(temp.path().join("inbox/a"), "kept").unwrap();
        Root::init(temp.path()).unwrap();
        assert_eq!(mode(&temp.path().join("inbox")), 0o755);
        assert_eq!(std::fs::read(temp.path().join("inbox/a")).unwrap(), b"kept");
    }

    #[test]
    fn intake_folders_are_made_below_an_inbox_that_is_there() {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let inbox = temp.path().join("inbox");
        std::fs::set_permissions(&inbox, Permissions::from_mode(0o2770)).unwrap();
        std::fs::write(inbox.join("file"), "kept").unwrap();
        let root = Root::open(temp.path()).unwrap();
        let check = |folders: &[&str], made: &[&str], failed: usize| {
            let (found, wrong) = root.make_folders(folders.iter().copied());
            assert_eq!((found, wrong.len()), (made.iter().map(|it| it.to_string()).collect(), failed), "{wrong:?}");
        };
        check(&["", "audio", "file", "images"], &["audio", "images"], 0);
        assert_eq!(mode(&inbox.join("audio")), 0o2770);
        check(&["audio"], &[], 0);
        std::fs::remove_dir(inbox.join("audio")).unwrap();
        std::fs::rename(&inbox, temp.path().join("away")).unwrap();
        check(&["audio"], &[], 0);
        assert!(!inbox.exists(), "the inbox itself is never made");
    }

    #[test]
    fn without_its_sentinel_a_folder_is_no_root_and_nothing_is_made() {
        let temp = tempfile::tempdir().unwrap();
        let check = |dir: &Path, words: &str| {
            let error = Root::open(dir).unwrap_err();
            assert_eq!(error.exit_code(), 5);
            assert!(error.to_string().contains(words), "{error}");
        };
        check(temp.path(), "no .gamdok/root.json");
        check(&temp.path().join("absent"), "No such file");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        std::fs::create_dir(temp.path().join(".gamdok")).unwrap();
        std::fs::write(temp.path().join(".gamdok/root.json"), "{").unwrap();
        check(temp.path(), "damaged");
        std::fs::write(temp.path().join(".gamdok/root.json"), r#"{"uuid":"x","version":99}"#).unwrap();
        check(temp.path(), "newer gamdok");
    }

    #[test]
    fn a_root_has_one_director() {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let root = Root::open(temp.path()).unwrap();
        let guard = root.lock().unwrap();
        let error = Root::open(temp.path()).unwrap().lock().unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.message().contains(&std::process::id().to_string()), "{error}");
        drop(guard);
        root.lock().unwrap();
    }

    #[test]
    fn a_holder_is_seen_while_others_take_and_let_go_of_locks() {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let root = Root::open(temp.path()).unwrap();
        assert_eq!(holder(temp.path()), None);
        let over = std::sync::atomic::AtomicBool::new(false);
        let churn = &|n: usize| {
            let files: Vec<File> =
                (0..100).map(|m| File::create(temp.path().join(format!("{n}-{m}"))).unwrap()).collect();
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                files.iter().for_each(|file| rustix::fs::flock(file, FlockOperation::LockExclusive).unwrap());
                files.iter().for_each(|file| rustix::fs::flock(file, FlockOperation::Unlock).unwrap());
            }
        };
        std::thread::scope(|scope| {
            (0..2).for_each(|n| drop(scope.spawn(move || churn(n))));
            let _guard = root.lock().unwrap();
            let missed = (0..2_000).filter(|_| holder(temp.path()).is_none()).count();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(missed, 0);
        });
    }

    #[test]
    fn a_lock_that_only_a_dying_child_of_a_killed_director_holds_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let root = Root::open(temp.path()).unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        let pid = gone.id();
        gone.wait().unwrap();
        let file = File::create(root.lock_file()).unwrap();
        writeln!(&file, "{pid}").unwrap();
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| root.lock().map(drop));
            // However late it is let go of, as long as that is soon.
            std::thread::park_timeout(LAST_COPY / 50);
            drop(file);
            assert!(waits.join().unwrap().is_ok());
        });
        // Of one that lives the lock is final, and told at once.
        let _guard = root.lock().unwrap();
        let error = root.lock().unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    }

    #[test]
    fn the_probe_leaves_nothing_behind_and_names_what_is_missing() {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let root = Root::open(temp.path()).unwrap();
        // A director that was killed in its probe left this.
        std::fs::write(temp.path().join("claimed/.gamdok-probe-file"), "").unwrap();
        std::fs::create_dir(temp.path().join("done/.gamdok-probe-dir")).unwrap();
        assert!(root.probe().unwrap().noreplace);
        for place in PLACES {
            assert_eq!(std::fs::read_dir(temp.path().join(place)).unwrap().count(), 0, "{place}");
        }
        std::fs::remove_dir(temp.path().join("done")).unwrap();
        root.ensure_dirs().unwrap();
        std::fs::remove_dir(temp.path().join("inbox")).unwrap();
        root.ensure_dirs().unwrap();
        let error = root.probe().unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("mkdir"), "{error}");
    }
}
