//! The thread of one attempt, and the director's handle on it. A thread carries one attempt at a time, and may carry
//! another one after it.
//!
//! Invariant: exactly one report, also when the thread can't be started or panics: `Drop` sends it. It goes out when
//! everything of the attempt is let go, the device locks too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use jiff::Timestamp;
use rustix::event::{EventfdFlags, eventfd};

use super::attempt::Attempt;
use super::split::{Mail, Splitting};
use super::{End, Event, Launch, Report, SlotLaunch, StopOrder};
use crate::item::{JobId, StopWhy};
use crate::units::Clock;

/// What the thread needs for its calls; the deepest is a walk through `out/`.
const STACK: usize = 512 << 10;
/// How long a thread waits for its next attempt before it goes: many short attempts in a row share a few threads, whose
/// starts would cost a tenth of such an attempt, and a director at rest has none.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running attempt. Dropping it leaves the attempt running.
#[derive(Debug)]
pub struct Handle {
    /// None when the attempt could not even be prepared; its report is out.
    stop: Option<Arc<StopSwitch>>,
    /// Of a big line file's attempt.
    mail: Option<Arc<Mail>>,
    clock: Clock,
}

impl Handle {
    /// Has the worker end: its process is asked, then killed after the route's `kill_grace`. Works before it started, and
    /// again; a person's wish replaces another reason.
    pub fn stop(&self, why: StopWhy) {
        if let Some(stop) = &self.stop {
            stop.order(StopOrder { why, at: self.clock.now() });
        }
    }

    /// Gives the attempt at a big line file a further slot. One that has ended meanwhile has no use for it: its report
    /// speaks for all of its slots.
    pub fn grow(&self, slot: SlotLaunch) {
        if let Some(mail) = &self.mail {
            mail.grow(slot);
        }
    }

    /// Asks for a further slot back: it leaves after the batch it has, and says so.
    pub fn shrink(&self, no: u32) {
        if let Some(mail) = &self.mail {
            mail.shrink(no);
        }
    }
}

/// Where a stop is left for the thread, which may be waiting.
#[derive(Debug)]
pub(super) struct StopSwitch {
    order: Mutex<Option<StopOrder>>,
    /// An eventfd: readable once there is an order.
    wake: OwnedFd,
}

impl StopSwitch {
    pub(super) fn new() -> io::Result<StopSwitch> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(StopSwitch { order: Mutex::new(None), wake })
    }

    fn order(&self, order: StopOrder) {
        {
            let mut standing = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            if standing.is_some() && order.why != StopWhy::Cancelled {
                return;
            }
            *standing = Some(order);
        }
        // Full only after 2^64 - 2 orders nobody took.
        let _written = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn standing(&self) -> Option<StopOrder> {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it wait for the next order.
    pub(super) fn clear_wake(&self) {
        let _read = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}

impl AsFd for StopSwitch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// What a thread does next; answers whether it can do another thing afterwards.
type Order = Box<dyn FnOnce() -> Fit + Send>;

#[derive(Clone, Copy, PartialEq)]
enum Fit {
    ForMore,
    /// It stays on the cores near one device.
    Spent,
}

/// Where threads wait for their next attempt. Without room: an order is taken only by one that waits.
static WAITING: LazyLock<(Sender<Order>, Receiver<Order>)> = LazyLock::new(|| crossbeam_channel::bounded(0));

/// Gives an order to a thread that waits for one, or to a new thread.
fn hand_over(order: Order) -> io::Result<()> {
    let (orders, waiting) = &*WAITING;
    let order = match orders.try_send(order) {
        Ok(()) => return Ok(()),
        Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) => order,
    };
    let run = move || {
        let mut next = Some(order);
        while let Some(order) = next.take() {
            if order() == Fit::ForMore {
                next = waiting.recv_timeout(PATIENCE).ok();
            }
        }
    };
    Builder::new().name("worker".to_owned()).stack_size(STACK).spawn(run).map(drop)
}

/// Starts the attempt on a thread that has nothing else to do. Whatever happens, one [`Event::Ended`] follows.
pub fn start(launch: Launch, events: Sender<Event>, clock: Clock) -> Handle {
    let (job, attempt) = (launch.job, launch.attempt);
    // Batches start on threads of their own.
    let fit = if launch.cpus.is_empty() || launch.split.is_some() { Fit::ForMore } else { Fit::Spent };
    let mail = launch.split.as_ref().map(|_| Mail::new().map(Arc::new)).transpose();
    let letters = mail.as_ref().ok().cloned().flatten();
    let carry_out = move |stop: Arc<StopSwitch>, events, report: &mut Report| match (&launch.split, mail) {
        (_, Err(error)) => End::NotStarted { error: format!("cannot prepare a worker: {error}"), host: true },
        (Some(split), Ok(Some(mail))) => Splitting::new(&launch, split, (&stop, &mail), events, report).carry_out(),
        _ => Attempt::new(&launch, &stop, clock, events, report).carry_out(),
    };
    let begin = |run: Box<dyn FnOnce() + Send>| {
        hand_over(Box::new(move || {
            run();
            fit
        }))
    };
    Handle { mail: letters, ..start_on(begin, job, attempt, events, clock, carry_out) }
}

/// The same on a thread of its own, with the name and the stack that a program's own code expects.
pub(super) fn start_alone(
    name: &str,
    (job, attempt): (JobId, u32),
    events: Sender<Event>,
    clock: Clock,
    carry_out: impl FnOnce(Arc<StopSwitch>, Sender<Event>, &mut Report) -> End + Send + 'static,
) -> Handle {
    let thread = Builder::new().name(name.to_owned());
    start_on(|run| thread.spawn(run).map(drop), job, attempt, events, clock, carry_out)
}

/// `carry_out` is let go, with all it holds, before the report is sent, which may give its devices to another.
fn start_on(
    begin: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
    job: JobId,
    attempt: u32,
    events: Sender<Event>,
    clock: Clock,
    carry_out: impl FnOnce(Arc<StopSwitch>, Sender<Event>, &mut Report) -> End + Send + 'static,
) -> Handle {
    let mut reporter = Reporter::new(job, attempt, events);
    let stop = match StopSwitch::new() {
        Ok(stop) => Arc::new(stop),
        Err(error) => {
            reporter.report.end = End::NotStarted { error: format!("cannot prepare a worker: {error}"), host: true };
            return Handle { stop: None, mail: None, clock };
        }
    };
    let theirs = stop.clone();
    let run = move || {
        reporter.begin();
        reporter.run(|events, report| carry_out(theirs, events, report));
    };
    // When there is no thread, the closure is dropped with the reporter in it, which then reports that.
    if let Err(error) = begin(Box::new(run)) {
        tracing::error!(%error, "cannot start a worker's thread");
    }
    Handle { stop: Some(stop), mail: None, clock }
}

/// Sends the one report when it is dropped.
#[derive(Debug)]
struct Reporter {
    report: Report,
    begun: Instant,
    events: Sender<Event>,
}

impl Reporter {
    fn new(job: JobId, attempt: u32, events: Sender<Event>) -> Reporter {
        let end = End::NotStarted { error: "the worker's thread could not be started".to_owned(), host: true };
        let report = Report {
            job,
            attempt,
            pid: None,
            started_at: None,
            ended_at: Timestamp::UNIX_EPOCH,
            ran: Duration::ZERO,
            end,
            said: None,
            missing_outputs: Vec::new(),
            out_of_memory: false,
            beside: 0,
        };
        Reporter { report, begun: Instant::now(), events }
    }

    /// The thread is there; from now on it can only have panicked.
    fn begin(&mut self) {
        self.report.end = End::Panicked;
        self.begun = Instant::now();
    }

    fn run(&mut self, carry_out: impl FnOnce(Sender<Event>, &mut Report) -> End) {
        self.report.end = carry_out(self.events.clone(), &mut self.report);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // A panic may have come between the end of the process and this.
        if self.report.ended_at == Timestamp::UNIX_EPOCH {
            self.report.ended_at = Timestamp::now();
            self.report.ran = self.begun.elapsed();
        }
        let nothing = Report { said: None, missing_outputs: Vec::new(), end: End::Panicked, ..self.report };
        let report = std::mem::replace(&mut self.report, nothing);
        // A director that is gone has nobody to tell.
        let _heard = self.events.send(Event::Ended(Box::new(report)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_a_thread_that_never_was_are_reported_once() {
        let job = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let check = |run: fn(Reporter), expected: fn(&End) -> bool| {
            let (events, heard) = crossbeam_channel::bounded(4);
            run(Reporter::new(job, 3, events));
            let Ok(Event::Ended(report)) = heard.recv() else { panic!("no report") };
            assert!(expected(&report.end), "{:?}", report.end);
            assert_eq!((report.job, report.attempt), (job, 3));
            assert!(report.ended_at > Timestamp::UNIX_EPOCH);
            assert!(heard.recv().is_err(), "once");
        };
        check(drop, |end| matches!(end, End::NotStarted { host: true, .. }));
        let panics = |mut reporter: Reporter| {
            let thread = std::thread::spawn(move || {
                reporter.begin();
                // Not a panic message on the terminal of whoever runs the tests.
                std::panic::resume_unwind(Box::new("a test"));
            });
            assert!(thread.join().is_err());
        };
        check(panics, |end| *end == End::Panicked);
    }

    #[test]
    fn the_first_stop_stands_but_for_a_persons_wish() {
        let check = |orders: &[StopWhy], stands: StopWhy| {
            let switch = StopSwitch::new().unwrap();
            for why in orders {
                switch.order(StopOrder { why: *why, at: Clock::start().now() });
            }
            assert_eq!(switch.standing().map(|order| order.why), Some(stands));
        };
        use StopWhy::*;
        check(&[Shutdown], Shutdown);
        check(&[Shutdown, DeviceLost], Shutdown);
        check(&[DeviceLost, Cancelled, Shutdown], Cancelled);
    }
}
