//! gamdok (감독, "director"): a GPU-aware director/worker scheduler. A file dropped into a folder becomes exactly one
//! outcome, worked on by a short-lived worker on an idle device.
//!
//! [`director`] is the loop and the only owner of [`state`]: events come in through one door, [`plan`] decides without a
//! clock, file or driver, and effects go out to the threads that carry them out: [`inbox`] finds items, [`spool`] claims
//! and files them, [`worker`] runs one attempt each, [`devices`] asks the driver, [`ledger`] keeps an index, [`api`]
//! answers the [`cli`]. The README's ARCHITECTURE section tells the rest.

pub mod api;
pub mod cli;
pub mod config;
pub mod devices;
pub mod director;
pub mod fault;
pub mod health;
pub mod inbox;
pub mod item;
pub mod ledger;
mod lender;
pub mod logging;
pub mod map;
pub mod plan;
pub mod pool;
pub mod proc;
pub mod root;
pub mod split;
pub mod spool;
pub mod state;
pub mod sys;
pub mod units;
pub mod worker;

pub use pool::{Devices, Pool, Slot, Slots, TaskError, Ticket};

#[cfg(test)]
mod world;
