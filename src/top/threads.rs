//! The threads at the edge: one reads the director, one the keys, one the job that is looked at, one asks for what a
//! person wants. Each tells of what it finds through the one channel; none touches the view. They end when the view does,
//! or with the process.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ratatui::crossterm::event::{self, Event as Input};

use super::app::Event;
use super::ask::Ask;
use super::facts::{Facts, JobFacts, Log, ShownJob};
use super::source::Source;
use super::tail::Tail;
use crate::api::client::ClientError;
use crate::api::directories;
use crate::api::view::Listed;

/// Between two looks at a busy director, and at one with many rows.
const BREATH: Duration = Duration::from_millis(250);
const LONG_BREATH: Duration = Duration::from_secs(1);
const MANY: usize = 300;

/// Between two tries to find a director, and between two looks at the directories while there is none.
const KNOCK: Duration = Duration::from_secs(1);
const DIRECTORIES: Duration = Duration::from_secs(10);

/// Between two looks at a log. Not every file system tells when a file grows, and a look is one system call.
const LOOK: Duration = Duration::from_millis(300);
/// Between two looks at the job itself.
const JOB: Duration = Duration::from_secs(1);

/// Runs `work`; a panic in it ends the view instead of leaving it without eyes.
pub(super) fn spawn(
    name: &str,
    events: Sender<Event>,
    work: impl FnOnce(&Sender<Event>) + Send + 'static,
) -> std::io::Result<()> {
    struct Guard(Sender<Event>);
    impl Drop for Guard {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let _ = self.0.send(Event::Broken("a part of `top` failed: this is a bug".to_owned()));
            }
        }
    }
    let guard = Guard(events);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&guard.0)).map(drop)
}

/// Reads keys and sizes until the terminal is gone.
pub(super) fn keys(events: &Sender<Event>) {
    loop {
        let event = match event::read() {
            Ok(Input::Key(key)) => Event::Key(key),
            Ok(Input::Resize(width, height)) => Event::Resized(width, height),
            Ok(_) => continue,
            Err(wrong) => Event::Broken(format!("the terminal can't be read: {wrong}")),
        };
        let ends = matches!(event, Event::Broken(_));
        if events.send(event).is_err() || ends {
            return;
        }
    }
}

/// Asks, one after the other.
pub(super) fn hand(source: &Source, asks: &Receiver<Ask>, events: &Sender<Event>) {
    for ask in asks {
        if events.send(Event::Answered(source.ask(&ask))).is_err() {
            return;
        }
    }
}

/// Nobody looks any more.
struct Left;

/// Reads the director, or the directories while there is none, until `stop` is closed.
pub(super) fn facts(source: &Source, stop: &Receiver<()>, events: &Sender<Event>) {
    let _left = Watch { source, stop, events, read: None }.run();
}

struct Watch<'a> {
    source: &'a Source,
    stop: &'a Receiver<()>,
    events: &'a Sender<Event>,
    /// When the directories were read last, while no director runs.
    read: Option<Instant>,
}

impl Watch<'_> {
    fn run(mut self) -> Result<(), Left> {
        loop {
            match self.watch()? {
                ClientError::NoDirector { .. } => self.read_directories()?,
                wrong => {
                    self.read = None;
                    self.tell(Event::Lost(wrong.to_string()))?;
                }
            }
            self.wait(KNOCK)?;
        }
    }

    /// Follows a director until it no longer answers.
    fn watch(&mut self) -> Result<ClientError, Left> {
        let client = match self.source.connect() {
            Ok(client) => client,
            Err(wrong) => return Ok(wrong),
        };
        let mut before: Option<Facts> = None;
        let mut after = 0;
        loop {
            match self.source.look(&client, before.as_ref()) {
                Ok(facts) => {
                    self.read = None;
                    before = Some(facts.clone());
                    let many = facts.waiting.len() > MANY;
                    self.tell(Event::Facts(Box::new(facts)))?;
                    self.wait(if many { LONG_BREATH } else { BREATH })?;
                }
                Err(wrong) => return Ok(wrong),
            }
            loop {
                match self.source.changed(&client, after) {
                    Ok(number) if number == after => {}
                    Ok(number) => {
                        after = number;
                        break;
                    }
                    Err(wrong) => return Ok(wrong),
                }
                self.wait(Duration::ZERO)?;
            }
        }
    }

    fn read_directories(&mut self) -> Result<(), Left> {
        if self.read.is_some_and(|at| at.elapsed() < DIRECTORIES) {
            return Ok(());
        }
        self.read = Some(Instant::now());
        match self.source.without() {
            Ok(facts) => self.tell(Event::Facts(Box::new(facts))),
            Err(wrong) => self.tell(Event::Lost(format!("the root can't be read: {wrong}"))),
        }
    }

    fn tell(&self, event: Event) -> Result<(), Left> {
        self.events.send(event).map_err(|_| Left)
    }

    fn wait(&self, span: Duration) -> Result<(), Left> {
        match self.stop.recv_timeout(span) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Left),
        }
    }
}

/// Follows the job that is looked at, while one is.
pub(super) fn job(source: &Source, wanted: &Receiver<Option<String>>, events: &Sender<Event>) {
    let mut following: Option<Following> = None;
    loop {
        let next = match &following {
            None => wanted.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => wanted.recv_timeout(LOOK),
        };
        match next {
            Ok(name) => following = name.map(Following::new),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Some(job) = following.as_mut().and_then(|following| following.look(source))
            && events.send(Event::Job(Box::new(job))).is_err()
        {
            return;
        }
    }
}

struct Following {
    /// As it was asked for.
    name: String,
    last: Option<JobFacts>,
    looked: Option<Instant>,
    tail: Option<(u32, Tail)>,
}

impl Following {
    fn new(name: String) -> Following {
        Following { name, last: None, looked: None, tail: None }
    }

    /// How it stands now; nothing when that isn't news.
    fn look(&mut self, source: &Source) -> Option<JobFacts> {
        let known = self.last.as_ref().and_then(|last| Some(last.shown.as_ref().ok()?.0.listed.clone()));
        let due = self.looked.is_none_or(|at| at.elapsed() >= JOB);
        let shown = match &self.last {
            Some(last) if !due => last.shown.clone(),
            _ => {
                self.looked = Some(Instant::now());
                self.show(source, known.as_ref()).map(|shown| Box::new(ShownJob(shown)))
            }
        };
        let listed = shown.as_ref().ok().map(|shown| &shown.0.listed);
        let grown = listed.and_then(|listed| source.dir(listed)).is_some_and(|dir| self.read(&dir));
        if !due && !grown {
            return None;
        }
        let log = self.tail.as_ref().map(|(attempt, tail)| Log { attempt: *attempt, lines: tail.lines() });
        let now = JobFacts { name: self.name.clone(), shown, log };
        if self.last.as_ref() == Some(&now) {
            return None;
        }
        self.last = Some(now.clone());
        Some(now)
    }

    /// An item that waited is followed to the job that it becomes.
    fn show(&self, source: &Source, known: Option<&Listed>) -> Result<crate::api::view::Shown, String> {
        match known {
            Some(Listed { job: Some(job), .. }) => source.show(job),
            Some(known) => source.show(&self.name).or_else(|_| source.show(&known.name)),
            None => source.show(&self.name),
        }
    }

    /// Reads what was added to the last attempt's log; whether anything was.
    fn read(&mut self, dir: &std::path::Path) -> bool {
        let Some((attempt, path)) = directories::log(dir, None) else { return false };
        if self.tail.as_ref().is_none_or(|(n, _)| *n != attempt) {
            self.tail = Tail::open(&path).ok().map(|tail| (attempt, tail));
        }
        match self.tail.as_mut().map(|(_, tail)| tail.read()) {
            None => false,
            Some(Ok(grown)) => grown,
            Some(Err(_)) => {
                // It is opened again at the next look.
                self.tail = None;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_thread_that_panics_is_heard_of() {
        let (tell, events) = bounded(1);
        spawn("broken", tell, |_| panic!("on purpose")).expect("a thread");
        assert!(matches!(events.recv_timeout(Duration::from_secs(60)), Ok(Event::Broken(_))));
    }

    #[test]
    fn a_log_is_followed_to_the_next_attempt() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut following = Following::new("a".to_owned());
        let mut check = |attempt: u32, content: &str, grown: bool, last: Option<&str>| {
            if !content.is_empty() {
                std::fs::write(dir.path().join(format!("attempt-{attempt}.log")), content).expect("a log");
            }
            assert_eq!(following.read(dir.path()), grown, "{attempt} {content}");
            let lines = following.tail.as_ref().map(|(_, tail)| tail.lines()).unwrap_or_default();
            assert_eq!(lines.last().map(String::as_str), last, "{attempt} {content}");
        };
        check(1, "", false, None);
        check(1, "one\n", true, Some("one"));
        check(1, "", false, Some("one"));
        check(1, "one\ntwo\n", true, Some("two"));
        check(2, "again\n", true, Some("again"));
        check(1, "one\ntwo\nlate\n", false, Some("again"));
    }
}
