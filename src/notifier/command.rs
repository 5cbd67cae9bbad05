//! A program that gets the message on its stdin.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::outbox::Undelivered;
use crate::sys::helper::{self, How};

/// Exit 0: it has told. All else is tried again.
pub(super) fn run(command: &[String], dir: &Path, message: &[u8], limit: Duration) -> Result<(), Undelivered> {
    let argv: Vec<OsString> = command.iter().map(OsString::from).collect();
    let ended = helper::run(&argv, dir, Some(message), limit, &AtomicBool::new(false));
    let words = match ended {
        Err(error) => format!("can't be started: {error}"),
        Ok(ended) => match ended.how {
            How::Exit(0) => return Ok(()),
            How::Exit(code) => format!("exit code {code}{}", ended.said),
            How::Killed(status) => format!("{status}{}", ended.said),
            How::Late => format!("no end within {}{}", humantime::format_duration(limit), ended.said),
            How::Unknown(error) => format!("its end is unknown: {error}"),
        },
    };
    Err(Undelivered { words, again: Some(Duration::ZERO) })
}
