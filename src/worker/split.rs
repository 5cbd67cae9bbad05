//! The course of an attempt at a big line file: a process for each batch, or one for each slot, instead of one for the item. The engine in
//! [`crate::split`] runs on a thread of its own; this one looks after it: it gives it slots and calls them back, heeds a
//! stop and the clock, bounds the log, and finds out how it went.
//!
//! Invariants: every slot that was taken in and leaves before the end says so, the end of the attempt speaks for the
//! rest; nothing holds the job's lock when the item's strays are looked for. Those of a batch end with the batch.

mod resident;
mod sweeper;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use jiff::Timestamp;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::attempt;
use super::lock::JobLock;
use super::log::Log;
use super::outbox::Outbox;
use super::strays::{self, Registered, Trail};
use super::thread::StopSwitch;
use super::{End, Event, Launch, Report, SPLIT_DIR, Said, outputs, program};
use crate::item::{Counters, JobId, StopWhy, escape};
use crate::split::{self, Batch, BatchError, Consumer, Kind, ProcessConsumer, Program, Setup, StopFlag};
use resident::ResidentConsumer;
use sweeper::Sweeper;
use tally::{Channel, Tally};

/// What the lines and the parts of one item that wait may take. For slots beyond a dozen batches get smaller than
/// `lines` says only where they are large.
const MEMORY: u64 = 48 << 20;
/// What a batch may make of itself, at most: it must fit into memory.
const MAX_OUTPUT: u64 = 1 << 30;
/// Where the batches of resident workers lie while these have them, a folder for each slot.
const BATCHES_DIR: &str = "batches";

/// How an item is cut, worked on and put together.
#[derive(Debug)]
pub struct SplitLaunch {
    pub lines: u64,
    /// The level of gzip; none: plain.
    pub compress: Option<u8>,
    /// Of each batch.
    pub retries: u32,
    pub backoff: Duration,
    /// What the parts depend on: those of another one aren't gone on with.
    pub tag: String,
    /// What the job's record says was counted by earlier attempts.
    pub counted: Counters,
    /// A process for each slot, which takes one batch after another; none: a process for each batch.
    pub residents: Option<Residents>,
    /// The UUIDs of the first slot's GPUs.
    pub devices: Vec<String>,
}

/// The life of a slot's process.
#[derive(Clone, Debug)]
pub struct Residents {
    /// From its start to `ready`.
    pub ready_timeout: Duration,
    /// After so many batches it is replaced; none: never.
    pub max_batches: Option<u32>,
}

/// A further slot for an attempt that has one already.
#[derive(Debug)]
pub struct SlotLaunch {
    pub no: u32,
    pub argv: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub cwd: PathBuf,
    pub device_locks: Vec<Arc<OwnedFd>>,
    pub cpus: Vec<usize>,
    /// The UUIDs of its GPUs.
    pub devices: Vec<String>,
}

/// Where orders and news are left for the attempt's thread, which may be waiting.
#[derive(Debug)]
pub(super) struct Mail {
    waiting: Mutex<Letters>,
    /// An eventfd: readable once there is something.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Letters {
    grow: Vec<SlotLaunch>,
    shrink: Vec<u32>,
    progress: Option<split::Progress>,
    /// How much of the file the batch of a slot has behind it, as it says itself.
    at_work: BTreeMap<u32, f64>,
    /// Of all that is merged.
    counters: Option<Counters>,
    ahead: Option<bool>,
    /// The engine has ended.
    over: bool,
}

impl Mail {
    pub(super) fn new() -> io::Result<Mail> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mail { waiting: Mutex::default(), wake })
    }

    pub(super) fn grow(&self, slot: SlotLaunch) {
        self.leave(|letters| letters.grow.push(slot));
    }

    pub(super) fn shrink(&self, no: u32) {
        self.leave(|letters| letters.shrink.push(no));
    }

    fn leave(&self, write: impl FnOnce(&mut Letters)) {
        write(&mut self.letters());
        // Full only after 2^64 - 2 letters.
        let _written = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn take(&self) -> Letters {
        let _read = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut *self.letters())
    }

    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Mail {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Tells the end of the engine's thread, however it comes.
struct Over<'m>(&'m Mail);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.leave(|letters| letters.over = true);
    }
}

type Slot = Box<dyn Consumer + Send>;

pub(super) struct Splitting<'a> {
    launch: &'a Launch,
    split: &'a SplitLaunch,
    mail: &'a Arc<Mail>,
    stop: &'a StopSwitch,
    events: Sender<Event>,
    outbox: Outbox,
    report: &'a mut Report,
    /// Why it must end before it is done.
    ending: Option<Why>,
    /// The item's counters, as the director knows them.
    counted: Counters,
    merged: Option<split::Progress>,
    at_work: BTreeMap<u32, f64>,
    /// The furthest that was shown.
    fraction: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Why {
    TimedOut,
    Stopped(StopWhy),
    Io(String),
}

/// What all slots share.
struct Common {
    log: Arc<File>,
    /// The job's.
    lock: Arc<OwnedFd>,
    stop: StopFlag,
}

/// The way to the engine's slots.
struct Lines {
    give: Sender<Slot>,
    call: Sender<()>,
    /// Those that came later, while they are wanted.
    wanted: Vec<(u32, Arc<AtomicBool>)>,
}

impl<'a> Splitting<'a> {
    pub(super) fn new(
        launch: &'a Launch,
        split: &'a SplitLaunch,
        (stop, mail): (&'a StopSwitch, &'a Arc<Mail>),
        events: Sender<Event>,
        report: &'a mut Report,
    ) -> Splitting<'a> {
        let outbox = Outbox::new(events.clone(), launch.job, launch.attempt);
        let (counted, at_work) = (split.counted.clone(), BTreeMap::new());
        let (ending, merged, fraction) = (None, None, 0.0);
        Splitting { launch, split, mail, stop, events, outbox, report, ending, counted, merged, at_work, fraction }
    }

    /// Runs it from its start to its end.
    pub(super) fn carry_out(mut self) -> End {
        let end = self.course().unwrap_or_else(|end| end);
        self.outbox.finish();
        end
    }

    /// An early end is an error here only to the `?`.
    fn course(&mut self) -> Result<End, End> {
        let launch = self.launch;
        let item = attempt::item_to_begin(launch, self.stop)?;
        let mut log = Log::open(&launch.dir, launch.attempt, launch.max_log, Instant::now())
            .map_err(|error| self.io(format!("cannot open the attempt's log: {error}")))?;
        let lock = attempt::take_lock(&launch.dir, self.stop)?;
        // What an attempt that was cut has left lying there.
        let _absent = std::fs::remove_dir_all(launch.dir.join(BATCHES_DIR));
        let common = common(&log, &lock).map_err(|error| host(format!("cannot prepare for the batches: {error}")))?;
        drop(lock);
        let first = Words { argv: &launch.argv, env: &launch.env, cwd: &launch.cwd };
        let program = first.find()?;
        // Its processes carry the job's id; the strays of others are told from its own by that.
        let registered = Registered::without_a_leader(launch.job.into());

        let begun = Instant::now();
        let at = Timestamp::now();
        self.report.started_at = Some(at);
        let started = Event::Started { job: launch.job, attempt: launch.attempt, pid: None, at };
        self.outbox.started(started, begun);
        let place =
            Place { no: 0, device_locks: &launch.device_locks, cpus: &launch.cpus, devices: &self.split.devices };
        let first = self.consumer(&common, first, program, place, None);
        let outcome = self.run(&item, &common, first, &mut log, begun);
        let _absent = std::fs::remove_dir_all(launch.dir.join(BATCHES_DIR));
        (self.report.ended_at, self.report.ran) = (Timestamp::now(), begun.elapsed());

        drop(common);
        strays::end(&Trail { owner: launch.job.into(), leader: None, dir: Some(&launch.dir) }, launch.kill_grace);
        drop(registered);
        if let Err(error) = log.settle() {
            tracing::warn!(job = %launch.job, %error, "cannot cut a log that is longer than max_log");
        }
        let end = self.judge(outcome?);
        if matches!(end, End::BadInput(_) | End::BatchFailed(_) | End::NotStarted { .. }) && !launch.root.is_intact() {
            return Err(End::Io(attempt::MOVED.to_owned()));
        }
        if end == End::Exited(0) {
            self.report.missing_outputs = outputs::missing(&launch.dir.join("out"), &launch.outputs)
                .map_err(|error| self.io(format!("cannot look for the declared outputs in `out`: {error}")))?;
        }
        Ok(end)
    }

    /// The engine, and this thread beside it until it has ended.
    fn run(
        &mut self,
        item: &Path,
        common: &Common,
        first: Slot,
        log: &mut Log,
        begun: Instant,
    ) -> Result<Result<split::Summary, split::Error>, End> {
        let (give, slots) = unbounded();
        let (call, calls) = bounded(1);
        let dir = &self.launch.dir;
        let (progress, counted) = (self.mail.clone(), self.mail.clone());
        let (ahead, end) = (self.mail.clone(), self.mail.clone());
        // The receiver is there.
        let _sent = give.send(first);
        let setup = Setup {
            input: item.to_owned(),
            out_dir: dir.join("out"),
            name: self.launch.item.file_name().unwrap_or_default().to_owned(),
            state_dir: dir.join(SPLIT_DIR),
            // Until the result is durable, a kill would have all of it made again.
            keep_state: true,
            lines: self.split.lines,
            compress: self.split.compress,
            retries: self.split.retries,
            backoff: self.split.backoff,
            memory: MEMORY,
            tag: self.split.tag.clone(),
            slots,
            calls,
            stop: common.stop.clone(),
            progress: Box::new(move |now| progress.leave(|letters| letters.progress = Some(now))),
            counted: Box::new(move |all| counted.leave(|letters| letters.counters = Some(all.clone()))),
            ahead: Box::new(move |is| ahead.leave(|letters| letters.ahead = Some(is))),
        };
        let mut lines = Lines { give, call, wanted: Vec::new() };
        thread::scope(|scope| {
            let run = move || {
                let _over = Over(&end);
                split::run(setup)
            };
            let engine = Builder::new()
                .name("split".to_owned())
                .spawn_scoped(scope, run)
                .map_err(|error| host(format!("cannot start the thread that splits it: {error}")))?;
            self.look_after(common, &mut lines, log, begun);
            engine.join().map_err(|_panic| End::Panicked)
        })
    }

    /// Until the engine has ended.
    fn look_after(&mut self, common: &Common, lines: &mut Lines, log: &mut Log, begun: Instant) {
        let deadline = self.launch.timeout.and_then(|timeout| begun.checked_add(timeout));
        loop {
            let now = Instant::now();
            if self.ending.is_none() && deadline.is_some_and(|deadline| deadline <= now) {
                self.end(common, Why::TimedOut);
            }
            if log.look_at() <= now {
                log.bound(now);
                strays::reap();
            }
            let letters = self.mail.take();
            let over = letters.over;
            self.read(letters, common, lines);
            self.outbox.deliver(now);
            if over {
                return;
            }
            let timeout = if self.ending.is_none() { deadline } else { None };
            let next = [timeout, self.outbox.due(), Some(log.look_at())].into_iter().flatten().min();
            let span = next.map(|next| next.saturating_duration_since(Instant::now()));
            let span = span.and_then(|span| Timespec::try_from(span).ok());
            let mut fds = [PollFd::new(self.mail, PollFlags::IN), PollFd::new(self.stop, PollFlags::IN)];
            match poll(&mut fds, span.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                // Nothing left to wait with: the engine is ended, and its thread waited for.
                Err(error) => {
                    self.end(common, Why::Io(format!("cannot wait for the batches: {error}")));
                    return;
                }
            }
            let stopped = !fds[1].revents().is_empty();
            if stopped {
                self.stop.clear_wake();
                self.heed_stop(common);
            }
        }
    }

    fn read(&mut self, letters: Letters, common: &Common, lines: &mut Lines) {
        if letters.progress.is_some() || !letters.at_work.is_empty() {
            self.merged = letters.progress.or(self.merged);
            self.at_work.extend(letters.at_work);
            self.tell_progress();
        }
        if let Some(all) = letters.counters {
            self.tell_counters(all);
        }
        if let Some(ahead) = letters.ahead {
            self.tell_ahead(ahead);
        }
        for slot in letters.grow {
            self.take_in(slot, common, lines);
        }
        for no in letters.shrink {
            lines.wanted.retain(|(known, wanted)| {
                let is_it = *known == no;
                if is_it {
                    wanted.store(false, Ordering::Release);
                }
                !is_it
            });
            // One that waits already is heard after this.
            let _waits = lines.call.try_send(());
        }
    }

    /// What is finished, and what the batches that run say of themselves.
    fn tell_progress(&mut self) {
        let total = self.merged.map(|merged| merged.bytes_total).filter(|total| 0 < *total);
        let Some((now, total)) = self.merged.zip(total) else { return };
        let bytes = now.bytes as f64 + self.at_work.values().sum::<f64>();
        // A batch that is tried again begins again, and a finished one is told of in two steps: it never goes back.
        self.fraction = (bytes / total as f64).clamp(self.fraction, 1.0);
        let batches = if now.batches == 1 { "batch" } else { "batches" };
        self.outbox.progress(Some(self.fraction), Some(format!("{} lines in {} {batches}", now.lines, now.batches)));
    }

    /// The item's counters are those of the parts that stand, those of earlier attempts too: what the director knows may be
    /// less, after a kill, or more, when they were begun again.
    fn tell_counters(&mut self, all: Counters) {
        let names: BTreeSet<&str> = all.iter().chain(self.counted.iter()).map(|(name, _)| name).collect();
        for name in names {
            let by = all.get(name).unwrap_or_default() - self.counted.get(name).unwrap_or_default();
            if by != 0.0
                && let Err(broken) = self.outbox.count(name.to_owned(), by)
            {
                tracing::warn!(job = %self.launch.job, %broken, "counters of an earlier attempt stand beside those of this one");
                return;
            }
        }
        self.counted = all;
    }

    fn tell_ahead(&self, ahead: bool) {
        let (job, attempt) = (self.launch.job, self.launch.attempt);
        // A director that is gone has nobody to tell.
        let _heard = self.events.send(Event::Ahead { job, attempt, ahead });
    }

    fn take_in(&mut self, slot: SlotLaunch, common: &Common, lines: &mut Lines) {
        let SlotLaunch { no, argv, env, cwd, device_locks, cpus, devices } = slot;
        let wanted = Arc::new(AtomicBool::new(true));
        let leaves = Leaves {
            events: self.events.clone(),
            job: self.launch.job,
            attempt: self.launch.attempt,
            no,
            wanted: wanted.clone(),
        };
        let words = Words { argv: &argv, env: &env, cwd: &cwd };
        match words.find() {
            Ok(program) => {
                let place = Place { no, device_locks: &device_locks, cpus: &cpus, devices: &devices };
                let consumer = self.consumer(common, words, program, place, Some(leaves));
                lines.wanted.push((no, wanted));
                // The engine has ended meanwhile: its slots leave with it.
                let _sent = lines.give.send(consumer);
            }
            // It was found for the first slot, and is gone since: those that work go on, and no other is asked for.
            Err(why) => {
                tracing::warn!(job = %self.launch.job, ?why, "a further slot can't be used");
                self.tell_ahead(false);
                drop(leaves);
            }
        }
    }

    fn consumer(
        &self,
        common: &Common,
        words: Words<'_>,
        program: PathBuf,
        place: Place<'_>,
        leaves: Option<Leaves>,
    ) -> Slot {
        let Place { no, device_locks, cpus, devices } = place;
        let descriptors = std::iter::once(&common.lock).chain(device_locks).cloned().collect();
        let (argv, env, cwd) = (words.argv.to_vec(), words.env.to_vec(), words.cwd.to_owned());
        let (log, stop, kill_grace) = (common.log.clone(), common.stop.clone(), self.launch.kill_grace);
        let tally = Tally::new(self.launch.job, self.mail.clone(), no);
        let cpus = Some(cpus.to_vec());
        let Some(residents) = &self.split.residents else {
            // The timeout is the whole attempt's.
            let (log, timeout, max_output) = (Some(log), None, MAX_OUTPUT);
            let program = Program { program, argv, env, cwd, log, descriptors, timeout, kill_grace, max_output };
            let sweeper = Sweeper::new(self.launch.job, self.launch.dir.clone(), kill_grace);
            let consumer = ProcessConsumer::new(program, stop).listening(Box::new(Channel::new(tally)));
            let consumer = consumer.kept_by(Box::new(sweeper));
            return Box::new(Pinned { consumer, cpus, leaves });
        };
        let order = resident::Order {
            program,
            argv,
            env,
            cwd,
            log,
            descriptors,
            devices: devices.to_vec(),
            ready_timeout: residents.ready_timeout,
            max_batches: residents.max_batches,
            kill_grace,
            max_output: MAX_OUTPUT,
            name: split::output_name(self.launch.item.file_name().unwrap_or_default(), false),
            dir: self.launch.dir.join(BATCHES_DIR).join(no.to_string()),
            job_dir: self.launch.dir.clone(),
        };
        let consumer = ResidentConsumer::new(order, stop, tally);
        Box::new(Pinned { consumer, cpus, leaves })
    }

    fn heed_stop(&mut self, common: &Common) {
        let Some(order) = self.stop.standing() else { return };
        match &mut self.ending {
            None => self.end(common, Why::Stopped(order.why)),
            // A person's wish ends the item for good; any other reason comes too late.
            Some(why) if order.why == StopWhy::Cancelled => *why = Why::Stopped(order.why),
            Some(_) => {}
        }
    }

    fn end(&mut self, common: &Common, why: Why) {
        self.ending.get_or_insert(why);
        common.stop.order();
    }

    fn judge(&mut self, outcome: Result<split::Summary, split::Error>) -> End {
        let stopped = |why| End::Stopped { why, exit_code: None, signal: None };
        match (self.ending.take(), outcome) {
            // A person's wish stands, whatever was reached.
            (Some(Why::Stopped(StopWhy::Cancelled)), _) => stopped(StopWhy::Cancelled),
            // It was done before it heard.
            (_, Ok(summary)) => {
                let result = serde_json::json!({
                    "lines": summary.lines, "batches": summary.batches, "retried": summary.retried,
                    "input_bytes": summary.input_bytes, "output_bytes": summary.output_bytes,
                });
                let result = serde_json::value::to_raw_value(&result).ok();
                self.report.said = Some(Said::Done { result });
                End::Exited(0)
            }
            (Some(Why::Stopped(why)), Err(_)) => stopped(why),
            (Some(Why::TimedOut), Err(_)) => End::TimedOut { exit_code: None, signal: None },
            (Some(Why::Io(what)), Err(_)) => End::Io(what),
            (None, Err(error)) => match error {
                split::Error::Input { damaged: true, .. } => End::BadInput(error.to_string()),
                // No batch's own failure: as if there were one process for all of it.
                split::Error::Batch { kind: Kind::NotStarted { host }, message, .. } => {
                    End::NotStarted { error: message, host }
                }
                split::Error::Batch { kind, .. } => {
                    self.report.out_of_memory = kind == Kind::OutOfMemory;
                    End::BatchFailed(error.to_string())
                }
                split::Error::Taken { path } => End::OutputTaken(taken(&path)),
                split::Error::Setup(what) => End::NotStarted { error: what, host: false },
                _ => End::Io(error.to_string()),
            },
        }
    }

    fn io(&self, what: String) -> End {
        End::Io(format!("{what} in `{}`", escape(self.launch.dir.as_os_str().as_encoded_bytes())))
    }
}

/// A batch's own file under the merged output's name: both stay.
fn taken(path: &Path) -> String {
    let name = escape(path.file_name().unwrap_or_default().as_encoded_bytes());
    format!(
        "its command wrote `{name}` into {{out}} itself, which is the name of what its batches print, put together: neither \
         was replaced; have it write under another name, then retry the item, which goes on behind the batches that are done"
    )
}

fn host(error: String) -> End {
    End::NotStarted { error, host: true }
}

fn common(log: &Log, lock: &JobLock) -> io::Result<Common> {
    let lock = Arc::new(OwnedFd::from(lock.file().try_clone()?));
    Ok(Common { log: Arc::new(log.file().try_clone()?), lock, stop: StopFlag::new()? })
}

/// Where a slot is.
#[derive(Clone, Copy)]
struct Place<'p> {
    /// The first is 0.
    no: u32,
    device_locks: &'p [Arc<OwnedFd>],
    cpus: &'p [usize],
    devices: &'p [String],
}

/// What is run for a batch.
#[derive(Clone, Copy)]
struct Words<'w> {
    argv: &'w [OsString],
    env: &'w [(OsString, OsString)],
    cwd: &'w Path,
}

impl Words<'_> {
    fn find(&self) -> Result<PathBuf, End> {
        let not_started = |error: String| End::NotStarted { error, host: false };
        let command = self.argv.first().ok_or_else(|| not_started("the command is empty".to_owned()))?;
        program::find(command, self.env, self.cwd).map(|found| found.into_owned()).map_err(not_started)
    }
}

/// Works on the cores near the slot's device.
struct Pinned<C> {
    consumer: C,
    /// Until its thread is there.
    cpus: Option<Vec<usize>>,
    /// None for the first slot, which stays as long as there is work.
    leaves: Option<Leaves>,
}

impl<C: Consumer> Consumer for Pinned<C> {
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        if let Some(cpus) = self.cpus.take() {
            attempt::stay_on(&cpus);
        }
        self.consumer.consume(batch, out)
    }

    fn counted(&mut self) -> Counters {
        self.consumer.counted()
    }

    fn finish(&mut self) -> Counters {
        self.consumer.finish()
    }

    fn wants_more(&mut self) -> bool {
        let wanted = self.leaves.as_ref().is_none_or(|leaves| leaves.wanted.load(Ordering::Acquire));
        wanted && self.consumer.wants_more()
    }
}

/// Says that a slot has left, when it is dropped.
struct Leaves {
    events: Sender<Event>,
    job: JobId,
    attempt: u32,
    no: u32,
    wanted: Arc<AtomicBool>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        let Leaves { job, attempt, no, .. } = *self;
        let _heard = self.events.send(Event::SlotGone { job, attempt, no });
    }
}
