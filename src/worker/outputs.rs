//! Whether the outputs a route declares are there: for each pattern a file in `out/` that matches it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use globset::{GlobBuilder, GlobMatcher};

/// Deeper than anyone's results, and short of what a path can name.
const MAX_DEPTH: usize = 64;

/// The patterns that nothing in `out` satisfies. A pattern with a `/` is matched against the path below `out`, one
/// without against a name at any depth. An empty file exists too: markers are. A folder or a FIFO of the name holds no output.
pub(super) fn missing(out: &Path, patterns: &[String]) -> io::Result<Vec<String>> {
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let mut open: Vec<Pattern> = Vec::new();
    // A link in its place leads out of the job.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = match rustix::fs::open(out, flags, Mode::empty()) {
        Ok(within) => within,
        // The worker took `out/` away, or put something else there.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(patterns.to_vec()),
        Err(error) => return Err(error.into()),
    };
    for text in patterns {
        // Most are plain names, one look each.
        if !is_literal(text) || !is_there(&within, Path::new(text))? {
            open.push(Pattern::new(text));
        }
    }
    if !open.is_empty() {
        walk(&within, out, out, 0, &mut open)?;
    }
    Ok(open.into_iter().map(|pattern| pattern.text).collect())
}

struct Pattern {
    text: String,
    /// None for one that can't be read; nothing matches it then.
    matcher: Option<GlobMatcher>,
    whole_path: bool,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        let glob = GlobBuilder::new(text.trim_start_matches("./")).literal_separator(true).build();
        Pattern {
            text: text.to_owned(),
            matcher: glob.ok().map(|glob| glob.compile_matcher()),
            whole_path: text.contains('/'),
        }
    }

    fn takes(&self, below: &Path) -> bool {
        let subject = if self.whole_path { below } else { below.file_name().map(Path::new).unwrap_or(below) };
        self.matcher.as_ref().is_some_and(|matcher| matcher.is_match(subject))
    }
}

fn is_literal(text: &str) -> bool {
    // What leads out of `out/` satisfies nothing, so it goes the way of the patterns.
    !text.contains(['*', '?', '[', ']', '{', '}', '\\'])
        && Path::new(text).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// Takes the satisfied patterns out of `open`; ends as soon as none is left.
fn walk(within: &OwnedFd, out: &Path, dir: &Path, depth: usize, open: &mut Vec<Pattern>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let below = path.strip_prefix(out).unwrap_or(&path);
        if open.iter().any(|pattern| pattern.takes(below)) && is_there(within, below)? {
            open.retain(|pattern| !pattern.takes(below));
            if open.is_empty() {
                return Ok(());
            }
        }
        // Links are not followed: they may lead out, or round in circles.
        if depth < MAX_DEPTH && entry.file_type()?.is_dir() {
            walk(within, out, &path, depth + 1, open)?;
            if open.is_empty() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether a file lies there: links are followed as long as they stay within `out/`.
fn is_there(within: &OwnedFd, below: &Path) -> io::Result<bool> {
    let looked = open_within(within, below, OFlags::PATH | OFlags::CLOEXEC).and_then(rustix::fs::fstat);
    match looked {
        // A link only where the kernel can't follow it safely.
        Ok(stat) => Ok(matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink)),
        Err(error) if is_absence(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_within(within: &OwnedFd, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(within, below, flags, Mode::empty(), resolve) {
        // An older kernel, or a container that hides the call: a link at the end counts as it is.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(within, below, flags | OFlags::NOFOLLOW, Mode::empty()),
        other => other,
    }
}

/// A dangling link, one that leads out, a name too long, or nothing at all.
fn is_absence(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL | Errno::LOOP | Errno::XDEV)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn declared_outputs_exist() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::create_dir_all(out.join("deep/er")).unwrap();
        fs::create_dir(out.join("hollow")).unwrap();
        fs::write(root.path().join("outside.txt"), "x").unwrap();
        fs::write(out.join("a.txt"), "x").unwrap();
        fs::write(out.join("empty.txt"), "").unwrap();
        fs::write(out.join("deep/er/model.bin"), "x").unwrap();
        fs::write(out.join(OsStr::from_bytes(b"\xff odd\n.json")), "x").unwrap();
        symlink("a.txt", out.join("link.csv")).unwrap();
        for name in ["fifo.txt", "one.fifo"] {
            rustix::fs::mknodat(rustix::fs::CWD, out.join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        let _listens = std::os::unix::net::UnixListener::bind(out.join("socket")).unwrap();
        fs::create_dir_all(out.join("out-of-order/deeper")).unwrap();
        fs::write(out.join("out-of-order/file"), "x").unwrap();
        symlink("nowhere", out.join("dangling.csv")).unwrap();
        symlink("..", out.join("round")).unwrap();
        symlink("/etc", out.join("etc")).unwrap();
        symlink("../outside.txt", out.join("leads-out.txt")).unwrap();
        symlink("deep", out.join("inner")).unwrap();

        let check = |pattern: &str, there: bool| {
            let missing = missing(&out, &[pattern.to_owned()]).unwrap();
            assert_eq!(missing.is_empty(), there, "{pattern}");
        };
        check("a.txt", true);
        check("*.txt", true);
        check("./*.txt", true);
        check("empty.txt", true);
        check("b.txt", false);
        check("model.bin", true);
        check("*.bin", true);
        check("deep/er/model.bin", true);
        check("deep/*.bin", false);
        check("deep/**/*.bin", true);
        check("*/er/*", true);
        check("er", false);
        check("hollow", false);
        check("hol*", false);
        check("fifo.txt", false);
        check("*.fifo", false);
        check("socket", false);
        check("inner", false);
        check("out-of-*/*", true);
        check("*.json", true);
        check("link.csv", true);
        check("dangling.csv", false);
        check("outside.txt", false);
        check("etc/passwd", false);
        check("etc", false);
        check("round/outside.txt", false);
        check("leads-out.txt", false);
        check("inner/er/model.bin", true);
        check("../outside.txt", false);
        check("/etc/passwd", false);
        check("[", false);
    }

    #[test]
    fn those_missing_are_named_in_order() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("b"), "x").unwrap();
        let patterns = ["a", "b", "*.c"].map(str::to_owned);
        assert_eq!(missing(out.path(), &patterns).unwrap(), ["a", "*.c"]);
        assert_eq!(missing(&out.path().join("gone"), &patterns).unwrap(), patterns);
        symlink("/etc", out.path().join("elsewhere")).unwrap();
        assert_eq!(missing(&out.path().join("elsewhere"), &["passwd".to_owned()]).unwrap(), ["passwd"]);
    }
}
