//! `gamdok run`: the service itself.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use crossbeam_channel::Receiver;
use serde_json::json;

use super::trouble::{Trouble, exit, of_root, of_text};
use super::{Global, bad_config, init, output};
use crate::director::{self, Guest, Options, Summary};
use crate::root::Root;
use crate::sys::files;
use crate::worker;

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
        let mut source = global.source();
        if self.init && global.config.is_none() {
            // All that `init` makes. With a configuration of its own, whatever root that names is made later.
            Root::init(source.file.parent().unwrap_or(Path::new("."))).map_err(|wrong| of_root(&wrong))?;
            init::annotate(&source.file)?;
        }
        // `run -- $COMMAND` with nothing in the variable would run the file's routes on what was meant for it.
        if self.command.is_empty() && std::env::args_os().last().is_some_and(|word| word == "--") {
            let help = "write a command behind `--`, or leave `--` out to run the routes of the configuration";
            return Err(Trouble::new(exit::USAGE, "usage", "there is no command behind `--`".to_owned(), help));
        }
        if !self.command.is_empty() {
            source.command = Some((self.command, std::env::current_dir()?));
        }
        let (config, warnings) = source.load().map_err(|wrong| bad_config(&wrong))?;
        // Daemons that a worker leaves behind become ours, to be found and ended with it.
        if let Err(error) = worker::adopt_orphans() {
            tracing::warn!(%error, "processes that detach themselves from their worker can't be adopted");
        }
        if let Err(error) = files::raise_limit() {
            tracing::warn!(%error, "the limit on open files can't be raised");
        }
        let options = Options {
            config,
            warnings,
            source: Some(source),
            once: self.once,
            init: self.init,
            stops: signals()?,
            guest: Guest::default(),
        };
        let summary = director::run(options)
            .map_err(|wrong| of_text(wrong.exit_code(), code(wrong.exit_code()), &wrong.to_string()))?;
        if self.once && global.json {
            let Summary { done, failed, cancelled, left, held, .. } = summary;
            let told = json!({ "done": done, "failed": failed, "cancelled": cancelled, "left": left, "held": held });
            output::json(&told)?;
        } else if self.once && output::is_terminal() {
            output::print(&told(&summary))?;
        }
        Ok(match summary {
            Summary { interrupted: true, .. } => exit::SIGNALLED,
            Summary { failed: 1.., .. } | Summary { left: 1.., .. } if self.once => exit::FAILED,
            _ => exit::OK,
        })
    }
}

/// One message for each SIGINT, SIGTERM or SIGHUP.
fn signals() -> Result<Receiver<()>, Trouble> {
    let (tell, stops) = crossbeam_channel::unbounded();
    ctrlc::set_handler(move || {
        let _ = tell.send(());
    })
    .map_err(|error| std::io::Error::other(format!("cannot listen for signals: {error}")))?;
    Ok(stops)
}

fn told(summary: &Summary) -> String {
    let cancelled = if summary.cancelled > 0 { format!(" · {} cancelled", summary.cancelled) } else { String::new() };
    let why = [(summary.failed, "failed"), (summary.held, "held")];
    let why: Vec<&str> = why.into_iter().filter(|(n, _)| *n > 0).map(|(_, state)| state).collect();
    let help = match why.is_empty() {
        true => "\n".to_owned(),
        false => format!("\nhelp: `gamdok list --state {}` tells why\n", why.join(",")),
    };
    let left = if summary.left > 0 { format!(" · {} left in claimed/", summary.left) } else { String::new() };
    let held = if summary.held > 0 { format!(" · {} held in the inbox", summary.held) } else { String::new() };
    format!("{} done · {} failed{cancelled}{left}{held}{help}", summary.done, summary.failed)
}

fn code(exit: u8) -> &'static str {
    match exit {
        2 => "config",
        4 => "root-held",
        5 => "root-unavailable",
        _ => "run",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_run_is_told_in_a_line_and_a_hint() {
        let check = |done, failed, held, expected: &str| {
            assert_eq!(told(&Summary { done, failed, held, ..Summary::default() }), expected);
        };
        check(2, 0, 0, "2 done · 0 failed\n");
        check(2, 0, 3, "2 done · 0 failed · 3 held in the inbox\nhelp: `gamdok list --state held` tells why\n");
        check(0, 1, 3, "0 done · 1 failed · 3 held in the inbox\nhelp: `gamdok list --state failed,held` tells why\n");
    }
}
