//! The thread that looks after one slot's process: it starts one when a task comes, and another after that. Invariant: a
//! task is answered once, whatever becomes of its process.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;

use super::course::Course;
use super::{Order, Plan};
use crate::config::Visible;
use crate::devices::pin::pin;
use crate::item::{JobId, escape};
use crate::lender::{Lender, Loan};
use crate::pool::worker::Hurry;
use crate::pool::{PoolError, TaskError};
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
    /// Stands in the environment, and so tells what the process leaves behind.
    pub(super) id: JobId,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) loan: Option<Loan>,
}

impl Plan {
    /// The first thing that no process can be made of.
    pub(super) fn check(&self) -> Result<(), PoolError> {
        let command = |what: String| Err(PoolError::Command(what));
        let shown = |text: &OsStr| escape(text.as_bytes());
        if let Some(word) = self.argv.iter().find(|word| word.as_bytes().contains(&0)) {
            return command(format!("`{}` has a NUL byte, which no process can be given", shown(word)));
        }
        let is_no_name = |key: &OsStr| key.is_empty() || key.as_bytes().iter().any(|byte| matches!(byte, 0 | b'='));
        for (key, value) in &self.env {
            // What this process was given itself is passed on as it is, however odd.
            if is_no_name(key) && !std::env::vars_os().any(|(known, _)| known == *key) {
                let what = format!("no variable can be called `{}`: a name isn't empty and has no `=`", shown(key));
                return Err(PoolError::Settings(what));
            }
            if value.as_bytes().contains(&0) {
                let what = format!("the variable `{}` has a NUL byte, which no process can be given", shown(key));
                return Err(PoolError::Settings(what));
            }
        }
        for (key, limit) in [("ready_timeout", Some(self.ready_timeout)), ("timeout", self.timeout)] {
            if limit.is_some_and(|limit| limit.is_zero()) {
                return Err(PoolError::Settings(format!("`{key}` is zero: nothing is done in no time")));
            }
        }
        if !self.cwd.is_dir() {
            return command(format!("its folder `{}` isn't there", shown(self.cwd.as_os_str())));
        }
        let Some(program) = self.argv.first() else { return command("the command is empty".to_owned()) };
        program::runnable(program, &self.env, &self.cwd).map(drop).map_err(PoolError::Command)
    }

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
        let loan = match &self.lender {
            None => None,
            Some(lender) => Some(self.hurry.borrow(lender)?),
        };
        let mut env = match &loan {
            None => pin(&[], Visible::Uuid).over(&self.plan.env),
            Some(loan) => {
                loan.stay_near();
                loan.pin.over(&self.plan.env)
            }
        };
        let id = loan.as_ref().map_or_else(|| JobId(ulid::Ulid::generate()), |loan| loan.id);
        env.retain(|(key, _)| key != "GAMDOK_FD" && key != "GAMDOK_ID");
        env.push(("GAMDOK_FD".into(), "3".into()));
        env.push(("GAMDOK_ID".into(), id.to_string().into()));
        Some(Place { id, env, loan })
    }
}
