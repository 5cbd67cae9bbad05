//! `gamdok run`: the service itself.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::trouble::{Trouble, exit, of_text};
use super::{Global, bad_config, output};
use crate::director::{self, Options, Summary};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Make the root first if it isn't one
    #[arg(long)]
    init: bool,
    /// End when all that lies in the inbox now has ended
    #[arg(long)]
    once: bool,
    /// Run this for every item instead of the configuration's routes; {item} is appended if no placeholder is in it
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let (mut config, mut warnings) = global.config()?;
        if !self.command.is_empty() {
            let cwd = std::env::current_dir()?;
            config = config.with_command(&self.command, &cwd).map_err(|wrong| bad_config(&wrong))?;
            warnings = config.warnings();
        }
        let options = Options { config, warnings, once: self.once, init: self.init };
        let summary = director::run(options)
            .map_err(|wrong| of_text(wrong.exit_code(), code(wrong.exit_code()), &wrong.to_string()))?;
        if self.once && global.json {
            let Summary { done, failed, cancelled, .. } = summary;
            output::json(&json!({ "done": done, "failed": failed, "cancelled": cancelled }))?;
        } else if self.once && output::is_terminal() {
            output::print(&told(&summary))?;
        }
        Ok(match summary {
            Summary { stopped_by_signal_twice: true, .. } => exit::SIGNALLED,
            Summary { failed: 1.., .. } if self.once => exit::FAILED,
            _ => exit::OK,
        })
    }
}

fn told(summary: &Summary) -> String {
    let cancelled = if summary.cancelled > 0 { format!(" · {} cancelled", summary.cancelled) } else { String::new() };
    let help = if summary.failed > 0 { "\nhelp: `gamdok list --state failed` tells why\n" } else { "\n" };
    format!("{} done · {} failed{cancelled}{help}", summary.done, summary.failed)
}

fn code(exit: u8) -> &'static str {
    match exit {
        2 => "config",
        4 => "root-held",
        5 => "root-unavailable",
        _ => "run",
    }
}
