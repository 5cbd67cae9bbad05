//! The last look at an item before its process starts. Attempt 1 wants what was claimed; from then on the worker owns
//! the item, and a retry only wants something there.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::End;
use crate::inbox::signature;
use crate::item::Signature;

/// Says what is wrong with the item at `path`, if anything.
pub(super) fn check(path: &Path, attempt: u32, claimed: Option<&Signature>) -> Result<(), End> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(End::ItemMissing),
        Err(error) => return Err(unreadable(path, &error)),
    };
    let Some(claimed) = claimed.filter(|_| attempt == 1) else { return Ok(()) };
    let same = if meta.is_dir() {
        match signature::of_path(path) {
            Ok(now) => is_same_tree(claimed, &now),
            // Something in it went away while it was looked at.
            Err(error) if error.is_gone() => false,
            Err(error) => return Err(unreadable(path, &error)),
        }
    } else {
        is_same_file(claimed, &of_metadata(&meta))
    };
    if same { Ok(()) } else { Err(End::ItemChanged) }
}

fn of_metadata(meta: &Metadata) -> Signature {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Signature {
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        mtime_ns: nanoseconds(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        blocks: meta.blocks(),
        nlink: meta.nlink(),
        digest: 0,
        entries: 0,
    }
}

/// The claim's own rename changed the ctime, a sync may have changed the blocks, and the producer may have dropped its
/// other link since.
fn is_same_file(claimed: &Signature, now: &Signature) -> bool {
    (claimed.dev, claimed.ino, claimed.mtime_ns, claimed.size) == (now.dev, now.ino, now.mtime_ns, now.size)
}

/// Where both looked into a directory, its inside is compared: some file systems change the times of a directory that
/// gets a new parent. An empty one has no inside, and one that wasn't looked into tells nothing of it.
fn is_same_tree(claimed: &Signature, now: &Signature) -> bool {
    let has_inside = |it: &Signature| it.digest != 0 || it.entries != 0;
    let same_inside = (claimed.size, claimed.digest, claimed.entries) == (now.size, now.digest, now.entries);
    let both = has_inside(claimed) && has_inside(now);
    (claimed.dev, claimed.ino) == (now.dev, now.ino)
        && if both { same_inside } else { claimed.mtime_ns == now.mtime_ns }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> End {
    End::Io(format!("cannot look at the item `{}`: {error}", crate::item::escape(path.as_os_str().as_encoded_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_one_wants_what_was_claimed_and_a_retry_only_something() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "one").unwrap();
        fs::write(at("b"), "one").unwrap();
        let claimed = signature::of_path(&at("a")).unwrap();
        let check = |name: &str, attempt: u32, claimed: Option<&Signature>| check(&at(name), attempt, claimed).err();

        assert_eq!(check("a", 1, Some(&claimed)), None);
        assert_eq!(check("a", 1, None), None);
        assert_eq!(check("b", 1, Some(&claimed)), Some(End::ItemChanged), "another file");
        assert_eq!(check("gone", 1, Some(&claimed)), Some(End::ItemMissing));
        assert_eq!(check("gone", 2, None), Some(End::ItemMissing));
        assert!(matches!(check("a/b", 1, None), Some(End::Io(_))));

        fs::rename(at("a"), at("moved")).unwrap();
        fs::hard_link(at("moved"), at("second")).unwrap();
        assert_eq!(check("moved", 1, Some(&claimed)), None, "the claim's own rename");
        fs::write(at("moved"), "more").unwrap();
        assert_eq!(check("moved", 1, Some(&claimed)), Some(End::ItemChanged));
        assert_eq!(check("moved", 2, Some(&claimed)), None, "from attempt 1 on the worker owns it");
    }

    #[test]
    fn a_directory_is_compared_by_its_inside() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("full/sub")).unwrap();
        fs::write(at("full/sub/file"), "one").unwrap();
        fs::create_dir(at("empty")).unwrap();
        let check = |name: &str, claimed: &Signature| check(&at(name), 1, Some(claimed)).err();
        let full = signature::of_path(&at("full")).unwrap();
        let empty = signature::of_path(&at("empty")).unwrap();

        fs::create_dir(at("claimed")).unwrap();
        fs::rename(at("full"), at("claimed/full")).unwrap();
        fs::rename(at("empty"), at("claimed/empty")).unwrap();
        assert_eq!(check("claimed/full", &full), None);
        assert_eq!(check("claimed/empty", &empty), None);
        let unseen = of_metadata(&fs::symlink_metadata(at("claimed/full")).unwrap());
        assert_eq!(check("claimed/full", &unseen), None, "one that wasn't looked into");

        fs::write(at("claimed/full/sub/file"), "more").unwrap();
        assert_eq!(check("claimed/full", &full), Some(End::ItemChanged));
        fs::write(at("claimed/empty/new"), "").unwrap();
        assert_eq!(check("claimed/empty", &empty), Some(End::ItemChanged));
    }
}
