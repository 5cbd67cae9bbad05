//! Signatures: what an item looked like. For a file its stat; for a directory a sum over the whole tree that doesn't
//! depend on the order in which the entries are read, so that it takes no memory. Never follows a symlink, never opens
//! anything but directories.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use crate::item::Signature;

/// More entries, levels or time than this and a directory is too big to be one item.
pub const MAX_ENTRIES: u64 = 200_000;
pub const MAX_DEPTH: usize = 64;
pub const WALK_TIME: Duration = Duration::from_secs(30);

impl Signature {
    /// Of nothing.
    pub(super) const NONE: Signature =
        Signature { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0, blocks: 0, nlink: 0, digest: 0, entries: 0 };

    pub fn of_stat(stat: &Stat) -> Signature {
        Signature {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            ctime_ns: ctime_ns(stat),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            #[allow(clippy::useless_conversion, reason = "the width of a link count depends on the architecture")]
            nlink: u64::from(stat.st_nlink),
            digest: 0,
            entries: 0,
        }
    }

    /// Whether nothing of the payload changed since a look before the claim. What the claim itself changes is left out:
    /// its rename sets the ctime, its sync may settle the blocks, and on some file systems a directory gets a new
    /// mtime with its new parent. And a producer may take away its own second link at any time.
    ///
    /// A directory is told by its inside. One that was empty, or that wasn't looked into, is told by its mtime.
    pub fn is_same_payload(&self, before: &Signature) -> bool {
        let same_one = (self.dev, self.ino) == (before.dev, before.ino);
        let same_inside = (self.size, self.digest, self.entries) == (before.size, before.digest, before.entries);
        let same_time = self.mtime_ns == before.mtime_ns;
        let looked_inside = |it: &Signature| it.entries != 0;
        same_one
            && match (looked_inside(before), looked_inside(self)) {
                (true, true) => same_inside,
                // Of two, one of which looked inside, the size doesn't mean the same.
                (true, false) | (false, true) => same_time,
                (false, false) => same_time && same_inside,
            }
    }
}

pub(super) fn ctime_ns(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
}

/// The signature of the item `name` in the directory `folder`.
pub fn of_item(folder: &impl AsFd, name: &OsStr) -> Result<Signature, WalkError> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(walk(folder, name, Limits::default())?.signature),
        _ => Ok(Signature::of_stat(&stat)),
    }
}

/// The signature of the item at `path`.
pub fn of_path(path: &Path) -> Result<Signature, WalkError> {
    of_item(&CWD, path.as_os_str())
}

/// A directory as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tree {
    /// Of the directory itself, before the walk.
    pub(super) top: Signature,
    /// With the sum over its entries; `size` is that of all regular files.
    pub(super) signature: Signature,
    /// The latest ctime in it: nobody can set one.
    pub(super) newest_ns: i128,
    /// It holds a regular file of the name that was asked for, at its top.
    pub(super) has_marker: bool,
}

/// How far a walk may go, and what it looks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    pub(super) entries: u64,
    pub(super) depth: usize,
    pub(super) time: Duration,
    pub(super) marker: Option<&'a OsStr>,
}

impl Default for Limits<'_> {
    fn default() -> Self {
        Limits { entries: MAX_ENTRIES, depth: MAX_DEPTH, time: WALK_TIME, marker: None }
    }
}

/// Why a directory has no signature.
#[derive(Debug)]
pub enum WalkError {
    TooManyEntries(u64),
    TooDeep(usize),
    TooSlow(Duration),
    Io(io::Error),
}

impl WalkError {
    /// It, or something in it, went away meanwhile.
    pub fn is_gone(&self) -> bool {
        matches!(self, WalkError::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalkError::TooManyEntries(most) => {
                write!(f, "too big: more than {most} entries; drop an archive of it, or its parts one by one")
            }
            WalkError::TooDeep(most) => write!(f, "too big: more than {most} levels deep; drop an archive of it"),
            WalkError::TooSlow(most) => {
                write!(f, "too big: it takes more than {} s to read; drop an archive of it", most.as_secs_f64())
            }
            WalkError::Io(error) => write!(f, "can't be read: {error}"),
        }
    }
}

impl From<Errno> for WalkError {
    fn from(error: Errno) -> WalkError {
        WalkError::Io(error.into())
    }
}

/// A directory still to be read. The parent's descriptor is shared among its children, so at most one for each level of
/// the tree is open at a time.
struct Pending {
    parent: Rc<OwnedFd>,
    name: OsString,
    /// From the top, with a slash at its end.
    prefix: Vec<u8>,
    depth: usize,
}

/// Walks the directory `name` in `folder`.
pub(super) fn walk(folder: &impl AsFd, name: &OsStr, limits: Limits<'_>) -> Result<Tree, WalkError> {
    let began = Instant::now();
    let fd = open_directory(folder, name)?;
    let top = Signature::of_stat(&rustix::fs::fstat(&fd)?);
    let mut tree =
        Tree { top, signature: Signature { size: 0, blocks: 0, ..top }, newest_ns: top.ctime_ns, has_marker: false };
    let mut pending = Vec::new();
    let mut buffer = vec![MaybeUninit::uninit(); 16 << 10];
    read(Rc::new(fd), &[], 1, &mut tree, &mut pending, &mut buffer, limits, began)?;
    while let Some(next) = pending.pop() {
        let fd = Rc::new(open_directory(&next.parent, &next.name)?);
        drop(next.parent);
        read(fd, &next.prefix, next.depth, &mut tree, &mut pending, &mut buffer, limits, began)?;
    }
    Ok(tree)
}

fn open_directory(folder: &impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

#[expect(clippy::too_many_arguments, reason = "one level of the walk; a struct would only rename them")]
fn read(
    fd: Rc<OwnedFd>,
    prefix: &[u8],
    depth: usize,
    tree: &mut Tree,
    pending: &mut Vec<Pending>,
    buffer: &mut [MaybeUninit<u8>],
    limits: Limits<'_>,
    began: Instant,
) -> Result<(), WalkError> {
    let mut entries = RawDir::new(&*fd, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let seen = Signature::of_stat(&stat);
        let total = &mut tree.signature;
        total.entries += 1;
        total.digest = total.digest.wrapping_add(entry_hash(prefix, name.to_bytes(), stat.st_mode, &seen));
        tree.newest_ns = tree.newest_ns.max(seen.ctime_ns);
        if kind == FileType::RegularFile {
            total.size = total.size.saturating_add(seen.size);
            total.blocks = total.blocks.saturating_add(seen.blocks);
            let named = |marker: &OsStr| marker.as_bytes() == name.to_bytes();
            tree.has_marker |= depth == 1 && limits.marker.is_some_and(named);
        }
        if tree.signature.entries > limits.entries {
            return Err(WalkError::TooManyEntries(limits.entries));
        }
        // A look at the clock costs a fiftieth of an entry.
        if began.elapsed() > limits.time {
            return Err(WalkError::TooSlow(limits.time));
        }
        if kind == FileType::Directory {
            if depth == limits.depth {
                return Err(WalkError::TooDeep(limits.depth));
            }
            pending.push(Pending {
                parent: fd.clone(),
                name: OsStr::from_bytes(name.to_bytes()).to_owned(),
                prefix: [prefix, name.to_bytes(), b"/"].concat(),
                depth: depth + 1,
            });
        }
    }
    Ok(())
}

/// One entry's share of the sum. Its own function rather than the standard library's hasher, because signatures are
/// written down and compared by later versions: FNV-1a over 128 bits, mixed so that a sum of them doesn't cancel out.
fn entry_hash(prefix: &[u8], name: &[u8], mode: u32, seen: &Signature) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = BASIS;
    let mut take = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    };
    take(prefix);
    take(name);
    take(&[0]);
    take(&mode.to_le_bytes());
    take(&seen.size.to_le_bytes());
    take(&seen.ino.to_le_bytes());
    take(&seen.mtime_ns.to_le_bytes());
    take(&seen.ctime_ns.to_le_bytes());
    hash ^= hash >> 67;
    hash = hash.wrapping_mul(PRIME << 3 | 1);
    hash ^ (hash >> 71)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(root: &Path) {
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/one"), "1").unwrap();
        fs::write(root.join("two"), "22").unwrap();
        std::os::unix::fs::symlink("/", root.join("a/link")).unwrap();
    }

    #[test]
    fn a_tree_keeps_its_signature_until_something_in_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("item");
        tree(&root);
        let before = of_path(&root).unwrap();
        assert_eq!((before.entries, before.size), (5, 3), "the link isn't followed");
        assert_eq!(before, of_path(&root).unwrap());
        fs::rename(&root, dir.path().join("moved")).unwrap();
        let moved = of_path(&dir.path().join("moved")).unwrap();
        assert!(moved.is_same_payload(&before));
        fs::write(dir.path().join("moved/a/b/one"), "2").unwrap();
        assert!(!of_path(&dir.path().join("moved")).unwrap().is_same_payload(&before));
    }

    #[test]
    fn a_file_keeps_its_payload_through_a_rename_and_loses_it_through_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "x").unwrap();
        let before = of_path(&from).unwrap();
        fs::rename(&from, &to).unwrap();
        assert!(of_path(&to).unwrap().is_same_payload(&before));
        fs::write(&to, "xy").unwrap();
        assert!(!of_path(&to).unwrap().is_same_payload(&before));
    }

    #[test]
    fn a_walk_has_its_bounds() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let check = |limits: Limits<'_>, expected: &str| {
            let error = walk(&CWD, dir.path().as_os_str(), limits).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(Limits { entries: 3, ..Limits::default() }, "more than 3 entries");
        check(Limits { depth: 2, ..Limits::default() }, "more than 2 levels");
        check(Limits { time: Duration::ZERO, ..Limits::default() }, "takes more than 0 s");
        assert!(of_path(&dir.path().join("nothing")).unwrap_err().is_gone());
    }

    #[test]
    fn a_marker_counts_only_at_the_top_and_as_a_file() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let check = |marker: &str, expected: bool| {
            let limits = Limits { marker: Some(OsStr::new(marker)), ..Limits::default() };
            assert_eq!(walk(&CWD, dir.path().as_os_str(), limits).unwrap().has_marker, expected, "{marker}");
        };
        check("two", true);
        check("one", false);
        check("a", false);
    }
}
