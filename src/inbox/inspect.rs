//! One look at one name: its kind, its signature, and whether somebody writes to it. Opens regular files only, and only
//! to test for a writer.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::ready::Writer;
use crate::item::Signature;
use crate::sys::lease;

/// What a name is.
#[derive(Debug)]
pub(super) enum Look {
    Gone,
    Found {
        kind: FileType,
        /// Without a directory's content.
        signature: Signature,
    },
    /// The folder itself fails.
    Failed(io::Error),
}

/// Looks without opening.
pub(super) fn look(folder: &impl AsFd, name: &OsStr) -> Look {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Look::Found { kind: FileType::from_raw_mode(stat.st_mode), signature: Signature::of_stat(&stat) },
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Look::Gone,
        Err(error) => Look::Failed(error.into()),
    }
}

/// A regular file after the writer test.
#[derive(Debug)]
pub(super) enum Tested {
    /// The signature was taken while no writer could come.
    File {
        signature: Signature,
        writer: Writer,
    },
    Gone,
    /// Something else took its place.
    NotAFile,
    Unreadable(io::Error),
}

/// Tests a regular file for writers.
pub(super) fn test_writer(folder: &impl AsFd, name: &OsStr) -> Tested {
    match try_test(folder, name) {
        Ok(tested) => tested,
        Err(Errno::NOENT | Errno::NOTDIR) => Tested::Gone,
        Err(Errno::LOOP | Errno::NXIO) => Tested::NotAFile,
        Err(error) => Tested::Unreadable(error.into()),
    }
}

fn try_test(folder: &impl AsFd, name: &OsStr) -> Result<Tested, Errno> {
    // A path descriptor first: opening a device or a FIFO that took the name would itself have effects.
    let place = rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&place)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Tested::NotAFile);
    }
    let file = open_again(&place, folder, name)?;
    let writer = match lease::take(&file) {
        // The signature is taken while the lease is held: an opener waits meanwhile.
        Ok(lease::Taken::Held(lease)) => {
            let stat = rustix::fs::fstat(&file)?;
            let writer = if lease.is_unbroken() { Writer::None } else { Writer::Present };
            return Ok(Tested::File { signature: Signature::of_stat(&stat), writer });
        }
        Ok(lease::Taken::Writer) => Writer::Present,
        Ok(lease::Taken::NotAllowed) | Err(_) => Writer::Unknowable,
    };
    Ok(Tested::File { signature: Signature::of_stat(&rustix::fs::fstat(&file)?), writer })
}

/// Opens the very inode for reading; by its name where `/proc` isn't mounted.
fn open_again(place: &OwnedFd, folder: &impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    match rustix::fs::openat(CWD, format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty()) {
        Err(Errno::NOENT) => rustix::fs::openat(folder, name, flags | OFlags::NOFOLLOW, Mode::empty()),
        opened => opened,
    }
}

/// What a kind that can't be an item is called.
pub(super) fn special(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "a symbolic link: drop the file itself, or a hard link to it",
        FileType::Fifo => "a FIFO, not a file",
        FileType::Socket => "a socket, not a file",
        FileType::CharacterDevice | FileType::BlockDevice => "a device, not a file",
        _ => "neither a file nor a directory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let folder = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        rustix::fs::mknodat(&folder, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(matches!(test_writer(&folder, OsStr::new("fifo")), Tested::NotAFile));
        assert!(matches!(test_writer(&folder, OsStr::new("link")), Tested::NotAFile));
        assert!(matches!(test_writer(&folder, OsStr::new("none")), Tested::Gone));
        assert!(matches!(test_writer(&folder, OsStr::new("file")), Tested::File { .. }));
        assert!(matches!(look(&folder, OsStr::new("none")), Look::Gone));
        assert!(matches!(look(&folder, OsStr::new("link")), Look::Found { kind: FileType::Symlink, .. }));
    }
}
