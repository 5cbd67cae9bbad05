//! The writer: one thread that takes all entries that wait and writes them in one transaction. Between them it compares
//! the ledger with the directories when there is a reason to: at the start, after lost entries, when it is told to.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select};
use jiff::Timestamp;
use rusqlite::TransactionBehavior;

use super::counted::{Counted, InHand, Sums};
use super::rebuild::{Progress, Survey, SurveyError};
use super::row::{Account, CLAIMED};
use super::samples;
use super::schema::{self, Found, Store};
use super::tables::{Tables, nanoseconds};
use super::{Entries, Entry, Lag, Order, Pace, Setup};
use crate::health::{Check, What};
use crate::item::JobId;

/// How long the first entry waits for company. Most items of a busy director begin and end within it, and then cost
/// one row written once.
const GATHER: Duration = Duration::from_millis(100);
/// The entries of one transaction.
const GROUP: usize = 16_384;
/// The samples that wait for a file to be written to: of eight devices those of an hour and a half. They can't be mended
/// from the directories, so they are kept as long as that goes.
const UNSAVED: usize = 50_000;
/// After a failure of the disk.
const RETRY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

pub(super) struct Writer {
    setup: Setup,
    root: PathBuf,
    queue: Receiver<(u64, Entry)>,
    orders: Receiver<Order>,
    dropped: Arc<AtomicU64>,
    in_hand: InHand,
    lag: Arc<Lag>,
    tell: Tell,
    said: Option<Check>,
    started_at: i64,
    store: Option<Store>,
    survey: Option<Survey>,
    /// A survey is due, because entries were lost or someone asked for it.
    due: Option<Due>,
    /// Since entries were lost, the sums are of no one moment; until the directories have told what was missed.
    lost: bool,
    /// Samples that aren't in the file yet, and how many had to go.
    unsaved: samples::Batch,
    unsaved_lost: u64,
    /// The file has told how long items take.
    paces_told: bool,
    /// The last entry that was taken from the queue.
    upto: u64,
    /// Nothing is tried before, after a failure.
    retry_at: Option<Instant>,
    /// A file was found broken and set aside.
    broke_at: Option<Instant>,
}

/// Whom the writer tells what.
pub(super) struct Tell {
    pub(super) health: Sender<Check>,
    pub(super) counted: Counted,
    pub(super) recounted: Sender<()>,
    pub(super) paces: Sender<Vec<Pace>>,
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Due {
    /// Directories came or went.
    Look,
    /// Entries were lost: rows may be out of date.
    Mend,
}

/// What one round took from the queue.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    /// The number of the last one.
    upto: u64,
    flushes: Vec<Sender<()>>,
    /// Entries that found no room since the last round.
    lost: u64,
    stop: bool,
}

impl Batch {
    fn add(&mut self, (number, entry): (u64, Entry)) {
        self.upto = number;
        match entry {
            Entry::Stop => self.stop = true,
            entry => self.entries.push(entry),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Flush(answer) => self.flushes.push(answer),
            Order::Stop => self.stop = true,
        }
    }

    /// Someone waits for it.
    fn is_urgent(&self) -> bool {
        self.stop || !self.flushes.is_empty()
    }
}

impl Writer {
    pub(super) fn new(
        setup: Setup,
        queue: Receiver<(u64, Entry)>,
        orders: Receiver<Order>,
        entries: &Entries,
        tell: Tell,
    ) -> Writer {
        let root = setup.claimed.parent().unwrap_or(Path::new("/")).to_owned();
        Writer {
            setup,
            root,
            queue,
            orders,
            dropped: entries.dropped.clone(),
            in_hand: entries.in_hand.clone(),
            lag: entries.lag.clone(),
            tell,
            said: None,
            started_at: nanoseconds(Timestamp::now()).unwrap_or_default(),
            store: None,
            survey: None,
            due: None,
            lost: false,
            unsaved: samples::Batch::default(),
            unsaved_lost: 0,
            paces_told: false,
            upto: 0,
            retry_at: None,
            broke_at: None,
        }
    }

    pub(super) fn run(mut self) {
        self.open();
        loop {
            let batch = self.gather();
            self.upto = self.upto.max(batch.upto);
            self.write(batch.entries, batch.lost);
            let looked = self.look_on();
            self.tell_sums(looked);
            if !self.lost && self.retry_at.is_none() {
                self.lag.is_written(self.upto);
            }
            for answer in batch.flushes {
                let _ = answer.send(());
            }
            if batch.stop {
                break;
            }
        }
        // Left open in disorder while something is owed: the next start then knows that rows may be out of date.
        let owes = self.due == Some(Due::Mend) || self.survey.is_some_and(|survey| survey.mends());
        if let Some(store) = self.store.take_if(|_| !owes) {
            store.close();
        }
    }

    /// Waits for entries, unless there is something to do between them.
    fn gather(&self) -> Batch {
        let mut batch = Batch::default();
        let busy = self.survey.is_some() || self.due.is_some();
        if !(busy && self.store.is_some() && self.retry_at.is_none()) {
            self.wait(&mut batch);
        }
        // Orders first: what was sent before one of them is in the queue by now.
        self.orders.try_iter().for_each(|order| batch.obey(order));
        // The losses likewise, and then all entries: a lost one is later than what is in the queue, and what the
        // directories tell of it must not be overwritten by an earlier entry.
        batch.lost = self.dropped.swap(0, Ordering::AcqRel);
        let limit = if batch.is_urgent() || batch.lost > 0 { usize::MAX } else { GROUP };
        self.queue.try_iter().take(limit).for_each(|entry| batch.add(entry));
        batch
    }

    /// Waits for the first entry, and then for others to join it; entries after the first don't wake this thread.
    fn wait(&self, batch: &mut Batch) {
        let retry = self.retry_at.map_or_else(never, at);
        select! {
            recv(self.queue) -> entry => match entry {
                Ok(entry) => batch.add(entry),
                Err(_) => batch.stop = true,
            },
            recv(self.orders) -> order => match order {
                Ok(order) => batch.obey(order),
                Err(_) => batch.stop = true,
            },
            recv(retry) -> _ => return,
        }
        if !batch.is_urgent()
            && let Ok(order) = self.orders.recv_timeout(GATHER)
        {
            batch.obey(order);
        }
    }

    fn write(&mut self, entries: Vec<Entry>, lost: u64) {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
        }
        if self.store.as_ref().is_some_and(|store| !store.is_in_place()) {
            tracing::warn!(file = %self.setup.file.display(), "the ledger was removed or replaced; it is opened again");
            self.store = None;
            self.survey = None;
        }
        if self.store.is_none() && self.retry_at.is_none() {
            self.open();
        }
        if lost > 0 {
            tracing::warn!(lost, "the ledger fell behind; the directories tell it what it missed");
            self.say(Check::degraded(What::Ledger, format!("{lost} entries found no room; catching up")));
            self.owe();
        }
        let (rows, asked) = self.rows(entries);
        self.bound_samples();
        if asked {
            self.due = Some(self.due.unwrap_or(Due::Look));
        }
        if rows.is_empty() && self.unsaved.samples.is_empty() {
            return;
        }
        if self.store.is_none() || self.retry_at.is_some() {
            if !rows.is_empty() {
                self.owe();
            }
            return;
        }
        let batch = std::mem::take(&mut self.unsaved);
        let written = self.transact(|tables| {
            rows.iter().try_for_each(|account| tables.put(account))?;
            Ok(samples::put(tables.0, &batch)?)
        });
        match written {
            Ok(()) => {
                if self.unsaved_lost > 0 {
                    let lost = std::mem::take(&mut self.unsaved_lost);
                    tracing::warn!(lost, "device samples are missing: there was no ledger to keep them in");
                }
                let ended = rows.iter().filter(|account| account.row.place != CLAIMED);
                ended.for_each(|account| self.in_hand.remove(account.row.id));
            }
            Err(error) => {
                self.unsaved = batch;
                self.trouble(error);
            }
        }
    }

    /// Lets the oldest samples go when too many wait.
    fn bound_samples(&mut self) {
        let surplus = self.unsaved.samples.len().saturating_sub(UNSAVED);
        self.unsaved.samples.drain(..surplus);
        self.unsaved_lost += surplus as u64;
    }

    /// Something was lost that only the directories can tell.
    fn owe(&mut self) {
        self.due = Some(Due::Mend);
        self.lost = true;
    }

    /// Tells what all ended jobs counted, when that is of one moment; `looked`: the directories have told something.
    fn tell_sums(&mut self, looked: bool) {
        // One that was lost in this very moment may be older than what was taken.
        let of_one_moment = !self.lost && self.retry_at.is_none() && self.dropped.load(Ordering::Acquire) == 0;
        let Some(store) = self.store.as_ref().filter(|_| of_one_moment) else { return };
        match schema::counters(&store.connection) {
            Ok(counters) => {
                let changed = self.tell.counted.write(Sums { counters, upto: self.upto });
                if changed && looked {
                    // When one is there already, it will be read after this.
                    let _told = self.tell.recounted.try_send(());
                }
            }
            Err(error) => self.trouble(error.into()),
        }
    }

    /// The last word on each job; earlier ones would be overwritten anyway. And whether a look was asked for.
    fn rows(&mut self, mut entries: Vec<Entry>) -> (Vec<Account>, bool) {
        let mut asked = false;
        let mut last: HashMap<JobId, usize> = HashMap::new();
        for (at, entry) in entries.iter_mut().enumerate() {
            match entry {
                Entry::Sampled(batch) => self.unsaved.add(std::mem::take(batch)),
                Entry::Claimed { record, .. } | Entry::Changed { record, .. } | Entry::Ended { record, .. } => {
                    last.insert(record.id, at);
                }
                Entry::Reconcile => asked = true,
                Entry::Stop => {}
            }
        }
        let mut kept: Vec<usize> = last.into_values().collect();
        kept.sort_unstable();
        let row = |at: usize| match &entries[at] {
            Entry::Claimed { record, dir } => Some(Account::live(record, place_and_name(dir).1, CLAIMED)),
            Entry::Changed { record, state } => Some(Account::live(record, record.dir().to_string(), state)),
            Entry::Ended { record, result, dir } => {
                let (place, job) = place_and_name(dir);
                Some(Account::ended(record, result, job, place))
            }
            Entry::Sampled(_) | Entry::Reconcile | Entry::Stop => None,
        };
        (kept.into_iter().filter_map(row).collect(), asked)
    }

    /// Goes on comparing with the directories, where that is due; answers whether it did.
    fn look_on(&mut self) -> bool {
        let Some(store) = self.store.as_ref().filter(|_| self.retry_at.is_none()) else { return false };
        if self.survey.is_none() {
            let Some(due) = self.due.take() else { return false };
            let since = (due == Due::Mend).then_some(self.started_at - MARGIN_NS);
            if due == Due::Mend {
                self.in_hand.clear();
            }
            self.survey = Some(Survey::new(&self.root, since, store.local, self.in_hand.clone()));
        }
        let Some(mut survey) = self.survey.take() else { return false };
        match self.transact(|tables| {
            let progress = survey.step(tables)?;
            if progress == Progress::Finished {
                tables.set_complete()?;
            }
            Ok(progress)
        }) {
            Ok(Progress::More) => self.survey = Some(survey),
            Ok(Progress::Finished) => {
                if survey.read + survey.forgotten > 0 {
                    let (read, forgotten) = (survey.read, survey.forgotten);
                    tracing::info!(read, forgotten, "the ledger was mended from the directories");
                }
                if !std::mem::replace(&mut self.paces_told, true) || survey.read > 0 {
                    self.tell_paces();
                }
                self.lost = self.due == Some(Due::Mend);
                self.say(Check::ok(What::Ledger));
            }
            Err(error) => self.trouble(error),
        }
        true
    }

    /// Tells how long items took of late. A director that hasn't heard of the last time yet needs no second.
    fn tell_paces(&mut self) {
        let Some(store) = &self.store else { return };
        match super::paces::of(&store.connection) {
            Ok(paces) => {
                let _told = self.tell.paces.try_send(paces);
            }
            Err(error) => self.trouble(error.into()),
        }
    }

    fn open(&mut self) {
        self.survey = None;
        let (store, found) = match Store::open(&self.setup.file) {
            Ok(opened) => opened,
            Err(error) => return self.trouble(error.into()),
        };
        let local = store.local;
        self.store = Some(store);
        match &found {
            Found::Whole | Found::CutOff => {}
            // A new root's is no news.
            Found::Absent if !has_history(&self.root) => {}
            Found::Absent => self.say_rebuilding("is new: samples of the devices begin anew"),
            Found::OtherVersion => self.say_rebuilding("was written by another version"),
            Found::Broken(aside) => {
                let kept = self.salvage(aside);
                self.say_rebuilding(&format!("was broken and lies aside as `{}`: {kept}", aside.display()));
            }
        }
        let prepared = self.transact(|tables| {
            tables.settle_live()?;
            // What was lost at a cut is later than what wasn't.
            let newest = if found == Found::CutOff { tables.newest()? } else { None };
            Ok(newest.map(|at| at - MARGIN_NS))
        });
        match prepared {
            Ok(since) => {
                self.survey = Some(Survey::new(&self.root, since, local, self.in_hand.clone()));
            }
            Err(error) => self.trouble(error),
        }
    }

    /// Takes over what a broken file still tells of the devices, and says how much that is.
    fn salvage(&mut self, aside: &Path) -> String {
        let salvaged = self.transact(|tables| Ok(samples::salvage(tables.0, aside)?));
        let words = match &salvaged {
            Ok(samples::Salvage { minutes, lost: false }) => format!("{minutes} minutes of device samples are kept"),
            Ok(samples::Salvage { minutes: 0, lost: true }) => "the device samples in it are lost".to_owned(),
            Ok(samples::Salvage { minutes, lost: true }) => {
                format!("{minutes} minutes of device samples could be read in it, the others are lost")
            }
            Err(error) => format!("the device samples in it are lost ({error})"),
        };
        tracing::warn!(aside = %aside.display(), "the ledger was broken: {words}");
        words
    }

    fn say_rebuilding(&mut self, why: &str) {
        tracing::info!(file = %self.setup.file.display(), "the ledger {why}; it is filled from the directories");
        self.say(Check::degraded(What::Ledger, format!("it {why}; it is being filled from the directories")));
    }

    fn transact<T>(&mut self, work: impl FnOnce(Tables<'_>) -> Result<T, SurveyError>) -> Result<T, SurveyError> {
        let Some(store) = &mut self.store else {
            return Err(rusqlite::Error::InvalidQuery.into());
        };
        let change = store.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made = work(Tables(&change))?;
        change.commit()?;
        Ok(made)
    }

    /// Something failed: what the ledger missed is made good from the directories, at once or when the disk recovers.
    fn trouble(&mut self, error: SurveyError) {
        self.owe();
        self.survey = None;
        self.say(Check::degraded(What::Ledger, format!("{error}; `list` and `show` may miss the latest")));
        let broken = matches!(&error, SurveyError::Ledger(error) if schema::is_broken(error));
        if broken && self.store.take().is_some() {
            let aside = schema::set_aside(&self.setup.file);
            tracing::warn!(%error, aside = %aside.display(), "the ledger is broken; a new one is made");
            // Twice within a short time is the disk's doing, and another file won't help.
            let again = self.broke_at.replace(Instant::now()).is_some_and(|at| at.elapsed() < RETRY);
            if !again {
                self.open();
                if self.store.is_some() && self.retry_at.is_none() {
                    let kept = self.salvage(&aside);
                    self.say_rebuilding(&format!("was broken and lies aside as `{}`: {kept}", aside.display()));
                }
                return;
            }
        } else {
            tracing::warn!(%error, "the ledger can't be kept up; trying again in {} s", RETRY.as_secs());
        }
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// Tells the director, on change only.
    fn say(&mut self, check: Check) {
        if self.said.as_ref() != Some(&check) && self.tell.health.try_send(check.clone()).is_ok() {
            self.said = Some(check);
        }
    }
}

/// The clocks of a file system and of the host may differ by a little.
const MARGIN_NS: i64 = 10_000_000_000;

/// Whether any job ever ended here.
fn has_history(root: &Path) -> bool {
    let any = |shelf: &str| std::fs::read_dir(root.join(shelf)).is_ok_and(|mut days| days.next().is_some());
    any("done") || any("failed")
}

/// `…/done/2026-11-22/<job>` → (`done/2026-11-22`, `<job>`).
fn place_and_name(dir: &Path) -> (String, String) {
    let word = |path: Option<&Path>| {
        path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let parent = dir.parent();
    let (job, day) = (word(Some(dir)), word(parent));
    if day == CLAIMED {
        return (day, job);
    }
    (format!("{}/{day}", word(parent.and_then(Path::parent))), job)
}
