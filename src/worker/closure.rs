//! A closure as a worker: what a program that uses the library runs instead of a process. The same look at the item, the
//! same lock, log, words and outputs; only that nobody can end it but itself.
//!
//! Invariant: what it says is bounded as on the report channel.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;
use jiff::Timestamp;
use serde_json::Value;

use super::attempt::{item_to_begin, stay_on, stopped_before, take_lock};
use super::channel::{self, Broken};
use super::log::Log;
use super::outbox::Outbox;
use super::strays::{self, Trail};
use super::thread::{self, Handle, StopSwitch};
use super::{End, Event, Launch, Report, Said, outputs};
use crate::item::{JobId, escape};
use crate::pool::{Device, TaskError, caught};
use crate::symptoms::speaks_of_memory;
use crate::units::Clock;

/// What a route runs.
pub type Work = Arc<dyn Fn(&Job) -> Result<Outcome, Failure> + Send + Sync>;

/// One attempt at one item, as the closure of its route sees it.
#[derive(Debug)]
pub struct Job {
    id: String,
    name: OsString,
    item: PathBuf,
    out: PathBuf,
    attempt: u32,
    device: Device,
    env: Vec<(OsString, OsString)>,
    log: File,
    mouth: Mutex<Mouth>,
    stop: Arc<StopSwitch>,
    /// It was asked for an environment: there may be processes to look for.
    may_have_spawned: AtomicBool,
}

impl Job {
    /// The job's ULID, the same for all its attempts.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name that the item was dropped with.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Where the item lies now.
    pub fn item(&self) -> &Path {
        &self.item
    }

    /// The folder for what is made of it: it goes with the item, and is empty at the start of each attempt.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// From 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What the attempt has to itself while it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The whole environment for a child process: this program's, the route's, `GAMDOK_…` and what confines it to the
    /// [`device`](Job::device). Processes that have it are ended with the attempt if they are left behind.
    pub fn env(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.may_have_spawned.store(true, Ordering::Release);
        self.env.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str()))
    }

    /// The attempt's log, which `gamdok logs` shows: write to it, or give a clone to a child process.
    pub fn log(&self) -> &File {
        &self.log
    }

    /// Tells how far it is, from 0 to 1, and what it does. Costs little: of what comes faster than ten a second, the
    /// rest goes with the next word.
    pub fn progress(&self, fraction: f64, message: &str) {
        let fraction = fraction.is_finite().then(|| fraction.clamp(0.0, 1.0));
        let message = channel::shorten(message.to_owned(), channel::MAX_PROGRESS);
        let mut mouth = self.mouth();
        mouth.outbox.progress(fraction, Some(message));
        mouth.outbox.deliver(Instant::now());
    }

    /// Adds to a counter of this name, which is summed up exactly over all workers. A name that is empty or over 200
    /// bytes, or a number that is none, fails the attempt.
    pub fn count(&self, name: &str, by: f64) {
        let mut mouth = self.mouth();
        if mouth.broken.is_some() {
            return;
        }
        let counted = match by.is_finite() {
            true => channel::counter(name).and_then(|()| mouth.outbox.count(name.to_owned(), by)),
            false => Err(Broken(format!("`{}` by {by}, which is no number to add", escape(name.as_bytes())))),
        };
        mouth.broken = counted.err();
        mouth.outbox.deliver(Instant::now());
    }

    /// Whether it should end now: its item was cancelled, its device is lost, or the director ends in a hurry. What it
    /// answers after that is not its outcome any more.
    pub fn is_stopping(&self) -> bool {
        self.stop.standing().is_some()
    }

    fn mouth(&self) -> MutexGuard<'_, Mouth> {
        self.mouth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an item came to: for `result.json`.
///
/// ```
/// use gamdok::service::Outcome;
///
/// let plain = Outcome::done();
/// let told = Outcome::with(serde_json::json!({ "faces": 3 }));
/// # drop((plain, told));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    result: Option<Value>,
}

impl Outcome {
    /// It is done, and there is nothing to tell.
    pub fn done() -> Outcome {
        Outcome::default()
    }

    /// It is done, and this is the `result`.
    pub fn with(result: impl Into<Value>) -> Outcome {
        Outcome { result: Some(result.into()) }
    }
}

impl From<()> for Outcome {
    fn from((): ()) -> Outcome {
        Outcome::done()
    }
}

impl From<Value> for Outcome {
    fn from(result: Value) -> Outcome {
        Outcome::with(result)
    }
}

/// Why an attempt failed. Any error becomes one by `?`, and is tried again while the route has retries left.
///
/// ```
/// use gamdok::service::Failure;
///
/// fn read(text: &str) -> Result<u32, Failure> {
///     if text.is_empty() {
///         return Err(Failure::for_good("the item is empty"));
///     }
///     Ok(text.parse()?)
/// }
/// assert!(read("x").is_err_and(|failure| failure.to_string().contains("invalid digit")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    error: String,
    retry: bool,
}

impl Failure {
    /// It may go better the next time.
    pub fn new(error: impl Into<String>) -> Failure {
        Failure { error: error.into(), retry: true }
    }

    /// Trying again is pointless: the item fails at once.
    pub fn for_good(error: impl Into<String>) -> Failure {
        Failure { error: error.into(), retry: false }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let words = cause.to_string();
            // Many errors tell their cause themselves.
            if !text.contains(&words) {
                text = format!("{text}: {words}");
            }
            source = cause.source();
        }
        Failure::new(text)
    }
}

/// What the closure says while it works.
#[derive(Debug)]
struct Mouth {
    outbox: Outbox,
    /// The first thing that can't be told; the attempt fails of it.
    broken: Option<Broken>,
}

/// The longest result, as JSON: as much as a process can tell.
const LONGEST_RESULT: usize = channel::MAX_LINE;

/// The closure's last word. What can't be kept is a failure, in words about it.
fn last_word(answer: Result<Result<Outcome, Failure>, TaskError>) -> Said {
    let failed = |error: String, retry| Said::Failed { error: channel::shorten(error, channel::MAX_ERROR), retry };
    let result = match answer {
        Ok(Ok(Outcome { result })) => result,
        Ok(Err(Failure { error, retry })) => return failed(error, retry),
        Err(TaskError::Panicked(words)) => return failed(format!("panicked: {words}"), true),
        Err(error) => return failed(error.to_string(), true),
    };
    let Some(result) = result else { return Said::Done { result: None } };
    let raw = match serde_json::value::to_raw_value(&result) {
        Ok(raw) => raw,
        Err(error) => return failed(format!("its closure's result can't be written as JSON: {error}"), true),
    };
    let length = raw.get().len();
    if length > LONGEST_RESULT {
        let most = "write it to a file in `out`, and tell its name";
        return failed(
            format!("its closure's result has {length} bytes as JSON, the longest may have {LONGEST_RESULT}: {most}"),
            true,
        );
    }
    match channel::flat_enough(&raw) {
        Ok(()) => Said::Done { result: Some(raw) },
        Err(Broken(what)) => failed(format!("its closure answered with {what}"), true),
    }
}

/// Starts an attempt that is a closure. Whatever happens, one [`Event::Ended`] follows.
pub fn start_closure(launch: Launch, work: Work, device: Device, events: Sender<Event>, clock: Clock) -> Handle {
    let (job, attempt) = (launch.job, launch.attempt);
    let name = launch.env.iter().find(|(key, _)| key == "GAMDOK_ROUTE").map(|(_, route)| route.to_string_lossy());
    let name = name.map_or_else(|| "worker".to_owned(), std::borrow::Cow::into_owned);
    let carry_out = move |stop: Arc<StopSwitch>, events, report: &mut Report| {
        course(&launch, &work, device, stop, events, report).unwrap_or_else(|end| end)
    };
    thread::start_alone(&name, (job, attempt), events, clock, carry_out)
}

/// An early end is an error here only to the `?`.
fn course(
    launch: &Launch,
    work: &Work,
    device: Device,
    stop: Arc<StopSwitch>,
    events: Sender<Event>,
    report: &mut Report,
) -> Result<End, End> {
    let item = item_to_begin(launch, &stop)?;
    let io_end = |what: &str, error: &dyn std::fmt::Display| {
        End::Io(format!("{what} in `{}`: {error}", escape(launch.dir.as_os_str().as_encoded_bytes())))
    };
    let unopened = |error: std::io::Error| io_end("cannot open the attempt's log", &error);
    let mut log = Log::open(&launch.dir, launch.attempt, launch.max_log, Instant::now()).map_err(unopened)?;
    // Held by this very process; a process that it leaves behind is known by its environment.
    let lock = take_lock(&launch.dir, &stop)?;
    stay_on(&launch.cpus);

    let (begun, at) = (Instant::now(), Timestamp::now());
    let pid = rustix::process::getpid().as_raw_pid();
    (report.pid, report.started_at) = (Some(pid), Some(at));
    // A director that is gone has nobody to tell.
    let _heard = events.send(Event::Started { job: launch.job, attempt: launch.attempt, pid: Some(pid), at });
    let outbox = Outbox::new(events, launch.job, launch.attempt);
    let mouth = Mouth { outbox, broken: None };
    let log_file = log.file().try_clone().map_err(unopened)?;
    let job = job(launch, item, device, log_file, mouth, stop);

    let answer = caught(|| work(&job));
    (report.ended_at, report.ran) = (Timestamp::now(), begun.elapsed());
    let said = last_word(answer);
    if job.may_have_spawned.load(Ordering::Acquire) {
        strays::end(&Trail { owner: launch.job.into(), leader: None, dir: Some(&launch.dir) }, launch.kill_grace);
    }
    drop(lock);
    if let Err(error) = log.settle() {
        tracing::warn!(job = %launch.job, %error, "cannot cut a log that is longer than max_log");
    }
    let Job { mouth, stop, .. } = job;
    let Mouth { mut outbox, broken } = mouth.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.said = Some(match (broken, said) {
        (Some(Broken(what)), Said::Done { .. }) => {
            Said::Failed { error: format!("its closure counted {what}"), retry: true }
        }
        (_, said) => said,
    });
    // Why it was to end outranks how it then ended.
    let end = stopped_before(&stop).and_then(|()| look_at_results(launch, report, &log).map(|()| End::Returned));
    // Last, so that the report follows at once: together they wake the director once.
    outbox.finish();
    end
}

fn job(launch: &Launch, item: PathBuf, device: Device, log: File, mouth: Mouth, stop: Arc<StopSwitch>) -> Job {
    // There is no fd 3 to speak on.
    let env = launch.env.iter().filter(|(key, _)| key != "GAMDOK_FD").cloned().collect();
    Job {
        id: JobId::to_string(&launch.job),
        name: item.file_name().map(OsStr::to_owned).unwrap_or_default(),
        item,
        out: launch.dir.join("out"),
        attempt: launch.attempt,
        device,
        env,
        log,
        mouth: Mutex::new(mouth),
        stop,
        may_have_spawned: AtomicBool::new(false),
    }
}

fn look_at_results(launch: &Launch, report: &mut Report, log: &Log) -> Result<(), End> {
    if let Some(Said::Failed { error, .. }) = &report.said {
        report.out_of_memory = speaks_of_memory(error.as_bytes()) || log.speaks_of_memory();
        return Ok(());
    }
    report.missing_outputs = outputs::missing(&launch.dir.join("out"), &launch.outputs)
        .map_err(|error| End::Io(format!("cannot look for the declared outputs in `out`: {error}")))?;
    Ok(())
}
