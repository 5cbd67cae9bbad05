//! A run from its start to its end. The calling thread merges, and is the only one that decides: what is tried again, when
//! it has failed, and when all is done. Invariant: it returns only when every thread of the run has ended.

use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, Builder, Scope};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select, unbounded};

use super::consumer::{Batch, BatchError, Consumer, Kind};
use super::input::Input;
use super::journal::{Header, Record};
use super::merge::{Order, Output, Part, Then};
use super::name::output_name;
use super::producer::{self, Limits, Sink};
use super::queue::{Queue, Task};
use super::setup::{Error, Progress, Setup, Summary};
use super::slot::{Event, Packer, Slot};
use crate::item::Counters;

/// Failures that aren't its own before a batch has failed all the same.
const MAX_UNCOUNTED: u32 = 10;
const MAX_BACKOFF: Duration = Duration::from_secs(600);
/// Of one file; more is a mistake that would fill our memory, and the journal.
const MAX_COUNTERS: usize = 1000;
/// One line is held whole, whatever the bound on memory; a longer one is a mistake, or an attack.
const LONGEST_LINE: u64 = 48 << 20;
/// Below this, bounds on memory would only slow it down.
const MIN_MEMORY: u64 = 1 << 20;

/// Splits, works and merges until the output is whole. Blocks meanwhile.
pub fn run(mut setup: Setup) -> Result<Summary, Error> {
    setup.check()?;
    let mut input = Input::open(&setup.input)?;
    let path = setup.out_dir.join(output_name(&setup.name, setup.compress.is_some()));
    fs::create_dir_all(&setup.out_dir).map_err(|source| {
        let path = setup.out_dir.clone();
        Error::Output { what: "make", path, source }
    })?;
    let header = Header::new(&input.identity, setup.compress.is_some(), &setup.tag);
    let then = if setup.keep_state { Then::Keep } else { Then::Clear };
    let mut output = Output::open(&setup.state_dir, &path, &header, &setup.stop, then)?;
    let resumed = output.standing().batches;
    let mut retried = 0;
    (setup.counted)(&output.standing().counters);
    if !output.standing().end {
        let Record { lines, batches, position: bytes, .. } = *output.standing();
        (setup.progress)(Progress { lines, batches, bytes, bytes_total: input.identity.bytes });
        input.skip(output.standing().offset, &setup.stop)?;
        retried = work(&mut setup, &mut input, &mut output)?;
    }
    let standing = output.standing().clone();
    // Nothing at all isn't gzip: every reader needs a member.
    let tail = if standing.length == 0 { Packer::new(setup.compress).member(&[]) } else { Vec::new() };
    let output_bytes = standing.length + if standing.end { 0 } else { tail.len() as u64 };
    output.finish(&tail)?;
    let (batches, lines, input_bytes) = (standing.batches, standing.lines, standing.offset);
    let counters = standing.counters;
    Ok(Summary { output: path, output_bytes, batches, lines, input_bytes, resumed, retried, counters })
}

/// Works off all batches that aren't merged yet. Answers how many retries it took.
fn work(setup: &mut Setup, input: &mut Input, output: &mut Output) -> Result<u64, Error> {
    let memory = setup.memory.max(MIN_MEMORY);
    let batch_bytes = usize::try_from(memory / 6).unwrap_or(usize::MAX);
    let longest = usize::try_from(memory.max(LONGEST_LINE)).unwrap_or(usize::MAX);
    let limits = Limits { lines: setup.lines, bytes: batch_bytes, line: longest };
    let from = output.standing().place();
    let bytes_total = input.identity.bytes;
    // Twice: a buffer that grew by doubling.
    let queue = Queue::new(memory / 2, batch_bytes.saturating_mul(2), from.batches);
    let (tell, events) = unbounded();
    thread::scope(|scope| {
        let told = tell.clone();
        let mut sink = Telling { queue: &queue, tell: tell.clone(), sent: 0 };
        let read = move || {
            let read = AssertUnwindSafe(|| producer::produce(input, limits, from, &mut sink));
            let end =
                catch_unwind(read).unwrap_or_else(|_| Err(Error::Broken("reading the input panicked".to_owned())));
            // The merging thread hears to the end.
            let _heard = told.send(Event::Produced(end));
        };
        Builder::new()
            .name("split-read".to_owned())
            .spawn_scoped(scope, read)
            .map_err(|error| Error::Broken(format!("cannot start the thread that reads the input: {error}")))?;
        let (order, known) = (Order::new(from.batches), output.standing().counters.clone());
        let (slots, calls) = (setup.slots.clone(), setup.calls.clone());
        let mut merging = Merging {
            setup,
            queue: &queue,
            output,
            order,
            tell,
            slots,
            calls,
            no_more_slots: false,
            is_ahead: false,
            live: 0,
            last_words: None,
            total: None,
            is_producing: true,
            delayed: Vec::new(),
            retried: 0,
            bytes_total,
            known,
            has_news: false,
        };
        let end = merging.carry_on(scope, &events);
        queue.halt();
        merging.hear_out(&events);
        end.map(|()| merging.retried)
    })
}

/// The queue, for the producer.
struct Telling<'q> {
    queue: &'q Queue,
    tell: Sender<Event>,
    sent: u64,
}

impl Sink for Telling<'_> {
    fn send(&mut self, batch: Batch) -> ControlFlow<()> {
        self.queue.send(batch)?;
        self.sent += 1;
        // One slot is enough for the first.
        if self.sent == 2 {
            let _heard = self.tell.send(Event::Ahead);
        }
        ControlFlow::Continue(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.queue.buffer()
    }

    fn is_halted(&self) -> bool {
        self.queue.is_halted()
    }
}

struct Merging<'m, 'a> {
    setup: &'m mut Setup<'a>,
    queue: &'m Queue,
    output: &'m mut Output,
    order: Order,
    tell: Sender<Event>,
    slots: Receiver<Box<dyn Consumer + Send + 'a>>,
    calls: Receiver<()>,
    no_more_slots: bool,
    /// More slots would have something to do, as far as was told.
    is_ahead: bool,
    /// Slots that work.
    live: usize,
    last_words: Option<String>,
    /// How many batches there are, once it is known.
    total: Option<u64>,
    is_producing: bool,
    /// Batches that are tried again later.
    delayed: Vec<(Instant, Task)>,
    retried: u64,
    bytes_total: u64,
    /// The counters of all parts that came.
    known: Counters,
    /// A part has come since progress was told.
    has_news: bool,
}

impl<'m, 'a> Merging<'m, 'a> {
    fn carry_on<'s>(&mut self, scope: &'s Scope<'s, '_>, events: &Receiver<Event>) -> Result<(), Error>
    where
        'm: 's,
        'a: 's,
    {
        let stop = self.setup.stop.clone();
        while self.total != Some(self.order.next()) {
            if stop.is_ordered() {
                // Slots heed the stop too, and may be gone before it is heard below.
                return Err(Error::Stopped);
            }
            if self.live == 0 && self.no_more_slots {
                return Err(Error::NoSlots { last: self.last_words.take() });
            }
            let due = self.delayed.iter().map(|(due, _)| *due).min();
            let timer = due.map_or_else(never, crossbeam_channel::at);
            select! {
                recv(events) -> event => {
                    // We hold a sender too.
                    let mut event = event.ok();
                    while let Some(next) = event {
                        self.hear(next)?;
                        event = events.try_recv().ok();
                    }
                    self.merge()?;
                    if self.is_ahead && !self.is_producing && self.queue.is_empty() {
                        self.tell_ahead(false);
                    }
                }
                recv(self.slots) -> consumer => match consumer {
                    Ok(consumer) => self.start(scope, consumer)?,
                    Err(_) => (self.slots, self.no_more_slots) = (never(), true),
                },
                recv(self.calls) -> called => match called {
                    Ok(()) => self.queue.call(),
                    Err(_) => self.calls = never(),
                },
                recv(stop.ordered()) -> _ => return Err(Error::Stopped),
                recv(timer) -> _ => self.put_back_what_is_due(Instant::now()),
            }
        }
        Ok(())
    }

    fn start<'s>(&mut self, scope: &'s Scope<'s, '_>, consumer: Box<dyn Consumer + Send + 'a>) -> Result<(), Error>
    where
        'm: 's,
        'a: 's,
    {
        let slot = Slot::new(consumer, self.queue, self.tell.clone(), Packer::new(self.setup.compress));
        // Counted first: a slot without a thread says that it is gone, like any other.
        self.live += 1;
        let started = Builder::new().name("split-slot".to_owned()).spawn_scoped(scope, move || slot.work());
        started.map(drop).map_err(|error| Error::Broken(format!("cannot start a slot's thread: {error}")))
    }

    fn hear(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Part(part) => self.accept(part)?,
            Event::Failed(task, error) => self.try_again(task, error)?,
            Event::Gone(last_words, late) => {
                self.live -= 1;
                self.note(&late)?;
                self.last_words = last_words.or(self.last_words.take());
            }
            Event::Produced(end) => {
                self.is_producing = false;
                self.total = Some(end?.batches);
            }
            Event::Ahead => self.tell_ahead(true),
        }
        Ok(())
    }

    fn accept(&mut self, part: Part) -> Result<(), Error> {
        self.known.add_all(&part.counters);
        let index = part.index;
        if self.known.len() > MAX_COUNTERS {
            let message = format!("with what it counted there are more than {MAX_COUNTERS} counters");
            let (batch, kind) = (format!("batch {index}"), Kind::Failed);
            return Err(Error::Batch { batch, index, message, attempts: 1, kind });
        }
        self.has_news = true;
        self.order.accept(part);
        Ok(())
    }

    /// What a slot counted after its last part.
    fn note(&mut self, late: &Counters) -> Result<(), Error> {
        if late.is_empty() {
            return Ok(());
        }
        self.known.add_all(late);
        if self.known.len() > MAX_COUNTERS {
            tracing::warn!(
                "what a slot counted at its end would make more than {MAX_COUNTERS} counters: it is left out"
            );
            return Ok(());
        }
        self.output.note(late)?;
        (self.setup.counted)(&self.output.standing().counters);
        Ok(())
    }

    fn tell_ahead(&mut self, is_ahead: bool) {
        self.is_ahead = is_ahead;
        (self.setup.ahead)(is_ahead);
    }

    fn try_again(&mut self, mut task: Task, error: BatchError) -> Result<(), Error> {
        if error.kind == Kind::Stopped && self.setup.stop.is_ordered() {
            return Err(Error::Stopped);
        }
        match next(&mut task, error.kind, self.setup.retries, self.setup.backoff) {
            Next::GiveUp => {
                let (index, attempts) = (task.batch.index, task.counted + task.uncounted);
                let BatchError { kind, message } = error;
                Err(Error::Batch { batch: task.batch.to_string(), index, message, attempts, kind })
            }
            Next::Again(wait) => {
                tracing::info!(batch = %task.batch, error = error.message, "tried again");
                self.retried += 1;
                task.batch.attempt += 1;
                if wait.is_zero() {
                    self.queue.put_back(task);
                } else {
                    self.delayed.push((Instant::now() + wait, task));
                }
                Ok(())
            }
        }
    }

    fn put_back_what_is_due(&mut self, now: Instant) {
        for (_, task) in self.delayed.extract_if(.., |(due, _)| *due <= now) {
            self.queue.put_back(task);
        }
    }

    /// Writes the parts whose turn it is.
    fn merge(&mut self) -> Result<(), Error> {
        let ready = self.order.ready();
        if !ready.is_empty() {
            self.output.append(&ready)?;
            if ready.iter().any(|part| !part.counters.is_empty()) {
                (self.setup.counted)(&self.output.standing().counters);
            }
            self.queue.merged(self.order.next(), ready.into_iter().map(|part| part.bytes));
        }
        if !std::mem::take(&mut self.has_news) {
            return Ok(());
        }
        let standing = self.output.standing();
        let (lines, batches, bytes) = (standing.lines, standing.batches, standing.position + self.order.early_bytes());
        (self.setup.progress)(Progress { lines, batches, bytes, bytes_total: self.bytes_total });
        Ok(())
    }

    /// Waits for all threads after it was decided how it ends. Slots finish the batches they have; those in order are
    /// kept for the next run.
    fn hear_out(&mut self, events: &Receiver<Event>) {
        // How it ends is decided: an error here would say the same again, or less.
        let _decided = self.merge();
        while 0 < self.live || self.is_producing {
            let Ok(event) = events.recv() else { return };
            match event {
                // A part with too many counters ends the next run, which makes it again.
                Event::Part(part) => drop(self.accept(part)),
                Event::Gone(_, late) => {
                    self.live -= 1;
                    let _decided = self.note(&late);
                }
                Event::Produced(_) => self.is_producing = false,
                Event::Failed(..) | Event::Ahead => {}
            }
            let _decided = self.merge();
        }
    }
}

/// What follows a failure.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Again(Duration),
    GiveUp,
}

/// Counts the failure, and decides.
fn next(task: &mut Task, kind: Kind, retries: u32, backoff: Duration) -> Next {
    let (count, most) = match kind {
        Kind::Failed | Kind::OutOfMemory | Kind::Final => (&mut task.counted, retries),
        Kind::Later | Kind::NotStarted { .. } | Kind::SlotLost | Kind::Stopped => (&mut task.uncounted, MAX_UNCOUNTED),
    };
    *count += 1;
    let wait = match kind {
        Kind::Failed | Kind::OutOfMemory => doubled(backoff, *count),
        // Nobody says when it will be better.
        Kind::Later | Kind::NotStarted { .. } => doubled(backoff.max(Duration::from_secs(1)), *count),
        Kind::Final | Kind::SlotLost | Kind::Stopped => Duration::ZERO,
    };
    let is_hopeless = matches!(kind, Kind::Final | Kind::NotStarted { host: false });
    if is_hopeless || most < *count { Next::GiveUp } else { Next::Again(wait) }
}

fn doubled(backoff: Duration, nth: u32) -> Duration {
    backoff.saturating_mul(1 << nth.saturating_sub(1).min(20)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_and_bounded() {
        let check = |kinds: &[Kind], retries: u32, expected: &str| {
            let batch = Batch {
                index: 0,
                bytes: vec![],
                lines: 1,
                first_line: 1,
                offset: 0,
                attempt: 1,
                file_bytes: 0,
                file_end: 0,
            };
            let mut task = Task { batch, counted: 0, uncounted: 0 };
            let mut said = Vec::new();
            for kind in kinds {
                said.push(match next(&mut task, *kind, retries, Duration::from_secs(5)) {
                    Next::Again(wait) => wait.as_secs().to_string(),
                    Next::GiveUp => "no".to_owned(),
                });
            }
            assert_eq!(said.join(" "), expected, "{kinds:?}");
        };
        use Kind::{Failed, Final, Later, NotStarted, OutOfMemory, SlotLost, Stopped};
        check(&[Failed], 0, "no");
        check(&[Failed, Failed, Failed], 2, "5 10 no");
        check(&[Failed; 10], 9, "5 10 20 40 80 160 320 600 600 no");
        check(&[OutOfMemory, Failed, OutOfMemory], 2, "5 10 no");
        check(&[Final], 9, "no");
        check(&[SlotLost, Failed, SlotLost, Failed], 1, "0 5 0 no");
        check(&[Later, Later, Failed], 0, "5 10 no");
        check(&[NotStarted { host: true }, Later, Failed], 0, "5 10 no");
        check(&[NotStarted { host: false }], 9, "no");
        check(&[Stopped], 0, "0");
        check(&[SlotLost; 11], 0, "0 0 0 0 0 0 0 0 0 0 no");
    }
}
