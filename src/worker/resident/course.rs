//! The course of a resident's life: starts the process, hands it what it is given, keeps the time, ends it. One wait for
//! everything: the process, its channel, the director's orders, and the clock.

mod answers;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::{Farewell, News, Order, ResidentLaunch, Task, unbegun};
use crate::item::{JobId, StopWhy};
use crate::proc::boot_id;
use crate::worker::channel::{self, Broken};
use crate::worker::lock::{self, JobLock, LockRecord, Taken};
use crate::worker::log::Log;
use crate::worker::outbox::Outbox;
use crate::worker::process::Process;
use crate::worker::strays::{self, Trail};
use crate::worker::{End, Event, Report, Said, attempt, item_check, message};

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
    /// The message, while it is kept back.
    unsent: Vec<u8>,
    /// It was sent while the process had another.
    ahead: bool,
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

pub(super) struct Course<'a> {
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
    /// What it counted while it had no item.
    between: Outbox,
    /// The process, as the locks of its jobs name it.
    record: LockRecord,
    /// How much of the log belongs to items that have ended.
    logged: u64,
    /// It has printed something over an item. From then on the next message waits until this one is answered: what is printed
    /// over the next item meanwhile couldn't be told from this one's.
    talks: bool,
    /// The process closed its end with something unread.
    unread: bool,
    /// It ended by itself, and not by an error.
    left: bool,
    warned: bool,
}

impl<'a> Course<'a> {
    pub(super) fn new(
        launch: &'a ResidentLaunch,
        wake: &'a OwnedFd,
        events: Sender<Event>,
        farewell: &'a mut Farewell,
    ) -> Course<'a> {
        let now = Instant::now();
        let between = Outbox::new(events.clone(), launch.id, 0);
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
            between,
            record: LockRecord {
                attempt: 0,
                pid: 0,
                start_ticks: 0,
                boot_id: boot_id().to_owned(),
                started_at: None,
                devices: Vec::new(),
            },
            logged: 0,
            talks: false,
            unread: false,
            left: false,
            warned: false,
        }
    }

    pub(super) fn run(mut self) -> End {
        let end = self.course().unwrap_or_else(|end| end);
        self.farewell.ready = self.ready;
        self.give_back(&end);
        end
    }

    fn course(&mut self) -> Result<End, End> {
        let launch = self.launch;
        let io_end = |what: &str, error: &dyn std::fmt::Display| End::Io(format!("{what}: {error}"));
        if !launch.root.is_intact() {
            return Err(End::RootAway);
        }
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
        strays::end(&Trail { owner: launch.id.into(), leader, dir: Some(&launch.dir) }, launch.kill_grace);
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
        if !self.launch.root.is_intact() {
            return tasks.iter().for_each(|task| self.report(Report { end: End::RootAway, ..unbegun(task) }));
        }
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
            let at = Timestamp::now();
            let devices = self.launch.on.clone();
            let record = LockRecord { attempt: task.attempt, started_at: Some(at), devices, ..self.record.clone() };
            if let Err(error) = lock::note(&task.dir, &record) {
                self.report(Report { end: End::Io(format!("cannot write the job's lock: {error}")), ..unbegun(&task) });
                continue;
            }
            let mut outbox = Outbox::new(self.events.clone(), task.job, task.attempt);
            let pid = self.farewell.pid.unwrap_or(0);
            outbox.started(Event::Started { job: task.job, attempt: task.attempt, pid: Some(pid), at }, Instant::now());
            items.push(InFlight { task, outbox, said: None });
        }
        if items.is_empty() {
            return;
        }
        let waits = self.talks && !self.batches.is_empty();
        let mut unsent = Vec::new();
        message::items(items.iter().map(|item| &item.task), if waits { &mut unsent } else { &mut self.outgoing });
        if self.batches.is_empty() {
            (self.begun, self.begun_at) = (Instant::now(), Timestamp::now());
            if let Some(first) = items.first_mut() {
                first.outbox.take_counts(&mut self.between);
            }
        }
        let ahead = !self.batches.is_empty() && !waits;
        self.batches.push_back(Batch { size: items.len(), items, unsent, ahead });
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
                // It closed its end: how it ends tells the rest. What it wasn't sent whole it never read.
                Err(_) => (sent, self.unread) = (self.outgoing.len(), true),
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
        let after =
            |at: Instant| at.checked_add(self.launch.kill_grace).unwrap_or(at + Duration::from_secs(u32::MAX.into()));
        let ask_at = after(now);
        self.ending = Some(Ending { why: Why::Retired, ask_at, asked: false, kill_at: after(ask_at), killed: false });
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
}
