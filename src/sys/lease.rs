//! Read leases: the kernel grants one only while nobody has the file open for writing, writable mappings included, and
//! tells when someone tries to. An exact test for "no writer", on the file systems and files where it is allowed.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Missing in libc's headers for this target.
const F_SETSIG: libc::c_int = 10;

/// Takes a read lease. `Ok(false)`: someone has it open for writing. An error: not allowed or not supported here.
pub fn set_read_lease(file: impl AsFd) -> io::Result<bool> {
    // Without this a broken lease sends SIGIO, which ends the process; SIGURG is ignored unless someone asked for it.
    fcntl(&file, F_SETSIG, libc::SIGURG)?;
    match fcntl(&file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the lease stands: nobody waits to open the file for writing.
pub fn still_leased(file: impl AsFd) -> bool {
    fcntl(&file, libc::F_GETLEASE, 0).is_ok_and(|held| held == libc::F_RDLCK)
}

/// Gives it back; who waits for it goes on.
pub fn release_lease(file: impl AsFd) {
    // Closing the file would release it too; nothing is left to do about an error.
    let _ = fcntl(&file, libc::F_SETLEASE, libc::F_UNLCK);
}

#[expect(unsafe_code, reason = "rustix has no leases")]
fn fcntl(file: &impl AsFd, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open while it is borrowed, and these commands take an integer and touch no memory.
    let answer = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};

    #[test]
    fn a_writer_refuses_the_lease_and_a_reader_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("item");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        assert!(!set_read_lease(&file).unwrap());
        drop(writer);
        let _reader = File::open(&path).unwrap();
        assert!(set_read_lease(&file).unwrap());
        assert!(still_leased(&file));
        release_lease(&file);
        assert!(!still_leased(&file));
    }
}
