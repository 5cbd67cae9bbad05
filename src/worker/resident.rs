//! A resident worker: a thread and the process it keeps, which takes items one message after another on fd 3. It hands
//! over what it is given, listens, keeps the time, and reports each item's end once, whatever happens to the process.
//!
//! Invariants: every item that was handed to this thread is reported exactly once; then, last, that the resident is gone.
//! What the process never began is reported as not begun.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::channel::{self, Broken, Message};
use super::lock::{self, JobLock, LockRecord, Taken};
use super::log::{self, Log};
use super::outbox::Outbox;
use super::process::{Exit, Process};
use super::strays::{self, Trail};
use super::{End, Event, Report, Said, attempt, item_check, message, outputs};
use crate::item::{JobId, Signature, StopWhy};
use crate::proc::boot_id;
use crate::units::Bytes;

/// Everything a resident needs; nothing left to decide.
#[derive(Debug)]
pub struct ResidentLaunch {
    pub id: JobId,
    pub argv: Vec<std::ffi::OsString>,
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    pub cwd: PathBuf,
    /// Its own directory: `lock` and its log lie in it.
    pub dir: PathBuf,
    pub device_locks: Vec<Arc<OwnedFd>>,
    pub cpus: Vec<usize>,
    /// The UUIDs it was given, to hold what it says against; empty on the CPU.
    pub devices: Vec<String>,
    pub ready_timeout: Duration,
    /// For each item of a message.
    pub timeout: Option<Duration>,
    pub kill_grace: Duration,
    pub max_log: Bytes,
}

/// One item on its way to a resident.
#[derive(Debug)]
pub struct Task {
    pub job: JobId,
    pub attempt: u32,
    /// `claimed/<job>`.
    pub dir: PathBuf,
    /// The item's name.
    pub name: PathBuf,
    pub signature: Option<Signature>,
    /// Patterns that must exist in `out/`.
    pub outputs: Vec<String>,
}

/// What a resident's thread tells of the resident itself.
#[derive(Debug)]
pub enum News {
    Runs {
        pid: i32,
    },
    Ready,
    /// It takes nothing more, and goes.
    Retires,
    /// The last word.
    Gone {
        end: End,
        /// It never said that it was ready: the report of its start, for whoever it was started for.
        failed_start: Option<Box<Report>>,
    },
}

#[derive(Debug)]
enum Order {
    Hand(Vec<Task>),
    Retire,
    Stop { job: Option<JobId>, why: StopWhy },
}

/// A resident, for the director. Dropping it leaves the process running.
#[derive(Debug)]
pub struct ResidentHandle {
    orders: Sender<Order>,
    wake: Option<Arc<OwnedFd>>,
}

impl ResidentHandle {
    /// Gives it a batch. Whatever happens, each of them is reported.
    pub fn hand(&self, tasks: Vec<Task>) {
        self.order(Order::Hand(tasks));
    }

    /// It ends what it has, and goes.
    pub fn retire(&self) {
        self.order(Order::Retire);
    }

    /// It ends at once: for one of its jobs, or for all.
    pub fn stop(&self, job: Option<JobId>, why: StopWhy) {
        self.order(Order::Stop { job, why });
    }

    fn order(&self, order: Order) {
        // A thread that is gone has reported everything it had.
        let _unheard = self.orders.send(order);
        if let Some(wake) = &self.wake {
            let _written = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }
}

/// Starts a resident on a thread of its own. Whatever happens, [`News::Gone`] follows.
pub fn start_resident(launch: ResidentLaunch, events: Sender<Event>) -> ResidentHandle {
    // Bounded by the jobs it may have at once: a batch or two.
    let (orders, inbox) = crossbeam_channel::unbounded();
    let wake = match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
        Ok(wake) => Arc::new(wake),
        Err(error) => {
            let end = End::NotStarted { error: format!("cannot prepare a worker: {error}"), host: true };
            Farewell {
                id: launch.id,
                events,
                end,
                ready: false,
                begun: Instant::now(),
                pid: None,
                started_at: None,
                out_of_memory: false,
                orders: inbox,
            };
            return ResidentHandle { orders, wake: None };
        }
    };
    let theirs = wake.clone();
    let end = End::NotStarted { error: "the worker's thread could not be started".to_owned(), host: true };
    let farewell = Farewell {
        id: launch.id,
        events: events.clone(),
        end,
        ready: false,
        begun: Instant::now(),
        pid: None,
        started_at: None,
        out_of_memory: false,
        orders: inbox,
    };
    let run = move || {
        let mut farewell = farewell;
        farewell.end = End::Panicked;
        let end = Course::new(&launch, &theirs, events, &mut farewell).run();
        farewell.end = end;
        // The device locks go before the last word, which gives the devices to others.
        drop(launch);
    };
    let thread = std::thread::Builder::new().name("resident".to_owned()).stack_size(512 << 10).spawn(run);
    if let Err(error) = thread {
        tracing::error!(%error, "cannot start a resident worker's thread");
    }
    ResidentHandle { orders, wake: Some(wake) }
}

/// Says the last word when it is dropped.
#[derive(Debug)]
struct Farewell {
    id: JobId,
    events: Sender<Event>,
    orders: Receiver<Order>,
    end: End,
    ready: bool,
    begun: Instant,
    pid: Option<i32>,
    started_at: Option<Timestamp>,
    out_of_memory: bool,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // What was handed over too late to be seen.
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Hand(tasks) = order {
                for task in tasks {
                    let _heard = self.events.send(Event::Ended(Box::new(unbegun(&task))));
                }
            }
        }
        let failed_start = (!self.ready).then(|| {
            Box::new(Report {
                job: self.id,
                attempt: 0,
                pid: self.pid,
                started_at: self.started_at,
                ended_at: Timestamp::now(),
                ran: self.begun.elapsed(),
                end: self.end.clone(),
                said: None,
                missing_outputs: Vec::new(),
                out_of_memory: self.out_of_memory,
                beside: 0,
            })
        });
        let end = std::mem::replace(&mut self.end, End::Panicked);
        let _heard = self.events.send(Event::Resident { id: self.id, news: News::Gone { end, failed_start } });
    }
}

fn unbegun(task: &Task) -> Report {
    Report {
        job: task.job,
        attempt: task.attempt,
        pid: None,
        started_at: None,
        ended_at: Timestamp::now(),
        ran: Duration::ZERO,
        end: End::NotBegun,
        said: None,
        missing_outputs: Vec::new(),
        out_of_memory: false,
        beside: 0,
    }
}

/// An item that the process has.
#[derive(Debug)]
struct InFlight {
    task: Task,
    outbox: Outbox,
    said: Option<Said>,
}

/// A message that the process was sent, or will be.
#[derive(Debug)]
struct Batch {
    items: Vec<InFlight>,
    /// How many it was sent with.
    size: usize,
}

/// Why the process must end, and how.
#[derive(Debug)]
struct Ending {
    why: Why,
    ask_at: Instant,
    asked: bool,
    kill_at: Instant,
    killed: bool,
}

#[derive(Debug)]
enum Why {
    /// Nothing is wrong.
    Retired,
    TimedOut,
    /// It was silent for too long after it had begun to send heartbeats.
    Silent,
    NeverReady,
    Stopped(StopWhy),
    Protocol(Broken),
    Io(String),
}

/// One that has sent a heartbeat is taken for hung after so long without any message while it has an item.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// What is read from the channel at a time.
const CHUNK: usize = 64 << 10;
/// The log is emptied between two items once it is longer than this: each item's part of it was copied to its own.
const EMPTY_LOG: u64 = 256 << 10;
/// How many answered items are remembered, to tell a second answer from one for an item it never had.
const REMEMBERED: usize = 64;

struct Course<'a> {
    launch: &'a ResidentLaunch,
    wake: &'a OwnedFd,
    events: Sender<Event>,
    farewell: &'a mut Farewell,
    reader: channel::Reader,
    ready: bool,
    /// The first is the one it works on.
    batches: VecDeque<Batch>,
    /// When it began the first one.
    begun: Instant,
    begun_at: Timestamp,
    /// What the socket didn't take yet.
    outgoing: Vec<u8>,
    heard_at: Instant,
    beats: bool,
    retiring: bool,
    ending: Option<Ending>,
    /// Jobs that someone wants stopped.
    stopped: Vec<(JobId, StopWhy)>,
    answered: VecDeque<JobId>,
    /// The process, as the locks of its jobs name it.
    record: LockRecord,
    /// How much of the log belongs to items that have ended.
    logged: u64,
    /// The process closed its end with something unread.
    unread: bool,
    warned: bool,
}

impl<'a> Course<'a> {
    fn new(
        launch: &'a ResidentLaunch,
        wake: &'a OwnedFd,
        events: Sender<Event>,
        farewell: &'a mut Farewell,
    ) -> Course<'a> {
        let now = Instant::now();
        Course {
            launch,
            wake,
            events,
            farewell,
            reader: channel::Reader::default(),
            ready: false,
            batches: VecDeque::new(),
            begun: now,
            begun_at: Timestamp::now(),
            outgoing: Vec::new(),
            heard_at: now,
            beats: false,
            retiring: false,
            ending: None,
            stopped: Vec::new(),
            answered: VecDeque::new(),
            record: LockRecord { attempt: 0, pid: 0, start_ticks: 0, boot_id: boot_id().to_owned() },
            logged: 0,
            unread: false,
            warned: false,
        }
    }

    fn run(mut self) -> End {
        let end = self.course().unwrap_or_else(|end| end);
        self.farewell.ready = self.ready;
        self.give_back(&end);
        end
    }

    fn course(&mut self) -> Result<End, End> {
        let launch = self.launch;
        let io_end = |what: &str, error: &dyn std::fmt::Display| End::Io(format!("{what}: {error}"));
        std::fs::create_dir_all(&launch.dir)
            .map_err(|error| io_end("cannot make a resident worker's directory", &error))?;
        let mut log = Log::open(&launch.dir, 0, launch.max_log, Instant::now())
            .map_err(|error| io_end("cannot open a resident worker's log", &error))?;
        let lock = match JobLock::take(&launch.dir) {
            Ok(Taken::Yes(lock)) => lock,
            Ok(Taken::Held) => return Err(End::Io("a resident worker's lock is held".to_owned())),
            Err(error) => return Err(io_end("cannot lock a resident worker's directory", &error)),
        };
        self.farewell.begun = Instant::now();
        let start = attempt::Start {
            argv: &launch.argv,
            env: &launch.env,
            cwd: &launch.cwd,
            cpus: &launch.cpus,
            device_locks: &launch.device_locks,
            job: launch.id,
        };
        let (mut process, channel) = start.begin(&log, &lock)?;
        (self.record.pid, self.record.start_ticks) = (process.pid(), process.start_ticks);
        if let Err(error) = lock.write(&self.record) {
            tracing::warn!(resident = %launch.id, %error, "cannot write the process into a resident worker's lock");
        }
        drop(lock);
        self.farewell.pid = Some(process.pid());
        self.farewell.started_at = Some(Timestamp::now());
        self.tell(News::Runs { pid: process.pid() });

        let channel = self.look_after(&process, channel, &mut log);
        let exit = process.wait();
        let said_to_the_end = self.hear_out(channel, &mut log);
        let leader = Some((process.pid(), process.start_ticks));
        strays::end(&Trail { job: launch.id, leader, dir: &launch.dir }, launch.kill_grace);
        drop(process);
        let end = self.judge(exit, said_to_the_end);
        self.farewell.out_of_memory = log.speaks_of_memory();
        if !self.ready && end != (End::Stopped { why: StopWhy::Shutdown, exit_code: None, signal: None }) {
            let tail = log.last_lines();
            if !tail.is_empty() {
                tracing::warn!(resident = %launch.id, "its log ends with: {tail}");
            }
        }
        self.share_log(&mut log);
        drop(log);
        let _left = std::fs::remove_dir_all(&launch.dir);
        Ok(end)
    }

    fn tell(&self, news: News) {
        let _heard = self.events.send(Event::Resident { id: self.launch.id, news });
    }

    /// Waits until the process has ended, and does what comes up meanwhile.
    fn look_after(&mut self, process: &Process, channel: OwnedFd, log: &mut Log) -> Option<OwnedFd> {
        let mut channel = Some(channel);
        let mut chunk = Vec::new();
        loop {
            let now = Instant::now();
            self.keep_time(process, channel.as_ref(), now);
            if log.look_at() <= now {
                log.bound(now);
            }
            self.batches
                .iter_mut()
                .take(1)
                .flat_map(|batch| &mut batch.items)
                .for_each(|item| item.outbox.deliver(now));
            let next = self.next_moment(log);
            let span = next.map(|next| next.saturating_duration_since(Instant::now()));
            let span = span.and_then(|span| Timespec::try_from(span).ok());
            let mut fds = vec![PollFd::new(process, PollFlags::IN), PollFd::new(self.wake, PollFlags::IN)];
            let writes = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.extend(channel.as_ref().map(|channel| PollFd::new(channel, PollFlags::IN | writes)));
            match poll(&mut fds, span.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    self.end(process, Why::Io(format!("cannot wait for the process: {error}")), Duration::ZERO);
                    process.kill();
                    return channel;
                }
            }
            let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            let spoke =
                events.get(2).is_some_and(|flags| flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR));
            let takes = events.get(2).is_some_and(|flags| flags.contains(PollFlags::OUT));
            if spoke && let Some(open) = &channel {
                chunk.resize(CHUNK, 0);
                match self.listen(open, &mut chunk, log) {
                    Ok(true) => {}
                    Ok(false) => channel = None,
                    Err(broken) => {
                        channel = None;
                        self.end(process, Why::Protocol(broken), self.launch.kill_grace);
                    }
                }
            }
            if !events[0].is_empty() {
                return channel;
            }
            if !events[1].is_empty() {
                let _read = rustix::io::read(self.wake, &mut [0; 8]);
                self.take_orders(process, channel.as_ref());
            }
            if takes && let Some(open) = &channel {
                self.flush(open);
            }
            self.retire_when_done(channel.as_ref());
        }
    }

    /// The first moment at which time alone asks for something.
    fn next_moment(&self, log: &Log) -> Option<Instant> {
        let ending = self.ending.as_ref();
        let ask = ending.filter(|ending| !ending.asked).map(|ending| ending.ask_at);
        let kill = ending.filter(|ending| !ending.killed).map(|ending| ending.kill_at);
        let outboxes = self.batches.front().and_then(|batch| batch.items.iter().filter_map(|it| it.outbox.due()).min());
        let time = if ending.is_none() { self.deadline() } else { None };
        [ask, kill, outboxes, time, Some(log.look_at())].into_iter().flatten().min()
    }

    /// When the process is over its time, for whatever it does.
    fn deadline(&self) -> Option<Instant> {
        if !self.ready {
            return self.farewell.begun.checked_add(self.launch.ready_timeout);
        }
        let batch = self.batches.front()?;
        let whole = self.launch.timeout.and_then(|each| each.checked_mul(batch.size as u32));
        let works = whole.and_then(|whole| self.begun.checked_add(whole));
        let beats = self.beats.then(|| self.heard_at.max(self.begun) + HEARTBEAT);
        works.into_iter().chain(beats).min()
    }

    fn keep_time(&mut self, process: &Process, channel: Option<&OwnedFd>, now: Instant) {
        if self.ending.is_none() && self.deadline().is_some_and(|deadline| deadline <= now) {
            let silent = self.ready && self.beats && self.heard_at.max(self.begun) + HEARTBEAT <= now;
            let why = if !self.ready {
                Why::NeverReady
            } else if silent {
                Why::Silent
            } else {
                Why::TimedOut
            };
            self.end(process, why, self.launch.kill_grace);
        }
        let Some(ending) = &mut self.ending else { return };
        if !ending.asked && ending.ask_at <= now {
            ending.asked = true;
            process.ask();
        }
        if !ending.killed && ending.kill_at <= now {
            ending.killed = true;
            process.kill();
            // Whoever holds the other end may go on: it isn't read any more.
            if let Some(channel) = channel {
                let _closed = shutdown(channel, Shutdown::Write);
            }
        }
    }

    fn take_orders(&mut self, process: &Process, channel: Option<&OwnedFd>) {
        while let Ok(order) = self.farewell.orders.try_recv() {
            match order {
                Order::Hand(tasks) => self.take_on(tasks, channel),
                Order::Retire => self.retire(),
                Order::Stop { job, why } => {
                    match job {
                        Some(job) => self.stopped.push((job, why)),
                        None => {
                            let all = self.batches.iter().flat_map(|batch| &batch.items).map(|it| (it.task.job, why));
                            self.stopped.extend(all);
                        }
                    }
                    let held = job.is_none_or(|job| self.has(job));
                    if held {
                        self.retire();
                        self.end(process, Why::Stopped(why), self.launch.kill_grace);
                    }
                }
            }
        }
    }

    fn has(&self, job: JobId) -> bool {
        self.batches.iter().flat_map(|batch| &batch.items).any(|item| item.task.job == job)
    }

    fn retire(&mut self) {
        if !std::mem::replace(&mut self.retiring, true) {
            self.tell(News::Retires);
        }
    }

    /// Takes on a batch: looks at each item for the last time, and sends the rest.
    fn take_on(&mut self, tasks: Vec<Task>, channel: Option<&OwnedFd>) {
        let gone = self.retiring || self.ending.is_some();
        let Some(channel) = channel.filter(|_| !gone) else {
            return tasks.iter().for_each(|task| self.report(unbegun(task)));
        };
        let mut items = Vec::with_capacity(tasks.len());
        for task in tasks {
            if let Err(end) =
                item_check::check(&task.dir.join("item").join(&task.name), task.attempt, task.signature.as_ref())
            {
                let at = Some(Timestamp::now());
                self.report(Report { end, started_at: at, ..unbegun(&task) });
                continue;
            }
            // Before it is handed over: the next start then knows that the attempt began.
            let record = LockRecord { attempt: task.attempt, ..self.record.clone() };
            if let Err(error) = lock::note(&task.dir, &record) {
                self.report(Report { end: End::Io(format!("cannot write the job's lock: {error}")), ..unbegun(&task) });
                continue;
            }
            let mut outbox = Outbox::new(self.events.clone(), task.job, task.attempt);
            let at = Timestamp::now();
            let pid = self.farewell.pid.unwrap_or(0);
            outbox.started(Event::Started { job: task.job, attempt: task.attempt, pid: Some(pid), at }, Instant::now());
            items.push(InFlight { task, outbox, said: None });
        }
        if items.is_empty() {
            return;
        }
        message::items(items.iter().map(|item| &item.task), &mut self.outgoing);
        if self.batches.is_empty() {
            (self.begun, self.begun_at) = (Instant::now(), Timestamp::now());
        }
        self.batches.push_back(Batch { size: items.len(), items });
        self.flush(channel);
    }

    /// Sends what the socket takes.
    fn flush(&mut self, channel: &OwnedFd) {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match send(channel, &self.outgoing[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // It closed its end: how it ends tells the rest.
                Err(_) => sent = self.outgoing.len(),
            }
        }
        self.outgoing.drain(..sent);
    }

    /// A retiring worker that has nothing left is told to stop, and given its time.
    fn retire_when_done(&mut self, channel: Option<&OwnedFd>) {
        if !self.retiring || self.ending.is_some() || !self.batches.is_empty() {
            return;
        }
        if let Some(channel) = channel {
            self.outgoing.extend_from_slice(message::STOP);
            self.flush(channel);
            let _closed = shutdown(channel, Shutdown::Write);
        }
        let now = Instant::now();
        let ask_at = now + self.launch.kill_grace;
        self.ending = Some(Ending {
            why: Why::Retired,
            ask_at,
            asked: false,
            kill_at: ask_at + self.launch.kill_grace,
            killed: false,
        });
        // One that is still loading hears nothing yet.
        if !self.ready
            && let Some(ending) = &mut self.ending
        {
            (ending.ask_at, ending.kill_at) = (now, ask_at);
        }
    }

    /// Asks the process to end, for the first reason there is.
    fn end(&mut self, process: &Process, why: Why, grace: Duration) {
        match &self.ending {
            None | Some(Ending { why: Why::Retired, .. }) => {}
            Some(_) => return,
        }
        self.retire();
        let now = Instant::now();
        let kill_at = now.checked_add(grace).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        self.ending = Some(Ending { why, ask_at: now, asked: true, kill_at, killed: false });
        process.ask();
    }

    /// Takes in what lies in the channel; false at its end.
    fn listen(&mut self, channel: &OwnedFd, chunk: &mut [u8], log: &mut Log) -> Result<bool, Broken> {
        let read = match recv(channel, &mut *chunk, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(false),
            Ok((read, _)) => read,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(error) => {
                self.unread = error == Errno::CONNRESET;
                return Ok(false);
            }
        };
        self.heard_at = Instant::now();
        self.hear(|reader, hear| reader.feed(&chunk[..read], hear), log)?;
        Ok(true)
    }

    /// The last of what the process said.
    fn hear_out(&mut self, channel: Option<OwnedFd>, log: &mut Log) -> Result<(), Broken> {
        if let Some(channel) = channel {
            let mut chunk = vec![0; CHUNK];
            let mut left = rustix::io::ioctl_fionread(&channel).unwrap_or(0) as usize;
            while left > 0 {
                match recv(&channel, &mut chunk[..left.min(CHUNK)], RecvFlags::DONTWAIT) {
                    Ok((0, _)) => break,
                    Ok((read, _)) => {
                        left -= read;
                        self.hear(|reader, hear| reader.feed(&chunk[..read], hear), log)?;
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            if let Err(Errno::CONNRESET) = recv(&channel, &mut chunk[..1], RecvFlags::DONTWAIT) {
                self.unread = true;
            }
        }
        self.hear(|reader, hear| reader.finish(hear), log)
    }

    fn hear(
        &mut self,
        read: impl FnOnce(&mut channel::Reader, channel::Hear) -> Result<(), Broken>,
        log: &mut Log,
    ) -> Result<(), Broken> {
        let mut reader = std::mem::take(&mut self.reader);
        let heard = read(&mut reader, &mut |message| self.take_in(message, log));
        self.reader = reader;
        heard
    }

    fn take_in(&mut self, message: Message, log: &mut Log) -> Result<(), Broken> {
        match message {
            Message::Ready { device_uuid } => self.on_ready(device_uuid),
            Message::Heartbeat => {
                self.beats = true;
                Ok(())
            }
            Message::Done { id, result } => self.answered(id, Said::Done { result }, log),
            Message::Failed { id, error, retry } => self.answered(id, Said::Failed { error, retry }, log),
            Message::Progress { id, fraction, message } => {
                let at = self.find(id)?;
                if let Some(item) = at.and_then(|at| self.batches.front_mut()?.items.get_mut(at)) {
                    item.outbox.progress(fraction, message);
                }
                Ok(())
            }
            Message::Count { name, by } => match self.batches.front_mut().and_then(|batch| batch.items.first_mut()) {
                Some(item) => item.outbox.count(name, by),
                None => {
                    let event = Event::Count { job: self.launch.id, attempt: 0, name, by };
                    let _heard = self.events.send(event);
                    Ok(())
                }
            },
            Message::Unknown { kind } => {
                if !std::mem::replace(&mut self.warned, true) {
                    let kind = crate::item::escape(kind.as_bytes());
                    tracing::warn!(resident = %self.launch.id, kind, "a worker sent a kind of message that isn't known; passed over");
                }
                Ok(())
            }
        }
    }

    fn on_ready(&mut self, device_uuid: Option<String>) -> Result<(), Broken> {
        if let Some(uuid) = device_uuid
            && !self.launch.devices.is_empty()
            && !self.launch.devices.iter().any(|given| given.eq_ignore_ascii_case(&uuid))
        {
            let given = self.launch.devices.join(", ");
            return Err(Broken(format!("it says that it runs on {uuid}, and was given {given}")));
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.farewell.ready = true;
            self.tell(News::Ready);
        }
        Ok(())
    }

    /// Which item of the current message is meant; with none named, the only one.
    fn find(&self, id: Option<JobId>) -> Result<Option<usize>, Broken> {
        let items = self.batches.front().map_or(&[][..], |batch| &batch.items);
        match id {
            None if items.len() == 1 => Ok(Some(0)),
            None => Ok(None),
            Some(id) => match items.iter().position(|item| item.task.job == id) {
                Some(at) => Ok(Some(at)),
                None if self.answered.contains(&id) => {
                    Err(Broken(format!("it spoke again of item {id}, which it had answered")))
                }
                None => Err(Broken(format!("it spoke of item {id}, which it wasn't given"))),
            },
        }
    }

    /// An item's answer.
    fn answered(&mut self, id: Option<JobId>, said: Said, log: &mut Log) -> Result<(), Broken> {
        let Some(at) = self.find(id)? else {
            return Err(Broken("it answered without saying for which item (`id`)".to_owned()));
        };
        let Some(batch) = self.batches.front_mut() else { return Ok(()) };
        let mut item = batch.items.remove(at);
        let last = batch.items.is_empty();
        item.said = Some(said);
        self.answered.push_back(item.task.job);
        if self.answered.len() > REMEMBERED {
            self.answered.pop_front();
        }
        // A failure may have left the process in a bad way (a poisoned context, memory that is gone), unless the worker
        // itself says that it is the item for good.
        let spoils = matches!(item.said, Some(Said::Failed { retry: true, .. }));
        self.share_log_with(&item.task, log);
        self.conclude(item, End::Exited(0), 0, log);
        if spoils {
            self.retire();
        }
        if last {
            self.batches.pop_front();
            (self.begun, self.begun_at) = (Instant::now(), Timestamp::now());
            self.logged = log.len();
            if self.batches.is_empty() && self.logged > EMPTY_LOG && log.empty().is_ok() {
                self.logged = 0;
            }
        }
        Ok(())
    }

    /// Reports how an item ended.
    fn conclude(&mut self, mut item: InFlight, end: End, beside: u32, log: &Log) {
        item.outbox.finish_short(Instant::now());
        let mut report = Report {
            pid: self.farewell.pid,
            started_at: Some(self.begun_at),
            ran: self.begun.elapsed(),
            said: item.said,
            beside,
            ..unbegun(&item.task)
        };
        report.end = end;
        let failed = matches!(report.said, Some(Said::Failed { .. }));
        if report.end == End::Exited(0) && !failed {
            match outputs::missing(&item.task.dir.join("out"), &item.task.outputs) {
                Ok(missing) => report.missing_outputs = missing,
                Err(error) => report.end = End::Io(format!("cannot look for the declared outputs in `out`: {error}")),
            }
        } else {
            let told =
                matches!(&report.said, Some(Said::Failed { error, .. }) if log::speaks_of_memory(error.as_bytes()));
            report.out_of_memory = told || log.speaks_of_memory();
        }
        self.report(report);
    }

    fn report(&self, report: Report) {
        let _heard = self.events.send(Event::Ended(Box::new(report)));
    }

    /// Copies what was printed while an item was worked on to the item's own log.
    fn share_log_with(&self, task: &Task, log: &mut Log) {
        if let Err(error) = log.copy_from(self.logged, &task.dir, task.attempt) {
            tracing::warn!(job = %task.job, %error, "cannot write an item's part of its worker's log");
        }
    }

    /// The same for all that were not answered.
    fn share_log(&self, log: &mut Log) {
        for item in self.batches.front().iter().flat_map(|batch| &batch.items) {
            self.share_log_with(&item.task, log);
        }
    }

    /// Why we ended it outranks how it then died.
    fn judge(&mut self, exit: std::io::Result<Exit>, said_to_the_end: Result<(), Broken>) -> End {
        let (exit_code, signal) = match &exit {
            Ok(Exit::Code(code)) => (Some(*code), None),
            Ok(Exit::Signal(signal)) => (None, Some(*signal)),
            Err(_) => (None, None),
        };
        let unanswered = || End::Protocol("the worker ended (exit code 0) without an answer for it".to_owned());
        match (self.ending.take().map(|ending| ending.why), exit, said_to_the_end) {
            (Some(Why::TimedOut), ..) => End::TimedOut { exit_code, signal },
            (Some(Why::NeverReady), ..) => End::NotReady { within: self.launch.ready_timeout },
            (Some(Why::Silent), ..) => {
                End::Protocol(format!("silent for {} s after its last heartbeat", HEARTBEAT.as_secs()))
            }
            (Some(Why::Stopped(why)), ..) => End::Stopped { why, exit_code, signal },
            (Some(Why::Protocol(Broken(what))), ..) => End::Protocol(what),
            (Some(Why::Io(what)), ..) => End::Io(what),
            (Some(Why::Retired), ..) if !self.ready => End::Stopped { why: StopWhy::Shutdown, exit_code, signal },
            (Some(Why::Retired) | None, Err(error), _) => {
                End::Io(format!("cannot tell how the process ended: {error}"))
            }
            (Some(Why::Retired) | None, Ok(Exit::Code(0)), Err(Broken(what))) => End::Protocol(what),
            (Some(Why::Retired) | None, Ok(Exit::Code(0)), Ok(())) if !self.ready => {
                End::Protocol("the worker ended (exit code 0) before it was ready".to_owned())
            }
            (Some(Why::Retired) | None, Ok(Exit::Code(0)), Ok(())) => unanswered(),
            (Some(Why::Retired) | None, Ok(Exit::Code(code)), _) => End::Exited(code),
            (Some(Why::Retired) | None, Ok(Exit::Signal(signal)), _) => End::Signalled(signal),
        }
    }

    /// Reports everything that the process was handed and didn't answer.
    fn give_back(&mut self, end: &End) {
        let ended_at = Timestamp::now();
        let batches = std::mem::take(&mut self.batches);
        let count = batches.len();
        let doubled = matches!(end, End::Protocol(what) if what.starts_with("it spoke again"));
        for (at, batch) in batches.into_iter().enumerate() {
            // It never came to it, or never read the message: what lies unread is the last one.
            let only = count == 1;
            let begun = at == 0 && !(only && self.unread && batch.items.len() == batch.size);
            let beside = (batch.items.len() as u32).saturating_sub(1);
            for item in batch.items {
                let wish = self.stopped.iter().rev().find(|(job, _)| *job == item.task.job).map(|(_, why)| *why);
                let (exit_code, signal) = codes(end);
                let end = match (wish, end) {
                    (Some(why), _) => End::Stopped { why, exit_code, signal },
                    _ if !begun => End::NotBegun,
                    // Another item's stop, or its second answer, is nothing against this one.
                    (None, End::Stopped { .. }) => End::Stopped { why: StopWhy::Shutdown, exit_code, signal },
                    _ if doubled => End::Stopped { why: StopWhy::Shutdown, exit_code, signal },
                    (None, end) => end.clone(),
                };
                let began = end != End::NotBegun;
                let report = Report {
                    pid: self.farewell.pid.filter(|_| began),
                    started_at: Some(self.begun_at).filter(|_| began),
                    ended_at,
                    ran: if began { self.begun.elapsed() } else { Duration::ZERO },
                    said: item.said,
                    out_of_memory: self.farewell.out_of_memory && began,
                    beside: if began { beside } else { 0 },
                    end,
                    ..unbegun(&item.task)
                };
                self.report(report);
            }
        }
    }
}

fn codes(end: &End) -> (Option<i32>, Option<i32>) {
    match end {
        End::Exited(code) => (Some(*code), None),
        End::Signalled(signal) => (None, Some(*signal)),
        End::TimedOut { exit_code, signal } | End::Stopped { exit_code, signal, .. } => (*exit_code, *signal),
        _ => (None, None),
    }
}

/// Where the residents of a root have their directories.
pub fn residents_dir(state: &Path) -> PathBuf {
    state.join("residents")
}
