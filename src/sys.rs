//! The few calls that need `unsafe`.

pub mod lease;
