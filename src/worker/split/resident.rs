//! A process that a slot keeps while it works on a big line file: it loads its model once and gets one batch after another on
//! descriptor 3, as an item of its own: a file with the batch's lines, and an empty folder for the file that stands for
//! them.
//!
//! Invariants: the process has one batch at most; it is replaced after a failure, unless it says itself that it is the batch
//! for good; when the slot has ended it is gone, with all that it started and its folder.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::sweeper;
use super::tally::{Tally, failed};
use crate::item::{Counters, JobId};
use crate::proc::Owner;
use crate::split::{Batch, BatchError, Consumer, Errors, Kind, StopFlag};
use crate::sys::spawn::{NotStarted, Spawn};
use crate::units::Bytes;
use crate::worker::attempt::dev_null;
use crate::worker::channel::{self, Broken, Message};
use crate::worker::process::{Exit, Process};
use crate::worker::strays::{self, Trail};
use crate::worker::{Said, message};

/// One that has sent a heartbeat is taken for hung after so long without any message over a batch.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// How long one that has closed its end may take to end itself: what it ends with says more. A busy host needs a while to tell.
const LINGERS: Duration = Duration::from_secs(5);
/// What is read at a time.
const CHUNK: usize = 64 << 10;

/// What is kept running, and how.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) program: PathBuf,
    pub(super) argv: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) cwd: PathBuf,
    pub(super) log: Arc<File>,
    /// Locks, handed on as the descriptors from 4 on.
    pub(super) descriptors: Vec<Arc<OwnedFd>>,
    /// The UUIDs it was given, to hold what it says against; empty on the CPU.
    pub(super) devices: Vec<String>,
    pub(super) ready_timeout: Duration,
    /// After so many batches it is replaced; none: never.
    pub(super) max_batches: Option<u32>,
    pub(super) kill_grace: Duration,
    /// The most bytes that may stand for a batch.
    pub(super) max_output: u64,
    /// What a batch is called: the item, without `.gz`.
    pub(super) name: OsString,
    /// Of this slot alone.
    pub(super) dir: PathBuf,
    pub(super) job_dir: PathBuf,
}

#[derive(Debug)]
pub(super) struct ResidentConsumer {
    order: Order,
    stop: StopFlag,
    tally: Tally,
    kept: Option<Kept>,
}

impl ResidentConsumer {
    pub(super) fn new(order: Order, stop: StopFlag, tally: Tally) -> ResidentConsumer {
        ResidentConsumer { order, stop, tally, kept: None }
    }

    /// Ends the process. What it counts until then is the last batch's, as far as that isn't reported yet.
    fn let_go(&mut self, manner: Manner) {
        if let Some(kept) = self.kept.take() {
            kept.end(manner, &self.order, &mut self.tally);
        }
    }

    fn converse(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        let ResidentConsumer { order, stop, tally, kept } = self;
        let kept = match kept {
            Some(kept) => kept,
            None => kept.insert(Kept::start(order, tally.job)?),
        };
        if !kept.ready {
            kept.get_ready(order, stop, tally)?;
        }
        let (lines, result) = lay_out(order, batch)
            .map_err(|error| BatchError::new(Kind::Later, format!("cannot write the lines for it: {error}")))?;
        let id = JobId(ulid::Ulid::generate());
        kept.hand(id, &message::lines(id, &lines, &order.name, &result, batch));
        match kept.listen(order, stop, tally, None, |kept| kept.answer.is_some()) {
            Ok(()) => {}
            // It was leaving already: that is none's failure. The next one has served nothing, so this ends.
            Err(Trouble::Exited(_)) if kept.unread && 0 < kept.served => {
                self.let_go(Manner::Asked);
                return self.converse(batch, out);
            }
            Err(trouble) => return Err(kept.judge(trouble, "without an answer for it")),
        }
        kept.prints(Until::Quiet);
        match kept.answer.take() {
            Some(Said::Failed { error, retry }) => Err(kept.errors.weigh(failed(error, retry))),
            _ => read_part(&result, order.max_output, out),
        }
    }
}

impl Consumer for ResidentConsumer {
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        if self.stop.is_ordered() {
            return Err(BatchError::new(Kind::Stopped, "stopped"));
        }
        self.tally.begin(batch);
        let made = self.converse(batch, out);
        self.tally.end();
        let Some(kept) = &mut self.kept else { return made };
        kept.errors.flush();
        kept.errors.forget();
        kept.served = kept.served.saturating_add(1);
        let has_served = self.order.max_batches.is_some_and(|most| most <= kept.served);
        // One that has refused a batch for good is well; what it left behind in no order isn't its end either.
        let is_well = made.as_ref().err().is_none_or(|error| error.kind == Kind::Final) && kept.exit_seen.is_none();
        if !is_well || has_served {
            let manner = if is_well { Manner::Told } else { Manner::Asked };
            self.let_go(manner);
        }
        made
    }

    fn counted(&mut self) -> Counters {
        self.tally.counted()
    }

    fn finish(&mut self) -> Counters {
        // What stands there is of a try that failed.
        self.tally.forget();
        let manner = if self.stop.is_ordered() { Manner::Asked } else { Manner::Told };
        self.let_go(manner);
        self.tally.counted()
    }

    fn wants_more(&mut self) -> bool {
        !self.stop.is_ordered()
    }
}

impl Drop for ResidentConsumer {
    fn drop(&mut self) {
        self.let_go(Manner::Asked);
        // A kill leaves it lying; whoever goes on clears it away.
        let _left = fs::remove_dir_all(&self.order.dir);
    }
}

/// Writes the lines, and makes the empty folder beside them.
fn lay_out(order: &Order, batch: &Batch) -> io::Result<(PathBuf, PathBuf)> {
    let (lines, out) = (order.dir.join("in").join(&order.name), order.dir.join("out"));
    // Of the batch before, which may have left anything there.
    match fs::remove_dir_all(&order.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(order.dir.join("in"))?;
    fs::create_dir(&out)?;
    fs::write(&lines, &batch.bytes)?;
    Ok((lines, out))
}

/// The one file that stands for a batch.
fn read_part(dir: &Path, max_output: u64, out: &mut Vec<u8>) -> Result<(), BatchError> {
    let unreadable = |error: io::Error| BatchError::failed(format!("what it left in `out` can't be read: {error}"));
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)?.take(2) {
        found.push(entry.map_err(unreadable)?.path());
    }
    let [path] = &found[..] else {
        let what = if found.is_empty() { "nothing" } else { "more than one thing" };
        let help = "one file is expected, an empty one where nothing stands for its lines";
        return Err(BatchError::failed(format!("it left {what} in `out`: {help}")));
    };
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(BatchError::failed("what it left in `out` is no file".to_owned()));
    }
    if max_output < meta.len() {
        let help = "fewer lines in a batch would help";
        let message = format!("it left {} in `out`, more than {}; {help}", Bytes(meta.len()), Bytes(max_output));
        return Err(BatchError::new(Kind::Final, message));
    }
    out.reserve(usize::try_from(meta.len()).unwrap_or_default());
    file.take(max_output).read_to_end(out).map(drop).map_err(unreadable)
}

/// The process, and what it said.
#[derive(Debug)]
struct Kept {
    process: Process,
    owner: Owner,
    channel: Option<OwnedFd>,
    /// Its stdout and stderr, while anybody holds them.
    printed: Option<OwnedFd>,
    errors: Errors,
    reader: channel::Reader,
    ready: bool,
    beats: bool,
    heard_at: Instant,
    /// The batch it has.
    has: Option<JobId>,
    answer: Option<Said>,
    served: u32,
    /// It ended, or closed its end, with the batch unread.
    unread: bool,
    is_ending: bool,
    exit_seen: Option<Exit>,
}

/// Why a process can't go on.
#[derive(Debug)]
enum Trouble {
    Stopped,
    Late,
    Silent,
    Broken(String),
    Exited(Exit),
    Io(String),
}

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It is told to stop and given time, then asked, then killed.
    Told,
    /// It is asked, then killed.
    Asked,
}

/// How long its prints are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// A piece.
    Soon,
    /// All that lies there.
    Quiet,
}

impl Kept {
    fn start(order: &Order, job: JobId) -> Result<Kept, BatchError> {
        let host = |what: &str, error: &dyn std::fmt::Display| {
            BatchError::from(NotStarted::by_host(format!("cannot {what} for its resident worker: {error}")))
        };
        let null = dev_null().map_err(|error| host("open /dev/null", &error))?;
        let (channel, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| host("make a channel", &error))?;
        let (printed, their_prints) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| host("make a pipe", &error))?;
        rustix::fs::fcntl_setfl(&printed, rustix::fs::OFlags::NONBLOCK).map_err(|error| host("make a pipe", &error))?;
        let mut descriptors: Vec<BorrowedFd> =
            vec![null.as_fd(), their_prints.as_fd(), their_prints.as_fd(), theirs.as_fd()];
        descriptors.extend(order.descriptors.iter().map(|fd| fd.as_fd()));
        let Order { program, argv, cwd, .. } = order;
        let (owner, mark) = sweeper::fresh(job);
        let env: Vec<_> = order.env.iter().filter(|(key, _)| *key != mark.0).cloned().chain([mark.clone()]).collect();
        let spawn = Spawn { program, argv, env: &env, cwd, descriptors: &descriptors };
        let process = Process::start(&spawn, owner)?;
        Ok(Kept {
            process,
            owner,
            channel: Some(channel),
            printed: Some(printed),
            errors: Errors::new(Some(order.log.clone())),
            reader: channel::Reader::default(),
            ready: false,
            beats: false,
            heard_at: Instant::now(),
            has: None,
            answer: None,
            served: 0,
            unread: false,
            is_ending: false,
            exit_seen: None,
        })
    }

    /// Waits until it has loaded what it needs.
    fn get_ready(&mut self, order: &Order, stop: &StopFlag, tally: &mut Tally) -> Result<(), BatchError> {
        let deadline = Instant::now().checked_add(order.ready_timeout);
        self.listen(order, stop, tally, deadline, |kept| kept.ready).map_err(|trouble| match trouble {
            Trouble::Late => {
                let within = humantime::format_duration(order.ready_timeout);
                self.failed(format!("its resident worker was not ready within {within}"))
            }
            trouble => self.judge(trouble, "before it was ready"),
        })
    }

    /// Sends a batch. What becomes of it is heard.
    fn hand(&mut self, id: JobId, line: &[u8]) {
        (self.has, self.answer) = (Some(id), None);
        self.heard_at = Instant::now();
        self.unread = self.send(line).is_err();
    }

    /// A line or two always find room: all before them were answered.
    fn send(&self, line: &[u8]) -> Result<(), Errno> {
        let Some(channel) = &self.channel else { return Err(Errno::PIPE) };
        send(channel, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
    }

    /// Listens until `enough`.
    fn listen(
        &mut self,
        order: &Order,
        stop: &StopFlag,
        tally: &mut Tally,
        deadline: Option<Instant>,
        enough: impl Fn(&Kept) -> bool,
    ) -> Result<(), Trouble> {
        let mut closed_until = self.channel.is_none().then(|| Instant::now() + LINGERS);
        loop {
            if enough(self) {
                return Ok(());
            }
            let now = Instant::now();
            let beat = (self.beats && self.has.is_some()).then(|| self.heard_at + HEARTBEAT);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Trouble::Late);
            }
            if beat.is_some_and(|beat| beat <= now) {
                return Err(Trouble::Silent);
            }
            if closed_until.is_some_and(|until| until <= now) {
                return Err(Trouble::Broken("it closed its end".to_owned()));
            }
            let next = [deadline, beat, closed_until].into_iter().flatten().min();
            let span = next.and_then(|next| Timespec::try_from(next.saturating_duration_since(now)).ok());
            let mut fds = vec![PollFd::new(&self.process, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            fds.extend(self.channel.as_ref().map(|channel| PollFd::new(channel, PollFlags::IN)));
            let prints_at = fds.len();
            fds.extend(self.printed.as_ref().map(|printed| PollFd::new(printed, PollFlags::IN)));
            match poll(&mut fds, span.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Trouble::Io(format!("cannot wait for its resident worker: {error}"))),
            }
            let is_ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
            let (exited, stopped, printed) = (is_ready(0), is_ready(1), is_ready(prints_at));
            let spoke = self.channel.is_some() && is_ready(2);
            drop(fds);
            if stopped {
                return Err(Trouble::Stopped);
            }
            if printed {
                self.prints(Until::Soon);
            }
            if spoke {
                self.hear(order, tally)?;
                if self.channel.is_none() {
                    closed_until = Some(now + LINGERS);
                }
            }
            if exited {
                return self.hear_out(order, tally, enough);
            }
        }
    }

    /// It has ended: what it said before counts.
    fn hear_out(&mut self, order: &Order, tally: &mut Tally, enough: impl Fn(&Kept) -> bool) -> Result<(), Trouble> {
        self.drain(order, tally)?;
        // The end, which tells whether it has read the batch.
        self.hear(order, tally)?;
        self.prints(Until::Quiet);
        self.process.kill();
        let exit = self.process.wait().map_err(|error| Trouble::Io(format!("its exit isn't known: {error}")))?;
        self.exit_seen = Some(exit);
        if enough(self) { Ok(()) } else { Err(Trouble::Exited(exit)) }
    }

    /// Others may hold the channel open and go on: what lies there now is all that counts.
    fn drain(&mut self, order: &Order, tally: &mut Tally) -> Result<(), Trouble> {
        let mut left = self.channel.as_ref().and_then(|channel| rustix::io::ioctl_fionread(channel).ok()).unwrap_or(0);
        while 0 < left && self.channel.is_some() {
            self.hear(order, tally)?;
            left = left.saturating_sub(CHUNK as u64);
        }
        Ok(())
    }

    fn hear(&mut self, order: &Order, tally: &mut Tally) -> Result<(), Trouble> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        let read = match recv(channel, &mut chunk[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => 0,
            Ok((read, _)) => read,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            // Reset by a process that ended: nothing more will come.
            Err(error) => {
                self.unread |= error == Errno::CONNRESET;
                0
            }
        };
        if read == 0 {
            self.channel = None;
            return Ok(());
        }
        self.heard_at = Instant::now();
        let mut reader = std::mem::take(&mut self.reader);
        let heard = reader.feed(&chunk[..read], &mut |message| self.take_in(message, order, tally));
        self.reader = reader;
        heard.map_err(|Broken(what)| Trouble::Broken(what))
    }

    fn take_in(&mut self, message: Message, order: &Order, tally: &mut Tally) -> Result<(), Broken> {
        match message {
            // It is told to end, and all but what it counted comes too late.
            _ if self.is_ending && !matches!(message, Message::Count { .. }) => {}
            Message::Ready { device_uuid } => {
                let is_given = |uuid: &String| order.devices.iter().any(|given| given.eq_ignore_ascii_case(uuid));
                if let Some(uuid) = device_uuid.filter(|uuid| !order.devices.is_empty() && !is_given(uuid)) {
                    let given = order.devices.join(", ");
                    return Err(Broken(format!("it says that it runs on {uuid}, and was given {given}")));
                }
                self.ready = true;
            }
            Message::Heartbeat => self.beats = true,
            Message::Done { id, result } => self.answered(id, Said::Done { result })?,
            Message::Failed { id, error, retry } => self.answered(id, Said::Failed { error, retry })?,
            Message::Progress { id, fraction, .. } => {
                self.is_its(id)?;
                tally.progress(fraction);
            }
            // What it counts between two batches is the next one's, as far as it is still to come: it is read then.
            Message::Count { name, by } => tally.count(&name, by)?,
            Message::Unknown { kind } => tally.pass_over(&kind),
        }
        Ok(())
    }

    fn is_its(&self, id: Option<JobId>) -> Result<(), Broken> {
        match id {
            Some(id) if self.has != Some(id) => Err(Broken(format!("it spoke of item {id}, which it hasn't"))),
            _ => Ok(()),
        }
    }

    fn answered(&mut self, id: Option<JobId>, said: Said) -> Result<(), Broken> {
        self.is_its(id)?;
        if self.has.take().is_none() {
            return Err(Broken("it answered, and has no item".to_owned()));
        }
        self.answer = Some(said);
        Ok(())
    }

    /// Takes what it printed to the log.
    fn prints(&mut self, until: Until) {
        let mut chunk = vec![0; CHUNK];
        // Not without end: a process may print faster than we read.
        for _ in 0..64 {
            let Some(printed) = &self.printed else { return };
            match rustix::io::read(printed, &mut chunk[..]) {
                Ok(0) => self.printed = None,
                Ok(read) => self.errors.take(&chunk[..read]),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            if until == Until::Soon {
                return;
            }
        }
    }

    fn failed(&self, what: String) -> BatchError {
        BatchError::failed(self.errors.after(what))
    }

    fn judge(&self, trouble: Trouble, when: &str) -> BatchError {
        match trouble {
            Trouble::Stopped => BatchError::new(Kind::Stopped, "stopped"),
            Trouble::Late => self.failed("its resident worker took too long".to_owned()),
            Trouble::Silent => {
                self.failed(format!("its resident worker was silent for {} s after a heartbeat", HEARTBEAT.as_secs()))
            }
            Trouble::Broken(what) => self.failed(format!("its resident worker broke the protocol of fd 3: {what}")),
            Trouble::Io(what) => BatchError::new(Kind::Later, what),
            Trouble::Exited(Exit::Signal(signal)) => {
                self.errors.weigh(self.failed(format!("its resident worker was ended by signal {signal} {when}")))
            }
            Trouble::Exited(Exit::Code(code)) => {
                let kind = match code {
                    65 => Kind::Final,
                    75 => Kind::Later,
                    _ => Kind::Failed,
                };
                let what = format!("its resident worker ended with exit code {code} {when}");
                self.errors.weigh(BatchError::new(kind, self.errors.after(what)))
            }
        }
    }

    /// Ends it, with its group and what else it left behind.
    fn end(mut self, manner: Manner, order: &Order, tally: &mut Tally) {
        self.is_ending = true;
        if self.exit_seen.is_none() {
            self.end_process(manner, order, tally);
        }
        let leader = Some((self.process.pid(), self.process.start_ticks));
        strays::end(&Trail { owner: self.owner, leader, dir: Some(&order.job_dir) }, order.kill_grace);
    }

    fn end_process(&mut self, manner: Manner, order: &Order, tally: &mut Tally) {
        if manner == Manner::Told {
            let _gone = self.send(message::STOP);
            if let Some(channel) = &self.channel {
                let _closed = shutdown(channel, Shutdown::Write);
            }
            self.wait(order, tally);
        }
        self.process.ask();
        self.wait(order, tally);
        self.process.kill();
        let _exit = self.process.wait();
        let _no_use = self.drain(order, tally);
        self.prints(Until::Quiet);
        self.errors.flush();
    }

    /// Waits for its end; meanwhile it must find room for what it prints and says.
    fn wait(&mut self, order: &Order, tally: &mut Tally) {
        let until = Instant::now().checked_add(order.kill_grace);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            let span = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = vec![PollFd::new(&self.process, PollFlags::IN)];
            fds.extend(self.channel.as_ref().map(|channel| PollFd::new(channel, PollFlags::IN)));
            let prints_at = fds.len();
            fds.extend(self.printed.as_ref().map(|printed| PollFd::new(printed, PollFlags::IN)));
            match poll(&mut fds, span.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let is_ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
            let (exited, printed) = (is_ready(0), is_ready(prints_at));
            let spoke = self.channel.is_some() && is_ready(1);
            drop(fds);
            if printed {
                self.prints(Until::Soon);
            }
            if spoke && self.hear(order, tally).is_err() {
                self.channel = None;
            }
            if exited {
                return;
            }
        }
    }
}
