//! `gamdok map`: one command over many arguments, on CPU slots or idle GPUs, without a root.
//!
//! One thread reads the arguments, one for each slot runs the processes, and the loop in here hands out what comes, puts
//! what ended in order, and prints it. Invariants: a run's output is printed whole; what is held at a time is bounded,
//! however long the input, the output or one of the runs; nothing is started after a stop.

mod attempt;
mod input;
mod kept;
mod out;
mod print;
mod progress;
mod shelf;
mod slot;
mod stop;
mod template;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, never, select_biased};

use crate::config;
use crate::lender::{self, Ground, Terms};
use crate::worker::{NOT_INHERITED, program};

pub use stop::Stop;

use input::{Input, What};
use print::Printer;
use progress::Bar;
use shelf::Shelf;
use slot::{Done, End, Slot, Task};
use template::{Feed, Template};

/// The stack of a thread that waits for a process.
const STACK: usize = 512 << 10;

/// What is to be run, over what, on what; checked by [`run`].
#[derive(Debug)]
pub struct Order {
    /// The command with its placeholders.
    pub command: Vec<OsString>,
    pub arguments: Arguments,
    /// GPUs for each run; 0 = CPU slots.
    pub gpus: u32,
    /// The most runs at a time.
    pub slots: Option<usize>,
    pub rules: config::Devices,
    /// Print in the order of the arguments.
    pub keep_order: bool,
    /// How often a run that failed is tried again.
    pub retries: u32,
    pub view: View,
}

/// Where the arguments come from.
#[derive(Debug)]
pub enum Arguments {
    Listed(Vec<OsString>),
    /// From stdin; each ends with this byte.
    Stdin {
        end: u8,
    },
    /// Each run gets so many lines of ours on its stdin.
    Blocks(NonZeroU64),
}

/// What is printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    /// One object a run.
    pub json: bool,
    /// Only the runs' own output.
    pub quiet: bool,
    /// A bar on stderr.
    pub progress: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub runs: u64,
    pub failed: u64,
    /// Told to stop before all had run.
    pub stopped: bool,
    /// Nobody reads what is printed.
    pub unread: bool,
}

/// Why nothing can be run, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The command can't be meant.
    #[error("{message}\nhelp: {help}")]
    Command { message: String, help: String },
    /// The devices aren't there.
    #[error("{0}")]
    Devices(String),
    /// What was asked for broke off: stdin can't be read, stdout not be written.
    #[error("{what}: {error}\nhelp: what had run until then stands; see above which runs failed")]
    Broken { what: &'static str, error: io::Error },
}

/// Runs it all, and prints what comes out.
pub fn run(order: Order, stop: &Stop) -> Result<Summary, Refused> {
    let feed = if matches!(order.arguments, Arguments::Blocks(_)) { Feed::Lines } else { Feed::Argument };
    let template = Template::parse(&order.command, feed)?;
    let env: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(key, _)| NOT_INHERITED.iter().all(|known| key != known)).collect();
    // Said once, before anything is read.
    let program = template.program().map(|name| runnable(&name, &env)).transpose()?;
    let terms = Terms { name: "gamdok map".to_owned(), rules: order.rules, gpus: order.gpus, cpu_fallback: true };
    let ground = lender::open(terms).map_err(|none| Refused::Devices(none.to_string()))?;
    let (lender, slots) = match ground {
        Ground::Cpu(cores) => (None, order.slots.unwrap_or(cores)),
        Ground::Gpus(lender, most) => (Some(lender), order.slots.map_or(most, |slots| slots.min(most))),
    };
    if order.gpus > 0 && lender.is_none() {
        tracing::warn!("this host has no GPU: {slots} CPU slots are used");
    }
    let broken = |what| move |error| Refused::Broken { what, error };
    let null = File::open("/dev/null").map_err(broken("`/dev/null` can't be opened"))?;
    let printer = Printer::new(order.view, stop).map_err(broken("no output can be written"))?;
    let task = Arc::new(Task { template, program, env, retries: order.retries, null });
    let total = match &order.arguments {
        Arguments::Listed(words) => Some(words.len() as u64),
        Arguments::Stdin { .. } | Arguments::Blocks(_) => None,
    };
    let inputs = input::start(order.arguments).map_err(broken("no thread can be started"))?;
    // As many as are ever in flight, so that handing one out never blocks.
    let (work, taken) = bounded(slots * 2);
    // A slot may wait for the printer with what it has, and so holds back itself.
    let (done, ended) = bounded(slots);
    let mut threads = Vec::with_capacity(slots);
    for index in 0..slots {
        let slot = Slot {
            index,
            task: task.clone(),
            lender: lender.clone(),
            stop: stop.clone(),
            work: taken.clone(),
            done: done.clone(),
        };
        let thread = thread::Builder::new().name(format!("map-{index}")).stack_size(STACK);
        match thread.spawn(move || slot.run()) {
            Ok(thread) => threads.push(thread),
            // Fewer slots are better than none.
            Err(error) if index > 0 => {
                tracing::warn!(%error, "only {index} slots: no more threads can be started");
                break;
            }
            Err(error) => return Err(broken("no thread can be started")(error)),
        }
    }
    // Their end is to be seen once the slots have gone.
    drop((done, taken, lender));
    let mapping = Mapping {
        slots: threads.len(),
        work: Some(work),
        inputs,
        ended,
        stop_heard: stop.heard().clone(),
        stop: stop.clone(),
        printer,
        bar: Bar::new(order.view.progress, total),
        shelf: order.keep_order.then(Shelf::default),
        taken: 0,
        in_flight: 0,
        summary: Summary::default(),
        trouble: None,
    };
    mapping.run(threads)
}

/// The file of a program that every run starts.
fn runnable(name: &OsString, env: &[(OsString, OsString)]) -> Result<std::path::PathBuf, Refused> {
    let refused = |message: String| {
        let help = "the first word behind `--` is the program; no shell reads the command (`sh -c '…'` is one)";
        Refused::Command { message, help: help.to_owned() }
    };
    program::runnable(name, env, Path::new(".")).map_err(refused)
}

/// Everything that can wake the loop.
enum Event {
    Came(What),
    InputBroke(io::Error),
    InputEnded,
    Ended(Box<Done>),
    SlotsGone,
    StopRequested,
}

struct Mapping {
    slots: usize,
    /// None once nothing more is handed out.
    work: Option<Sender<Input>>,
    inputs: Receiver<io::Result<What>>,
    ended: Receiver<Box<Done>>,
    stop_heard: Receiver<()>,
    stop: Stop,
    printer: Printer,
    bar: Bar,
    shelf: Option<Shelf>,
    taken: u64,
    in_flight: usize,
    summary: Summary,
    trouble: Option<Refused>,
}

impl Mapping {
    fn run(mut self, threads: Vec<JoinHandle<()>>) -> Result<Summary, Refused> {
        loop {
            match self.next_event() {
                Event::Came(what) => self.hand_out(what),
                Event::InputBroke(error) => {
                    self.trouble.get_or_insert(Refused::Broken { what: "stdin can't be read", error });
                    self.end_input();
                }
                Event::InputEnded => self.end_input(),
                Event::Ended(done) => self.take_in(done),
                Event::SlotsGone => break,
                Event::StopRequested => {
                    self.stop_heard = never();
                    self.end_input();
                }
            }
        }
        // One whose slot panicked was never told of, and neither holds back the others nor counts as done.
        while let Some(done) = self.shelf.as_mut().and_then(Shelf::next_at_all) {
            self.show(&done);
        }
        self.summary.stopped = self.stop.is_pressed();
        if !self.stop.is_asked() {
            self.summary.failed += self.taken - self.summary.runs;
        }
        self.bar.finish();
        for thread in threads {
            let _ = thread.join();
        }
        match self.trouble {
            Some(trouble) => Err(trouble),
            None => {
                self.printer.tell(&self.summary, self.taken);
                Ok(self.summary)
            }
        }
    }

    fn next_event(&self) -> Event {
        let inputs = if self.may_take() { &self.inputs } else { &never() };
        select_biased! {
            recv(self.stop_heard) -> _ => Event::StopRequested,
            recv(self.ended) -> it => it.map_or(Event::SlotsGone, Event::Ended),
            recv(inputs) -> it => match it {
                Ok(Ok(what)) => Event::Came(what),
                Ok(Err(error)) => Event::InputBroke(error),
                Err(_) => Event::InputEnded,
            },
        }
    }

    /// Whether a slot can soon use another one, and there is room for what it prints.
    fn may_take(&self) -> bool {
        let has_room = self.shelf.as_ref().is_none_or(|shelf| !shelf.is_full());
        self.work.is_some() && self.in_flight < self.slots * 2 && has_room
    }

    fn hand_out(&mut self, what: What) {
        let Some(work) = &self.work else { return };
        self.taken += 1;
        self.in_flight += 1;
        let _ = work.send(Input { number: self.taken, what });
        self.bar.taken(self.taken);
    }

    /// The slots end once they have worked off what they have.
    fn end_input(&mut self) {
        self.work = None;
        self.bar.all_taken(self.taken);
    }

    fn take_in(&mut self, done: Box<Done>) {
        self.in_flight -= 1;
        // The same for every run: said once, and the end of it.
        if let End::NotRun { why, hopeless: true } = &done.end {
            let help = "nothing else was started".to_owned();
            self.trouble.get_or_insert(Refused::Command { message: why.clone(), help });
            self.stop.ask();
            return;
        }
        let Some(shelf) = &mut self.shelf else { return self.show(&done) };
        if let Err(error) = shelf.put(done) {
            self.trouble.get_or_insert(Refused::Broken { what: "output can't be kept until its turn", error });
            self.stop.ask();
        }
        while let Some(next) = self.shelf.as_mut().and_then(Shelf::next) {
            self.show(&next);
        }
    }

    fn show(&mut self, done: &Done) {
        // A run that was cut has no outcome.
        if done.end == End::Stopped {
            return;
        }
        self.summary.runs += 1;
        self.summary.failed += u64::from(!done.end.is_success());
        if self.summary.unread {
            return;
        }
        let printer = &mut self.printer;
        let printed = self.bar.aside(|| printer.show(done));
        self.bar.ended(self.summary.runs, self.summary.failed);
        match printed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.summary.unread = true;
                self.stop.ask();
            }
            // A stop, while nobody read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.summary.unread = true,
            Err(error) => {
                self.summary.unread = true;
                self.trouble.get_or_insert(Refused::Broken { what: "the output can't be written", error });
                self.stop.ask();
            }
        }
    }
}
