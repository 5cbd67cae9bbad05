//! Read leases: the kernel's own answer to "has anybody this file open for writing?", writable mappings included, on
//! local file systems and files this process owns (or with CAP_LEASE). While one is held, an opener for writing waits;
//! so it is held for microseconds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// `F_SETSIG` of `<fcntl.h>`; the libc crate lacks it for gnu targets.
const F_SETSIG: libc::c_int = 10;

/// What asking for a lease tells.
#[derive(Debug)]
pub enum Taken<F: AsFd> {
    /// Nobody has it open for writing, and nobody gets it while this lives.
    Held(ReadLease<F>),
    /// Somebody has it open or mapped for writing.
    Writer,
    /// It can't be told here: another owner's file, or a file system without leases.
    NotAllowed,
}

/// A lease in force; dropping it lets waiting writers go on.
#[derive(Debug)]
pub struct ReadLease<F: AsFd> {
    file: F,
}

/// Takes a read lease on a regular file that was opened for reading only.
pub fn take<F: AsFd>(file: F) -> io::Result<Taken<F>> {
    let fd = file.as_fd();
    // A broken lease sends SIGIO by default, which kills the process; SIGURG is ignored by default.
    set(fd.as_raw_fd(), F_SETSIG, libc::SIGURG)?;
    match set(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(_) => Ok(Taken::Held(ReadLease { file })),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Taken::Writer),
            Some(libc::EACCES | libc::EPERM | libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => {
                Ok(Taken::NotAllowed)
            }
            _ => Err(error),
        },
    }
}

impl<F: AsFd> ReadLease<F> {
    /// Whether no writer has come since: false once one waits for it to be let go.
    pub fn is_unbroken(&self) -> bool {
        set(self.file.as_fd().as_raw_fd(), libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_RDLCK)
    }
}

impl<F: AsFd> Drop for ReadLease<F> {
    fn drop(&mut self) {
        // Closing the descriptor would do as well, but the borrower may keep it open for long.
        let _ = set(self.file.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK);
    }
}

#[expect(unsafe_code, reason = "neither std nor rustix has the lease commands of fcntl")]
fn set(fd: RawFd, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the three commands take an int and touch no memory of ours; the callers borrow `fd` for the call's time.
    let answer = unsafe { libc::fcntl(fd, command, argument) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    #[test]
    fn a_writer_is_seen_and_its_absence_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let reader = File::open(&path).unwrap();
        match take(&reader).unwrap() {
            Taken::Held(lease) => assert!(lease.is_unbroken()),
            // A file system without leases (some containers): nothing to test here.
            Taken::NotAllowed => return,
            Taken::Writer => panic!("nobody writes"),
        }
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        assert!(matches!(take(&reader).unwrap(), Taken::Writer));
        drop(writer);
        assert!(matches!(take(&reader).unwrap(), Taken::Held(_)));
    }

    #[test]
    #[expect(unsafe_code, reason = "a writable mapping is what is tested")]
    fn a_writable_mapping_is_a_writer_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at a place of the kernel's choice; nothing reads or writes through it.
        let mapping =
            unsafe { libc::mmap(std::ptr::null_mut(), 1, protection, libc::MAP_SHARED, writer.as_raw_fd(), 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        drop(writer);
        let reader = File::open(&path).unwrap();
        assert!(matches!(take(&reader).unwrap(), Taken::Writer | Taken::NotAllowed));
        // SAFETY: the mapping made above, which nobody uses.
        assert_eq!(unsafe { libc::munmap(mapping, 1) }, 0);
        assert!(matches!(take(&reader).unwrap(), Taken::Held(_) | Taken::NotAllowed));
    }

    #[test]
    fn an_opener_breaks_the_lease_and_gets_in_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let reader = File::open(&path).unwrap();
        let Taken::Held(lease) = take(&reader).unwrap() else { return };
        // O_NONBLOCK: the opener isn't made to wait, and the lease is breaking all the same.
        let opener = rustix::fs::open(
            &path,
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        );
        assert!(opener.is_err_and(|error| error == rustix::io::Errno::WOULDBLOCK));
        assert!(!lease.is_unbroken());
        drop(lease);
        assert!(OpenOptions::new().append(true).open(&path).is_ok());
    }
}
