//! What the view is: the facts, where one is in them, and what is being asked. Pure: facts, keys and the time come in,
//! effects go out. Invariants: nothing that hurts is asked for without a yes; a row that is acted on is the one selected.

use jiff::Timestamp;
use ratatui::crossterm::event::KeyEvent;

use super::ask::{Ask, Effect};
use super::cursor::Cursor;
use super::facts::{Facts, JobFacts};
use super::history::History;
use super::job::JobView;
use super::keys::{self, Action, Place};
use super::layout::{self, Placed};
use super::paint::Paint;
use super::pane::Pane;
use crate::api::reference::written;
use crate::api::view::{DeviceView, DirectorState, Listed, RunningView};
use crate::logging::plain;

/// How long the answer to a request stands there.
const NOTE_SECONDS: i64 = 8;

/// Everything that can happen to the view.
#[derive(Debug)]
pub(super) enum Event {
    Key(KeyEvent),
    Resized(u16, u16),
    Facts(Box<Facts>),
    /// The director doesn't answer, and why.
    Lost(String),
    Job(Box<JobFacts>),
    /// What came of a request.
    Answered(Result<String, String>),
    /// A signal.
    Stop,
    /// A part of the view itself is gone.
    Broken(String),
}

/// A line that waits for y or n.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) text: String,
    ask: Ask,
}

#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) text: String,
    pub(super) wrong: bool,
    since: Timestamp,
}

/// A row of a list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Device(&'a DeviceView),
    Running(&'a RunningView),
    Item(&'a Listed),
}

impl Row<'_> {
    /// What tells it from all others.
    pub(super) fn key(&self) -> String {
        match self {
            Row::Device(device) => device.id.clone(),
            Row::Running(job) => job.job.clone(),
            Row::Item(item) => written(item),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct App {
    pub(super) facts: Option<Facts>,
    /// Why the director doesn't answer, and since when.
    pub(super) lost: Option<(String, Timestamp)>,
    pub(super) now: Timestamp,
    pub(super) history: History,
    pub(super) focus: Pane,
    cursors: [Cursor; Pane::ALL.len()],
    pub(super) filter: String,
    pub(super) typing: bool,
    pub(super) job: Option<JobView>,
    pub(super) help: bool,
    pub(super) question: Option<Question>,
    pub(super) note: Option<Note>,
    pub(super) size: (u16, u16),
    pub(super) paint: Paint,
}

impl App {
    pub(super) fn new(size: (u16, u16), paint: Paint, now: Timestamp) -> App {
        App {
            facts: None,
            lost: None,
            now,
            history: History::default(),
            focus: Pane::Running,
            cursors: Default::default(),
            filter: String::new(),
            typing: false,
            job: None,
            help: false,
            question: None,
            note: None,
            size,
            paint,
        }
    }

    /// Takes in what happened; what is to be done about it.
    pub(super) fn take_in(&mut self, event: Event, now: Timestamp) -> Option<Effect> {
        self.now = now;
        match event {
            Event::Key(key) => return self.press(key),
            Event::Resized(width, height) => self.size = (width, height),
            Event::Facts(facts) => self.learn(*facts),
            Event::Lost(why) => {
                let since = self.lost.as_ref().map_or(now, |(_, since)| *since);
                self.lost = Some((why, since));
            }
            Event::Job(job) => {
                if let Some(view) = self.job.as_mut().filter(|view| view.name == job.name) {
                    view.facts = Some(*job);
                }
            }
            Event::Answered(Ok(said)) => self.say(said, false),
            Event::Answered(Err(said)) => self.say(said, true),
            Event::Stop | Event::Broken(_) => return Some(Effect::Leave),
        }
        None
    }

    /// A second has passed.
    pub(super) fn tick(&mut self, now: Timestamp) {
        self.now = now;
        let old = |note: &Note| now.as_second() - note.since.as_second() >= NOTE_SECONDS;
        if self.note.as_ref().is_some_and(old) {
            self.note = None;
        }
        if let Some(facts) = self.facts.as_ref().filter(|_| self.lost.is_none()) {
            self.history.sample(facts, now);
        }
    }

    fn learn(&mut self, facts: Facts) {
        self.lost = None;
        self.history.count(&facts, self.now);
        self.facts = Some(facts);
        for pane in Pane::ALL {
            let keys = self.keys(pane);
            self.cursors[pane as usize].settle(&keys);
        }
        // Nobody should act in a list that is no longer there.
        if self.focus.goes_when_empty() && self.rows(self.focus).is_empty() {
            self.focus = Pane::Running;
        }
    }

    fn say(&mut self, text: impl Into<String>, wrong: bool) {
        self.note = Some(Note { text: text.into(), wrong, since: self.now });
    }

    // What is where.

    pub(super) fn place(&self) -> Place {
        match () {
            () if self.question.is_some() => Place::Question,
            () if self.help => Place::Help,
            () if self.job.is_some() => Place::Job,
            () if self.typing => Place::Filter,
            () => Place::Lists,
        }
    }

    /// The rows of a pane that pass the filter.
    pub(super) fn rows(&self, pane: Pane) -> Vec<Row<'_>> {
        let Some(facts) = &self.facts else { return Vec::new() };
        let wanted = self.filter.to_lowercase();
        let passes = |name: &str| wanted.is_empty() || plain(name).to_lowercase().contains(&wanted);
        let passing = |item: &&Listed| passes(&item.name) || passes(&item.folder);
        match pane {
            Pane::Devices => facts.status.devices.iter().map(Row::Device).collect(),
            Pane::Running => facts.status.running.iter().filter(|job| passes(&job.name)).map(Row::Running).collect(),
            Pane::Waiting => facts.waiting.iter().filter(passing).map(Row::Item).collect(),
            Pane::Failed => facts.failed.iter().filter(passing).map(Row::Item).collect(),
            Pane::Held => facts.held.iter().filter(passing).map(Row::Item).collect(),
        }
    }

    fn keys(&self, pane: Pane) -> Vec<String> {
        self.rows(pane).iter().map(Row::key).collect()
    }

    /// How many there are of a kind, also those that aren't listed.
    pub(super) fn total(&self, pane: Pane) -> u64 {
        let Some(facts) = &self.facts else { return 0 };
        match pane {
            Pane::Devices => facts.status.devices.len() as u64,
            Pane::Running => facts.status.running.len() as u64,
            Pane::Waiting => facts.waiting_total(),
            Pane::Failed => facts.status.counts.failed,
            Pane::Held => facts.status.counts.held,
        }
    }

    /// The place of the selected row among [`App::rows`].
    pub(super) fn selected(&self, pane: Pane) -> usize {
        self.cursors[pane as usize].at()
    }

    pub(super) fn selected_row(&self) -> Option<Row<'_>> {
        self.rows(self.focus).get(self.selected(self.focus)).copied()
    }

    pub(super) fn state(&self) -> DirectorState {
        self.facts.as_ref().map_or(DirectorState::Stopped, |facts| facts.status.state)
    }

    fn placed(&self) -> Placed {
        layout::place(self, ratatui::layout::Rect::new(0, 0, self.size.0, self.size.1))
    }

    // Keys.

    fn press(&mut self, key: KeyEvent) -> Option<Effect> {
        let action = keys::action(self.place(), key)?;
        match action {
            Action::Leave => return Some(Effect::Leave),
            Action::Back => return self.back(),
            Action::Help => self.help = true,
            Action::Pane(by) => self.turn(by),
            Action::Rows(by) => self.step(by),
            Action::Pages(by) => self.step(by * self.page()),
            Action::First => self.step(isize::MIN / 2),
            Action::Last => self.step(isize::MAX / 2),
            Action::Open => return self.open(),
            Action::Filter => self.typing = true,
            Action::Accept => self.typing = false,
            Action::Type(c) => self.narrow(|filter| filter.push(c)),
            Action::Erase => self.narrow(|filter| {
                filter.pop();
            }),
            Action::EraseAll => self.narrow(String::clear),
            Action::Yes => return self.question.take().map(|question| Effect::Ask(question.ask)),
            Action::No => {
                self.question = None;
                self.say("nothing done", false);
            }
            Action::Pause => return self.pause(),
            Action::Drain => self.drain(),
            Action::Retry => return self.retry(),
            Action::Cancel => self.cancel(),
            Action::Cordon => return self.cordon(),
        }
        None
    }

    /// Out of the innermost place; out of the lists is out of the program.
    fn back(&mut self) -> Option<Effect> {
        match self.place() {
            Place::Help => self.help = false,
            Place::Question => self.question = None,
            Place::Job => {
                self.job = None;
                return Some(Effect::Follow(None));
            }
            Place::Filter => {
                self.typing = false;
                self.narrow(String::clear);
            }
            Place::Lists if !self.filter.is_empty() => self.narrow(String::clear),
            Place::Lists => return Some(Effect::Leave),
        }
        None
    }

    /// Panes with rows only: there is nothing to do in the others.
    fn turn(&mut self, by: isize) {
        let filled: Vec<Pane> = Pane::ALL.into_iter().filter(|pane| !self.rows(*pane).is_empty()).collect();
        self.focus = self.focus.step(by, &filled);
    }

    fn page(&self) -> isize {
        let placed = self.placed();
        let rows = match self.place() {
            Place::Job => placed.log.height,
            _ => placed.panes[self.focus as usize].height.saturating_sub(1),
        };
        isize::from(rows.max(2) as i16 - 1)
    }

    fn step(&mut self, by: isize) {
        let log = self.placed().log;
        if let Some(job) = &mut self.job {
            return job.step(by, log.width.into(), log.height.into());
        }
        let keys = self.keys(self.focus);
        self.cursors[self.focus as usize].step(by, &keys);
    }

    fn narrow(&mut self, change: impl FnOnce(&mut String)) {
        change(&mut self.filter);
        for pane in Pane::ALL {
            let keys = self.keys(pane);
            self.cursors[pane as usize].settle(&keys);
        }
        if self.rows(self.focus).is_empty() {
            let filled = Pane::ALL.into_iter().skip(1).find(|pane| !self.rows(*pane).is_empty());
            self.focus = filled.unwrap_or(self.focus);
        }
    }

    fn open(&mut self) -> Option<Effect> {
        let name = match self.selected_row()? {
            Row::Device(device) => {
                let facts = self.facts.as_ref()?;
                let on = |job: &&RunningView| job.devices.contains(&device.id);
                match facts.status.running.iter().find(on) {
                    Some(job) => job.job.clone(),
                    None => {
                        self.say("nothing of this director runs on it", false);
                        return None;
                    }
                }
            }
            row => row.key(),
        };
        self.job = Some(JobView::new(name.clone()));
        Some(Effect::Follow(Some(name)))
    }

    // Requests.

    fn ask_first(&mut self, text: String, ask: Ask) {
        self.note = None;
        self.question = Some(Question { text, ask });
    }

    fn pause(&mut self) -> Option<Effect> {
        match self.state() {
            DirectorState::Paused => return Some(Effect::Ask(Ask::Resume)),
            DirectorState::Running => self.ask_first("Pause? Nothing new starts until p again.".to_owned(), Ask::Pause),
            DirectorState::Draining => self.say("it is draining: it ends once nothing runs", true),
            DirectorState::Stopped => self.nobody(),
        }
        None
    }

    fn drain(&mut self) {
        match self.state() {
            DirectorState::Stopped => self.nobody(),
            DirectorState::Draining => self.say("it is draining already", false),
            _ => {
                let text = "Drain? What runs ends, nothing new is taken, then the director ends.";
                self.ask_first(text.to_owned(), Ask::Drain);
            }
        }
    }

    fn nobody(&mut self) {
        self.say("no director is running: start one with `gamdok run`", true);
    }

    /// The selected item, or the one that is looked at: what names it, what to call it, where it stands.
    fn item(&self) -> Option<(String, String, String)> {
        if let Some(job) = &self.job {
            let listed = job.listed()?;
            return Some((written(listed), listed.name.clone(), listed.state.clone()));
        }
        let row = self.selected_row()?;
        match row {
            Row::Device(_) => None,
            Row::Running(job) => Some((row.key(), job.name.clone(), "running".to_owned())),
            Row::Item(item) => Some((row.key(), item.name.clone(), item.state.clone())),
        }
    }

    fn retry(&mut self) -> Option<Effect> {
        match self.item() {
            Some((name, _, state)) if matches!(state.as_str(), "done" | "failed" | "cancelled") => {
                return Some(Effect::Ask(Ask::Retry(name)));
            }
            Some((_, name, state)) => self.say(format!("{name} is {state}: only what has ended can be retried"), true),
            None => self.say("select an item that failed first", true),
        }
        None
    }

    fn cancel(&mut self) {
        match self.item() {
            Some((_, name, state)) if matches!(state.as_str(), "done" | "failed" | "cancelled") => {
                self.say(format!("{name} has ended: {state}"), true);
            }
            Some((_, name, state)) if state == "ignored" => {
                self.say(format!("{name} has a temporary name: it is no item"), true);
            }
            Some((what, name, state)) => {
                let lost = if state == "running" { " What it did so far is lost." } else { "" };
                self.ask_first(format!("Cancel {name}?{lost}"), Ask::Cancel(what));
            }
            None => self.say("select an item first", true),
        }
    }

    fn cordon(&mut self) -> Option<Effect> {
        let Some(Row::Device(device)) = self.selected_row() else {
            self.say("select a device first", true);
            return None;
        };
        let id = device.id.clone();
        if is_cordoned(device) {
            return Some(Effect::Ask(Ask::Uncordon(id)));
        }
        let text = format!("Cordon {}? It takes no more work until o again.", called(device));
        self.ask_first(text, Ask::Cordon(id));
        None
    }
}

/// The reason says so, at its beginning or as what keeps more work out.
fn is_cordoned(device: &DeviceView) -> bool {
    device.reason.starts_with("cordoned") || kept_out(device).is_some_and(|why| why.starts_with("cordoned"))
}

/// Why a device on which something runs takes no more.
pub(super) fn kept_out(device: &DeviceView) -> Option<&str> {
    device.reason.split_once("takes no more: ").map(|(_, why)| why)
}

/// What people call a device: by its index, as everywhere.
pub(super) fn called(device: &DeviceView) -> String {
    device.index.map_or_else(|| device.id.clone(), |index| format!("GPU {index}"))
}
