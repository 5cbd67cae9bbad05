//! The last look at an item before its process starts. Attempt 1 wants what was claimed; from then on the worker owns
//! the item, and a retry only wants something there.

use std::fs;
use std::io;
use std::path::Path;

use super::End;
use crate::inbox::signature::{WalkError, of_path};
use crate::item::Signature;

/// Says what is wrong with the item at `path`, if anything.
pub(super) fn check(path: &Path, attempt: u32, claimed: Option<&Signature>) -> Result<(), End> {
    let Some(claimed) = claimed.filter(|_| attempt == 1) else { return is_there(path) };
    match of_path(path) {
        Ok(now) if now.is_same_payload(claimed) => Ok(()),
        // It was no bigger when it was claimed.
        Ok(_) | Err(WalkError::TooManyEntries(_) | WalkError::TooDeep(_)) => Err(End::ItemChanged),
        // Something in it went away while it was read, or it did itself.
        Err(error) if error.is_gone() => is_there(path).and(Err(End::ItemChanged)),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn is_there(path: &Path) -> Result<(), End> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(End::ItemMissing),
        Err(error) => Err(unreadable(path, &error)),
    }
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
        let claimed = of_path(&at("a")).unwrap();
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
        let check = |change: fn(&Path), expected: Option<End>| {
            let dir = tempfile::tempdir().unwrap();
            let (dropped, item) = (dir.path().join("dropped"), dir.path().join("item"));
            fs::create_dir_all(dropped.join("a/b")).unwrap();
            fs::create_dir(&item).unwrap();
            fs::write(dropped.join("a/b/deep"), "one").unwrap();
            let claimed = of_path(&dropped).unwrap();
            let item = item.join("dropped");
            fs::rename(&dropped, &item).unwrap();
            change(&item);
            assert_eq!(super::check(&item, 1, Some(&claimed)).err(), expected);
            assert_eq!(super::check(&item, 2, Some(&claimed)).is_ok(), item.exists());
        };
        check(|_| {}, None);
        check(|item| fs::write(item.join("a/b/deep"), "two").unwrap(), Some(End::ItemChanged));
        check(|item| fs::write(item.join("a/new"), "").unwrap(), Some(End::ItemChanged));
        check(|item| fs::remove_file(item.join("a/b/deep")).unwrap(), Some(End::ItemChanged));
        check(|item| fs::remove_dir_all(item.join("a")).unwrap(), Some(End::ItemChanged));
        check(|item| fs::remove_dir_all(item).unwrap(), Some(End::ItemMissing));
        let touched = |item: &Path| {
            let long_ago = std::time::SystemTime::UNIX_EPOCH;
            fs::File::open(item).and_then(|top| top.set_modified(long_ago)).unwrap();
        };
        check(touched, None);
    }
}
