//! `gamdok map`: a command over arguments, without a root.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::num::{NonZeroU64, NonZeroUsize};

use clap::Args;

use super::Global;
use super::trouble::{Trouble, exit, of_text};
use crate::config::{self, Backend};
use crate::map::{self, Arguments, Order, Refused, Stop, View};

/// What ends the command and begins the arguments.
const LIST: &str = ":::";

/// {} in the command stands for the argument, {1} {2} for its columns (`a,b`), {device} {device_id} {gpu} for
/// where it runs, {n} for its number and {attempt} for its try; {{ and }} are braces. With neither {} nor a column in the
/// command, the argument is appended.
#[derive(Debug, Args)]
#[command(after_help = "Arguments: those after `:::`, else the lines of stdin.\n\
                        Exit code: 0 all went well, 1 a run failed, 2 usage, 130 stopped.\n\n\
                        Examples:\n  gamdok map -- gzip -9 {} ::: *.log\n  \
                        find . -name '*.wav' -print0 | gamdok map -0 --gpus 1 -- python3 transcribe.py {} --device {device}\n  \
                        gamdok map --stdin-lines 1000 --keep-order -- ./embed < lines.txt > vectors.txt")]
pub(super) struct Map {
    /// GPUs for each run, idle ones; CPU slots where the host has none [default: 0, CPU slots]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    gpus: u32,
    /// The most runs at a time [default: one for each CPU, or what the GPUs take]
    #[arg(long, value_name = "N")]
    slots: Option<NonZeroUsize>,
    /// Give each run so many lines of stdin on its own stdin
    #[arg(long, value_name = "N", conflicts_with = "null")]
    stdin_lines: Option<NonZeroU64>,
    /// Print in the order of the arguments, not as the runs end
    #[arg(short, long)]
    keep_order: bool,
    /// Try a run that failed so many times again
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: u32,
    /// Arguments on stdin end with a NUL byte, as `find -print0` writes them
    #[arg(short = '0', long)]
    null: bool,
    /// Where to look for devices: auto, gpu, cpu, sim or sim:N (simulated GPUs) [default: what --config says, else auto]
    #[arg(long, value_name = "KIND", value_parser = kind)]
    devices: Option<Kind>,
    /// The command, and its arguments after `:::`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    backend: Backend,
    /// How many are simulated.
    gpus: Option<u32>,
}

fn kind(text: &str) -> Result<Kind, String> {
    let (word, count) = text.split_once(':').map_or((text, None), |(word, count)| (word, Some(count)));
    let gpus = count.map(|count| count.parse().ok().filter(|count| (1..=1024).contains(count)));
    let backend = match (word, gpus) {
        ("auto", None) => Backend::Auto,
        ("gpu", None) => Backend::Gpu,
        ("cpu", None) => Backend::Cpu,
        ("sim", None | Some(Some(_))) => Backend::Sim,
        _ => return Err("expected auto, gpu, cpu, sim or sim:N".to_owned()),
    };
    Ok(Kind { backend, gpus: gpus.flatten() })
}

impl Map {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let (command, listed) = split(self.command)?;
        let arguments = match (listed, self.stdin_lines) {
            (Some(_), Some(_)) => {
                return Err(usage("`:::` gives arguments, --stdin-lines lines of stdin: it is one or the other"));
            }
            (Some(_), None) if self.null => {
                return Err(usage("--null is about stdin, which isn't read when `:::` is there"));
            }
            (Some(words), None) => Arguments::Listed(words),
            (None, Some(lines)) => Arguments::Blocks(lines),
            (None, None) => Arguments::Stdin { end: if self.null { 0 } else { b'\n' } },
        };
        let rules = rules(global, self.devices)?;
        let quiet = global.quiet > 0;
        if !matches!(arguments, Arguments::Listed(_)) && io::stdin().is_terminal() && !quiet {
            tracing::warn!("reading from the terminal; end with Ctrl-D, or give arguments after `:::`");
        }
        let view = View { json: global.json, quiet, progress: io::stderr().is_terminal() && !quiet && !global.json };
        let order = Order {
            command,
            arguments,
            gpus: self.gpus,
            slots: self.slots.map(NonZeroUsize::get),
            rules,
            keep_order: self.keep_order,
            retries: self.retries,
            view,
        };
        let stop = Stop::new()?;
        let pressed = stop.clone();
        ctrlc::set_handler(move || pressed.press())
            .map_err(|error| io::Error::other(format!("cannot listen for signals: {error}")))?;
        let summary = map::run(order, &stop).map_err(|refused| told(&refused))?;
        Ok(match summary {
            map::Summary { stopped: true, .. } => exit::SIGNALLED,
            // As for every other command.
            map::Summary { unread: true, .. } => exit::OK,
            map::Summary { failed: 1.., .. } => exit::FAILED,
            map::Summary { .. } => exit::OK,
        })
    }
}

/// The command, and what stands behind `:::`.
fn split(mut words: Vec<OsString>) -> Result<(Vec<OsString>, Option<Vec<OsString>>), Trouble> {
    let Some(at) = words.iter().position(|word| word == LIST) else { return Ok((words, None)) };
    let listed = words.split_off(at + 1);
    words.pop();
    if listed.iter().any(|word| word == LIST) {
        return Err(usage("there is one `:::`, and one list behind it"));
    }
    Ok((words, Some(listed)))
}

fn rules(global: &Global, kind: Option<Kind>) -> Result<config::Devices, Trouble> {
    // A root's own configuration isn't looked for: this needs no root.
    let mut rules = match &global.config {
        Some(_) => global.config()?.0.devices,
        None => config::Devices::default(),
    };
    if let Some(Kind { backend, gpus }) = kind {
        rules.backend = backend;
        rules.sim.gpus = gpus.unwrap_or(rules.sim.gpus);
    }
    Ok(rules)
}

fn usage(message: &str) -> Trouble {
    Trouble::new(exit::USAGE, "usage", message, "`gamdok map --help` shows examples")
}

fn told(refused: &Refused) -> Trouble {
    let (code, word) = match refused {
        Refused::Command { .. } => (exit::USAGE, "command"),
        Refused::Devices(_) => (exit::FAILED, "devices"),
        Refused::Broken { .. } => (exit::FAILED, "io"),
    };
    of_text(code, word, &refused.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_devices_are_read() {
        let check = |text: &str, expected: Option<(Backend, Option<u32>)>| {
            assert_eq!(kind(text).ok(), expected.map(|(backend, gpus)| Kind { backend, gpus }), "{text}");
        };
        check("auto", Some((Backend::Auto, None)));
        check("sim", Some((Backend::Sim, None)));
        check("sim:2", Some((Backend::Sim, Some(2))));
        for wrong in ["", "sim:", "sim:0", "sim:x", "gpu:1", "SIM"] {
            check(wrong, None);
        }
    }

    #[test]
    fn the_list_stands_behind_its_sign() {
        let check = |words: &str, command: &str, listed: Option<&str>| {
            let all = |words: &str| words.split_whitespace().map(OsString::from).collect::<Vec<_>>();
            assert_eq!(split(all(words)).expect(words), (all(command), listed.map(all)));
        };
        check("echo {}", "echo {}", None);
        check("echo {} ::: a b", "echo {}", Some("a b"));
        check("echo :::", "echo", Some(""));
        assert!(split(vec!["e".into(), LIST.into(), "a".into(), LIST.into()]).is_err());
    }
}
