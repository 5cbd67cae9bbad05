//! One try at one run: a process in a group of its own, what it prints kept until it has ended. It is over when its main
//! process is; what that left in its group is killed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::kept::Kept;
use super::slot::End;
use super::stop::Stop;
use crate::item::JobId;
use crate::sys::spawn::Spawn;
use crate::worker::process::{Exit, Process};

/// From the request to end to the kill.
const GRACE: Duration = Duration::from_secs(10);
/// How long a killed one may take (one that waits for a dead disk can't be ended at all).
const GIVE_UP: Duration = Duration::from_secs(5);
/// What is still read of a stream after the end: a daemon that left its group may hold it open, and write for ever.
const AFTER_THE_END: usize = 1 << 20;

/// What is started.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    pub(super) argv: &'a [OsString],
    pub(super) env: &'a [(OsString, OsString)],
    pub(super) stdin: BorrowedFd<'a>,
    /// Inherited: they keep the devices locked should this process be killed.
    pub(super) locks: &'a [Arc<OwnedFd>],
    pub(super) id: JobId,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) end: End,
    pub(super) stdout: Kept,
    pub(super) stderr: Kept,
}

/// Runs it to its end, or to the stop's. `started` hears its number; `buffer` is lent for reading.
pub(super) fn carry_out(start: &Start, stop: &Stop, buffer: &mut [u8], started: impl FnOnce(i32)) -> Tried {
    let not_run = |why: String, hopeless: bool| Tried {
        end: End::NotRun { why, hopeless },
        stdout: Kept::default(),
        stderr: Kept::default(),
    };
    let prepared = pipe().and_then(|stdout| Ok((stdout, pipe()?)));
    let ((out_read, out_write), (err_read, err_write)) = match prepared {
        Ok(pipes) => pipes,
        Err(error) => return not_run(format!("no pipe for its output: {error}"), false),
    };
    let mut descriptors = vec![start.stdin, out_write.as_fd(), err_write.as_fd()];
    descriptors.extend(start.locks.iter().map(|lock| lock.as_fd()));
    let order = Spawn {
        program: start.program,
        argv: start.argv,
        env: start.env,
        cwd: Path::new("."),
        descriptors: &descriptors,
    };
    let process = match Process::start(&order, start.id) {
        Ok(process) => process,
        Err(not) => return not_run(not.error, not.program),
    };
    drop((out_write, err_write));
    started(process.pid());
    let mut running = Running { process, streams: [Stream::new(out_read), Stream::new(err_read)], stage: Stage::Left };
    let end = running.watch(stop, buffer).unwrap_or_else(|error| {
        running.process.kill();
        End::NotRun { why: format!("its output can't be kept: {error}"), hopeless: false }
    });
    let [stdout, stderr] = running.streams.map(|stream| stream.kept);
    if matches!(running.stage, Stage::GivenUp) {
        // Dropping it would wait for it.
        std::mem::forget(running.process);
    }
    Tried { end, stdout, stderr }
}

/// Both ends; ours doesn't block.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((read, write))
}

struct Running {
    process: Process,
    streams: [Stream; 2],
    stage: Stage,
}

/// How far it has been told to end.
#[derive(Clone, Copy)]
enum Stage {
    Left,
    Asked { kill_at: Instant },
    Killed { give_up_at: Instant },
    GivenUp,
}

impl Running {
    fn watch(&mut self, stop: &Stop, buffer: &mut [u8]) -> io::Result<End> {
        loop {
            let (news, until) = match self.stage {
                Stage::Left => (Some(stop.asked()), None),
                Stage::Asked { kill_at } => (Some(stop.killed()), Some(kill_at)),
                Stage::Killed { give_up_at } => (None, Some(give_up_at)),
                Stage::GivenUp => return Ok(End::Stopped),
            };
            let ready = self.wait(news, until)?;
            for (stream, is_ready) in self.streams.iter_mut().zip(ready.streams) {
                if is_ready {
                    stream.read(buffer)?;
                }
            }
            if ready.process {
                break;
            }
            if ready.told || until.is_some_and(|until| until <= Instant::now()) {
                self.go_on();
            }
        }
        // Before it is waited for, its number is its own, and so is its group.
        self.process.kill();
        for stream in &mut self.streams {
            stream.drain(buffer)?;
        }
        let exit = self.process.wait()?;
        // A signal to our own group may also find a process that has only just begun, and has none of its own yet.
        let cut = !matches!(self.stage, Stage::Left) || (matches!(exit, Exit::Signal(_)) && stop.is_asked());
        Ok(if cut { End::Stopped } else { End::Exit(exit) })
    }

    fn go_on(&mut self) {
        let now = Instant::now();
        self.stage = match self.stage {
            Stage::Left => {
                self.process.ask();
                Stage::Asked { kill_at: now + GRACE }
            }
            Stage::Asked { .. } => {
                self.process.kill();
                Stage::Killed { give_up_at: now + GIVE_UP }
            }
            Stage::Killed { .. } | Stage::GivenUp => {
                tracing::error!(pid = self.process.pid(), "a process can't be ended");
                Stage::GivenUp
            }
        };
    }

    fn wait(&self, news: Option<BorrowedFd>, until: Option<Instant>) -> io::Result<Ready> {
        let mut polled = vec![PollFd::new(&self.process, PollFlags::IN)];
        polled.extend(news.map(|news| PollFd::from_borrowed_fd(news, PollFlags::IN)));
        let open: Vec<usize> = (0..2).filter(|at| self.streams[*at].open.is_some()).collect();
        polled.extend(self.streams.iter().filter_map(|stream| Some(PollFd::new(stream.open.as_ref()?, PollFlags::IN))));
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| polled.get(at).is_some_and(|it| !it.revents().is_empty());
        let first = 1 + usize::from(news.is_some());
        let mut ready = Ready { process: is_ready(0), told: news.is_some() && is_ready(1), streams: [false; 2] };
        for (n, stream) in open.into_iter().enumerate() {
            ready.streams[stream] = is_ready(first + n);
        }
        Ok(ready)
    }
}

#[derive(Clone, Copy, Default)]
struct Ready {
    process: bool,
    told: bool,
    streams: [bool; 2],
}

/// What it prints on one descriptor.
struct Stream {
    /// None at its end.
    open: Option<OwnedFd>,
    kept: Kept,
}

impl Stream {
    fn new(open: OwnedFd) -> Stream {
        Stream { open: Some(open), kept: Kept::default() }
    }

    /// Takes what is there; how much that was, none when there is nothing more for now.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(open) = &self.open else { return Ok(None) };
        match rustix::io::read(open, &mut *buffer) {
            Ok(0) => {
                self.open = None;
                Ok(None)
            }
            Ok(read) => {
                self.kept.append(&buffer[..read])?;
                Ok(Some(read))
            }
            Err(Errno::INTR) => Ok(Some(0)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn drain(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut left = AFTER_THE_END;
        while let Some(read) = self.read(buffer)? {
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
        self.open = None;
        Ok(())
    }
}

fn timespec(span: Duration) -> Timespec {
    // Rounded up, so that a wake-up never comes a moment too early.
    let span = span + Duration::from_nanos(999_999);
    Timespec { tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(span.subsec_nanos()) }
}
