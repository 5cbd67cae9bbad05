//! A resident worker: a thread and the process it keeps, which takes items one message after another on fd 3. It hands
//! over what it is given, listens, keeps the time, and reports each item's end once, whatever happens to the process.
//!
//! Invariants: every item that was handed to this thread is reported exactly once; then, last, that the resident is gone.
//! What the process never began is reported as not begun.

mod course;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;
use rustix::event::{EventfdFlags, eventfd};

use super::{End, Event, Report};
use crate::item::{JobId, Signature, StopWhy};
use crate::root::Root;
use crate::units::Bytes;
use course::Course;

/// Everything a resident needs; nothing left to decide.
#[derive(Debug)]
pub struct ResidentLaunch {
    pub id: JobId,
    /// What all paths here are below, the items' too.
    pub root: Arc<Root>,
    pub argv: Vec<std::ffi::OsString>,
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    pub cwd: PathBuf,
    /// Its own directory: `lock` and its log lie in it.
    pub dir: PathBuf,
    pub device_locks: Vec<Arc<OwnedFd>>,
    pub cpus: Vec<usize>,
    /// The devices of its lease.
    pub on: Vec<crate::devices::DeviceId>,
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
            drop(Farewell::new(launch.id, events, inbox, format!("cannot prepare a worker: {error}")));
            return ResidentHandle { orders, wake: None };
        }
    };
    let theirs = wake.clone();
    let not_yet = "the worker's thread could not be started".to_owned();
    let farewell = Farewell::new(launch.id, events.clone(), inbox, not_yet);
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

impl Farewell {
    /// Until something is known, the host is why nothing was started.
    fn new(id: JobId, events: Sender<Event>, orders: Receiver<Order>, error: String) -> Farewell {
        Farewell {
            id,
            events,
            orders,
            end: End::NotStarted { error, host: true },
            ready: false,
            begun: Instant::now(),
            pid: None,
            started_at: None,
            out_of_memory: false,
        }
    }
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
