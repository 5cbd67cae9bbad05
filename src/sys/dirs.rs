//! Opening a directory of ours by a path whose last part others may have replaced. A link there is followed when it was made
//! by somebody who could do as much without it: this process' own user, or root. The rule is that of the kernel's
//! `fs.protected_symlinks`, which doesn't hold where a folder isn't sticky.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// A link that is not followed: ELOOP, as of a path that was to hold none.
pub const FOREIGN_LINK: Errno = Errno::LOOP;

/// The directory at `path` below `base`, to work with or, with `OFlags::PATH`, to look at. [`FOREIGN_LINK`] where a link of
/// somebody else stands in its place.
pub fn open(base: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(&base, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&place)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => rustix::fs::openat(&place, ".", flags, Mode::empty()),
        FileType::Symlink if stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw() => {
            // Of the link that was looked at, not of what stands at its path by now.
            let target = rustix::fs::readlinkat(&place, "", Vec::new())?;
            let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
            let target = path.parent().unwrap_or(Path::new("")).join(target);
            rustix::fs::openat(base, &target, flags, Mode::empty())
        }
        FileType::Symlink => Err(FOREIGN_LINK),
        _ => Err(Errno::NOTDIR),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, lchown, symlink};

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_link_is_followed_when_its_owner_could_do_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        for (link, target) in [("relative", "real"), ("dangling", "absent"), ("to-file", "file")] {
            symlink(target, at(link)).unwrap();
        }
        symlink(at("real"), at("absolute")).unwrap();
        let real = std::fs::metadata(at("real")).unwrap().ino();
        let inode = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let check = |name: &str, expected: Result<u64, Errno>| {
            for flags in [OFlags::RDONLY, OFlags::PATH] {
                assert_eq!(open(CWD, &at(name), flags).map(inode), expected, "{name}");
                let base = std::fs::File::open(dir.path()).unwrap();
                assert_eq!(open(&base, Path::new(name), flags).map(inode), expected, "{name} below the folder");
            }
        };
        check("real", Ok(real));
        check("relative", Ok(real));
        check("absolute", Ok(real));
        check("absent", Err(Errno::NOENT));
        check("dangling", Err(Errno::NOENT));
        check("file", Err(Errno::NOTDIR));
        check("to-file", Err(Errno::NOTDIR));
        // Only root can make a link somebody else's.
        if rustix::process::geteuid().is_root() {
            lchown(at("relative"), Some(65534), None).unwrap();
            check("relative", Err(FOREIGN_LINK));
        }
    }
}
