//! Our own stdout or stderr. Whoever reads it may be slow, or have stopped for good: a write then waits for them or for the
//! stop, whichever comes first.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::stop::Stop;

/// A pipe that can be written to has room for this much.
const PIECE: usize = 4096;
/// A file always has.
const FILE_PIECE: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Out {
    to: OwnedFd,
    is_file: bool,
    stop: Stop,
}

impl Out {
    pub(super) fn new(to: impl AsFd, stop: &Stop) -> io::Result<Out> {
        let to = to.as_fd().try_clone_to_owned()?;
        let is_file = FileType::from_raw_mode(fstat(&to)?.st_mode) == FileType::RegularFile;
        Ok(Out { to, is_file, stop: stop.clone() })
    }

    /// Waits until there is room; false if it is to be tried again. After a stop, whoever doesn't read right now is not
    /// waited for.
    fn wait(&self) -> io::Result<bool> {
        let stopping = self.stop.is_asked();
        let mut polled = vec![PollFd::new(&self.to, PollFlags::OUT)];
        if !stopping {
            polled.push(PollFd::from_borrowed_fd(self.stop.asked(), PollFlags::IN));
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut polled, stopping.then_some(&at_once)) {
            Ok(_) if !polled[0].revents().is_empty() => Ok(true),
            Ok(_) if stopping => Err(io::ErrorKind::WouldBlock.into()),
            Ok(_) | Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let most = if self.is_file { FILE_PIECE } else { PIECE };
            if !self.is_file && !self.wait()? {
                continue;
            }
            match rustix::io::write(&self.to, &bytes[..bytes.len().min(most)]) {
                // The other side may have made it so that it doesn't block.
                Err(Errno::AGAIN | Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
