//! The process and its kernel. The few calls that need `unsafe` live here, each behind a safe function: what neither the
//! standard library nor rustix offers.

pub mod dirs;
pub mod files;
pub mod helper;
pub mod lease;
pub mod spawn;
