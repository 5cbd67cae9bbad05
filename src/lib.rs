//! gamdok (감독, "director"): a GPU-aware director/worker scheduler.

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
pub mod logging;
pub mod plan;
pub mod proc;
pub mod root;
pub mod spool;
pub mod state;
pub mod sys;
pub mod units;
pub mod worker;

#[cfg(test)]
mod world;
