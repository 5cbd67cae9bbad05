//! A process for each batch: lines in at stdin, what stands for them out at stdout, both at the same time. Its stderr goes
//! to a log in whole lines, and its last ones into the failure's words.
//!
//! Invariants: the process has a group of its own, which is gone when `consume` returns; its output is bounded; output that
//! may be incomplete never counts as success.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};

use super::consumer::{Batch, BatchError, Consumer, Kind};
use super::stop::StopFlag;
use crate::item::{Counters, escape};
use crate::symptoms::speaks_of_memory;
use crate::sys::spawn::{NotStarted, Spawn};

/// What a pipe holds where the kernel lets us: fewer turns between us and the process.
const PIPE: usize = 256 << 10;
/// What is read or written at a time.
const CHUNK: usize = 64 << 10;
/// After a little was fed or heard, how long the next look waits for more: a process that writes line by line would wake
/// us for each. Pipes hold far more than comes meanwhile, or the look before was a large one.
const PACE: Duration = Duration::from_millis(2);
/// How much of the end of stderr is kept, for what it tells of the failure.
const TAIL: usize = 8 << 10;
/// How much of it a failure repeats.
const MAX_WORDS: usize = 1024;
const MAX_WORD_LINES: usize = 5;

/// What to run for each batch; nothing left to decide.
#[derive(Debug)]
pub struct Program {
    /// The file to run, as a path.
    pub program: PathBuf,
    /// With the program's name as the first.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The folder it starts in.
    pub cwd: PathBuf,
    /// Where its stderr goes; opened for appending, since several processes share it.
    pub log: Option<Arc<File>>,
    /// Handed on as the descriptors from 3 on, such as locks that tell whether it lives.
    pub descriptors: Vec<Arc<OwnedFd>>,
    /// The most time for a batch.
    pub timeout: Option<Duration>,
    /// Between the wish to end and the kill.
    pub kill_grace: Duration,
    /// The most bytes of output for a batch.
    pub max_output: u64,
}

/// Hears what the process of each batch says on descriptor 3, a stream socket.
pub trait Ear: Send {
    /// A process begins with a batch.
    fn begin(&mut self, batch: &Batch);

    /// The next bytes. An error, in words for people, has the process ended, and the batch fails.
    fn hear(&mut self, bytes: &[u8]) -> Result<(), String>;

    /// The process has ended and said all. An error fails the batch, whatever the exit code.
    fn end(&mut self) -> Result<(), BatchError>;

    /// What it counted over the batch.
    fn counted(&mut self) -> Counters;
}

/// Looks after what the process of each batch leaves behind, beyond its group.
pub(crate) trait Keeper: Send {
    /// A process is about to start; answers what its environment has beside the program's.
    fn begin(&mut self) -> (OsString, OsString);

    /// It runs, the leader of its group.
    fn started(&mut self, leader: i32);

    /// It has ended, was waited for, and its group was killed.
    fn ended(&mut self);
}

/// Runs a [`Program`] for each batch. Exit code 65 says that no retry helps, 75 that a later one may.
pub struct ProcessConsumer {
    program: Program,
    stop: StopFlag,
    ear: Option<Box<dyn Ear>>,
    keeper: Option<Box<dyn Keeper>>,
}

impl fmt::Debug for ProcessConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessConsumer").field("program", &self.program).finish_non_exhaustive()
    }
}

impl ProcessConsumer {
    /// The stop should be the run's: a process is ended as soon as it is ordered.
    pub fn new(program: Program, stop: StopFlag) -> ProcessConsumer {
        ProcessConsumer { program, stop, ear: None, keeper: None }
    }

    /// Listens to descriptor 3; those of the program then begin at 4.
    #[must_use]
    pub fn listening(self, ear: Box<dyn Ear>) -> ProcessConsumer {
        ProcessConsumer { ear: Some(ear), ..self }
    }

    /// Has someone look after what processes leave behind.
    pub(crate) fn kept_by(self, keeper: Box<dyn Keeper>) -> ProcessConsumer {
        ProcessConsumer { keeper: Some(keeper), ..self }
    }
}

impl Consumer for ProcessConsumer {
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        if self.stop.is_ordered() {
            return Err(BatchError::new(Kind::Stopped, "stopped"));
        }
        if let Some(ear) = &mut self.ear {
            ear.begin(batch);
        }
        if let Some(keeper) = &mut self.keeper {
            let (key, value) = keeper.begin();
            self.program.env.retain(|(known, _)| *known != key);
            self.program.env.push((key, value));
        }
        let mut talk = Talk::start(&self.program, &batch.bytes, out, self.ear.as_deref_mut())?;
        if let Some(keeper) = &mut self.keeper {
            keeper.started(talk.child.pid.as_raw_pid());
        }
        let ended = talk.converse(&self.stop);
        let exit = talk.child.end();
        let said = talk.hear_out();
        talk.errors.flush();
        if let Some(keeper) = &mut self.keeper {
            keeper.ended();
        }
        judge(&talk, ended, exit)?;
        said.map_err(|error| talk.errors.weigh(error))
    }

    fn counted(&mut self) -> Counters {
        self.ear.as_mut().map(|ear| ear.counted()).unwrap_or_default()
    }

    fn wants_more(&mut self) -> bool {
        !self.stop.is_ordered()
    }
}

/// How the talk ended, beside the exit.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    ByItself,
    TimedOut,
    Stopped,
    TooMuch,
    /// The process has ended, but something it started holds its stdout.
    HeldOpen,
    /// What it said on descriptor 3 makes no sense.
    Nonsense(String),
    Io(String),
}

/// One process, and all that goes to and from it.
struct Talk<'t> {
    program: &'t Program,
    child: Child,
    /// What it hasn't been fed yet.
    left: &'t [u8],
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Our end of its descriptor 3.
    channel: Option<OwnedFd>,
    ear: Option<&'t mut (dyn Ear + 'static)>,
    out: &'t mut Vec<u8>,
    errors: Errors,
    /// What one look must move at least to be followed by the next at once.
    large: usize,
    begun: Instant,
}

impl<'t> Talk<'t> {
    fn start(
        program: &'t Program,
        bytes: &'t [u8],
        out: &'t mut Vec<u8>,
        ear: Option<&'t mut (dyn Ear + 'static)>,
    ) -> Result<Talk<'t>, BatchError> {
        let no_pipe = |error: Errno| BatchError::from(NotStarted::by_host(format!("cannot make a pipe: {error}")));
        let (their_stdin, stdin) = pipe().map_err(no_pipe)?;
        let (stdout, their_stdout) = pipe().map_err(no_pipe)?;
        let (stderr, their_stderr) = pipe().map_err(no_pipe)?;
        let mut smallest = PIPE;
        for ours in [&stdin, &stdout, &stderr] {
            rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK).map_err(no_pipe)?;
            smallest = smallest.min(fcntl_getpipe_size(ours).map_err(no_pipe)?);
        }
        let mut descriptors: Vec<BorrowedFd> = vec![their_stdin.as_fd(), their_stdout.as_fd(), their_stderr.as_fd()];
        let sockets =
            ear.as_ref().map(|_| socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None));
        let (channel, their_channel) = sockets.transpose().map_err(no_pipe)?.unzip();
        descriptors.extend(their_channel.as_ref().map(|fd| fd.as_fd()));
        descriptors.extend(program.descriptors.iter().map(|fd| fd.as_fd()));
        let Program { program: file, argv, env, cwd, .. } = program;
        let child = Child::start(&Spawn { program: file, argv, env, cwd, descriptors: &descriptors })?;
        Ok(Talk {
            program,
            child,
            left: bytes,
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
            channel,
            ear,
            out,
            errors: Errors::new(program.log.clone()),
            large: smallest / 2,
            begun: Instant::now(),
        })
    }

    /// Feeds and listens until it has ended and said all, or must be ended.
    fn converse(&mut self, stop: &StopFlag) -> Ended {
        let timeout = self.program.timeout.and_then(|timeout| self.begun.checked_add(timeout));
        let mut exited_at = None;
        // Why it must end, and when it is killed if it wasn't yet.
        let mut ending: Option<(Ended, Option<Instant>)> = None;
        let mut resting_until: Option<Instant> = None;
        loop {
            if exited_at.is_some() && (self.stdout.is_none() || ending.is_some()) {
                let _read = self.hear_errors();
                return ending.map_or(Ended::ByItself, |(why, _)| why);
            }
            let grace = self.program.kill_grace;
            let held_until: Option<Instant> = exited_at.and_then(|at: Instant| at.checked_add(grace));
            let due = match &ending {
                Some((_, kill_at)) => *kill_at,
                None => [timeout.filter(|_| exited_at.is_none()), held_until].into_iter().flatten().min(),
            };
            let is_resting = resting_until.is_some() && exited_at.is_none();
            let due = if is_resting { [due, resting_until].into_iter().flatten().min() } else { due };
            let listen = Listen { exit: exited_at.is_none(), pipes: !is_resting };
            let woken = match self.wait(listen, ending.is_none().then_some(stop), due) {
                Ok(woken) => woken,
                Err(error) => return Ended::Io(format!("cannot wait for the process: {error}")),
            };
            let now = Instant::now();
            if woken.exited {
                exited_at.get_or_insert(now);
            }
            // What a process prints after it was asked to end is read too, or it might never end.
            let nonsense = if woken.spoke { self.listen().err() } else { None };
            let talked = self.look();
            resting_until = match talked {
                Ok(moved) if 0 < moved && moved < self.large => now.checked_add(PACE),
                _ => None,
            };
            let why = match talked {
                Err(error) => Some(Ended::Io(format!("cannot talk to the process: {error}"))),
                Ok(_) if self.program.max_output < self.out.len() as u64 => Some(Ended::TooMuch),
                Ok(_) if woken.stopped => Some(Ended::Stopped),
                Ok(_) if nonsense.is_some() => nonsense.map(Ended::Nonsense),
                Ok(_) if exited_at.is_none() && timeout.is_some_and(|at| at <= now) => Some(Ended::TimedOut),
                Ok(_) if self.stdout.is_some() && held_until.is_some_and(|at| at <= now) => Some(Ended::HeldOpen),
                Ok(_) => None,
            };
            match (&mut ending, why) {
                (None, Some(why)) => {
                    self.child.signal(Signal::TERM);
                    // One that was stopped can't hear before it goes on.
                    self.child.signal(Signal::CONT);
                    ending = Some((why, now.checked_add(grace).or(Some(now))));
                    self.stdin = None;
                }
                (Some((_, kill_at)), _) if kill_at.is_some_and(|at| at <= now) => {
                    self.child.signal(Signal::KILL);
                    *kill_at = None;
                }
                _ => {}
            }
            if ending.is_some() {
                self.out.clear();
            }
        }
    }

    /// Feeds and hears what can be now. Answers the most that one pipe took or gave.
    fn look(&mut self) -> Result<usize, Errno> {
        Ok(self.feed()?.max(self.hear_errors()?).max(self.hear()?))
    }

    fn wait(&self, listen: Listen, stop: Option<&StopFlag>, due: Option<Instant>) -> Result<Woken, Errno> {
        let mut fds = Vec::with_capacity(6);
        let exited = listen.exit.then(|| push(&mut fds, &self.child, PollFlags::IN));
        let stopped = stop.map(|stop| push(&mut fds, stop, PollFlags::IN));
        let channel = self.channel.as_ref().filter(|_| listen.exit);
        let spoke = channel.map(|channel| push(&mut fds, channel, PollFlags::IN));
        if listen.pipes {
            fds.extend(self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
            fds.extend(self.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            // Once it has ended nobody waits for its stderr: a background process may hold it.
            fds.extend(self.stderr.as_ref().filter(|_| listen.exit).map(|fd| PollFd::new(fd, PollFlags::IN)));
        }
        let span = due.map(|due| due.saturating_duration_since(Instant::now()));
        let span = span.and_then(|span| Timespec::try_from(span).ok());
        match poll(&mut fds, span.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        Ok(Woken { exited: is_ready(exited), stopped: is_ready(stopped), spoke: is_ready(spoke) })
    }

    /// Hears a piece of what it says on descriptor 3.
    fn listen(&mut self) -> Result<(), String> {
        let (Some(channel), Some(ear)) = (&self.channel, &mut self.ear) else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        match recv(channel, &mut chunk[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.channel = None,
            Ok((read, _)) => {
                let heard = ear.hear(&chunk[..read]);
                if heard.is_err() {
                    self.channel = None;
                }
                return heard;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Reset by a process that died: nothing more will come.
            Err(_) => self.channel = None,
        }
        Ok(())
    }

    /// The last of what it said. Others may hold the channel open and go on: what lies there now is all that counts.
    fn hear_out(&mut self) -> Result<(), BatchError> {
        let nonsense = |what: String| BatchError::failed(broke(&what));
        let mut left = self.channel.as_ref().and_then(|channel| rustix::io::ioctl_fionread(channel).ok()).unwrap_or(0);
        while 0 < left && self.channel.is_some() {
            self.listen().map_err(nonsense)?;
            left = left.saturating_sub(CHUNK as u64);
        }
        self.ear.as_mut().map_or(Ok(()), |ear| ear.end())
    }

    fn feed(&mut self) -> Result<usize, Errno> {
        let before = self.left.len();
        while let Some(stdin) = &self.stdin {
            if self.left.is_empty() {
                self.stdin = None;
                break;
            }
            match rustix::io::write(stdin, &self.left[..self.left.len().min(CHUNK)]) {
                Ok(written) => self.left = &self.left[written..],
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // It wants no more; its exit code tells whether that is well.
                Err(Errno::PIPE) => self.stdin = None,
                Err(error) => return Err(error),
            }
        }
        Ok(before - self.left.len())
    }

    fn hear(&mut self) -> Result<usize, Errno> {
        let before = self.out.len();
        let most = before + 4 * CHUNK;
        while let Some(stdout) = &self.stdout
            && self.out.len() < most
        {
            self.out.reserve(CHUNK);
            match rustix::io::read(stdout, spare_capacity(self.out)) {
                Ok(0) => self.stdout = None,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.out.len() - before)
    }

    fn hear_errors(&mut self) -> Result<usize, Errno> {
        let mut heard = 0;
        let mut chunk = [0; 4096];
        // Not without end: a process may write faster than we read.
        for _ in 0..64 {
            let Some(stderr) = &self.stderr else { break };
            match rustix::io::read(stderr, &mut chunk) {
                Ok(0) => self.stderr = None,
                Ok(read) => {
                    self.errors.take(&chunk[..read]);
                    heard += read;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(heard)
    }
}

/// What a wait heeds, beside the stop.
struct Listen {
    exit: bool,
    pipes: bool,
}

struct Woken {
    exited: bool,
    stopped: bool,
    spoke: bool,
}

/// Adds a descriptor; answers its place.
fn push<'f>(fds: &mut Vec<PollFd<'f>>, fd: &'f impl AsFd, flags: PollFlags) -> usize {
    fds.push(PollFd::new(fd, flags));
    fds.len() - 1
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // A user's share of large pipes may be used up; a small one does as well.
    let _size = fcntl_setpipe_size(&writer, PIPE);
    Ok((reader, writer))
}

fn judge(talk: &Talk, ended: Ended, exit: io::Result<Exit>) -> Result<(), BatchError> {
    let seconds = talk.begun.elapsed().as_secs_f64();
    let with_words = |kind: Kind, what: String| Err(BatchError::new(kind, talk.errors.after(what)));
    let died = |kind: Kind, what: String| with_words(kind, what).map_err(|error| talk.errors.weigh(error));
    match (ended, exit) {
        (Ended::Stopped, _) => Err(BatchError::new(Kind::Stopped, "stopped")),
        (Ended::TimedOut, _) => with_words(Kind::Failed, format!("it took longer than its timeout ({seconds:.1} s)")),
        (Ended::TooMuch, _) => {
            let limit = crate::units::Bytes(talk.program.max_output);
            let help = "fewer lines in a batch would help";
            with_words(Kind::Final, format!("it printed more than {limit} to its stdout; {help}"))
        }
        (Ended::Io(error), _) => with_words(Kind::Later, error),
        (Ended::Nonsense(what), _) => with_words(Kind::Failed, broke(&what)),
        (_, Err(error)) => with_words(Kind::Later, format!("its exit isn't known: {error}")),
        (_, Ok(Exit::Signal(signal))) => died(Kind::Failed, format!("ended by signal {signal}")),
        (Ended::HeldOpen, Ok(Exit::Code(0))) => {
            let held = "it ended, but a process that it started holds its stdout open";
            with_words(Kind::Failed, format!("{held}: what it printed may be incomplete"))
        }
        (_, Ok(Exit::Code(0))) => Ok(()),
        (_, Ok(Exit::Code(code))) => {
            let kind = match code {
                65 => Kind::Final,
                75 => Kind::Later,
                _ => Kind::Failed,
            };
            died(kind, format!("exit code {code}"))
        }
    }
}

fn broke(what: &str) -> String {
    format!("broke the protocol of fd 3: {what}")
}

/// What it says on stderr.
#[derive(Debug)]
pub(crate) struct Errors {
    log: Option<Arc<File>>,
    /// The beginning of a line that isn't in the log yet.
    line: Vec<u8>,
    /// The last it said.
    tail: Vec<u8>,
}

impl Errors {
    pub(crate) fn new(log: Option<Arc<File>>) -> Errors {
        Errors { log, line: Vec::new(), tail: Vec::new() }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
        self.line.extend_from_slice(bytes);
        // Whole lines: those of other processes come in between. An endless one is cut.
        let whole = memchr::memrchr(b'\n', &self.line).map_or(0, |at| at + 1);
        let whole = if self.line.len() - whole > CHUNK { self.line.len() } else { whole };
        self.write(whole);
    }

    /// What was said so far is no news any more.
    pub(crate) fn forget(&mut self) {
        self.tail.clear();
    }

    pub(crate) fn flush(&mut self) {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            self.write(self.line.len());
        }
    }

    fn write(&mut self, bytes: usize) {
        if let Some(mut log) = self.log.as_deref()
            && 0 < bytes
        {
            // A log on a full disk must not fail the work.
            let _written = log.write_all(&self.line[..bytes]);
        }
        self.line.drain(..bytes);
    }

    /// A failure that the last it said, or the failure's own words, lay to memory that ran out, is of that kind.
    pub(crate) fn weigh(&self, error: BatchError) -> BatchError {
        let tells = || speaks_of_memory(&self.tail) || speaks_of_memory(error.message.as_bytes());
        if error.kind == Kind::Failed && tells() { BatchError { kind: Kind::OutOfMemory, ..error } } else { error }
    }

    /// What happened, and its last lines.
    pub(crate) fn after(&self, what: String) -> String {
        let from = self.tail.len().saturating_sub(MAX_WORDS);
        let lines = self.tail[from..].split(|byte| matches!(byte, b'\n' | b'\r'));
        let mut last: Vec<String> =
            lines.rev().filter(|line| !line.is_empty()).take(MAX_WORD_LINES).map(escape).collect();
        last.reverse();
        if last.is_empty() { what } else { format!("{what}: {}", last.join(" | ")) }
    }
}

/// The process itself: not waited for before its whole group was killed, so that its number stays its own.
struct Child {
    pid: Pid,
    /// Readable once it has ended.
    handle: OwnedFd,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
enum Exit {
    Code(i32),
    Signal(i32),
}

impl Child {
    fn start(order: &Spawn) -> Result<Child, BatchError> {
        let pid = order.start().map_err(|error| order.why_not(&error))?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Ok(Child { pid, handle, is_over: false }),
            Err(error) => {
                let _gone = kill_process_group(pid, Signal::KILL);
                let _status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                Err(NotStarted::by_host(format!("no handle on the process: {error}")).into())
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // One that has ended doesn't mind.
        let _gone = kill_process_group(self.pid, signal);
    }

    /// Ends whatever of its group lives, and learns how it exited.
    fn end(&mut self) -> io::Result<Exit> {
        self.signal(Signal::KILL);
        let status = loop {
            match waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                status => break status,
            }
        };
        self.is_over = true;
        let status = status?.ok_or(Errno::CHILD)?;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ok(Exit::Code(code)),
            (None, Some(signal)) => Ok(Exit::Signal(signal)),
            (None, None) => Err(io::Error::other("the process ended in no known way")),
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_over {
            let _exit = self.end();
        }
    }
}

impl From<NotStarted> for BatchError {
    fn from(not: NotStarted) -> BatchError {
        BatchError::new(Kind::NotStarted { host: not.host }, not.error)
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
