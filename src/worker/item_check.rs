//! The last look at an item before its process starts. Attempt 1 wants what was claimed; from then on the worker owns
//! the item, and a retry only wants something there.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::End;
use crate::item::Signature;

/// How an item looks now.
pub(super) type Look = fn(&Path) -> io::Result<Signature>;

/// Says what is wrong with the item at `path`, if anything.
pub(super) fn check(
    path: &Path,
    attempt: u32,
    claimed: Option<&Signature>,
    look_at_directory: Look,
) -> Result<(), End> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(End::ItemMissing),
        Err(error) => return Err(unreadable(path, &error)),
    };
    let Some(claimed) = claimed.filter(|_| attempt == 1) else { return Ok(()) };
    let same = if meta.is_dir() {
        is_same_directory(claimed, &look_at_directory(path).map_err(|error| unreadable(path, &error))?)
    } else {
        is_same_file(claimed, &of_metadata(&meta))
    };
    if same { Ok(()) } else { Err(End::ItemChanged) }
}

/// A signature without a look inside: all there is to a file, and the outside of a directory.
pub(super) fn look(path: &Path) -> io::Result<Signature> {
    fs::symlink_metadata(path).map(|meta| of_metadata(&meta))
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
    let seen = |it: &Signature| (it.dev, it.ino, it.size, it.mtime_ns);
    seen(claimed) == seen(now)
}

/// Where both looked into it, its inside is compared; some file systems change the times of a directory that gets a new
/// parent. Else its time: whether a size is the tree's or the directory's own can't be told of an empty one.
fn is_same_directory(claimed: &Signature, now: &Signature) -> bool {
    let looked_inside = |it: &Signature| it.digest != 0 || it.entries != 0;
    let inside = |it: &Signature| (it.size, it.digest, it.entries);
    (claimed.dev, claimed.ino) == (now.dev, now.ino)
        && match looked_inside(claimed) && looked_inside(now) {
            true => inside(claimed) == inside(now),
            false => claimed.mtime_ns == now.mtime_ns,
        }
}

fn unreadable(path: &Path, error: &io::Error) -> End {
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
        let claimed = look(&at("a")).unwrap();
        let check =
            |name: &str, attempt: u32, claimed: Option<&Signature>| check(&at(name), attempt, claimed, look).err();

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
    fn a_directory_is_looked_into_where_that_can_be_compared() {
        let outside = Signature {
            dev: 1,
            ino: 2,
            size: 4096,
            mtime_ns: 3,
            ctime_ns: 4,
            blocks: 8,
            nlink: 2,
            digest: 0,
            entries: 0,
        };
        let inside = |digest, size| Signature { digest, entries: 5, size, ctime_ns: 9, ..outside };
        assert!(is_same_directory(&outside, &inside(7, 100)));
        // An empty one, walked: the size of nothing.
        assert!(is_same_directory(&Signature { size: 0, ..outside }, &outside));
        assert!(is_same_directory(&inside(7, 100), &inside(7, 100)));
        assert!(!is_same_directory(&inside(7, 100), &inside(8, 100)));
        assert!(!is_same_directory(&inside(7, 100), &inside(7, 101)));
        assert!(!is_same_directory(&outside, &Signature { mtime_ns: 5, ..outside }));
    }
}
