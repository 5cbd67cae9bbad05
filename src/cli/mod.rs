//! The command line: parse, ask, print, and turn the outcome into an exit code. One file a command; no scheduling
//! knowledge. Invariants: what is asked for goes to stdout, everything else to stderr; with `--json` both are JSON.

mod cancel;
mod check;
mod completions;
mod control;
mod csv;
mod doctor;
mod flat;
mod fresh;
mod gpus;
mod history;
mod init;
mod list;
mod logs;
mod map;
mod output;
mod report;
mod results;
mod retry;
mod run;
mod show;
mod source;
mod stats;
mod status;
mod table;
mod top;
mod trouble;
mod wait;
mod window;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{Config, ConfigError, Overrides, Source, Warning};
use crate::logging;
use crate::root::Root;

use trouble::{Trouble, exit};

/// Drop a file into a folder; an idle GPU processes it; exactly one outcome.
#[derive(Debug, Parser)]
#[command(name = "gamdok", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
struct Line {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What goes with every command, before or after its name.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// The folder that gamdok owns [default: .]
    #[arg(long, global = true, env = "GAMDOK_ROOT", value_name = "DIR", hide_env_values = true)]
    root: Option<PathBuf>,
    /// The configuration [default: ROOT/gamdok.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answers for programs, errors too
    #[arg(long, global = true)]
    json: bool,
    /// Log more (repeat for still more)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Log less
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// How the log looks
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: logging::Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a root here: its folders and an annotated gamdok.toml; overwrites nothing
    Init(init::Init),
    /// Run the service: take what is dropped into the inbox until told to stop
    Run(run::Run),
    /// Show the configuration as it is understood, and the devices each route would get
    Check(check::Check),
    /// Look for what could go wrong here, and say what to do about it
    Doctor(doctor::Doctor),
    /// Show every device, whether it may take work, and why not
    Gpus(gpus::Gpus),
    /// Show what is going on
    Status(status::Status),
    /// Watch all of it live in the terminal, and act on it
    Top(top::Top),
    /// List items and jobs
    List(list::List),
    /// Show one job: its attempts, its files, its outcome
    Show(show::Show),
    /// Print what a job's worker wrote
    Logs(logs::Logs),
    /// Show what the workers reported of all items that ended, as one table
    Results(results::Results),
    /// Show attempts that were, the newest first; or write a trace of them
    History(history::History),
    /// Show how long items waited and ran, how they failed and what they used, by route and by device
    Stats(stats::Stats),
    /// Write one page with the plots of all that was
    Report(report::Report),
    /// Give ended jobs another try
    Retry(retry::Retry),
    /// End jobs, or refuse items that still wait
    Cancel(cancel::Cancel),
    /// Start nothing new until `resume`
    Pause(control::Plain),
    /// Go on after `pause` or `release`
    Resume(control::Plain),
    /// Take nothing new, let what runs end, then end the service
    Drain(control::Plain),
    /// Wait until jobs have ended; fails if one of them failed
    Wait(wait::Wait),
    /// Take a device out of service
    Cordon(control::OfDevice),
    /// Put a device back into service
    Uncordon(control::OfDevice),
    /// Let go of the GPU driver (to reset a GPU or reload the driver) until `resume`
    Release(control::Plain),
    /// Run a command over arguments, or lines of stdin, on idle GPUs or CPU slots; needs no root
    Map(map::Map),
    /// Print completions for a shell
    Completions(completions::Completions),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let line = match Line::try_parse_from(&argv) {
        Ok(line) => line,
        Err(wrong) => return usage(&wrong, &argv),
    };
    let json = line.global.json;
    // A line of the log would be written into the picture.
    if !(matches!(line.command, Command::Top(_)) && std::io::stderr().is_terminal()) {
        logging::start(line.global.log_format, line.global.verbosity(&line.command));
    }
    match line.command.run(&line.global) {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => trouble.tell(json),
    }
}

impl Command {
    fn run(self, global: &Global) -> Result<u8, Trouble> {
        match self {
            Command::Init(it) => it.run(global),
            Command::Run(it) => it.run(global),
            Command::Check(it) => it.run(global),
            Command::Doctor(it) => it.run(global),
            Command::Gpus(it) => it.run(global),
            Command::Status(it) => it.run(global),
            Command::Top(it) => it.run(global),
            Command::List(it) => it.run(global),
            Command::Show(it) => it.run(global),
            Command::Logs(it) => it.run(global),
            Command::Results(it) => it.run(global),
            Command::History(it) => it.run(global),
            Command::Stats(it) => it.run(global),
            Command::Report(it) => it.run(global),
            Command::Retry(it) => it.run(global),
            Command::Cancel(it) => it.run(global),
            Command::Pause(it) => it.run(global, "pause", "paused: nothing new starts until `gamdok resume`"),
            Command::Resume(it) => it.run(global, "resume", "running"),
            Command::Drain(it) => it.run(global, "drain", "draining: what runs ends, then the service does"),
            Command::Wait(it) => it.run(global),
            Command::Cordon(it) => it.run(global, "cordon", "takes no more work"),
            Command::Uncordon(it) => it.run(global, "uncordon", "takes work again"),
            Command::Release(it) => it.run(global, "release", "the driver is released until `gamdok resume`"),
            Command::Map(it) => it.run(global),
            Command::Completions(it) => it.run(),
        }
    }
}

/// Help and version are answers; all else is a mistake in the words.
fn usage(wrong: &clap::Error, argv: &[OsString]) -> ExitCode {
    if !wrong.use_stderr() {
        let _ = wrong.print();
        return ExitCode::SUCCESS;
    }
    let options = argv.iter().take_while(|argument| *argument != "--");
    if !options.into_iter().any(|argument| argument == "--json") {
        let _ = wrong.print();
        return ExitCode::from(exit::USAGE);
    }
    let text = wrong.render().to_string();
    let mut parts = text.trim().splitn(2, "\n\n");
    let message = parts.next().unwrap_or_default().trim_start_matches("error: ");
    Trouble::new(exit::USAGE, "usage", message, parts.next().unwrap_or_default()).tell(true)
}

impl Global {
    /// The service tells what it does; the other commands speak through what they print.
    fn verbosity(&self, command: &Command) -> i8 {
        let usual = if matches!(command, Command::Run(_)) { 0 } else { -1 };
        let count = |n: u8| i8::try_from(n).unwrap_or(i8::MAX);
        count(self.verbose).saturating_sub(count(self.quiet)).saturating_add(usual)
    }

    /// The configuration: `--config`, else ROOT/gamdok.toml, else the built-in one.
    fn config(&self) -> Result<(Config, Vec<Warning>), Trouble> {
        self.source().load().map_err(|wrong| bad_config(&wrong))
    }

    fn source(&self) -> Source {
        let usual = || self.root.as_deref().unwrap_or(Path::new(".")).join("gamdok.toml");
        Source {
            file: self.config.clone().unwrap_or_else(usual),
            may_be_absent: self.config.is_none(),
            overrides: Overrides { root: self.root.clone() },
            command: None,
        }
    }

    /// The root, without a need for a sound configuration where its place is plain.
    fn place(&self) -> Result<PathBuf, Trouble> {
        match (&self.root, &self.config) {
            (Some(root), _) => absolute(root),
            (None, Some(_)) => self.config().map(|(config, _)| config.root),
            (None, None) => match self.config() {
                Ok((config, _)) => Ok(config.root),
                Err(_) => absolute(Path::new(".")),
            },
        }
    }

    /// The root, which exists.
    fn root(&self) -> Result<PathBuf, Trouble> {
        let place = self.place()?;
        Root::open_for_reading(&place).map_err(|wrong| trouble::of_root(&wrong))?;
        Ok(place)
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Trouble> {
    std::path::absolute(path).map_err(|error| {
        let message = format!("cannot tell where `{}` is: {error}", crate::root::shown(path));
        Trouble::new(exit::ROOT, "root-unavailable", message, "name the root with `--root DIR`")
    })
}

/// Shown with its lines on a terminal, as one sentence elsewhere.
fn bad_config(wrong: &ConfigError) -> Trouble {
    let help = wrong.help.clone().unwrap_or_else(|| "`gamdok check` shows the configuration".to_owned());
    Trouble::new(exit::USAGE, "config", wrong.summary(), help).with_report(|| report(wrong))
}

fn report(wrong: &ConfigError) -> Option<String> {
    let handler = miette::GraphicalReportHandler::new_themed(if trouble::colours() {
        miette::GraphicalTheme::unicode()
    } else {
        miette::GraphicalTheme::unicode_nocolor()
    });
    let handler = match output::width_of_errors() {
        Some(width) => handler.with_width(width),
        None => handler,
    };
    let mut text = String::new();
    handler.render_report(&mut text, wrong).ok().map(|()| text)
}

/// The whole command line, for completions.
fn command_line() -> clap::Command {
    Line::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command_line().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_after_the_command() {
        let check = |words: &str, root: Option<&str>, json: bool, verbosity: i8| {
            let line = Line::try_parse_from(words.split(' ')).expect(words);
            let found = (line.global.root.clone(), line.global.json, line.global.verbosity(&line.command));
            assert_eq!(found, (root.map(PathBuf::from), json, verbosity), "{words}");
        };
        check("gamdok --root r --json status", Some("r"), true, -1);
        check("gamdok status --root r --json", Some("r"), true, -1);
        check("gamdok run --once -vv -- cmd --json", None, false, 2);
        check("gamdok run -q", None, false, -1);
    }
}
