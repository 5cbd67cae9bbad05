//! The loop: facts in, plan, effects out. The only owner of the state and the only place that starts or stops anything.
//! Invariants: nothing in the loop returns early or blocks; every wait is a channel in one `select`; a worker reports
//! exactly once, so a lease always comes back.

mod attempts;
mod claims;
mod counting;
mod energy;
mod estimates;
mod gaps;
mod news;
mod notices;
mod publish;
mod requests;
mod residents;
mod samples;
mod slots;
mod start;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, at, never, select_biased};
use tracing::{debug, error, info, warn};

use crate::config::{self, Config};
use crate::devices::locks::Locks;
use crate::devices::pin::Cores;
use crate::devices::prober::{self, Prober};
use crate::devices::{self, CordonBy, DeviceId, HostMode, Snapshot};
use crate::health::{Check, Condition, What};
use crate::inbox::{self, Scanner};
use crate::item::{JobId, Step, StopWhy};
use crate::ledger::{self, Ledger};
use crate::metrics::Metrics;
use crate::notifier::{self, Notifier};
use crate::plan::{Decision, plan};
use crate::root::Root;
use crate::spool::{self, Spool};
use crate::state::{Phase, ResidentId, Stages, State};
use crate::units::{Clock, Moment};
use crate::{api, worker};

pub(crate) use news::News;
pub use news::{Ended, Event as NewsEvent, Events};
pub(crate) use start::REQUESTS;
pub use start::{Guest, Options, RunError, run};

/// How a run of the director ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Items that were done in this run.
    pub done: u64,
    /// Those that failed in it.
    pub failed: u64,
    /// Those that were cancelled in it.
    pub cancelled: u64,
    /// Jobs of an earlier run that lie in `claimed/` still: they could not be taken up, or their outcome not written.
    pub left: u64,
    /// Items that lie in the inbox and can't be taken.
    pub held: u64,
    /// Running items were stopped by a second signal.
    pub interrupted: bool,
}

/// Everything that can wake the director. What isn't listed here can't happen to it.
enum Event {
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    Worker(worker::Event),
    Spool(spool::Answer),
    Probed(Snapshot),
    Asked(api::Request),
    /// An item to cancel that wasn't offered was looked at.
    Inspected(requests::Inspected),
    Configured(Result<(Config, Vec<config::Warning>), config::ConfigError>),
    Inbox(inbox::Notice),
    Ledger(Check),
    /// A courier gets through again, or doesn't.
    Notified(notifier::Said),
    /// The ledger has other sums of counters.
    Recounted,
    /// A part's thread is no more, and its channel closed.
    Gone(Part),
    /// A moment that the director waits for has come.
    Due,
}

/// The parts that the director listens to and that could die. Workers aren't among them: it holds a sender of theirs.
#[derive(Clone, Copy, Debug)]
enum Part {
    Signals,
    Spool,
    Prober,
    Interface,
    Configuration,
    Ledger,
    Scanner,
}

/// How many events are taken in before the next plan: a burst costs one plan, and a stop still gets through.
const BURST: usize = 256;
/// The least time between two publications: readers see every change within it.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);
/// The same while very many jobs wait, when a view is large.
const PUBLISH_LARGE_EVERY: Duration = Duration::from_millis(500);
/// How long claims pause when the spool had no room, before one is tried again.
const CLAIMS_PAUSE: Duration = Duration::from_secs(1);
/// How long another director's lock keeps a device out before it is tried again.
const LOCKED_OUT: Duration = Duration::from_secs(1);
/// A prober with a driver says something every few seconds. After this long its heart is looked at.
const PROBER_QUIET: Duration = Duration::from_secs(10);

/// A worker that runs, with what must be let go when it ends.
struct Running {
    handle: attempts::Holder,
    meter: energy::Meter,
    peak_memory: Option<u64>,
    started: Moment,
}

impl Running {
    fn new(handle: attempts::Holder, started: Moment) -> Running {
        Running { handle, meter: energy::Meter::default(), peak_memory: None, started }
    }
}

struct Director {
    clock: Clock,
    config: Config,
    root: Arc<Root>,
    once: bool,
    state: State,
    snapshot: Snapshot,
    counts: inbox::Counts,
    health: BTreeMap<What, Check>,
    running: HashMap<JobId, Running>,
    residents: HashMap<ResidentId, worker::ResidentHandle>,
    /// Batches that wait for their attempts to be written down.
    forming: Vec<residents::Forming>,
    locks: Locks,
    /// What each running attempt's devices are locked with.
    held_locks: HashMap<JobId, Vec<Arc<OwnedFd>>>,
    /// The same of further slots.
    slot_locks: BTreeMap<(JobId, u32), Vec<Arc<OwnedFd>>>,
    cores: Cores,
    ids: ulid::Generator,
    /// What plan asked the prober to attend to last.
    attended: (Vec<DeviceId>, bool),
    /// Answers owed to the scanner, sent together.
    taken: Vec<claims::Taken>,
    /// What was taken and is counted as ready still, until the scanner has heard of it; and how many came before these.
    unheard: VecDeque<claims::Taken>,
    heard: u64,
    /// Finishes that the spool has answered.
    filed: u64,
    /// Claims that end as cancelled, and jobs to cancel once their claim is there.
    cancelling: HashSet<JobId>,
    retries: Vec<requests::PendingRetry>,
    claims_resume: Option<Moment>,
    /// Why they paused last, told once; none since one went well.
    claims_paused: Option<String>,
    signals: u32,
    summary: Summary,
    counting: counting::Counting,
    estimates: estimates::Estimates,
    sampler: samples::Sampler,
    gaps: gaps::Gaps,
    metrics: Arc<Metrics>,
    dirty: bool,
    published_at: Moment,
    number: u64,
    watchdog: Option<Duration>,
    watchdog_at: Moment,
    /// When the prober last said something, or its heart was looked at instead.
    heard_at: Moment,
    /// It hangs in the driver, and the devices are unknown for that.
    prober_hangs: bool,
    /// When the other directors of this host were last told and heard.
    met_others_at: Moment,
    /// Failed attempts whose devices are being looked at.
    unjudged: Vec<attempts::Unjudged>,
    /// Who waits until a cordon is written down, in the order in which they asked.
    cordoning: VecDeque<requests::PendingCordon>,
    releasing: Vec<requests::Reply>,
    /// What the program that this director runs in gave it, and hears of it.
    guest: start::Guest,

    // In the order in which they are to drop: what others wait on first.
    events: Sender<worker::Event>,
    inspections: Sender<requests::Inspected>,
    board: api::Board,
    /// What the interface goes by for what lies in the inbox.
    directories: api::directories::Directories,
    stops: Receiver<()>,
    reports: Receiver<worker::Event>,
    inspected: Receiver<requests::Inspected>,
    requests: Receiver<api::Request>,
    configured: config::watch::Watcher,
    scanner: Scanner,
    prober: Prober,
    spool: Spool,
    ledger: Ledger,
    notifier: Notifier,
}

impl Director {
    fn run(&mut self) {
        self.decide();
        while !self.is_over() {
            let mut event = Some(self.next_event());
            for _ in 0..BURST {
                let Some(fact) = event else { break };
                self.state.now = self.clock.now();
                self.take_in(fact);
                event = self.waiting_event();
            }
            if let Some(fact) = event {
                self.take_in(fact);
            }
            self.decide();
        }
    }

    /// One plan, carried out, and what follows from it.
    fn decide(&mut self) {
        self.state.now = self.clock.now();
        self.expire();
        if !self.residents.is_empty() && self.once_is_done() {
            self.drain();
        }
        for decision in plan(&self.state, &self.snapshot) {
            self.carry_out(decision);
        }
        self.forget_gaps();
        self.attend();
        self.answer_scanner();
        self.publish_if_due();
    }

    /// Waits for whatever comes first. Translates and does nothing else.
    fn next_event(&self) -> Event {
        let timer = self.next_due().map_or_else(never, |moment| at(self.clock.instant(moment)));
        // Biased: neither a stop nor a report may queue behind a thousand arrivals.
        select_biased! {
            recv(self.stops) -> it => it.map_or(Event::Gone(Part::Signals), |()| Event::Signal),
            recv(self.reports) -> it => it.map_or(Event::Due, Event::Worker),
            recv(self.spool.answers) -> it => it.map_or(Event::Gone(Part::Spool), Event::Spool),
            recv(self.prober.snapshots) -> it => it.map_or(Event::Gone(Part::Prober), Event::Probed),
            recv(self.requests) -> it => it.map_or(Event::Gone(Part::Interface), Event::Asked),
            recv(self.inspected) -> it => it.map_or(Event::Due, Event::Inspected),
            recv(self.configured.changes) -> it => it.map_or(Event::Gone(Part::Configuration), Event::Configured),
            recv(self.ledger.health) -> it => it.map_or(Event::Gone(Part::Ledger), Event::Ledger),
            recv(self.notifier.heard()) -> it => it.map_or(Event::Due, Event::Notified),
            recv(self.ledger.recounted) -> it => it.map_or(Event::Gone(Part::Ledger), |()| Event::Recounted),
            recv(timer) -> _ => Event::Due,
            recv(self.scanner.notices) -> it => it.map_or(Event::Gone(Part::Scanner), Event::Inbox),
        }
    }

    /// What else has come in the meantime.
    fn waiting_event(&self) -> Option<Event> {
        if let Ok(it) = self.reports.try_recv() {
            return Some(Event::Worker(it));
        }
        if let Ok(it) = self.spool.answers.try_recv() {
            return Some(Event::Spool(it));
        }
        if let Ok(it) = self.prober.snapshots.try_recv() {
            return Some(Event::Probed(it));
        }
        self.scanner.notices.try_recv().ok().map(Event::Inbox)
    }

    fn take_in(&mut self, event: Event) {
        self.dirty |= !matches!(event, Event::Due);
        match event {
            Event::Signal => self.on_signal(),
            Event::Worker(event) => self.on_worker(event),
            Event::Spool(answer) => self.on_spool(answer),
            Event::Probed(snapshot) => self.on_snapshot(snapshot),
            Event::Gone(part) => self.on_gone(part),
            Event::Asked(request) => self.on_request(request),
            Event::Inspected(inspected) => self.on_inspected(inspected),
            Event::Configured(outcome) => self.on_configured(outcome),
            Event::Inbox(notice) => self.on_inbox(notice),
            Event::Ledger(check) => self.set_health(check),
            Event::Notified(said) => {
                let check = self.notifier.on_said(said);
                self.set_health(check);
            }
            // What is published next has them.
            Event::Recounted | Event::Due => {}
        }
    }

    /// A closed channel is always ready and would spin the loop: it is replaced by one that never is, and people are told.
    fn on_gone(&mut self, part: Part) {
        let failed = |what, words: &str| Check::failed(what, format!("{words} has failed: restart the director"));
        match part {
            Part::Signals => self.stops = never(),
            Part::Prober => {
                self.prober.snapshots = never();
                self.prober_hangs = true;
                self.devices_unknown("the thread that asks the driver has failed: restart the director".to_owned());
            }
            Part::Spool => {
                self.spool.answers = never();
                self.state.may_claim = false;
                self.set_health(failed(What::Spool, "the spool's thread"));
            }
            Part::Interface => {
                self.requests = never();
                error!("the interface's thread has failed: no command reaches this director; restart it by a signal");
            }
            Part::Configuration => {
                self.configured.changes = never();
                self.set_health(failed(What::Config, "the thread that follows the configuration"));
            }
            Part::Ledger => {
                self.ledger.health = never();
                self.ledger.recounted = never();
                self.set_health(failed(What::Ledger, "the ledger's thread"));
            }
            Part::Scanner => {
                self.scanner.notices = never();
                self.set_health(failed(What::Inbox, "the thread that reads the inbox"));
            }
        }
    }

    fn carry_out(&mut self, decision: Decision) {
        self.dirty = true;
        debug!(?decision, "decided");
        match decision {
            Decision::Check { devices } => {
                for id in &devices {
                    self.state.device_mut(id).asked_at = Some(self.state.now);
                }
                self.to_prober(prober::Ask::Check(devices));
            }
            Decision::Claim { key } => self.claim(&key),
            Decision::Refuse { key, reason } => self.refuse(&key, reason),
            Decision::Start { job, on } => self.start(job, on),
            Decision::Warm { job, on } => self.warm(job, on),
            Decision::Hand { jobs, to } => self.hand(jobs, to),
            Decision::Retire { resident, why } => self.retire(resident, why),
            Decision::Grow { job, on } => self.grow(job, on),
            Decision::Shrink { job, slot } => self.shrink(job, slot),
            Decision::Stop { job } => self.stop(job, StopWhy::DeviceLost),
            Decision::Due { job } => self.step(job, Step::Due),
        }
    }

    /// One step of one job. A refused step is a mistake in here: it is reported, and the job stays where it was.
    fn step(&mut self, job: JobId, step: Step) {
        self.dirty = true;
        if let Err(illegal) = self.state.step(job, step) {
            error!(%job, %illegal, "a step that the lifecycle doesn't know");
            debug_assert!(false, "{illegal}");
        }
    }

    fn is_over(&self) -> bool {
        let stages = self.state.stages();
        let busy = stages.running > 0 || stages.committing > 0;
        match self.state.phase {
            Phase::Draining => !busy && !self.state.is_claiming() && self.residents.is_empty(),
            // What can't be written (full disk), a result or a planned attempt, isn't waited for: the next start goes on.
            Phase::Stopping => self.running.is_empty() && self.residents.is_empty() && (!busy || self.spool_is_stuck()),
            Phase::Paused | Phase::Running => self.once_is_done() && self.residents.is_empty(),
        }
    }

    /// With `once`: all that lay in the inbox has ended.
    fn once_is_done(&self) -> bool {
        let stages = self.state.stages();
        let empty = stages == Stages::default() && self.retries.is_empty();
        self.once && empty && self.counts.drained && self.state.offers().next().is_none()
    }

    fn spool_is_stuck(&self) -> bool {
        [What::Spool, What::Space].iter().any(|what| self.health.get(what).is_some_and(|it| it.state != Condition::Ok))
    }

    fn on_signal(&mut self) {
        self.signals += 1;
        if self.signals == 1 && self.state.phase != Phase::Stopping {
            let running = self.state.stages().running;
            info!(running, "stopping: no new work; running items finish (a second signal stops them)");
            self.drain();
        } else {
            warn!(running = self.state.stages().running, "stopping now: running items are ended and stay in claimed/");
            self.summary.interrupted = true;
            self.state.phase = Phase::Stopping;
            let ids: Vec<JobId> =
                self.state.jobs().filter(|job| !job.stage.leased().is_empty()).map(|job| job.record.id).collect();
            for id in ids {
                self.stop(id, StopWhy::Shutdown);
            }
            self.residents.values().for_each(|resident| resident.stop(None, StopWhy::Shutdown));
        }
    }

    /// No new claims and no new starts from here on.
    fn drain(&mut self) {
        if matches!(self.state.phase, Phase::Running | Phase::Paused) {
            self.state.phase = Phase::Draining;
            self.guest.news.tell(|| NewsEvent::Draining);
            self.tell_manager(sd_notify::NotifyState::Stopping);
        }
    }

    /// Tells the service manager, whose service this is, unless a program of others has it.
    fn tell_manager(&self, state: sd_notify::NotifyState) {
        if !self.guest.is_one() {
            let _ = sd_notify::notify(&[state]);
        }
    }

    fn on_snapshot(&mut self, snapshot: Snapshot) {
        self.heard_at = self.state.now;
        // What a closure leaves on a device, such as a context, is this process' own.
        let snapshot = match self.guest.closures.is_empty() {
            true => snapshot,
            false => crate::lender::without_own(snapshot, std::process::id()),
        };
        self.prober_hangs = false;
        let trouble = snapshot.trouble.clone();
        if trouble != self.snapshot.trouble {
            match &trouble {
                Some(why) => warn!(why, "the devices can't be read"),
                None => info!("the devices can be read again"),
            }
        }
        self.set_health(match trouble {
            Some(why) => Check::failed(What::Devices, why),
            None => Check::ok(What::Devices),
        });
        self.log_verdict_changes(&snapshot);
        self.state.observe(&snapshot);
        self.snapshot = snapshot;
        self.meet_others();
        self.note_peaks();
        self.note_energy();
        self.note_samples();
        self.judge_failed();
        if self.snapshot.is_released() {
            self.answer_releases();
        }
    }

    fn log_verdict_changes(&self, next: &Snapshot) {
        for reading in &next.devices {
            let known = self.snapshot.devices.iter().any(|old| old.id == reading.id);
            if !known {
                info!(device = %reading.id, index = reading.index, name = reading.name, kind = ?reading.kind, "device found");
            }
        }
        for old in &self.snapshot.devices {
            if !next.devices.iter().any(|reading| reading.id == old.id) {
                warn!(device = %old.id, name = old.name, "device gone");
            }
        }
    }

    fn on_configured(&mut self, outcome: Result<(Config, Vec<config::Warning>), config::ConfigError>) {
        let (mut new, warnings) = match outcome {
            Ok(read) => read,
            Err(error) => {
                warn!(error = error.summary(), "the changed configuration is not valid; the old one stays in force");
                self.set_health(Check::failed(
                    What::Config,
                    format!("the changed file is not valid, the old one stays in force: {}", error.summary()),
                ));
                return;
            }
        };
        let restart = self.config.needs_restart(&new);
        // What needs a restart stays as it is until then.
        new.root.clone_from(&self.config.root);
        new.devices.backend = self.config.devices.backend;
        new.api = self.config.api.clone();
        for warning in &warnings {
            warn!(warning, "configuration");
        }
        self.set_health(if restart.is_empty() {
            Check::ok(What::Config)
        } else {
            Check::degraded(What::Config, format!("a restart is needed for the change of {}", restart.join(", ")))
        });
        if new == self.config {
            return;
        }
        let kept = (new.history.keep_done, new.history.keep_failed)
            != (self.config.history.keep_done, self.config.history.keep_failed);
        info!(routes = new.routes.len(), "the changed configuration is in force");
        self.config = new;
        self.board.configure(&self.config);
        self.state.rules = devices::resolved(&self.config.devices);
        self.state.set_routes(self.config.routes.clone());
        if kept {
            self.keep_history();
        }
        self.to_prober(prober::Ask::Reconfigure(Arc::new(self.state.rules.clone())));
        self.notify_as_configured();
        start::make_folders(&self.root, &self.config);
        self.directories.reconfigure(&self.config);
        // Everything unclaimed is judged by the new routes: the scanner offers it again.
        self.state.take_offers();
        self.to_scanner(inbox::Answer::Reconfigure {
            rules: Arc::new(self.config.inbox.clone()),
            routes: self.config.routes.clone(),
        });
    }

    /// Tells the spool how long ended jobs are kept.
    fn keep_history(&self) {
        let config::History { keep_done: done, keep_failed: failed, .. } = self.config.history;
        self.to_spool(spool::Task::Keep { done, failed });
    }

    fn set_health(&mut self, check: Check) {
        let before = self.health.get(&check.what);
        if before == Some(&check) {
            return;
        }
        self.dirty = true;
        let (what, why) = (check.what.as_str(), crate::item::shown(&check.message));
        match check.state {
            Condition::Ok if before.is_some_and(|it| it.state != Condition::Ok) => info!(what, "well again"),
            Condition::Ok => {}
            Condition::Degraded => warn!(what, why, "degraded"),
            Condition::Failed => error!(what, why, "failed"),
        }
        self.tell_of_root(before.map(|it| it.state), &check);
        self.health.insert(check.what, check);
    }

    /// What time alone changes.
    fn expire(&mut self) {
        let now = self.state.now;
        if self.claims_resume.is_some_and(|moment| moment <= now) {
            self.claims_resume = None;
            self.state.may_claim = !self.has_nowhere_to_claim();
        }
        let locked_out: Vec<DeviceId> =
            self.locked_out().filter(|(_, until)| *until <= now).map(|(id, _)| id.clone()).collect();
        for id in locked_out {
            self.state.device_mut(&id).cordon = None;
        }
        match self.prober.silent_for(now).filter(|_| !self.prober_hangs) {
            Some(silence) => {
                self.prober_hangs = true;
                self.devices_unknown(format!("the driver hasn't answered for {} s", silence.as_secs()));
            }
            None if self.heard_at + PROBER_QUIET <= now => self.heard_at = now,
            None => {}
        }
        self.judge_failed();
        self.locks.stop_waiting(now);
        if let Some(period) = self.watchdog.filter(|_| self.watchdog_at <= now) {
            self.tell_manager(sd_notify::NotifyState::Watchdog);
            self.watchdog_at = now + period;
        }
    }

    fn locked_out(&self) -> impl Iterator<Item = (&DeviceId, Moment)> {
        self.state.devices().filter_map(|(id, device)| {
            let cordon = device.cordon.as_ref().filter(|cordon| cordon.by == CordonBy::OtherDirector)?;
            Some((id, cordon.since + LOCKED_OUT))
        })
    }

    /// When the prober is to be looked at. What hangs is noticed by its heart alone: a check may have to wait behind
    /// others, and a sweep that nobody asked for hangs as well.
    fn prober_due(&self) -> Option<Moment> {
        if self.prober_hangs {
            return None;
        }
        let quiet = || self.heard_at + PROBER_QUIET;
        let driven = self.snapshot.mode == HostMode::Gpu && self.snapshot.trouble.is_none();
        self.prober.hangs_at().or_else(|| driven.then(quiet))
    }

    /// What the driver last said stands, for what runs; nothing new is started on its word.
    fn devices_unknown(&mut self, why: String) {
        warn!(why, "the devices are unknown");
        self.refuse_releases(&why);
        self.set_health(Check::failed(What::Devices, why.clone()));
        self.snapshot.trouble = Some(why);
        self.dirty = true;
    }

    /// The next moment that matters, if nothing happens before.
    fn next_due(&self) -> Option<Moment> {
        let publish = self.dirty.then(|| self.published_at + self.publish_period());
        let probe = self.prober_due();
        let watchdog = self.watchdog.map(|_| self.watchdog_at);
        let locked_out = self.locked_out().map(|(_, until)| until).min();
        let retry = self.state.next_retry();
        let known =
            [publish, probe, watchdog, locked_out, retry, self.claims_resume, self.state.next_change(&self.snapshot)];
        let known = known.into_iter().chain([self.next_judgement()]);
        known.flatten().min()
    }

    /// Tells the prober what matters, when that has changed.
    fn attend(&mut self) {
        let leased: Vec<DeviceId> = self
            .state
            .devices()
            .filter(|(id, device)| !device.leases.held.is_empty() && **id != DeviceId::cpu())
            .map(|(id, _)| id.clone())
            .collect();
        let work_waits = self.work_waits();
        if !work_waits {
            self.locks.wait_for_none();
        }
        if self.attended != (leased.clone(), work_waits) {
            self.attended = (leased.clone(), work_waits);
            self.to_prober(prober::Ask::Attend { leased, work_waits });
        }
    }

    fn work_waits(&self) -> bool {
        self.state.waiting().next().is_some() || self.state.offers().next().is_some()
    }

    // What is told to the others. Each of them lives until this thread lets it go; one that died took its health with it.

    fn to_spool(&self, task: spool::Task) {
        let _ = self.spool.tasks.send(task);
    }

    fn to_prober(&self, ask: prober::Ask) {
        let _ = self.prober.asks.send(ask);
    }

    fn to_scanner(&self, answer: inbox::Answer) {
        let _ = self.scanner.answers.send(answer);
    }

    /// Answers the entry's number.
    fn to_ledger(&self, entry: ledger::Entry) -> u64 {
        self.ledger.entries.send(entry)
    }

    fn answer_scanner(&mut self) {
        if !self.taken.is_empty() {
            let taken = std::mem::take(&mut self.taken);
            self.to_scanner(inbox::Answer::Taken(taken.iter().map(|it| it.key.clone()).collect()));
            self.unheard.extend(taken);
        }
    }
}
