//! gamdok (감독, "director"): a GPU-aware director/worker scheduler. A file dropped into a folder becomes exactly one
//! outcome, worked on by a short-lived worker on an idle device. Most people run it as the program `gamdok`, which the
//! README tells of; this is the same as a library, for Linux.
//!
//! - [`Pool`] runs a program's own tasks of any type on CPU slots or idle GPUs, without a folder.
//! - [`Director`] is the whole service within a program: routes run closures beside commands, and nothing that was
//!   dropped or submitted is lost in a crash.
//! - [`split`] works on a large line file in batches and puts the parts together in order.
//! - [`rules`] tell which devices count and when one is idle, for both of the first.
//!
//! ```
//! use gamdok::{Devices, Pool};
//!
//! // An idle GPU for each task; CPU slots where the host has no GPU.
//! let pool = Pool::builder().devices(Devices::cpu()).name("embed").build()?;
//! let lengths: Result<Vec<usize>, _> = pool.map(["so", "many", "words"], |word| word.len()).collect();
//! assert_eq!(lengths?, [2, 4, 5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```no_run
//! use gamdok::Director;
//! use gamdok::service::Route;
//!
//! let embed = Route::closure("embed", |job| {
//!     let text = std::fs::read_to_string(job.item())?;
//!     std::fs::write(job.out().join("length"), text.len().to_string())?;
//!     Ok(())
//! });
//! let director = Director::builder().root("/srv/spool").init().route(embed.matching(["*.txt"])).start()?;
//! let ended = director.submit("notes.txt")?.wait()?;
//! println!("{:?}: {}", ended.outcome, ended.dir.display());
//! # Ok::<(), gamdok::service::Error>(())
//! ```
//!
//! The repository's `examples/` hold a short program for each idea that gamdok came from; its README's ARCHITECTURE
//! section tells how it works inside. Until 1.0 a minor version may change what is here, and says so in the changelog;
//! what this page doesn't show is no part of it.

#![deny(missing_docs)]

// What a program depends on.
pub mod pool;
pub mod rules;
pub mod service;
pub mod split;

pub use pool::{Devices, Pool, Residents, Slot, Slots, TaskError, Ticket};
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
pub mod estimate;
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
pub mod metrics;
#[doc(hidden)]
pub mod notifier;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod proc;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod root;
#[doc(hidden)]
pub mod spool;
#[doc(hidden)]
pub mod state;
mod symptoms;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod text;
#[doc(hidden)]
pub mod top;
#[doc(hidden)]
pub mod trace;
#[doc(hidden)]
pub mod units;
#[doc(hidden)]
pub mod worker;

#[cfg(test)]
mod world;
