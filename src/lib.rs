//! gamdok (감독, "director"): a GPU-aware director/worker scheduler.

pub mod api;
pub mod config;
pub mod devices;
pub mod fault;
pub mod health;
pub mod inbox;
pub mod item;
pub mod ledger;
pub mod plan;
pub mod spool;
pub mod state;
pub mod sys;
pub mod units;
pub mod worker;
