//! The few calls that need `unsafe`, each behind a safe function: what neither the standard library nor rustix offers.

pub mod lease;
pub mod spawn;
