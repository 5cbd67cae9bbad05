//! The thread that looks after one slot's process: it starts one when a task comes, and another after that. Invariant: a
//! task is answered once, whatever becomes of its process.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, select};

use super::course::Course;
use super::{Order, Plan};
use crate::config::Visible;
use crate::devices::pin::{Pin, pin};
use crate::lender::{Lender, Loan};
use crate::pool::TaskError;
use crate::pool::worker::Hurry;
use crate::worker::program;

/// How many short tasks a process has in hand at most.
pub(super) const WINDOW: usize = 8;

pub(super) struct Carrier {
    pub(super) orders: Receiver<Order>,
    pub(super) plan: Arc<Plan>,
    pub(super) lender: Option<Lender>,
    pub(super) hurry: Hurry,
}

/// What a process needs beside its plan.
pub(super) struct Place {
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) loan: Option<Loan>,
}

impl Plan {
    pub(super) fn find(&self) -> Result<Cow<'_, Path>, String> {
        match self.argv.first() {
            Some(program) => program::find(program, &self.env, &self.cwd),
            None => Err("the command is empty".to_owned()),
        }
    }
}

impl Carrier {
    /// Sees to what comes until nothing can come any more.
    pub(super) fn run(self) {
        // What a process that ended hadn't come to.
        let mut left: VecDeque<Order> = VecDeque::new();
        loop {
            if left.is_empty() {
                let Ok(order) = self.orders.recv() else { return };
                left.extend(self.begun(order));
                continue;
            }
            let Some(place) = self.place() else {
                left.clear();
                continue;
            };
            match Course::start(&self, &place) {
                Ok(course) => left = course.run(left),
                // The next one may find what this one missed (memory, a process slot); this one has its answer.
                Err(why) => {
                    let order = left.pop_front();
                    order.into_iter().for_each(|order| order.promise.settle(Err(TaskError::Lost(why.clone()))));
                }
            }
        }
    }

    /// The task, if it is still wanted: from here on it can't be cancelled.
    pub(super) fn begun(&self, order: Order) -> Option<Order> {
        (!self.hurry.given_up.load(Ordering::Acquire) && order.promise.begin()).then_some(order)
    }

    /// None when all was given up.
    fn place(&self) -> Option<Place> {
        let Some(lender) = &self.lender else {
            return Some(Place { env: pinned(&self.plan.env, &pin(&[], Visible::Uuid)), loan: None });
        };
        let wish = lender.wish(Vec::new());
        let loan = select! {
            recv(wish.granted) -> loan => loan.ok()?,
            recv(self.hurry.closed) -> _ => return None,
        };
        loan.stay_near();
        Some(Place { env: pinned(&self.plan.env, &loan.pin), loan: Some(loan) })
    }
}

/// What confines a process to its devices, and its channel's number, win over what it inherits.
fn pinned(env: &[(OsString, OsString)], pin: &Pin) -> Vec<(OsString, OsString)> {
    let own = pin.env.iter().map(|(key, value)| (OsString::from(key), OsString::from(value)));
    let own: Vec<(OsString, OsString)> = own.chain([("GAMDOK_FD".into(), "3".into())]).collect();
    let inherited = env.iter().filter(|(key, _)| !own.iter().any(|(mine, _)| mine == key)).cloned();
    inherited.chain(own.iter().cloned()).collect()
}
