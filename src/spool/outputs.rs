//! What a worker left in `out/`: listed for result.json, or synced. Symbolic links are listed and never followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::record;
use crate::item::{Output, escape};

/// Listed at most; the files themselves are all there.
pub(super) const LISTED: usize = 10_000;
const DEEPEST: usize = 64;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Outputs {
    pub(super) listed: Vec<Output>,
    /// Not listed, beyond the bounds.
    pub(super) more: u64,
    /// What could not be looked at, in words.
    pub(super) trouble: Option<String>,
}

impl Outputs {
    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.more == 0
    }

    /// What the list leaves out, for the result's message.
    pub(super) fn note(&self) -> Option<String> {
        let more = (self.more > 0).then(|| format!("{} more outputs are not listed", self.more));
        match (more, &self.trouble) {
            (Some(more), Some(trouble)) => Some(format!("{more}; {trouble}")),
            (more, trouble) => more.or(trouble.clone()),
        }
    }
}

/// Lists the files under `out/`, by path.
pub(super) fn list(job: impl AsFd) -> Result<Outputs, Errno> {
    let mut outputs = Outputs::default();
    let out = match record::open_dir(job, record::OUT) {
        Ok(out) => out,
        Err(Errno::NOENT) => return Ok(outputs),
        Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {
            outputs.trouble = Some("out/ is not a directory that can be read".to_owned());
            return Ok(outputs);
        }
        Err(error) => return Err(error),
    };
    let mut path = Vec::new();
    walk(&out, &mut path, 0, &mut outputs)?;
    outputs.listed.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(outputs)
}

fn walk(dir: &OwnedFd, path: &mut Vec<u8>, depth: usize, outputs: &mut Outputs) -> Result<(), Errno> {
    let entries = match rustix::fs::Dir::read_from(dir) {
        Ok(entries) => entries,
        // Its worker took the right to search it.
        Err(Errno::ACCESS) => {
            outputs.trouble = Some(format!("out/{} can't be looked into", escape(path)));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let kind = match kind(dir, &entry) {
            Ok(kind) => kind,
            Err(Errno::ACCESS) => FileType::Unknown,
            Err(error) => return Err(error),
        };
        match kind {
            FileType::Directory if depth < DEEPEST => match record::open_dir(dir, name) {
                Ok(inner) => walk(&inner, path, depth + 1, outputs)?,
                Err(Errno::NOENT) => {}
                Err(error) => outputs.trouble = Some(format!("out/{} can't be read: {error}", escape(path))),
            },
            FileType::Directory => outputs.trouble = Some(format!("out/{} lies too deep", escape(path))),
            _ if outputs.listed.len() < LISTED => match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => outputs.listed.push(Output { path: escape(path), bytes: stat.st_size as u64 }),
                Err(Errno::NOENT) => {}
                // A directory that may be listed and not searched.
                Err(Errno::ACCESS) => outputs.trouble = Some(format!("out/{} can't be looked at", escape(path))),
                Err(error) => return Err(error),
            },
            _ => outputs.more += 1,
        }
        path.truncate(before);
    }
    Ok(())
}

fn kind(dir: &OwnedFd, entry: &rustix::fs::DirEntry) -> Result<FileType, Errno> {
    match entry.file_type() {
        FileType::Unknown => match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => Ok(FileType::Unknown),
            Err(error) => Err(error),
        },
        known => Ok(known),
    }
}

/// Syncs every file and directory under `out/`, and `out/` itself.
pub(super) fn sync(job: impl AsFd) -> Result<(), Errno> {
    match record::open_dir(job, record::OUT) {
        Ok(out) => sync_tree(&out, 0),
        // The list said what is wrong with it.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_tree(dir: &OwnedFd, depth: usize) -> Result<(), Errno> {
    let entries = match rustix::fs::Dir::read_from(dir) {
        Err(Errno::ACCESS) => return rustix::fs::fsync(dir),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match kind(dir, &entry) {
            Err(Errno::ACCESS) => continue,
            other => other?,
        };
        let opened = match kind {
            FileType::Directory if depth < DEEPEST => match record::open_dir(dir, name) {
                Ok(inner) => {
                    sync_tree(&inner, depth + 1)?;
                    continue;
                }
                Err(error) => Err(error),
            },
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::empty())
            }
            _ => continue,
        };
        match opened {
            Ok(file) => rustix::fs::fsync(&file)?,
            Err(Errno::NOENT | Errno::ACCESS | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fsync(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_listed_by_escaped_path_and_links_are_not_followed() {
        use std::os::unix::ffi::OsStrExt as _;
        let job = tempfile::tempdir().unwrap();
        let out = job.path().join("out");
        std::fs::create_dir_all(out.join("b/c")).unwrap();
        std::fs::write(out.join("b/c/deep"), "12345").unwrap();
        std::fs::write(out.join(std::ffi::OsStr::from_bytes(b"a\n\xff")), "1").unwrap();
        std::os::unix::fs::symlink("/etc", out.join("link")).unwrap();
        let dir = record::open_dir(rustix::fs::CWD, job.path()).unwrap();
        let found = list(&dir).unwrap();
        let shown: Vec<_> = found.listed.iter().map(|o| (o.path.as_str(), o.bytes)).collect();
        assert_eq!(shown, [("a\\n\\xff", 1), ("b/c/deep", 5), ("link", 4)]);
        assert_eq!(found.note(), None);
        sync(&dir).unwrap();
    }

    #[test]
    fn a_missing_or_odd_out_is_said_not_failed() {
        let job = tempfile::tempdir().unwrap();
        let dir = record::open_dir(rustix::fs::CWD, job.path()).unwrap();
        assert!(list(&dir).unwrap().is_empty());
        std::fs::write(job.path().join("out"), "").unwrap();
        assert!(list(&dir).unwrap().note().is_some());
        sync(&dir).unwrap();
    }
}
