//! Where a folder lies: its identity, and whether events and leases can be trusted there.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags};

use crate::sys::dirs;

/// Which directory a path names at present. A path whose identity changes was replaced, mounted over or unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    dev: (u32, u32),
    ino: u64,
    mount: u64,
}

impl Identity {
    /// Whether something can be renamed from one to the other.
    pub(super) fn is_on_mount_of(&self, other: &Identity) -> bool {
        (self.dev, self.mount) == (other.dev, other.mount)
    }
}

/// A look at a folder from outside: its identity and when its names last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) identity: Identity,
    /// The later of mtime and ctime, in nanoseconds of the wall clock.
    pub(super) changed_ns: i128,
}

pub(super) fn look(path: &Path) -> io::Result<Outside> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    // The last component may be a symlink that its owner made on purpose (a bigger disk, say).
    let folder = dirs::open(CWD, path, OFlags::PATH)?;
    let stat = rustix::fs::statx(&folder, "", AtFlags::EMPTY_PATH, mask)?;
    let nanoseconds = |at: rustix::fs::StatxTimestamp| i128::from(at.tv_sec) * 1_000_000_000 + i128::from(at.tv_nsec);
    Ok(Outside {
        identity: Identity { dev: (stat.stx_dev_major, stat.stx_dev_minor), ino: stat.stx_ino, mount: stat.stx_mnt_id },
        changed_ns: nanoseconds(stat.stx_mtime).max(nanoseconds(stat.stx_ctime)),
    })
}

/// File systems that change behind the kernel's back: no events for what other hosts do, no leases against them, and
/// their clock isn't ours.
const NETWORK: [(u32, &str); 11] = [
    (0x6969, "NFS"),
    (0xFE53_4D42, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0x517B, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x5346_414F, "AFS"),
    (0x786F_4256, "VirtualBox shared folder"),
];

/// The network file system that `folder` lies on, by name; none for a local one.
pub(super) fn network(folder: &impl AsFd) -> io::Result<Option<&'static str>> {
    let kind = rustix::fs::fstatfs(folder)?.f_type;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers are 32 bits wide")]
    let kind = kind as u32;
    Ok(named(kind))
}

fn named(kind: u32) -> Option<&'static str> {
    NETWORK.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        let check = |magic: u32, expected: Option<&str>| assert_eq!(named(magic), expected, "{magic:#x}");
        check(0x6969, Some("NFS"));
        check(0xFE53_4D42, Some("SMB"));
        check(0xEF53, None); // ext4
        check(0x0102_1994, None); // tmpfs
        check(0x794C_7630, None); // overlayfs
    }

    #[test]
    fn a_folder_put_in_the_place_of_another_has_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox");
        std::fs::create_dir(&path).unwrap();
        let before = look(&path).unwrap();
        assert_eq!(before, look(&path).unwrap());
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        assert!(look(&path).is_err());
        std::fs::create_dir(&path).unwrap();
        assert_ne!(before.identity, look(&path).unwrap().identity);
        assert!(look(&std::env::current_exe().unwrap()).is_err(), "a file is no folder");
    }

    #[test]
    fn what_is_mounted_elsewhere_is_known() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inbox")).unwrap();
        let [root, inbox, other] =
            [dir.path(), &dir.path().join("inbox"), Path::new("/proc")].map(|path| look(path).unwrap().identity);
        assert!(inbox.is_on_mount_of(&root));
        assert!(!other.is_on_mount_of(&root));
    }
}
