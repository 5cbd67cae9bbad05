//! Whose fault was it? From how an attempt ended to what follows for the item and its device. Pure. Invariants: an item's
//! own failures are counted and bounded by its route's `retries`, everybody else's are not counted and bounded too, so
//! that every item ends.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::Route;
use crate::devices::{Cordon, CordonBy, DeviceId};
use crate::item::{self, Attempt, Ending, JobId, JobRecord, Outcome, Reason, StopWhy};
use crate::state::{State, Streak};
use crate::symptoms::speaks_of_device;
use crate::units::Moment;
use crate::worker::{End, Report, Said};

/// What follows from an attempt's end.
#[derive(Debug)]
pub struct Assessment {
    /// For the attempt's record.
    pub reason: Option<Reason>,
    pub counted: bool,
    /// The attempt ran on the device and failed in a way that may be the device's fault.
    pub against_device: bool,
    pub next: Next,
}

#[derive(Debug)]
pub enum Next {
    Finish(Ending),
    /// Try again after this long, elsewhere if `avoid`.
    Retry {
        after: Duration,
        avoid: bool,
    },
    /// The director ends: the job stays in `claimed/` for the next start.
    Requeue,
    /// Nothing was begun: the same attempt is still to come.
    Unlease,
    /// A batch failed as a whole: again at once, in batches of so many at most.
    Halve {
        limit: u32,
    },
}

/// Attempts that weren't the item's fault before it has failed: a host that is upset for an hour must not cost an item
/// its life, an item that upsets each host must not go round for ever.
pub const MAX_UNCOUNTED: usize = 10;

/// On so many different devices an item fails before it counts as poison.
pub const POISON_DEVICES: usize = 3;

/// An attempt that failed sooner than this after its start may have met a device that fails everything.
pub const FAST: Duration = Duration::from_secs(10);

/// So many different items in a row fail fast on a device before it is cordoned.
pub const CORDON_AFTER: usize = 3;

/// More jobs of one streak than this needn't be told apart.
const MAX_STREAK: usize = 64;

/// The most of a worker's own words that a message repeats.
const MAX_WORDS: usize = 4096;

/// sysexits.h, EX_DATAERR: the item is bad, trying again is pointless.
const EXIT_FINAL: i32 = 65;

/// sysexits.h, EX_TEMPFAIL: not now.
const EXIT_LATER: i32 = 75;

/// Assesses one report against the job's record (whose last attempt is the one reported) and its route.
pub fn assess(record: &JobRecord, report: &Report, device_lost: bool) -> Assessment {
    let nobodys = |next| Assessment { reason: None, counted: false, against_device: false, next };
    if matches!(report.end, End::NotBegun | End::RootAway) {
        return nobodys(Next::Unlease);
    }
    let stopped = matches!(report.end, End::Stopped { .. });
    // Who of several was it? Halves are tried until one stands alone; none is blamed before.
    if report.beside > 0 && !stopped && !device_lost {
        return nobodys(Next::Halve { limit: (report.beside + 1).div_ceil(2) });
    }
    let case = Case { record, report, earlier: earlier(record, report) };
    match verdict(&case, device_lost) {
        Fault::None => done(report),
        Fault::Cancelled => Assessment {
            reason: Some(Reason::Cancelled),
            counted: false,
            against_device: false,
            next: finish(Outcome::Cancelled, Reason::Cancelled, format!("cancelled during attempt {}", report.attempt)),
        },
        // No reason: nothing is wrong with the attempt, and it isn't held against the item however often it happens.
        Fault::Shutdown => Assessment { reason: None, counted: false, against_device: false, next: Next::Requeue },
        Fault::Final { reason, what } => Assessment {
            reason: Some(reason),
            counted: true,
            against_device: false,
            next: finish(Outcome::Failed, reason, what),
        },
        Fault::Item { reason, what, against_device } => case.counted(reason, what, against_device),
        Fault::NoStart { what } => case.not_started(what),
        Fault::Elsewhere { reason, what, avoid } => case.uncounted(reason, what, avoid),
    }
}

/// Whose fault an attempt's end is.
enum Fault {
    None,
    Cancelled,
    Shutdown,
    /// The item's, and trying again is pointless.
    Final {
        reason: Reason,
        what: String,
    },
    /// The item's, as far as anybody can tell.
    Item {
        reason: Reason,
        what: String,
        against_device: bool,
    },
    /// The configuration's: nothing of it could run.
    NoStart {
        what: String,
    },
    /// The device's, the host's, or nobody's; with a wish for another device where it may be this one's.
    Elsewhere {
        reason: Reason,
        what: String,
        avoid: bool,
    },
}

fn verdict(case: &Case, device_lost: bool) -> Fault {
    let report = case.report;
    let item = |reason, what| Fault::Item { reason, what, against_device: true };
    let not_the_device = |reason, what| Fault::Item { reason, what, against_device: false };
    let host = |reason, what| Fault::Elsewhere { reason, what, avoid: false };
    let lost = || {
        let what = format!("lost {} under it", devices(case.devices()));
        Fault::Elsewhere { reason: Reason::DeviceLost, what, avoid: true }
    };
    match &report.end {
        End::Stopped { why: StopWhy::Cancelled, .. } => return Fault::Cancelled,
        End::Stopped { why: StopWhy::Shutdown, .. } => return Fault::Shutdown,
        End::Stopped { why: StopWhy::DeviceLost, .. } => return lost(),
        End::ItemChanged => {
            let what = "it was changed between its claim and its first attempt".to_owned();
            return Fault::Final { reason: Reason::Changed, what };
        }
        End::ItemMissing => {
            let first = case.earlier.is_empty();
            let by = if first {
                "it is gone from its job's directory"
            } else {
                "an earlier attempt consumed or removed the item"
            };
            let what = by.to_owned();
            return Fault::Final { reason: Reason::ItemMissing, what };
        }
        End::NotStarted { error, host: true } => return host(Reason::Spawn, format!("can't start: {}", words(error))),
        End::NotStarted { error, host: false } => {
            return Fault::NoStart { what: format!("can't start: {}", words(error)) };
        }
        _ => {}
    }
    let failed = match &report.said {
        Some(Said::Failed { error, retry }) => Some((words(error), *retry)),
        _ => None,
    };
    let missing = &report.missing_outputs;
    let went_well = matches!(report.end, End::Exited(0) | End::Returned);
    if went_well && failed.is_none() && missing.is_empty() {
        return Fault::None;
    }
    if device_lost {
        return lost();
    }
    if let Some((error, false)) = failed {
        return Fault::Final { reason: Reason::Reported, what: error };
    }
    // What the worker itself said of it goes before the bare code.
    let told = |what: String| match &failed {
        Some((error, _)) => format!("{error} ({what})"),
        None => what,
    };
    let out_of_memory = || {
        let what = told("out of memory".to_owned());
        match case.was_out_of_memory() {
            true => item(Reason::OutOfMemory, what),
            // Somebody else may have held the memory.
            false => Fault::Elsewhere { reason: Reason::OutOfMemory, what, avoid: true },
        }
    };
    match &report.end {
        End::Exited(EXIT_FINAL) => Fault::Final { reason: Reason::Exit, what: told(format!("exit code {EXIT_FINAL}")) },
        End::Exited(EXIT_LATER) => host(Reason::Exit, told(format!("exit code {EXIT_LATER} (try later)"))),
        End::TimedOut { .. } => {
            let limit = case.record.route.timeout.unwrap_or(report.ran);
            item(Reason::Timeout, told(format!("over its time of {}", humantime::format_duration(limit))))
        }
        End::NotReady { within } => item(
            Reason::Timeout,
            format!("its resident worker was not ready within {}", humantime::format_duration(*within)),
        ),
        // Somebody else may have held the memory: once more, elsewhere, behind what was merged.
        End::BatchFailed(error) if report.out_of_memory => {
            let what = format!("out of memory: {}", words(error));
            match case.was_out_of_memory() {
                true => Fault::Final { reason: Reason::OutOfMemory, what },
                false => Fault::Elsewhere { reason: Reason::OutOfMemory, what, avoid: true },
            }
        }
        // Its own retries lie behind each batch; what was merged stays, for a retry by hand.
        End::BatchFailed(error) => Fault::Final { reason: Reason::Exit, what: words(error) },
        End::OutputTaken(error) => Fault::Final { reason: Reason::MissingOutput, what: words(error) },
        End::BadInput(error) => Fault::Final { reason: Reason::Invalid, what: words(error) },
        // What a worker says, or how it says it, is its own doing: a GPU that fails shows itself by an exit or a signal.
        End::Protocol(error) => {
            not_the_device(Reason::Protocol, format!("broke the protocol of fd 3: {}", words(error)))
        }
        End::Io(error) => host(Reason::Io, words(error)),
        End::Panicked => host(Reason::Io, "the thread of its worker failed".to_owned()),
        _ if report.out_of_memory => out_of_memory(),
        End::Signalled(signal) => item(Reason::Signal, told(format!("killed by {}", signal_name(*signal)))),
        End::Exited(0) | End::Returned => match failed {
            Some((error, _)) if speaks_of_device(&error) => item(Reason::Reported, error),
            Some((error, _)) => not_the_device(Reason::Reported, error),
            None => {
                let missing: Vec<String> = missing.iter().map(|pattern| words(pattern)).collect();
                not_the_device(Reason::MissingOutput, format!("no output matches {}", missing.join(", ")))
            }
        },
        End::Exited(code) => item(Reason::Exit, told(format!("exit code {code}"))),
        // Answered above; whatever else it was, it wasn't the item.
        end => host(Reason::Io, format!("ended in an unforeseen way: {end:?}")),
    }
}

fn done(report: &Report) -> Assessment {
    let result = match &report.said {
        Some(Said::Done { result }) => result.clone(),
        _ => None,
    };
    let ending = Ending { outcome: Outcome::Done, reason: None, message: None, result };
    Assessment { reason: None, counted: true, against_device: false, next: Next::Finish(ending) }
}

fn finish(outcome: Outcome, reason: Reason, message: String) -> Next {
    Next::Finish(Ending { outcome, reason: Some(reason), message: Some(message), result: None })
}

/// One report with the history it is seen against.
struct Case<'a> {
    record: &'a JobRecord,
    report: &'a Report,
    /// The attempts before the reported one, since the last retry by hand: that gave the item all its tries again.
    earlier: Vec<&'a Attempt>,
}

fn earlier<'a>(record: &'a JobRecord, report: &Report) -> Vec<&'a Attempt> {
    record.tries().filter(|attempt| attempt.n < report.attempt).collect()
}

impl Case<'_> {
    fn devices(&self) -> &[DeviceId] {
        let reported = self.record.attempts.iter().find(|attempt| attempt.n == self.report.attempt);
        reported.map_or(&[], |attempt| &attempt.devices)
    }

    fn was_out_of_memory(&self) -> bool {
        self.earlier.iter().any(|attempt| attempt.reason == Some(Reason::OutOfMemory))
    }

    fn counted(&self, reason: Reason, what: String, against_device: bool) -> Assessment {
        let tries = u64::from(self.record.route.retries) + 1;
        let failed = self.earlier.iter().filter(|attempt| attempt.counted).count() as u64 + 1;
        let next = if failed >= tries {
            let after = if failed > 1 { format!(" after attempt {failed} of {tries}") } else { String::new() };
            finish(Outcome::Failed, reason, format!("{what}{after}"))
        } else if against_device && let Some(poison) = self.poisoned(&what) {
            poison
        } else {
            // A device that fails everything at once is emptiest, and would be given the item again and again.
            let avoid = against_device && (self.report.ran < FAST || reason == Reason::OutOfMemory);
            Next::Retry { after: backoff(self.record.route.backoff, failed - 1), avoid }
        };
        Assessment { reason: Some(reason), counted: true, against_device, next }
    }

    /// A program that isn't there is not the item's fault, so it isn't counted. Yet a job keeps its route: more tries
    /// than an item of its own has would only wait.
    fn not_started(&self, what: String) -> Assessment {
        let tries = u64::from(self.record.route.retries) + 1;
        let alike = |attempt: &&&Attempt| !attempt.counted && attempt.reason == Some(Reason::Spawn);
        let failed = self.earlier.iter().filter(alike).count() as u64 + 1;
        if failed >= tries {
            let after = if failed > 1 { format!(" after attempt {failed} of {tries}") } else { String::new() };
            let next = finish(Outcome::Failed, Reason::Spawn, format!("{what}{after}"));
            return Assessment { reason: Some(Reason::Spawn), counted: false, against_device: false, next };
        }
        self.uncounted(Reason::Spawn, what, false)
    }

    fn uncounted(&self, reason: Reason, what: String, avoid: bool) -> Assessment {
        let uncounted = |attempt: &&&Attempt| !attempt.counted && attempt.reason.is_some();
        let before = self.earlier.iter().filter(uncounted).count();
        let alike = |attempt: &&&Attempt| !attempt.counted && attempt.reason == Some(reason);
        let alike = self.earlier.iter().filter(alike).count() as u64;
        let next = if before + 1 >= MAX_UNCOUNTED {
            let message =
                format!("gave up after {} attempts that weren't held against it; the last: {what}", before + 1);
            finish(Outcome::Failed, reason, message)
        } else if avoid && let Some(poison) = self.poisoned(&what) {
            poison
        } else {
            let base = self.record.route.backoff;
            let after = match (reason, alike) {
                // Another device can take it at once.
                (Reason::DeviceLost, 0) => Duration::ZERO,
                (Reason::DeviceLost, alike) => backoff(base, alike - 1),
                (_, alike) => backoff(base, alike),
            };
            Next::Retry { after, avoid }
        };
        Assessment { reason: Some(reason), counted: false, against_device: avoid, next }
    }

    /// An item that fails on one device after the other is what they have in common. Several devices that one attempt
    /// had together say no more than one.
    fn poisoned(&self, what: &str) -> Option<Next> {
        let blames = |attempt: &&&Attempt| match attempt.reason {
            Some(Reason::Exit) => attempt.exit_code != Some(EXIT_LATER),
            Some(Reason::Signal | Reason::Timeout | Reason::OutOfMemory | Reason::Reported) => true,
            Some(Reason::Protocol | Reason::DeviceLost) => true,
            _ => false,
        };
        let before = self.earlier.iter().filter(blames).map(|attempt| &attempt.devices[..]);
        let places: BTreeSet<&[DeviceId]> = before.chain([self.devices()]).filter(|on| !on.is_empty()).collect();
        (places.len() >= POISON_DEVICES).then(|| {
            let message = format!("failed on {} different devices; the last time: {what}", places.len());
            finish(Outcome::Failed, Reason::Poison, message)
        })
    }
}

/// How long a job that a new director finds still has to wait for its next attempt: what is left of its backoff. Never
/// more than a whole backoff, whatever the wall clock did meanwhile.
pub fn rest(record: &JobRecord, now: Timestamp) -> Duration {
    let Some(last) = record.tries().last() else { return Duration::ZERO };
    let (Some(ended_at), Some(reason)) = (last.ended_at, last.reason) else { return Duration::ZERO };
    if reason == Reason::Orphaned {
        return Duration::ZERO;
    }
    let alike =
        |attempt: &&Attempt| attempt.counted == last.counted && (last.counted || attempt.reason == Some(reason));
    let whole = backoff(record.route.backoff, record.tries().filter(alike).count() as u64 - 1);
    let passed = Duration::try_from(now.duration_since(ended_at)).unwrap_or(Duration::ZERO);
    whole.saturating_sub(passed)
}

/// The wait before the next attempt: doubles with each failure, up to a bound.
fn backoff(base: Duration, doublings: u64) -> Duration {
    let factor = 1u32.checked_shl(doublings.min(31) as u32).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(Route::MAX_BACKOFF)
}

/// A worker's own words: nothing in them can pass for something else on a terminal, and not without end.
fn words(text: &str) -> String {
    let mut end = text.len().min(MAX_WORDS);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = if end < text.len() { "…" } else { "" };
    format!("{}{cut}", item::shown(&text[..end]))
}

fn devices(ids: &[DeviceId]) -> String {
    match ids {
        [] => "its device".to_owned(),
        ids => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// An item of the route succeeded on the device: what failed there before wasn't the device's fault.
pub fn note_success(state: &mut State, device: &DeviceId, route: &str) {
    let now = state.now;
    state.successes.insert((route.to_owned(), device.clone()), now);
    state.device_mut(device).streak = Streak::default();
}

/// Takes in a failure that may be the device's, and cordons the device when the rule says so; the reason, if it did.
pub fn note_failure(state: &mut State, device: &DeviceId, record: &JobRecord, ran: Duration) -> Option<String> {
    let reason = cordon_after_failure(state, device, record.id, &record.route.name, ran < FAST)?;
    let since = state.now;
    let device = state.device_mut(device);
    device.cordons += 1;
    device.cordon = Some(Cordon { by: CordonBy::Failures, since, reason: reason.clone() });
    Some(reason)
}

/// A person takes a device back in: nothing is held against it any more.
pub fn forgive(state: &mut State, device: &DeviceId) {
    let device = state.device_mut(device);
    (device.cordon, device.cordons, device.streak) = (None, 0, Streak::default());
}

/// Takes a failure into its device's streak, and says why the device is to be cordoned, when it is: several different
/// items failed fast on it in a row, and items of the same routes succeeded on another device meanwhile. Without the
/// second a script that is broken would cordon one GPU after the other. The CPU pool is never cordoned.
fn cordon_after_failure(
    state: &mut State,
    device: &DeviceId,
    job: JobId,
    route: &str,
    ran_fast: bool,
) -> Option<String> {
    // What was running there when it was cordoned may still fail.
    if *device == DeviceId::cpu() || state.cordon(device).is_some() {
        return None;
    }
    let now = state.now;
    let streak = &mut state.device_mut(device).streak;
    if !ran_fast {
        *streak = Streak::default();
        return None;
    }
    if streak.jobs.is_empty() {
        streak.since = now;
    }
    // A script that is broken everywhere may fail thousands in a row.
    if streak.jobs.len() < MAX_STREAK {
        streak.jobs.insert(job);
    }
    streak.routes.insert(route.to_owned());
    let streak = streak.clone();
    let well_elsewhere = |route: &String| {
        let elsewhere = |(on, at): (&(String, DeviceId), &Moment)| {
            on.0 == *route && on.1 != *device && on.1 != DeviceId::cpu() && *at >= streak.since
        };
        state.successes.iter().any(elsewhere)
    };
    if streak.jobs.len() < CORDON_AFTER || !streak.routes.iter().all(well_elsewhere) {
        return None;
    }
    let count = streak.jobs.len();
    Some(format!("{count} in a row within seconds, while others of their routes succeeded elsewhere"))
}
