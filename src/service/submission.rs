//! An item on its way into the inbox, and the claim on how it ends.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use ulid::Ulid;

use super::Error;
use crate::director::{Ended, News};
use crate::item::ItemKind;

/// What is submitted.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Copy(&'a Path),
    Move(&'a Path),
    Bytes(&'a OsStr, &'a [u8]),
}

impl Payload<'_> {
    pub(super) fn named(&self) -> &Path {
        match self {
            Payload::Copy(path) | Payload::Move(path) => path,
            Payload::Bytes(name, _) => Path::new(name),
        }
    }

    /// Its name and its kind.
    pub(super) fn look(&self) -> Result<(OsString, ItemKind), String> {
        let path = self.named();
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err("a path has no NUL byte in it".to_owned());
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return Err("this path ends in no name".to_owned());
        };
        if let Payload::Bytes(given, _) = self {
            return if name == **given {
                Ok((name, ItemKind::File))
            } else {
                Err("a name has no `/` in it".to_owned())
            };
        }
        let meta = match self {
            Payload::Copy(_) => fs::metadata(path),
            _ => fs::symlink_metadata(path),
        };
        let meta = meta.map_err(|error| error.to_string())?;
        match self {
            _ if meta.is_file() => Ok((name, ItemKind::File)),
            Payload::Move(_) if meta.is_dir() => Ok((name, ItemKind::Directory)),
            _ if meta.is_dir() => Err("it is a directory: `submit_moved` takes those".to_owned()),
            _ => Err("it is neither a file nor a directory".to_owned()),
        }
    }

    /// Of a file; nothing of a directory, whose files come together in it.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Payload::Bytes(_, content) => Some(content.len() as u64),
            Payload::Copy(path) | Payload::Move(path) => {
                fs::metadata(path).ok().filter(|meta| meta.is_file()).map(|meta| meta.len())
            }
        }
    }

    /// Puts it into the folder under the name: it appears there whole, and replaces nothing. `arrives` hears its inode just
    /// before.
    pub(super) fn put(&self, folder: &Path, name: &OsStr, arrives: impl FnOnce(u64)) -> Result<(), String> {
        let target = folder.join(name);
        let failed = |error: io::Error| format!("cannot write to `{}`: {error}", crate::root::shown(folder));
        let named = |from: &Path| {
            arrives(fs::symlink_metadata(from).map_err(|error| error.to_string())?.ino());
            rename(from, &target)
        };
        if let Payload::Move(path) = self {
            return named(path);
        }
        // Hidden names are no items.
        let partial = folder.join(format!(".gamdok-submit-{}", Ulid::generate()));
        let written = self.write(&partial).map_err(failed).and_then(|()| named(&partial));
        if written.is_err() {
            let _absent = fs::remove_file(&partial);
        }
        written
    }

    fn write(&self, partial: &Path) -> io::Result<()> {
        match self {
            Payload::Bytes(_, content) => {
                let mut file = File::options().write(true).create_new(true).open(partial)?;
                file.write_all(content)?;
                file.sync_all()
            }
            Payload::Copy(path) | Payload::Move(path) => {
                fs::copy(path, partial)?;
                File::open(partial)?.sync_all()
            }
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), String> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err("one of this name lies in the inbox already: wait for it, or rename it".to_owned()),
        Err(Errno::XDEV) => Err("it lies on another file system than the inbox: `submit` copies it".to_owned()),
        Err(error) => Err(format!("cannot move it to `{}`: {error}", crate::root::shown(to))),
    }
}

/// The claim on how a submitted item ends. Dropping it lets the item go its way unheard.
#[derive(Debug)]
pub struct Submission {
    ended: Receiver<Arc<Ended>>,
    news: News,
}

impl Submission {
    pub(super) fn new(ended: Receiver<Arc<Ended>>, news: News) -> Submission {
        Submission { ended, news }
    }

    /// Waits until the item has its outcome: done, failed or cancelled, with all retries. An error means that it has none:
    /// somebody took it out of the inbox before it was claimed ([`Error::Withdrawn`]), or the director has ended.
    /// What the inbox holds back (a marker that doesn't come, a validator that refuses it) is waited for.
    pub fn wait(self) -> Result<Arc<Ended>, Error> {
        self.ended.recv().map_err(|_| self.lost())
    }

    /// Waits for at most so long; then the submission back.
    pub fn wait_timeout(self, at_most: Duration) -> Result<Result<Arc<Ended>, Error>, Submission> {
        match self.ended.recv_timeout(at_most) {
            Ok(ended) => Ok(Ok(ended)),
            Err(RecvTimeoutError::Timeout) => Err(self),
            Err(RecvTimeoutError::Disconnected) => Ok(Err(self.lost())),
        }
    }

    fn lost(&self) -> Error {
        if self.news.is_over() { Error::Over } else { Error::Withdrawn }
    }
}
