//! gamdok (감독, "director"): a GPU-aware director/worker scheduler. A file dropped into a folder becomes exactly one
//! outcome, worked on by a short-lived worker on an idle device.
//!
//! [`director`] is the loop and the only owner of [`state`]: events come in through one door, [`plan`] decides without a
//! clock, file or driver, and effects go out to the threads that carry them out: [`inbox`] finds items, [`spool`] claims
//! and files them, [`worker`] runs one attempt each, [`devices`] asks the driver, [`ledger`] keeps an index, [`api`]
//! answers the [`cli`]. The README's ARCHITECTURE section tells the rest.

#![deny(missing_docs)]

// What a program depends on.
pub mod pool;
pub mod rules;
pub mod service;
pub mod split;

pub use pool::{Devices, Pool, Slot, Slots, TaskError, Ticket};
pub use service::Director;

// The binary's own parts, reachable for it, the tests and the comparisons; no promise is made of them.
#[doc(hidden)]
pub mod api;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod devices;
#[doc(hidden)]
pub mod director;
#[doc(hidden)]
pub mod fault;
#[doc(hidden)]
pub mod health;
#[doc(hidden)]
pub mod inbox;
#[doc(hidden)]
pub mod item;
#[doc(hidden)]
pub mod ledger;
mod lender;
#[doc(hidden)]
pub mod logging;
#[doc(hidden)]
pub mod map;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod proc;
#[doc(hidden)]
pub mod root;
#[doc(hidden)]
pub mod spool;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod units;
#[doc(hidden)]
pub mod worker;

#[cfg(test)]
mod world;
