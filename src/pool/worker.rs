//! The threads that run the tasks, one for each slot. Invariant: nothing that a task does ends its thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use super::TaskError;
use super::slot::{Device, Slot};
use crate::lender::{Lender, Loan};

/// A task in line. Dropped without having run, it tells its ticket that it was cancelled.
pub(super) type Task<'a> = Box<dyn FnOnce(&Slot) + Send + 'a>;

/// How long a slot keeps its GPUs while one task follows the other: what is asked of the driver between two loans costs
/// milliseconds.
const TURN: Duration = Duration::from_secs(1);

/// How the workers of a pool are told to end early.
#[derive(Clone, Debug)]
pub(super) struct Hurry {
    pub(super) given_up: Arc<AtomicBool>,
    /// Closed with that, for who waits for a GPU.
    pub(super) closed: Receiver<()>,
}

impl Hurry {
    /// What hasn't begun never will.
    pub(super) fn give_up(&self, open: &Mutex<Option<Sender<()>>>) {
        self.given_up.store(true, Ordering::Release);
        open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for devices; none once all was given up.
    pub(super) fn borrow(&self, lender: &Lender) -> Option<Loan> {
        if self.given_up.load(Ordering::Acquire) {
            return None;
        }
        let wish = lender.wish(Vec::new());
        select! {
            recv(wish.granted) -> loan => loan.ok(),
            recv(self.closed) -> _ => None,
        }
    }
}

pub(super) struct Worker<'a> {
    pub(super) index: usize,
    pub(super) tasks: Receiver<Task<'a>>,
    pub(super) lender: Option<Lender>,
    pub(super) hurry: Hurry,
}

impl Worker<'_> {
    /// Runs what comes until nothing can come any more.
    pub(super) fn run(self) {
        let Some(lender) = self.lender.clone() else {
            let slot = Slot { index: self.index, device: Device::cpu() };
            self.tasks.iter().for_each(|task| self.one(task, &slot));
            return;
        };
        while let Ok(task) = self.tasks.recv() {
            let Some(loan) = self.hurry.borrow(&lender) else {
                guarded(|| drop(task));
                continue;
            };
            loan.stay_near();
            let slot = Slot { index: self.index, device: Device::of(&loan) };
            let until = Instant::now() + TURN;
            let mut next = Some(task);
            while let Some(task) = next {
                self.one(task, &slot);
                next = if Instant::now() < until { self.tasks.try_recv().ok() } else { None };
            }
        }
    }

    fn one(&self, task: Task<'_>, slot: &Slot) {
        if self.hurry.given_up.load(Ordering::Acquire) {
            guarded(|| drop(task));
        } else {
            guarded(|| task(slot));
        }
    }
}

/// A task's own panic is caught where its result is made; what else may panic is the end of what it captured.
fn guarded(step: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(step)) {
        // Whose end may panic, too.
        std::mem::forget(payload);
    }
}

/// The result of a task, a panic included.
pub(crate) fn caught<R>(task: impl FnOnce() -> R) -> Result<R, TaskError> {
    catch_unwind(AssertUnwindSafe(task)).map_err(|payload| TaskError::Panicked(message(&*payload)))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
