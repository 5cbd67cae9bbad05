//! Names that aren't items: temporary names of those who still write, and what desktops and sync tools leave behind.
//! They are counted and listed, never taken. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use globset::{Glob, GlobSet, GlobSetBuilder};
use rustix::fs::FileType;

/// Beginnings: dot files (rsync, NFS, AppleDouble, sync tools), office locks, editors' saves.
const BEGINNINGS: [&[u8]; 3] = [b".", b"~$", b"#"];

/// Ends, in any case: unfinished downloads and transfers.
const ENDS: [&[u8]; 12] = [
    b".part",
    b".partial",
    b".partial~",
    b".filepart",
    b".crdownload",
    b".download",
    b".opdownload",
    b".tmp",
    b".temp",
    b".!qb",
    b".aria2",
    b"~",
];

const WHOLE: [&[u8]; 3] = [b"thumbs.db", b"desktop.ini", b".ds_store"];

const DIRECTORIES: [&[u8]; 6] = [b".~tmp~", b".rsync-partial", b"@eadir", b"__macosx", b".stfolder", b"lost+found"];

/// Tells the names that aren't items: the built-in patterns and the configuration's `ignore`.
#[derive(Clone, Debug)]
pub(super) struct Ignore {
    extra: GlobSet,
}

impl Ignore {
    /// A pattern that can't be read is left out, and said so in the log; the configuration is checked before.
    pub(super) fn new(patterns: &[String]) -> Ignore {
        Ignore { extra: glob_set(patterns, "inbox.ignore") }
    }

    pub(super) fn matches(&self, name: &OsStr, kind: FileType) -> bool {
        let bytes = name.as_bytes();
        let ends = |end: &&[u8]| {
            let start = bytes.len().checked_sub(end.len());
            start.is_some_and(|start| bytes[start..].eq_ignore_ascii_case(end))
        };
        let whole = |known: &&[u8]| bytes.eq_ignore_ascii_case(known);
        BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning))
            || ENDS.iter().any(ends)
            || WHOLE.iter().any(whole)
            || (kind == FileType::Directory && DIRECTORIES.iter().any(whole))
            || (!self.extra.is_empty() && self.extra.is_match(name))
    }
}

/// A pattern on raw names. One that can't be read is told of in the log; the configuration is checked before.
pub(super) fn glob(pattern: &str, whose: &str) -> Option<Glob> {
    let told = |error: globset::Error| {
        tracing::error!(pattern, whose, %error, "a pattern can't be read and matches nothing");
    };
    Glob::new(pattern).map_err(told).ok()
}

/// Builds a set of globs on raw names.
fn glob_set(patterns: &[String], whose: &str) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in patterns.iter().filter_map(|pattern| glob(pattern, whose)) {
        set.add(glob);
    }
    set.build().unwrap_or_else(|error| {
        tracing::error!(whose, %error, "the patterns can't be used and match nothing");
        GlobSet::empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_told_from_items() {
        let ignore = Ignore::new(&["*.swp".to_owned(), "keep-?".to_owned()]);
        let check = |name: &[u8], kind: FileType, expected: bool| {
            let shown = crate::item::escape(name);
            assert_eq!(ignore.matches(OsStr::from_bytes(name), kind), expected, "{shown}");
        };
        let file = FileType::RegularFile;
        for name in [
            ".hidden",
            ".a.wav.X1y2z3",
            "._a",
            ".nfs0001",
            "a.part",
            "A.PART",
            "a.Partial",
            "a.partial~",
            "a.filepart",
            "a.crdownload",
            "a.download",
            "a.opdownload",
            "a.tmp",
            "a.TEMP",
            "a.!qB",
            "a.aria2",
            "a~",
            "~$a.docx",
            "#a#",
            "Thumbs.db",
            "desktop.ini",
            ".DS_Store",
            "a.swp",
            "keep-1",
        ] {
            check(name.as_bytes(), file, true);
        }
        for name in ["a.wav", "part", "a.parts", "tmp", "lost+found", "@eaDir", "a.tmp.wav", "keep-12", "-rf", "a\nb"] {
            check(name.as_bytes(), file, false);
        }
        check(b"\xff\xfe.wav", file, false);
        check(b"\xff\xfe.tmp", file, true);
        check(b"lost+found", FileType::Directory, true);
        check(b"@eaDir", FileType::Directory, true);
        check(b"__MACOSX", FileType::Directory, true);
        check(b"album", FileType::Directory, false);
    }
}
