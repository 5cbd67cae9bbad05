//! The course of one attempt: looks, locks, starts the process, listens to it, ends it in time, kills what it left
//! behind, and finds out how it went. One wait for everything: the process, its channel, a stop, and the clock.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use super::channel::{self, Broken, Message};
use super::item_check;
use super::lock::{JobLock, LockRecord, Taken};
use super::log::Log;
use super::outbox::Outbox;
use super::process::{Exit, Process};
use super::strays::{self, Trail};
use super::thread::StopSwitch;
use super::{End, Event, Launch, Report, Said, outputs, program};
use crate::item::{JobId, StopWhy, escape};
use crate::proc::boot_id;
use crate::sys::spawn::{NotStarted, Spawn};
use crate::units::Clock;

/// How long the lock of an attempt that has ended may linger: another process that is just being started holds a copy
/// of each descriptor until it runs its program.
const LOCK_LINGERS: Duration = Duration::from_secs(2);
/// What it was told to read and write isn't at its path any more: no fault of the item.
pub(super) const MOVED: &str = "the root was unmounted, moved or replaced while it ran";
/// What is read from the channel at a time.
const CHUNK: usize = 64 << 10;

pub(super) struct Attempt<'a> {
    launch: &'a Launch,
    stop: &'a StopSwitch,
    clock: Clock,
    /// Filled in as facts come in, so that a panic doesn't lose them.
    report: &'a mut Report,
    outbox: Outbox,
    reader: channel::Reader,
    /// Unknown kinds of messages are warned of once.
    warned: bool,
    /// Set once the process must end.
    ending: Option<Ending>,
}

/// Why the process must end, and when it is killed.
#[derive(Debug)]
struct Ending {
    why: Why,
    kill_at: Instant,
    killed: bool,
}

#[derive(Debug)]
enum Why {
    TimedOut,
    Stopped(StopWhy),
    Protocol(Broken),
    /// We can't wait for it any more.
    Io(String),
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        launch: &'a Launch,
        stop: &'a StopSwitch,
        clock: Clock,
        events: Sender<Event>,
        report: &'a mut Report,
    ) -> Attempt<'a> {
        let outbox = Outbox::new(events, launch.job, launch.attempt);
        let reader = channel::Reader::default();
        Attempt { launch, stop, clock, report, outbox, reader, warned: false, ending: None }
    }

    /// Runs it from its start to its end.
    pub(super) fn carry_out(mut self) -> End {
        let end = self.course().unwrap_or_else(|end| end);
        // Last, so that the report follows at once: together they wake the director once.
        self.outbox.finish();
        end
    }

    /// An early end is an error here only to the `?`.
    fn course(&mut self) -> Result<End, End> {
        let launch = self.launch;
        item_to_begin(launch, self.stop)?;
        let io_end = |what: &str, error: &dyn std::fmt::Display| {
            End::Io(format!("{what} in `{}`: {error}", escape(launch.dir.as_os_str().as_encoded_bytes())))
        };
        let mut log = Log::open(&launch.dir, launch.attempt, launch.max_log, Instant::now())
            .map_err(|error| io_end("cannot open the attempt's log", &error))?;
        let lock = take_lock(&launch.dir, self.stop)?;

        let begun = Instant::now();
        let start = Start {
            argv: &launch.argv,
            env: &launch.env,
            cwd: &launch.cwd,
            cpus: &launch.cpus,
            device_locks: &launch.device_locks,
            job: launch.job,
        };
        let (mut process, channel) = start.begin(&log, &lock)?;
        let at = Timestamp::now();
        let record = LockRecord {
            attempt: launch.attempt,
            pid: process.pid(),
            start_ticks: process.start_ticks,
            boot_id: boot_id().to_owned(),
            started_at: Some(at),
            devices: launch.on.clone(),
        };
        let locked = lock.write(&record);
        drop(lock);
        (self.report.pid, self.report.started_at) = (Some(process.pid()), Some(at));
        let started = Event::Started { job: launch.job, attempt: launch.attempt, pid: Some(process.pid()), at };
        self.outbox.started(started, Instant::now());
        if let Err(error) = locked {
            // The flock itself holds; only a restarted director would miss the number.
            tracing::warn!(job = %launch.job, %error, "cannot write the process into the job's lock");
        }

        let channel = self.look_after(&process, channel, &mut log, begun);
        let exit = process.wait();
        (self.report.ended_at, self.report.ran) = (Timestamp::now(), begun.elapsed());
        let said_to_the_end = self.hear_out(channel);
        let leader = Some((process.pid(), process.start_ticks));
        strays::end(&Trail { owner: launch.job.into(), leader, dir: Some(&launch.dir) }, launch.kill_grace);
        drop(process);

        if let Err(error) = log.settle() {
            tracing::warn!(job = %launch.job, %error, "cannot cut a log that is longer than max_log");
        }
        let end = self.judge(exit, said_to_the_end);
        self.look_at_results(&end, &log)?;
        let failed = matches!(end, End::Exited(_) | End::Signalled(_)) && !self.has_succeeded(&end);
        if failed && !launch.root.is_intact() {
            return Err(End::Io(MOVED.to_owned()));
        }
        Ok(end)
    }

    /// Waits until the process has ended, and does what comes up meanwhile. Answers its channel, if it is still open.
    fn look_after(&mut self, process: &Process, channel: OwnedFd, log: &mut Log, begun: Instant) -> Option<OwnedFd> {
        let mut channel = Some(channel);
        let mut chunk = Vec::new();
        let deadline = self.launch.timeout.and_then(|timeout| begun.checked_add(timeout));
        loop {
            let now = Instant::now();
            self.keep_time(process, deadline, now);
            if log.look_at() <= now {
                log.bound(now);
                strays::reap();
            }
            self.outbox.deliver(now);

            let timeout = if self.ending.is_none() { deadline } else { None };
            let kill = self.ending.as_ref().filter(|ending| !ending.killed).map(|ending| ending.kill_at);
            let next = [timeout, kill, self.outbox.due(), Some(log.look_at())].into_iter().flatten().min();
            let span = next.map(|next| next.saturating_duration_since(Instant::now()));
            let span = span.and_then(|span| Timespec::try_from(span).ok());
            let mut fds = Vec::with_capacity(3);
            fds.push(PollFd::new(process, PollFlags::IN));
            fds.push(PollFd::new(self.stop, PollFlags::IN));
            fds.extend(channel.as_ref().map(|channel| PollFd::new(channel, PollFlags::IN)));
            match poll(&mut fds, span.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    // Nothing left to wait with: the process can only be killed.
                    self.end(process, Why::Io(format!("cannot wait for the process: {error}")), Duration::ZERO);
                    process.kill();
                    return channel;
                }
            }
            let is_ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
            let (ended, stopped, spoke) = (is_ready(0), is_ready(1), is_ready(2));
            drop(fds);
            if ended {
                return channel;
            }
            if stopped {
                self.stop.clear_wake();
                self.heed_stop(process);
            }
            if spoke && let Some(open) = &channel {
                chunk.resize(CHUNK, 0);
                match self.listen(open, &mut chunk) {
                    Ok(Heard::Something) => {}
                    Ok(Heard::TheEnd) => channel = None,
                    Err(broken) => {
                        channel = None;
                        self.end(process, Why::Protocol(broken), self.launch.kill_grace);
                    }
                }
            }
        }
    }

    fn keep_time(&mut self, process: &Process, deadline: Option<Instant>, now: Instant) {
        if self.ending.is_none() && deadline.is_some_and(|deadline| deadline <= now) {
            self.end(process, Why::TimedOut, self.launch.kill_grace);
        }
        if let Some(ending) = &mut self.ending
            && !ending.killed
            && ending.kill_at <= now
        {
            ending.killed = true;
            process.kill();
        }
    }

    fn heed_stop(&mut self, process: &Process) {
        let Some(order) = self.stop.standing() else { return };
        match &mut self.ending {
            None => {
                // The grace counts from when it was asked for.
                let late = self.clock.now().since(order.at);
                self.end(process, Why::Stopped(order.why), self.launch.kill_grace.saturating_sub(late));
            }
            // A person's wish ends the item for good; any other reason comes too late.
            Some(ending) if order.why == StopWhy::Cancelled => ending.why = Why::Stopped(order.why),
            Some(_) => {}
        }
    }

    /// Asks the process to end, for the first reason there is.
    fn end(&mut self, process: &Process, why: Why, grace: Duration) {
        if self.ending.is_some() {
            return;
        }
        let now = Instant::now();
        // A grace beyond all time is none that ends.
        let kill_at = now.checked_add(grace).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        self.ending = Some(Ending { why, kill_at, killed: false });
        process.ask();
    }

    /// Takes in what lies in the channel, as far as the chunk reaches.
    fn listen(&mut self, channel: &OwnedFd, chunk: &mut [u8]) -> Result<Heard, Broken> {
        let read = match recv(channel, &mut *chunk, RecvFlags::DONTWAIT) {
            // A line without an end waits for how the process ends: its death, too, closes the channel.
            Ok((0, _)) => return Ok(Heard::TheEnd),
            Ok((read, _)) => read,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Heard::Something),
            // Reset by a process that died: nothing more will come.
            Err(_) => return Ok(Heard::TheEnd),
        };
        self.hear(|reader, hear| reader.feed(&chunk[..read], hear))?;
        Ok(Heard::Something)
    }

    /// The last of what the process said.
    fn hear_out(&mut self, channel: Option<OwnedFd>) -> Result<(), Broken> {
        if let Some(channel) = channel {
            self.drain(&channel)?;
        }
        self.hear(|reader, hear| reader.finish(hear))
    }

    /// Others may hold the channel open and go on talking: what lies there now is all that counts.
    fn drain(&mut self, channel: &OwnedFd) -> Result<(), Broken> {
        let mut left = rustix::io::ioctl_fionread(channel).unwrap_or(0) as usize;
        let mut chunk = vec![0; left.min(CHUNK)];
        while left > 0 {
            let part = left.min(chunk.len());
            let read = match recv(channel, &mut chunk[..part], RecvFlags::DONTWAIT) {
                Ok((0, _)) => break,
                Ok((read, _)) => read,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            left -= read;
            self.hear(|reader, hear| reader.feed(&chunk[..read], hear))?;
        }
        Ok(())
    }

    fn hear(
        &mut self,
        read: impl FnOnce(&mut channel::Reader, channel::Hear) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let mut reader = std::mem::take(&mut self.reader);
        let heard = read(&mut reader, &mut |message| self.take_in(message));
        self.reader = reader;
        heard
    }

    fn take_in(&mut self, message: Message) -> Result<(), Broken> {
        let ours = self.launch.job;
        if let Message::Done { id: Some(id), .. }
        | Message::Failed { id: Some(id), .. }
        | Message::Progress { id: Some(id), .. } = &message
            && *id != ours
        {
            return Err(Broken(format!("it spoke of item {id}, which it wasn't given")));
        }
        match message {
            Message::Done { result, .. } => self.last_word(Said::Done { result }),
            Message::Failed { error, retry, .. } => self.last_word(Said::Failed { error, retry }),
            Message::Progress { fraction, message, .. } => self.outbox.progress(fraction, message),
            Message::Count { name, by } => self.outbox.count(name, by)?,
            // Of a one-shot worker they say nothing that its life doesn't.
            Message::Ready { .. } | Message::Heartbeat => {}
            Message::Unknown { kind } => {
                if !std::mem::replace(&mut self.warned, true) {
                    let kind = escape(kind.as_bytes());
                    tracing::warn!(job = %ours, kind, "a worker sent a kind of message that isn't known; passed over");
                }
            }
        }
        Ok(())
    }

    fn last_word(&mut self, now: Said) {
        self.report.said = Some(channel::last_word(self.report.said.take(), now));
    }

    /// Why we ended it outranks how it then died.
    fn judge(&mut self, exit: std::io::Result<Exit>, said_to_the_end: Result<(), Broken>) -> End {
        let (exit_code, signal) = match &exit {
            Ok(Exit::Code(code)) => (Some(*code), None),
            Ok(Exit::Signal(signal)) => (None, Some(*signal)),
            Err(_) => (None, None),
        };
        match (self.ending.take().map(|ending| ending.why), exit, said_to_the_end) {
            (Some(Why::TimedOut), ..) => End::TimedOut { exit_code, signal },
            (Some(Why::Stopped(why)), ..) => End::Stopped { why, exit_code, signal },
            (Some(Why::Protocol(Broken(what))), ..) => End::Protocol(what),
            (Some(Why::Io(what)), ..) => End::Io(what),
            (None, Err(error), _) => End::Io(format!("cannot tell how the process ended: {error}")),
            // A line that was cut off because its writer died is no news beside that.
            (None, Ok(Exit::Code(0)), Err(Broken(what))) => End::Protocol(what),
            (None, Ok(Exit::Code(code)), _) => End::Exited(code),
            (None, Ok(Exit::Signal(signal)), _) => End::Signalled(signal),
        }
    }

    fn has_succeeded(&self, end: &End) -> bool {
        let failed = matches!(self.report.said, Some(Said::Failed { .. }));
        *end == End::Exited(0) && !failed && self.report.missing_outputs.is_empty()
    }

    /// After a success the outputs, after a failure the log's end.
    fn look_at_results(&mut self, end: &End, log: &Log) -> Result<(), End> {
        if self.has_succeeded(end) {
            let out = self.launch.dir.join("out");
            self.report.missing_outputs = outputs::missing(&out, &self.launch.outputs)
                .map_err(|error| End::Io(format!("cannot look for the declared outputs in `out`: {error}")))?;
        } else {
            self.report.out_of_memory = log.speaks_of_memory();
        }
        Ok(())
    }
}

/// Looks for the last time whether an attempt is to begin; its item's path.
pub(super) fn item_to_begin(launch: &Launch, stop: &StopSwitch) -> Result<PathBuf, End> {
    stopped_before(stop)?;
    if !launch.root.is_intact() {
        return Err(End::RootAway);
    }
    let item = launch.dir.join("item").join(&launch.item);
    item_check::check(&item, launch.attempt, launch.signature.as_ref())?;
    Ok(item)
}

/// A stop that came before anything was started.
pub(super) fn stopped_before(stop: &StopSwitch) -> Result<(), End> {
    match stop.standing() {
        Some(order) => Err(End::Stopped { why: order.why, exit_code: None, signal: None }),
        None => Ok(()),
    }
}

/// A job's lock, once what may still hold it for a moment has let go.
pub(super) fn take_lock(dir: &Path, stop: &StopSwitch) -> Result<JobLock, End> {
    let give_up = Instant::now() + LOCK_LINGERS;
    loop {
        let lock = escape(dir.join("lock").as_os_str().as_encoded_bytes());
        match JobLock::take(dir) {
            Ok(Taken::Yes(lock)) => return Ok(lock),
            Ok(Taken::Held) if give_up <= Instant::now() => {
                return Err(End::Io(format!("`{lock}` is held: something of an earlier attempt lives")));
            }
            Ok(Taken::Held) => {
                let pause = Timespec::try_from(Duration::from_millis(10)).ok();
                let _woken = poll(&mut [PollFd::new(stop, PollFlags::IN)], pause.as_ref());
                stopped_before(stop)?;
            }
            Err(error) => return Err(End::Io(format!("cannot lock `{lock}`: {error}"))),
        }
    }
}

/// What is started: its words, its place, and what it inherits.
pub(super) struct Start<'a> {
    pub(super) argv: &'a [OsString],
    pub(super) env: &'a [(OsString, OsString)],
    pub(super) cwd: &'a Path,
    pub(super) cpus: &'a [usize],
    pub(super) device_locks: &'a [Arc<OwnedFd>],
    /// What its strays are known by: the `GAMDOK_ID` in its environment.
    pub(super) job: JobId,
}

impl Start<'_> {
    /// Starts the process on this thread's cores; answers our end of its channel too.
    pub(super) fn begin(&self, log: &Log, lock: &JobLock) -> Result<(Process, OwnedFd), End> {
        let not_started = |error: String, host: bool| End::NotStarted { error, host };
        let command = self.argv.first().ok_or_else(|| not_started(no_command(), false))?;
        let program = program::find(command, self.env, self.cwd).map_err(|error| not_started(error, false))?;
        let null = dev_null().map_err(|error| not_started(format!("cannot open /dev/null: {error}"), true))?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| not_started(format!("cannot make the report channel: {error}"), true))?;
        stay_on(self.cpus);

        let log = log.file().as_fd();
        let mut descriptors: Vec<BorrowedFd> = vec![null.as_fd(), log, log, theirs.as_fd(), lock.file().as_fd()];
        descriptors.extend(self.device_locks.iter().map(|lock| lock.as_fd()));
        let spawn =
            Spawn { program: &program, argv: self.argv, env: self.env, cwd: self.cwd, descriptors: &descriptors };
        let process =
            Process::start(&spawn, self.job).map_err(|NotStarted { error, host, .. }| not_started(error, host))?;
        Ok((process, ours))
    }
}

/// A job keeps its route, also where another director finds it.
fn no_command() -> String {
    "its route has no command: it is a closure of the program that claimed it, or was; start that again, then retry the \
     item"
        .to_owned()
}

enum Heard {
    Something,
    /// All its writers have closed it.
    TheEnd,
}

/// Opened once; every worker's stdin where it has no other.
pub(super) fn dev_null() -> std::io::Result<&'static File> {
    static NULL: OnceLock<File> = OnceLock::new();
    if let Some(null) = NULL.get() {
        return Ok(null);
    }
    let file = File::options().read(true).write(true).open("/dev/null")?;
    Ok(NULL.get_or_init(|| file))
}

/// Keeps this thread on the cores near its device; the process inherits it.
pub(super) fn stay_on(cpus: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    let known = |cpu: &&usize| **cpu < rustix::thread::CpuSet::MAX_CPU;
    cpus.iter().filter(known).for_each(|cpu| set.set(*cpu));
    if set.count() > 0
        && let Err(error) = rustix::thread::sched_setaffinity(None, &set)
    {
        tracing::warn!(%error, ?cpus, "cannot keep a worker on the cores near its device");
    }
}
