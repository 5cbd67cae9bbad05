//! Big line files: one file is cut into batches of lines, many consumers work on them at once, and what they make of
//! them comes together in order in one file. Knows nothing of the director, of devices or of routes.
//!
//! ```text
//!  input ──▶ producer ──▶ queue ──▶ slots (a thread and a Consumer each; they compress too) ──▶ merge ──▶ output
//!           one thread    bounded    come while it runs                                   the calling thread
//! ```
//!
//! [`run`] does all of it. Invariants:
//! - bytes pass untouched: a batch is a run of whole lines, whatever is in them and however they end;
//! - memory is bounded by [`Setup::memory`] whatever the file's size: by bytes as well as by lines. Only a single line
//!   or a single consumer's output that is larger passes alone;
//! - the output holds what the consumers made of batch 0, 1, 2 … in this order, and appears under its name only whole;
//! - what was merged is on record: after a kill at any point the next run goes on behind it. Batches that were finished
//!   beyond a gap are made again: memory bounds them to a few, and keeping them would take a second file for each batch.

#![warn(missing_docs)]

mod consumer;
mod fault_points;
mod input;
mod journal;
mod merge;
mod name;
mod process;
mod producer;
mod queue;
mod run;
mod setup;
mod slot;
mod stop;
#[cfg(test)]
mod tests;

pub use consumer::{Batch, BatchError, Consumer, Identity, Kind};
pub use name::output_name;
pub use process::{Ear, ProcessConsumer, Program};
pub(crate) use process::{Errors, Keeper};
pub use run::run;
pub use setup::{Error, Progress, Setup, Summary};
pub use stop::StopFlag;
