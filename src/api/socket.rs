//! The Unix socket's address. `sun_path` holds 108 bytes; a longer path is reached through an open descriptor of its
//! directory.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// `sun_path` less the closing NUL.
const LONGEST: usize = 107;

/// A path that fits, and the directory it needs open while it is used.
struct Address {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl Address {
    fn of(path: &Path) -> io::Result<Address> {
        if path.as_os_str().as_bytes().len() <= LONGEST {
            return Ok(Address { path: path.to_owned(), _dir: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Address { path: Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name), _dir: Some(dir) })
    }
}

/// Listens at `path`, for its owner only. Whoever calls holds the root's lock, so a socket that lies there is stale.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let address = Address::of(path)?;
    let listener = UnixListener::bind(&address.path)?;
    // Until this line the directory's own mode (owner only) keeps others out.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(&Address::of(path)?.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_works_however_long_its_path_is() {
        let check = |depth: usize| {
            let folder = tempfile::tempdir().expect("a folder");
            let dir = (0..depth).fold(folder.path().to_owned(), |dir, _| dir.join("a-rather-long-name-of-a-folder"));
            std::fs::create_dir_all(&dir).expect("a deep folder");
            let path = dir.join("sock");
            let listener = listen(&path).expect("to listen");
            assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
            connect(&path).expect("to connect");
            // A stale one is replaced.
            drop(listener);
            assert!(connect(&path).is_err());
            let _listener = listen(&path).expect("to listen again");
            connect(&path).expect("to connect again");
        };
        check(0);
        check(8);
    }
}
