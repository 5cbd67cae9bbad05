//! Manifests: a producer's own word on what an item must hold. `{"bytes", "sha256"}` for a file, `{"files": [{"path",
//! "bytes", "sha256"}…]}` for a directory: the only cure for an upload that was cut off and looks whole.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::matching::{MANIFEST, companion};
use super::ready::Verdict;
use crate::item::{ItemKind, escape};

/// A manifest longer than this is refused unread.
const MAX: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    files: Vec<Listed>,
    #[serde(flatten)]
    whole: Expected,
}

#[derive(Debug, Deserialize)]
struct Listed {
    path: String,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Debug, Deserialize)]
struct Expected {
    bytes: Option<u64>,
    sha256: Option<String>,
}

/// Compares the item with its manifest: all sizes first, since hashes cost time and a size tells most.
pub(super) fn check(folder: &impl AsFd, name: &OsStr, kind: ItemKind, stop: &AtomicBool) -> Verdict {
    let manifest = match read(folder, name) {
        Ok(manifest) => manifest,
        Err(why) => return Verdict::NotYet(why),
    };
    let item: Vec<(String, &Expected)> = match kind {
        ItemKind::File => vec![(String::new(), &manifest.whole)],
        ItemKind::Directory => manifest.files.iter().map(|file| (file.path.clone(), &file.expected)).collect(),
    };
    if item.iter().all(|(_, expected)| expected.bytes.is_none() && expected.sha256.is_none()) {
        return Verdict::NotYet(match kind {
            ItemKind::File => "its manifest names neither `bytes` nor `sha256`".to_owned(),
            ItemKind::Directory => "its manifest lists no `files`".to_owned(),
        });
    }
    for (path, expected) in &item {
        let found = open(folder, name, path).and_then(|file| file.metadata());
        match (found, expected.bytes) {
            (Err(error), _) => return Verdict::NotYet(format!("manifest: {}: {error}", shown(name, path))),
            (Ok(found), Some(bytes)) if found.len() != bytes => {
                let has = found.len();
                return Verdict::NotYet(format!("manifest: {} has {has} of {bytes} bytes", shown(name, path)));
            }
            _ => {}
        }
    }
    for (path, expected) in &item {
        let Some(sha256) = &expected.sha256 else { continue };
        match open(folder, name, path).and_then(|file| hash(file, stop)) {
            Ok(found) if found.eq_ignore_ascii_case(sha256) => {}
            Ok(_) => return Verdict::Refused(format!("manifest: {} has another SHA-256", shown(name, path))),
            Err(error) => return Verdict::NotYet(format!("manifest: {}: {error}", shown(name, path))),
        }
    }
    Verdict::Passed
}

fn shown(name: &OsStr, path: &str) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    if path.is_empty() { escape(name.as_bytes()) } else { escape(path.as_bytes()) }
}

fn read(folder: &impl AsFd, name: &OsStr) -> Result<Manifest, String> {
    let file = match open(folder, &companion(name, MANIFEST), "") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("it waits for its manifest, a file of the same name with `{MANIFEST}` at its end"));
        }
        Err(error) => return Err(format!("its manifest can't be read: {error}")),
    };
    let mut text = Vec::new();
    let length = file.take(MAX + 1).read_to_end(&mut text).map_err(|error| format!("its manifest: {error}"))?;
    if length as u64 > MAX {
        return Err(format!("its manifest is longer than {} MiB", MAX >> 20));
    }
    serde_json::from_slice(&text).map_err(|error| format!("its manifest isn't valid: {error}"))
}

/// Opens a regular file of the item, one name of `path` after the other, so that no link leads out of it.
fn open(folder: &impl AsFd, name: &OsStr, path: &str) -> io::Result<File> {
    let mut at: Option<OwnedFd> = None;
    let inner = path.split('/').filter(|part| !part.is_empty() && *part != ".").map(OsStr::new);
    let parts: Vec<&OsStr> = std::iter::once(name).chain(inner).collect();
    for (n, part) in parts.iter().enumerate() {
        if *part == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "`..` leads out of the item"));
        }
        let last = n + 1 == parts.len();
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = flags | if last { OFlags::PATH } else { OFlags::PATH | OFlags::DIRECTORY };
        at = Some(match &at {
            None => rustix::fs::openat(folder, *part, flags, Mode::empty())?,
            Some(at) => rustix::fs::openat(at, *part, flags, Mode::empty())?,
        });
        // Nothing but a regular file is opened for reading: a device or a FIFO would have effects.
        if last && let Some(place) = &at {
            if FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode) != FileType::RegularFile {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            use std::os::fd::AsRawFd as _;
            return File::open(format!("/proc/self/fd/{}", place.as_raw_fd()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn hash(mut file: File, stop: &AtomicBool) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        if stop.load(Ordering::Acquire) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
    }
    let mut text = String::with_capacity(64);
    for byte in hasher.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_is_held_to_its_manifest() {
        let check = |manifest: Option<String>, expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("a"), "abc").unwrap();
            if let Some(manifest) = manifest {
                std::fs::write(dir.path().join("a.manifest.json"), manifest).unwrap();
            }
            let folder = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
            let verdict = super::check(&folder, OsStr::new("a"), ItemKind::File, &AtomicBool::new(false));
            assert!(format!("{verdict:?}").contains(expected), "{verdict:?}");
        };
        check(None, "waits for its manifest");
        check(Some("{".to_owned()), "isn't valid");
        check(Some("{}".to_owned()), "neither");
        check(Some(format!(r#"{{"bytes":3,"sha256":"{ABC}"}}"#)), "Passed");
        check(Some(format!(r#"{{"sha256":"{}"}}"#, ABC.to_uppercase())), "Passed");
        check(Some(r#"{"bytes":4}"#.to_owned()), "has 3 of 4 bytes");
        check(Some(format!(r#"{{"bytes":3,"sha256":"{}"}}"#, "0".repeat(64))), "another SHA-256");
    }

    #[test]
    fn a_directory_is_held_to_its_manifest_and_stays_inside() {
        let check = |files: &str, expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("a/sub")).unwrap();
            std::fs::write(dir.path().join("a/sub/x"), "abc").unwrap();
            std::os::unix::fs::symlink("/etc/passwd", dir.path().join("a/link")).unwrap();
            std::fs::write(dir.path().join("a.manifest.json"), format!(r#"{{"files":[{files}]}}"#)).unwrap();
            let folder = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
            let verdict = super::check(&folder, OsStr::new("a"), ItemKind::Directory, &AtomicBool::new(false));
            assert!(format!("{verdict:?}").contains(expected), "{verdict:?}");
        };
        check("", "lists no `files`");
        check(&format!(r#"{{"path":"sub/x","bytes":3,"sha256":"{ABC}"}}"#), "Passed");
        check(r#"{"path":"sub/y","bytes":3}"#, "sub/y: No such file");
        check(r#"{"path":"../a/sub/x","bytes":3}"#, "leads out");
        check(r#"{"path":"link","bytes":3}"#, "not a regular file");
    }
}
