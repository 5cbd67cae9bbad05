//! One slot's thread: takes an input, has a device lent where one is asked for, runs the command, tries again, and tells
//! how it went, exactly once for each input that it began with.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use jiff::Timestamp;

use super::attempt::{self, Start, Tried};
use super::input::{Input, What};
use super::kept::Kept;
use super::stop::Stop;
use super::template::{Template, Values};
use crate::config::Visible;
use crate::devices::{DeviceId, Pin, pin};
use crate::item::JobId;
use crate::lender::{Lender, Loan};
use crate::worker::process::Exit;
use crate::worker::program;

/// How long a slot keeps its GPUs while one run follows the other: what is asked of the driver between two loans costs
/// milliseconds.
const TURN: Duration = Duration::from_secs(1);
/// How long it keeps them while nothing is there to run.
const LINGER: Duration = Duration::from_millis(20);

/// What all runs have in common.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) template: Template,
    /// The program's file, where it is the same for every run.
    pub(super) program: Option<PathBuf>,
    /// Ours, to be inherited.
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) retries: u32,
    pub(super) null: File,
}

/// How one input's runs ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) input: Input,
    pub(super) slot: usize,
    pub(super) device: String,
    pub(super) device_id: String,
    pub(super) attempts: u32,
    /// Of the last attempt, as all that follows.
    pub(super) end: End,
    pub(super) started_at: Timestamp,
    pub(super) took: Duration,
    pub(super) stdout: Kept,
    pub(super) stderr: Kept,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exit(Exit),
    NotRun {
        why: String,
        /// No run of this command can start, whatever its argument.
        hopeless: bool,
    },
    /// Cut, or not begun, because all was to end.
    Stopped,
}

impl End {
    pub(super) fn is_success(&self) -> bool {
        *self == End::Exit(Exit::Code(0))
    }

    /// Whether another try may end otherwise.
    fn may_be_retried(&self) -> bool {
        matches!(self, End::Exit(exit) if *exit != Exit::Code(0)) || matches!(self, End::NotRun { hopeless: false, .. })
    }
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) index: usize,
    pub(super) task: Arc<Task>,
    pub(super) lender: Option<Lender>,
    pub(super) stop: Stop,
    pub(super) work: Receiver<Input>,
    pub(super) done: Sender<Box<Done>>,
}

/// Where a slot's processes run.
struct Place {
    pin: Pin,
    env: Vec<(OsString, OsString)>,
    /// None on the CPU.
    loan: Option<Loan>,
    until: Instant,
}

impl Slot {
    /// Works until no more can come.
    pub(super) fn run(self) {
        let mut buffer = vec![0; 64 << 10];
        let mut place = None;
        while let Some(input) = self.next(&mut place) {
            // What wasn't begun is nobody's.
            if self.stop.is_asked() {
                continue;
            }
            let mut done = self.carry_out(input, &mut place, &mut buffer);
            done.input.what.used();
            if self.done.send(Box::new(done)).is_err() {
                return;
            }
        }
    }

    fn next(&self, place: &mut Option<Place>) -> Option<Input> {
        if place.as_ref().is_some_and(|place| place.loan.is_some()) {
            let on_time = place.as_ref().is_some_and(|place| Instant::now() < place.until);
            if on_time && let Ok(input) = self.work.recv_timeout(LINGER) {
                return Some(input);
            }
            *place = None;
        }
        self.work.recv().ok()
    }

    fn carry_out(&self, input: Input, place: &mut Option<Place>, buffer: &mut [u8]) -> Done {
        let mut done = Done {
            input,
            slot: self.index,
            device: String::new(),
            device_id: String::new(),
            attempts: 0,
            end: End::Stopped,
            started_at: Timestamp::now(),
            took: Duration::ZERO,
            stdout: Kept::default(),
            stderr: Kept::default(),
        };
        loop {
            let avoid =
                if done.attempts > 0 { place.take().map(Place::devices).unwrap_or_default() } else { Vec::new() };
            let Some(here) = self.at(place, avoid) else {
                if !self.stop.is_asked() {
                    done.end = End::NotRun { why: "nothing lends GPUs any more".to_owned(), hopeless: true };
                }
                return done;
            };
            done.attempts += 1;
            (done.device, done.device_id) = (here.pin.device.clone(), here.pin.device_id.clone());
            done.started_at = Timestamp::now();
            let began = Instant::now();
            let tried = self.attempt(&done.input, done.attempts, here, buffer);
            done.took = began.elapsed();
            (done.end, done.stdout, done.stderr) = match tried {
                Ok(Tried { end, stdout, stderr }) => (end, stdout, stderr),
                // The argument's own fault: it stays what it is.
                Err(why) => {
                    done.end = End::NotRun { why, hopeless: false };
                    return done;
                }
            };
            if done.attempts > self.task.retries || !done.end.may_be_retried() {
                return done;
            }
        }
    }

    /// A place to run at; none when all is to end.
    fn at<'p>(&self, place: &'p mut Option<Place>, avoid: Vec<DeviceId>) -> Option<&'p Place> {
        if place.is_none() {
            *place = Some(match &self.lender {
                None => Place::cpu(&self.task.env),
                Some(lender) => Place::lent(self.borrow(lender, avoid)?, &self.task.env),
            });
        }
        place.as_ref()
    }

    fn borrow(&self, lender: &Lender, avoid: Vec<DeviceId>) -> Option<Loan> {
        let wish = lender.wish(avoid);
        select! {
            recv(wish.granted) -> loan => loan.ok(),
            recv(self.stop.heard()) -> _ => None,
        }
    }

    fn attempt(&self, input: &Input, attempt: u32, place: &Place, buffer: &mut [u8]) -> Result<Tried, String> {
        let argument: &[u8] = match &input.what {
            What::Argument(argument) => argument,
            What::TooLong(length) => {
                return Err(format!("it has {length} bytes, more than any process can be given"));
            }
            What::Lines { .. } => b"",
        };
        if argument.contains(&0) {
            return Err("it has a NUL byte, which no process can be given".to_owned());
        }
        let values = Values { argument, pin: &place.pin, number: input.number, attempt };
        let argv = self.task.template.fill(values)?;
        let found = match &self.task.program {
            Some(file) => file.into(),
            None => program::find(&argv[0], &place.env, Path::new("."))?,
        };
        let lines = match &input.what {
            What::Lines { bytes, .. } => {
                Some(bytes.as_stdin().map_err(|error| format!("its lines can't be given to it: {error}"))?)
            }
            What::Argument(_) | What::TooLong(_) => None,
        };
        let start = Start {
            program: &found,
            argv: &argv,
            env: &place.env,
            stdin: lines.as_ref().unwrap_or(&self.task.null).as_fd(),
            locks: place.loan.as_ref().map_or(&[], |loan| &loan.locks),
            id: place.loan.as_ref().map_or_else(|| JobId(ulid::Ulid::nil()), |loan| loan.id),
        };
        let mut tried = attempt::carry_out(&start, &self.stop, buffer, |pid| {
            if let Some(loan) = &place.loan {
                loan.runs(pid);
            }
        });
        // Where the program itself comes with the argument, another argument may do.
        if self.task.program.is_none()
            && let End::NotRun { hopeless, .. } = &mut tried.end
        {
            *hopeless = false;
        }
        Ok(tried)
    }
}

impl Place {
    fn cpu(env: &[(OsString, OsString)]) -> Place {
        let pin = pin(&[], Visible::Uuid);
        Place { env: pin.over(env), pin, loan: None, until: Instant::now() }
    }

    fn lent(loan: Loan, env: &[(OsString, OsString)]) -> Place {
        loan.stay_near();
        Place { env: loan.pin.over(env), pin: loan.pin.clone(), loan: Some(loan), until: Instant::now() + TURN }
    }

    fn devices(self) -> Vec<DeviceId> {
        self.loan.map(|loan| loan.on.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod fixtures {
    use super::*;

    /// A run that went well and printed nothing.
    pub(in crate::map) fn done(number: u64) -> Done {
        Done {
            input: Input { number, what: What::Argument(b"x".to_vec()) },
            slot: 0,
            device: "cpu".to_owned(),
            device_id: "cpu".to_owned(),
            attempts: 1,
            end: End::Exit(Exit::Code(0)),
            started_at: Timestamp::UNIX_EPOCH,
            took: Duration::from_millis(1500),
            stdout: Kept::default(),
            stderr: Kept::default(),
        }
    }
}
