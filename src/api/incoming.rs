//! An item on its way in: written below `.gamdok/uploads/`, synced, renamed into the inbox without replacing anything.
//! Invariant: whatever isn't placed is removed, by the one who wrote it or at the next start.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use rustix::fs::{CWD, FileType, RenameFlags, renameat_with};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::directories::Directories;
use super::shapes::Uploaded;
use crate::inbox::Sort;
use crate::item::{ItemName, escape};
use crate::spool::space;
use crate::units::Bytes as Size;

/// Below the root.
const FOLDER: &str = ".gamdok/uploads";

/// A file name's longest, in bytes.
const LONGEST: usize = 255;

/// How much is written between two looks at the room that is left.
const LOOK: u64 = 32 << 20;

/// Why an upload isn't taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("the name can't be an item's: {0}")]
    Name(&'static str),
    #[error("there is no intake folder `{0}`")]
    NoFolder(String),
    #[error("no route takes a file called `{0}`")]
    NoRoute(String),
    #[error("`{0}` lies in the inbox already")]
    Exists(String),
    #[error("the item is larger than {}", Size(*.0))]
    TooLarge(u64),
    #[error("the root isn't there: is it mounted?")]
    NoRoot,
    #[error("there isn't enough room for it on the root's file system")]
    NoRoom,
    #[error("it can't be written: {0}")]
    Io(io::Error),
}

impl Wrong {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Wrong::Name(_) => "bad-name",
            Wrong::NoFolder(_) => "no-folder",
            Wrong::NoRoute(_) => "no-route",
            Wrong::Exists(_) => "exists",
            Wrong::TooLarge(_) => "too-large",
            Wrong::NoRoot => "root-unavailable",
            Wrong::NoRoom => "no-room",
            Wrong::Io(_) => "io",
        }
    }

    pub(super) fn help(&self) -> &'static str {
        match self {
            Wrong::Name(_) => "give it another `name`: a plain file name of at most 255 bytes",
            Wrong::NoFolder(_) => "the folders are those of the routes: see /v1/config",
            Wrong::NoRoute(_) => "see the routes' `match` in /v1/config; rename it, or add a route",
            Wrong::Exists(_) => "wait until it is claimed, or give this one another name",
            Wrong::TooLarge(_) => "copy it into the inbox by other means, or raise `max_upload` in [api]",
            Wrong::NoRoot => "see the health in `gamdok status`",
            Wrong::NoRoom => "make room, then send it again",
            Wrong::Io(_) => "look at the root's directories and their permissions",
        }
    }

    fn io(error: io::Error) -> Wrong {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Wrong::NoRoom,
            io::ErrorKind::NotFound => Wrong::NoRoot,
            _ => Wrong::Io(error),
        }
    }
}

/// Where an item is to lie in the inbox.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    name: String,
    folder: String,
    route: Option<String>,
}

impl Target {
    /// Checks what can be known of the name before a byte is taken.
    pub(super) fn new(directories: &Directories, folder: &str, name: &str) -> Result<Target, Wrong> {
        check_name(name)?;
        let sorting = directories.sorting();
        if !sorting.folders().any(|known| known == folder) {
            return Err(Wrong::NoFolder(escape(folder.as_bytes())));
        }
        let path = directories.root().join("inbox").join(folder).join(name);
        if path.symlink_metadata().is_ok() || (folder.is_empty() && sorting.is_folder(OsStr::new(name))) {
            return Err(Wrong::Exists(escape(name.as_bytes())));
        }
        let route = match sorting.sort(folder, OsStr::new(name), FileType::RegularFile) {
            Sort::Ignored => return Err(Wrong::Name("the inbox takes it for a temporary file")),
            Sort::Held(_) => return Err(Wrong::NoRoute(escape(name.as_bytes()))),
            // It makes another item ready.
            Sort::Companion(_) => None,
            Sort::Open { route } => route,
        };
        Ok(Target { path, name: name.to_owned(), folder: folder.to_owned(), route })
    }
}

fn check_name(name: &str) -> Result<(), Wrong> {
    Err(Wrong::Name(match name {
        "" => "it is empty",
        "." | ".." => "it is a directory's",
        _ if name.len() > LONGEST => "it is longer than 255 bytes",
        _ if name.contains('/') => "it has a `/`",
        _ if name.contains(char::is_control) => "it has a control character",
        _ => return Ok(()),
    }))
}

/// A file that is being written. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Incoming {
    file: File,
    path: PathBuf,
    most: u64,
    bytes: u64,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let _placed = fs::remove_file(&self.path);
    }
}

/// Removes what uploads left when their director was killed. Whoever calls holds the root's lock.
pub(super) fn clean(root: &Path) {
    for entry in fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten() {
        if let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(%error, "what is left of an upload can't be removed");
        }
    }
}

impl Incoming {
    pub(super) fn begin(root: &Path, most: u64, announced: Option<u64>) -> Result<Incoming, Wrong> {
        let folder = root.join(FOLDER);
        // Never the directories above: a root that isn't mounted has none.
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Wrong::io(error)),
            _ => {}
        }
        let path = folder.join(ulid::Ulid::generate().to_string());
        let file = File::options().write(true).create_new(true).open(&path).map_err(Wrong::io)?;
        let incoming = Incoming { file, path, most, bytes: 0 };
        incoming.look_for_room(announced.unwrap_or(0))?;
        Ok(incoming)
    }

    fn look_for_room(&self, wanted: u64) -> Result<(), Wrong> {
        let fs = rustix::fs::fstatvfs(&self.file).map_err(|error| Wrong::Io(error.into()))?;
        if space::room(&fs) <= wanted { Err(Wrong::NoRoom) } else { Ok(()) }
    }

    /// Writes all parts that come. Blocks.
    pub(super) fn write(mut self, mut parts: mpsc::Receiver<Bytes>) -> Result<Incoming, Wrong> {
        let mut looked_at = 0;
        while let Some(part) = parts.blocking_recv() {
            self.bytes += part.len() as u64;
            if self.bytes > self.most {
                return Err(Wrong::TooLarge(self.most));
            }
            if self.bytes - looked_at >= LOOK {
                looked_at = self.bytes;
                self.look_for_room(LOOK)?;
            }
            self.file.write_all(&part).map_err(Wrong::io)?;
        }
        Ok(self)
    }

    /// Makes it last, and puts it where the scanner finds it. Blocks.
    pub(super) fn place(self, target: Target) -> Result<Uploaded, Wrong> {
        self.file.sync_all().map_err(Wrong::io)?;
        rename(&self.path, &target.path).map_err(|error| match error {
            Errno::EXIST => Wrong::Exists(escape(target.name.as_bytes())),
            error => Wrong::io(error.into()),
        })?;
        let folder = target.path.parent().unwrap_or(&target.path);
        // It lies there already, and may be claimed by now: what isn't synced is only less sure to last.
        if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
            tracing::warn!(%error, "the inbox can't be synced");
        }
        let Target { name, folder, route, .. } = target;
        let name_b64 = ItemName::new(&name).base64();
        Ok(Uploaded { name, folder, name_b64, route, bytes: self.bytes })
    }
}

/// Replaces nothing, also where the file system can't promise that by itself.
fn rename(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(CWD, from, CWD, to, rustix::fs::AtFlags::empty())
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_item_may_have_are_refused() {
        let check = |name: &str, expected: bool| assert_eq!(check_name(name).is_ok(), expected, "{name:?}");
        for name in ["a", "a.wav", "-rf", "한국어.wav", "...", "a b", "$(x)", &"x".repeat(255)] {
            check(name, true);
        }
        for name in ["", ".", "..", "/", "a/b", "../a", "a\0b", "a\nb", "\u{1b}[31m", &"x".repeat(256)] {
            check(name, false);
        }
    }

    #[test]
    fn what_lies_there_is_never_replaced_and_what_is_left_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        assert!(matches!(Incoming::begin(root, 9, None), Err(Wrong::NoRoot)));
        fs::create_dir_all(root.join(".gamdok")).expect("a state directory");
        fs::create_dir(root.join("inbox")).expect("an inbox");
        let directories = Directories::new(root, None);
        let left = || fs::read_dir(root.join(FOLDER)).expect("the uploads").count();
        let send = |parts: &[&'static str], most: u64| {
            let target = Target::new(&directories, "", "a").expect("a name");
            let incoming = Incoming::begin(root, most, None).expect("room");
            let (send, receive) = mpsc::channel(9);
            parts.iter().for_each(|part| send.try_send(Bytes::from_static(part.as_bytes())).expect("a place"));
            drop(send);
            // Somebody else is faster, where the name is taken.
            (incoming.write(receive), target)
        };
        let (whole, target) = send(&["ab", "c"], 3);
        assert!(!root.join("inbox/a").exists());
        let uploaded = whole.expect("written").place(target).expect("placed");
        assert_eq!((uploaded.bytes, uploaded.name_b64.as_str()), (3, "YQ=="));
        assert!(matches!(Target::new(&directories, "", "a"), Err(Wrong::Exists(_))));
        fs::remove_file(root.join("inbox/a")).expect("claimed");
        let (whole, target) = send(&["new"], 3);
        fs::write(root.join("inbox/a"), "old").expect("another producer");
        assert!(matches!(whole.expect("written").place(target), Err(Wrong::Exists(_))));
        assert_eq!(fs::read_to_string(root.join("inbox/a")).expect("it"), "old");
        fs::remove_file(root.join("inbox/a")).expect("claimed");
        assert!(matches!(send(&["ab", "cd"], 3).0, Err(Wrong::TooLarge(3))));
        assert_eq!(left(), 0);
        fs::write(root.join(FOLDER).join("cut"), "half").expect("what a kill leaves");
        clean(root);
        assert_eq!(left(), 0);
    }
}
