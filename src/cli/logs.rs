//! `gamdok logs JOB [-f]`: what a job's worker wrote. Byte for byte into a pipe; a terminal is shown nothing but text
//! and colours.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Sender, bounded};
use notify::{EventKindMask, RecursiveMode, Watcher as _};

use super::source::{self, Source};
use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::client::Client;
use crate::api::directories;
use crate::api::view::Shown;
use crate::text::Screen;

/// Between two questions about a busy director.
const BREATH: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// A job, its id, a unique beginning of either, or an item's name
    job: OsString,
    /// Print what comes until the job has ended, later attempts too
    #[arg(short, long)]
    follow: bool,
    /// Of this attempt [default: the last]
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
}

impl Logs {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let source = Source::open(global)?;
        let name = source::named(&self.job)?;
        let shown = source.show(&name)?;
        if self.follow {
            Tail::new(&source, shown, name, self.attempt).follow()?;
            return Ok(exit::OK);
        }
        let dir = source.directories.dir(&shown.listed);
        let Some((_, path)) = dir.and_then(|dir| directories::log(&dir, self.attempt)) else {
            return Err(no_log(&shown, self.attempt));
        };
        let mut printer = Printer::new();
        printer.copy(&mut File::open(path)?)?;
        printer.end()?;
        Ok(exit::OK)
    }
}

fn no_log(shown: &Shown, attempt: Option<u32>) -> Trouble {
    let name = crate::api::reference::label(&shown.listed);
    let which = attempt.map(|n| format!(" of attempt {n}")).unwrap_or_default();
    let help = "an attempt has a log once its process runs; `-f` waits for it";
    Trouble::new(exit::FAILED, "no-log", format!("{name} has no log{which}: it is {}", shown.listed.state), help)
}

/// Prints bytes as the reader can take them.
struct Printer {
    screen: Option<Screen>,
}

impl Printer {
    fn new() -> Printer {
        Printer { screen: output::is_terminal().then(Screen::default) }
    }

    /// Prints what `file` holds from where it was read last.
    fn copy(&mut self, file: &mut File) -> Result<(), Trouble> {
        let mut part = vec![0; 64 << 10];
        loop {
            match file.read(&mut part)? {
                0 => return Ok(()),
                n => self.print(&part[..n])?,
            }
        }
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        match &mut self.screen {
            None => output::bytes(bytes),
            Some(screen) => output::print(&screen.show(bytes)),
        }
    }

    fn end(&mut self) -> Result<(), Trouble> {
        match &mut self.screen {
            None => Ok(()),
            Some(screen) => output::print(&screen.rest()),
        }
    }
}

/// A log that grows, and those of later attempts.
struct Tail<'a> {
    source: &'a Source,
    shown: Shown,
    name: String,
    /// Only this attempt.
    only: Option<u32>,
    /// The attempt that is being printed.
    current: Option<(u32, File)>,
    printer: Printer,
}

impl Tail<'_> {
    fn new(source: &Source, shown: Shown, name: String, only: Option<u32>) -> Tail<'_> {
        Tail { source, shown, name, only, current: None, printer: Printer::new() }
    }

    fn follow(mut self) -> Result<(), Trouble> {
        let (tell, told) = bounded(1);
        let mut watched: Option<(PathBuf, notify::RecommendedWatcher)> = None;
        let mut director = watch_director(self.source.directories.root(), tell.clone());
        loop {
            let dir = self.dir();
            if let Some(dir) = &dir
                && watched.is_none()
            {
                // The watch comes before the look, so that nothing is missed; it stays with the directory when that moves.
                watched = watch(dir, tell.clone()).map(|watcher| (dir.clone(), watcher));
            }
            if let Some(dir) = &dir
                && self.look(dir)?
            {
                return self.printer.end();
            }
            if dir.is_none() && director.is_none() {
                return Err(no_log(&self.shown, self.only));
            }
            if director.is_none() && watched.is_none() {
                return self.nobody();
            }
            match told.recv() {
                Ok(Told::Changed) => {}
                Ok(Told::DirectorLeft) | Err(_) => {
                    director = None;
                    let dir = self.dir();
                    if !dir.map(|dir| self.look(&dir)).transpose()?.unwrap_or(false) {
                        return self.nobody();
                    }
                }
            }
        }
    }

    /// Nothing more will come until a director runs.
    fn nobody(&mut self) -> Result<(), Trouble> {
        self.printer.end()?;
        let _ = writeln!(std::io::stderr(), "no director is running: the job goes on when one does");
        Ok(())
    }

    /// Where the job lies now; nowhere while the item waits in the inbox.
    fn dir(&mut self) -> Option<PathBuf> {
        if self.shown.listed.job.is_none() {
            self.shown = self.source.show(&self.name).ok()?;
        }
        self.source.directories.dir(&self.shown.listed)
    }

    /// Prints all there is. Whether that was all there will be.
    fn look(&mut self, dir: &Path) -> Result<bool, Trouble> {
        // First, so that what is written before the end is printed before it.
        let ended = dir.join("result.json").exists();
        let mut logs = directories::logs(dir);
        logs.retain(|(n, _)| self.only.is_none_or(|only| *n == only));
        if self.current.is_none()
            && let Some((n, path)) = logs.last()
        {
            self.current = Some((*n, File::open(path)?));
        }
        let newer = match (&self.current, self.only) {
            (Some((current, _)), None) => logs.iter().filter(|(n, _)| n > current).cloned().collect(),
            _ => Vec::new(),
        };
        if let Some((_, file)) = &mut self.current {
            self.printer.copy(file)?;
        }
        for (n, path) in newer {
            if output::is_terminal() {
                self.printer.end()?;
                let _ = writeln!(std::io::stderr(), "attempt {n}:");
            }
            let mut file = File::open(path)?;
            self.printer.copy(&mut file)?;
            self.current = Some((n, file));
        }
        if ended && self.current.is_none() {
            return Err(no_log(&self.shown, self.only));
        }
        let overtaken = self.only.is_some_and(|only| directories::logs(dir).last().is_some_and(|(n, _)| *n > only));
        Ok(ended || overtaken)
    }
}

enum Told {
    Changed,
    DirectorLeft,
}

/// Tells of changes in the job's directory. A full channel has a change waiting in it already.
fn watch(dir: &Path, tell: Sender<Told>) -> Option<notify::RecommendedWatcher> {
    let config = notify::Config::default().with_event_kinds(EventKindMask::CORE);
    let mut watcher = notify::RecommendedWatcher::new(
        move |_| {
            let _ = tell.try_send(Told::Changed);
        },
        config,
    )
    .ok()?;
    watcher.watch(dir, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

/// Tells of what the director publishes, and of its end. None: there is none.
fn watch_director(root: &Path, tell: Sender<Told>) -> Option<std::thread::JoinHandle<()>> {
    let client = Client::connect(root).ok()?;
    let watch = move || {
        let mut after = 0;
        while let Ok(change) = client.changed(after, 60) {
            after = change.number;
            if tell.try_send(Told::Changed).is_err_and(|wrong| wrong.is_disconnected()) {
                return;
            }
            client.pause(BREATH);
        }
        let _ = tell.send(Told::DirectorLeft);
    };
    std::thread::Builder::new().name("director's changes".to_owned()).spawn(watch).ok()
}
