//! How all that runs is told to end: once to ask it, once more to have it at once. It is heard by who polls descriptors and
//! by who waits for channels. May be pressed from any thread.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::pipe::{PipeFlags, pipe_with};

/// See the module.
#[derive(Clone, Debug)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    asked: OwnedFd,
    killed: OwnedFd,
    heard: Receiver<()>,
    ends: Mutex<Ends>,
}

/// The far ends of what is listened to: closing one is the news.
#[derive(Debug)]
struct Ends {
    ask: Option<(OwnedFd, Sender<()>)>,
    kill: Option<OwnedFd>,
    /// Somebody outside wants it.
    pressed: bool,
}

impl Stop {
    pub fn new() -> io::Result<Stop> {
        let (asked, ask) = pipe_with(PipeFlags::CLOEXEC)?;
        let (killed, kill) = pipe_with(PipeFlags::CLOEXEC)?;
        let (tell, heard) = bounded(0);
        let ends = Mutex::new(Ends { ask: Some((ask, tell)), kill: Some(kill), pressed: false });
        Ok(Stop { shared: Arc::new(Shared { asked, killed, heard, ends }) })
    }

    /// The first asks, the second kills.
    pub fn press(&self) {
        let mut ends = self.ends();
        ends.pressed = true;
        if ends.ask.take().is_none() {
            ends.kill = None;
        }
    }

    pub(super) fn is_pressed(&self) -> bool {
        self.ends().pressed
    }

    /// Asks for reasons of our own, if nobody did before.
    pub(super) fn ask(&self) {
        self.ends().ask = None;
    }

    pub(super) fn is_asked(&self) -> bool {
        self.ends().ask.is_none()
    }

    /// Hung up once asked.
    pub(super) fn asked(&self) -> BorrowedFd<'_> {
        self.shared.asked.as_fd()
    }

    /// Hung up once it is to be at once.
    pub(super) fn killed(&self) -> BorrowedFd<'_> {
        self.shared.killed.as_fd()
    }

    /// Closed once asked.
    pub(super) fn heard(&self) -> &Receiver<()> {
        &self.shared.heard
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
