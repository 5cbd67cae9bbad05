//! Paths as the configuration writes them, made absolute. A `..` is followed through symbolic links as the kernel
//! would; all else stays as people wrote it.

use std::path::{Component, Path, PathBuf};

/// `path`, relative to `dir`, without `.` and `..`.
pub(crate) fn resolve(dir: &Path, path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in dir.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                // Popping a symbolic link's name isn't its parent.
                if let Ok(real) = resolved.canonicalize() {
                    resolved = real;
                }
                resolved.pop();
            }
            other => resolved.push(other),
        }
    }
    resolved
}

/// Whether `inner` is `outer` or lies in it, symbolic links followed as far as the paths exist.
pub(super) fn lies_in(inner: &Path, outer: &Path) -> bool {
    real(inner).starts_with(real(outer))
}

/// The path with the links of its longest existing part followed.
pub(super) fn real(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            // `join("")` would append a slash.
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_absolute_and_lose_their_dots() {
        let check = |dir: &str, path: &str, expected: &str| {
            assert_eq!(resolve(Path::new(dir), Path::new(path)), Path::new(expected), "{dir} {path}");
        };
        check("/no/such", ".", "/no/such");
        check("/no/such", "../x", "/no/x");
        check("/no/such", "../../../x", "/x");
        check("/no/such", "/abs/./x/", "/abs/x");
        check("/no/such/..", "x", "/no/x");
    }

    #[test]
    fn links_are_followed_before_going_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = folder.path().canonicalize().expect("its path");
        std::fs::create_dir_all(base.join("deep/real")).expect("folders");
        std::os::unix::fs::symlink(base.join("deep/real"), base.join("link")).expect("a link");
        assert_eq!(resolve(&base, Path::new("link/../x")), base.join("deep/x"));
        assert_eq!(resolve(&base, Path::new("link/x")), base.join("link/x"));
        assert!(lies_in(&base.join("link/new/file"), &base.join("deep")));
        assert!(!lies_in(&base.join("deeper"), &base.join("deep")));
    }
}
