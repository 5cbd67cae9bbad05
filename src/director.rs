//! The loop.

use crate::config::Config;

/// How to run.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    pub warnings: Vec<String>,
    pub once: bool,
    pub init: bool,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    pub failed: u64,
    pub done: u64,
    pub cancelled: u64,
    pub stopped_by_signal_twice: bool,
}

/// Why it can't run.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    pub message: String,
}

impl RunError {
    pub fn exit_code(&self) -> u8 {
        5
    }
}

pub fn run(_options: Options) -> Result<Summary, RunError> {
    Ok(Summary::default())
}
