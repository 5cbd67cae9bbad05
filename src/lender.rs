//! Lends this host's GPUs to a program's own work: the director without a folder. One thread owns the state, the prober
//! and the locks; who asks waits for a loan, and gives it back by dropping it. What may be lent, and to whom, `plan` and
//! the verdict decide as they do for items.
//!
//! Invariants: a loan's device is leased and its host-wide lock is held for as long as the loan lives; a wish that nobody
//! waits for any more takes nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select_biased, unbounded};
use jiff::Timestamp;

use crate::config::{self, Backend, Route, limits};
use crate::devices::pin::Cores;
use crate::devices::prober::{self, Ask as Question, Prober};
use crate::devices::{Cordon, CordonBy, DeviceId, HostMode, Locks, Pin, Reading, Snapshot, cpu_slots, pin, resolved};
use crate::item::{Counters, ItemKind, ItemName, JobId, JobRecord, Outcome, Stage, Step};
use crate::plan::{Decision, lack, plan, wanted, why_waiting};
use crate::state::{Job, Pool, State};
use crate::units::{Clock, Moment};

/// A driver that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long another director's lock keeps a device out before it is tried again.
const LOCKED_OUT: Duration = Duration::from_secs(1);
/// When nothing could be lent for so long, people are told why; and how often.
const SILENCE: Duration = Duration::from_secs(2);
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What is asked of the devices, the same for every loan.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Who asks, for the words.
    pub(crate) name: String,
    pub(crate) rules: config::Devices,
    /// For each loan; 0 = CPU slots.
    pub(crate) gpus: u32,
    /// On a host without GPUs, CPU slots do.
    pub(crate) cpu_fallback: bool,
}

/// What this host has for these terms.
#[derive(Debug)]
pub(crate) enum Ground {
    /// So many CPU slots.
    Cpu(usize),
    /// GPUs, lent one loan at a time to at most so many.
    Gpus(Lender, usize),
}

/// These terms can't be met on this host, in words.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what}\nhelp: {help}")]
pub(crate) struct NoDevices {
    pub(crate) what: String,
    pub(crate) help: String,
}

/// Looks at the devices, and begins to lend where there are GPUs.
pub(crate) fn open(terms: Terms) -> Result<Ground, NoDevices> {
    terms.rules.check().map_err(|what| NoDevices {
        what: format!("{}: {what}", terms.name),
        help: "change the rules for the devices; `Rules::default()` are those of a configuration that says nothing"
            .to_owned(),
    })?;
    if !limits::GPUS.contains(&terms.gpus) {
        return Err(NoDevices {
            what: format!("{} asks for {} GPUs at a time", terms.name, terms.gpus),
            help: format!("ask for at most {}", limits::GPUS.end()),
        });
    }
    let rules = resolved(&terms.rules);
    let slots = cpu_slots(&rules) as usize;
    if terms.gpus == 0 || (rules.backend == Backend::Cpu && terms.cpu_fallback) {
        return Ok(Ground::Cpu(slots));
    }
    let clock = Clock::start();
    let prober = prober::start(Arc::new(rules.clone()), clock);
    let snapshot = prober.snapshots.recv_timeout(PATIENCE).map_err(|_| NoDevices {
        what: format!("the GPU driver doesn't answer within {} s", PATIENCE.as_secs()),
        help: "see whether `nvidia-smi` answers; look at `dmesg` for Xid lines".to_owned(),
    })?;
    let mut route = Route::new(&terms.name, Vec::new(), "/");
    (route.gpus, route.cpu_fallback) = (terms.gpus, terms.cpu_fallback);
    if Pool::of(&route, snapshot.mode) == Pool::Cpu {
        return Ok(Ground::Cpu(slots));
    }
    if let Some(lacking) = lack(&route, &snapshot) {
        let help = "`gamdok gpus` lists the devices; without GPUs, ask for CPU slots".to_owned();
        return Err(NoDevices { what: format!("{} {lacking}", terms.name), help });
    }
    if let Some(trouble) = &snapshot.trouble {
        let help = "`gamdok doctor` looks for the cause; without GPUs, ask for CPU slots".to_owned();
        return Err(NoDevices { what: format!("the GPUs can't be read: {trouble}"), help });
    }
    let gpus = snapshot.devices.iter().filter(|reading| reading.kind.is_gpu() && reading.excluded.is_none()).count();
    let most = (gpus * rules.slots as usize / terms.gpus as usize).max(1);
    let (asks, asked) = unbounded();
    let lending = Lending::new(rules, route, clock, prober, snapshot, asked);
    let started = thread::Builder::new().name("lender".to_owned()).spawn(move || lending.run());
    started.map_err(|error| NoDevices {
        what: format!("no thread can be started: {error}"),
        help: "see the limits on processes (`ulimit -u`)".to_owned(),
    })?;
    Ok(Ground::Gpus(Lender { asks }, most))
}

/// Where loans are asked for. The thread behind it ends with the last of its handles and loans.
#[derive(Clone, Debug)]
pub(crate) struct Lender {
    asks: Sender<Ask>,
}

impl Lender {
    /// Stands in line. `avoid` are devices that another one is better than.
    pub(crate) fn wish(&self, avoid: Vec<DeviceId>) -> Wish {
        let (reply, granted) = bounded(1);
        let id = JobId(ulid::Ulid::generate());
        let _ = self.asks.send(Ask::Want { id, avoid, reply, back: self.asks.clone() });
        Wish { id, granted, asks: self.asks.clone() }
    }
}

/// A place in line; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Wish {
    id: JobId,
    pub(crate) granted: Receiver<Loan>,
    asks: Sender<Ask>,
}

impl Drop for Wish {
    fn drop(&mut self) {
        let _ = self.asks.send(Ask::Forget { id: self.id });
    }
}

/// Devices of one's own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) id: JobId,
    pub(crate) on: Vec<DeviceId>,
    pub(crate) pin: Pin,
    /// The cores near the devices, or all that this process may use.
    pub(crate) cores: Arc<[usize]>,
    /// For a process to inherit: it keeps the devices locked should this one be killed.
    pub(crate) locks: Vec<Arc<OwnedFd>>,
    back: Sender<Ask>,
}

impl Loan {
    /// A process with a group of its own works on the devices.
    pub(crate) fn runs(&self, pid: i32) {
        let _ = self.back.send(Ask::Runs { id: self.id, pid });
    }

    /// Keeps this thread, and the processes it starts, near the devices.
    pub(crate) fn stay_near(&self) {
        let mut set = rustix::thread::CpuSet::new();
        self.cores.iter().for_each(|core| set.set(*core));
        if !self.cores.is_empty()
            && let Err(error) = rustix::thread::sched_setaffinity(None, &set)
        {
            tracing::debug!(%error, "can't stay near the device");
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // Before the news, so that whoever is granted the device next finds the lock free.
        self.locks.clear();
        let _ = self.back.send(Ask::Return { id: self.id });
    }
}

#[derive(Debug)]
enum Ask {
    Want { id: JobId, avoid: Vec<DeviceId>, reply: Sender<Loan>, back: Sender<Ask> },
    Runs { id: JobId, pid: i32 },
    Return { id: JobId },
    Forget { id: JobId },
}

/// Everything that can wake the thread.
enum Event {
    Asked(Ask),
    Probed(Snapshot),
    ProberGone,
    Due,
    NobodyAsks,
}

struct Want {
    reply: Sender<Loan>,
    back: Sender<Ask>,
    since: Moment,
}

struct Lending {
    clock: Clock,
    state: State,
    snapshot: Snapshot,
    route: Arc<Route>,
    wants: BTreeMap<JobId, Want>,
    locks: Locks,
    cores: Cores,
    all_cores: Arc<[usize]>,
    attended: (Vec<DeviceId>, bool),
    lent_at: Moment,
    told_at: Option<Moment>,
    asked: Receiver<Ask>,
    prober: Prober,
}

impl Lending {
    fn new(
        rules: config::Devices,
        route: Route,
        clock: Clock,
        prober: Prober,
        snapshot: Snapshot,
        asked: Receiver<Ask>,
    ) -> Lending {
        let mut state = State::new(rules);
        state.now = clock.now();
        let snapshot = without_own(snapshot, std::process::id());
        state.observe(&snapshot);
        let own = rustix::thread::sched_getaffinity(None).ok();
        let is_own = |core: &usize| own.as_ref().is_some_and(|own| own.is_set(*core));
        Lending {
            clock,
            lent_at: state.now,
            state,
            snapshot,
            route: Arc::new(route),
            wants: BTreeMap::new(),
            locks: Locks::open(),
            cores: Cores::default(),
            all_cores: (0..rustix::thread::CpuSet::MAX_CPU).filter(is_own).collect(),
            attended: (Vec::new(), false),
            told_at: None,
            asked,
            prober,
        }
    }

    fn run(mut self) {
        loop {
            let event = self.next_event();
            self.state.now = self.clock.now();
            match event {
                Event::Asked(ask) => self.on_ask(ask),
                Event::Probed(snapshot) => {
                    self.snapshot = without_own(snapshot, std::process::id());
                    self.state.observe(&self.snapshot);
                    let now = self.state.now;
                    if !self.wants.is_empty() {
                        wanted(&self.state, &self.snapshot).iter().for_each(|id| self.locks.wait_for(id, now));
                    }
                    self.locks.stop_waiting(now);
                }
                Event::ProberGone => {
                    self.prober.snapshots = never();
                    self.snapshot.trouble = Some("the thread that asks the driver has failed".to_owned());
                }
                Event::Due => self.expire(),
                Event::NobodyAsks => return,
            }
            // A burst costs one plan.
            while let Ok(ask) = self.asked.try_recv() {
                self.on_ask(ask);
            }
            self.decide();
            self.attend();
            self.tell();
        }
    }

    fn next_event(&self) -> Event {
        let timer = self.next_due().map_or_else(never, |moment| at(self.clock.instant(moment)));
        select_biased! {
            recv(self.asked) -> it => it.map_or(Event::NobodyAsks, Event::Asked),
            recv(self.prober.snapshots) -> it => it.map_or(Event::ProberGone, Event::Probed),
            recv(timer) -> _ => Event::Due,
        }
    }

    fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Want { id, avoid, reply, back } => {
                let record = Arc::new(record(id, avoid, self.route.clone()));
                let stage = Stage::Claimed { next: 1, since: self.state.now };
                self.state.insert(Job::new(record, stage));
                self.wants.insert(id, Want { reply, back, since: self.state.now });
            }
            Ask::Runs { id, pid } => self.state.set_pid(id, pid),
            Ask::Return { id } => self.end(id),
            // One that was granted is dropped with its channel, and comes back as a return.
            Ask::Forget { id } => {
                if self.wants.remove(&id).is_some() {
                    self.end(id);
                }
            }
        }
    }

    fn end(&mut self, id: JobId) {
        let on: Vec<DeviceId> = self.state.job(id).map(|job| job.stage.leased().to_vec()).unwrap_or_default();
        self.step(id, Step::Commit { outcome: Outcome::Done });
        self.step(id, Step::Filed);
        if !on.is_empty() {
            self.ask(Question::Check(on));
        }
    }

    fn decide(&mut self) {
        for decision in plan(&self.state, &self.snapshot) {
            match decision {
                Decision::Check { devices } => {
                    for id in &devices {
                        self.state.device_mut(id).asked_at = Some(self.state.now);
                    }
                    self.ask(Question::Check(devices));
                }
                Decision::Start { job, on } => self.lend(job, on),
                // There are no offers and no retries here, and who has a lost device finds out by itself.
                Decision::Stop { .. } | Decision::Claim { .. } | Decision::Refuse { .. } | Decision::Due { .. } => {}
                // Nor resident workers, nor big line files.
                Decision::Warm { .. } | Decision::Hand { .. } | Decision::Retire { .. } => {}
                Decision::Grow { .. } | Decision::Shrink { .. } => {}
            }
        }
    }

    fn lend(&mut self, id: JobId, on: Vec<DeviceId>) {
        let mut locks = Vec::new();
        for device in &on {
            match self.locks.take(device, self.state.now) {
                Ok(held) => locks.extend(held),
                Err(by) => {
                    let by = Cordon { by: CordonBy::OtherDirector, since: self.state.now, reason: by.to_string() };
                    self.state.device_mut(device).cordon.get_or_insert(by);
                    return;
                }
            }
        }
        let Some(want) = self.wants.remove(&id) else { return };
        let readings: Vec<&Reading> =
            on.iter().filter_map(|id| self.snapshot.devices.iter().find(|reading| reading.id == *id)).collect();
        let mut pin = pin::pin(&readings, self.state.rules.visible);
        pin.env.push(("GAMDOK_ID", id.to_string()));
        let near = if self.state.rules.affinity { self.cores.near(&readings) } else { Vec::new() };
        let cores = if near.is_empty() { self.all_cores.clone() } else { near.into() };
        self.step(id, Step::Lease { on: on.clone() });
        self.step(id, Step::Launch);
        // Until it says otherwise it is this process itself that works there, and what it starts in its own group.
        self.state.set_pid(id, rustix::process::getpgrp().as_raw_pid());
        self.lent_at = self.state.now;
        // One that isn't waited for any more comes back by itself.
        let _ = want.reply.send(Loan { id, on, pin, cores, locks, back: want.back });
    }

    fn step(&mut self, id: JobId, step: Step) {
        if let Err(illegal) = self.state.step(id, step) {
            tracing::error!(%id, %illegal, "a step that the lifecycle doesn't know");
            debug_assert!(false, "{illegal}");
        }
    }

    fn expire(&mut self) {
        let now = self.state.now;
        let ended: Vec<DeviceId> =
            self.locked_out().filter(|(_, until)| *until <= now).map(|(id, _)| id.clone()).collect();
        for id in ended {
            self.state.device_mut(&id).cordon = None;
        }
        if let Some(silence) = self.prober.silent_for(now) {
            self.snapshot.trouble = Some(format!("the driver hasn't answered for {} s", silence.as_secs()));
        }
    }

    fn locked_out(&self) -> impl Iterator<Item = (&DeviceId, Moment)> {
        let cordoned =
            |(id, device): (_, &crate::state::Device)| Some((id, device.cordon.as_ref()?.since + LOCKED_OUT));
        self.state.devices().filter_map(cordoned)
    }

    fn next_due(&self) -> Option<Moment> {
        let hangs_at = self.prober.hangs_at().filter(|_| self.snapshot.trouble.is_none());
        let told = self.tell_at().filter(|_| !self.wants.is_empty());
        let locked_out = self.locked_out().map(|(_, until)| until).min();
        [hangs_at, told, locked_out, self.state.next_change(&self.snapshot)].into_iter().flatten().min()
    }

    fn attend(&mut self) {
        let leased = self.leased();
        if self.wants.is_empty() {
            self.locks.wait_for_none();
        }
        let attended = (leased.clone(), !self.wants.is_empty());
        if self.attended != attended {
            self.attended = attended;
            self.ask(Question::Attend { leased, work_waits: !self.wants.is_empty() });
        }
    }

    fn leased(&self) -> Vec<DeviceId> {
        let leased = self.state.devices().filter(|(_, device)| !device.leases.held.is_empty());
        leased.map(|(id, _)| id.clone()).collect()
    }

    /// When people are to hear why nothing is lent; never while something is.
    fn tell_at(&self) -> Option<Moment> {
        let oldest = self.wants.values().map(|want| want.since).min()?.max(self.lent_at);
        let again = self.told_at.map_or(Moment::default(), |told| told + TOLD_EVERY);
        self.leased().is_empty().then_some((oldest + SILENCE).max(again))
    }

    fn tell(&mut self) {
        if self.tell_at().is_none_or(|due| self.state.now < due) {
            return;
        }
        self.told_at = Some(self.state.now);
        if let Some(job) = self.state.waiting().next() {
            tracing::warn!("waiting for a GPU: {}", why_waiting(&self.state, &self.snapshot, job));
        }
    }

    fn ask(&self, question: Question) {
        let _ = self.prober.asks.send(question);
    }
}

/// What `plan` takes for a claimed item.
fn record(id: JobId, avoid: Vec<DeviceId>, route: Arc<Route>) -> JobRecord {
    let now = Timestamp::now();
    let name = ItemName::new(id.to_string());
    JobRecord {
        id,
        name: name.escaped(),
        name_b64: name.base64(),
        folder: String::new(),
        kind: ItemKind::File,
        route,
        arrived_at: Some(now),
        claimed_at: now,
        boot_id: String::new(),
        signature: None,
        attempts: Vec::new(),
        avoid,
        cancelled: false,
        revived_after: 0,
        batch_limit: None,
        counters: Counters::default(),
    }
}

/// The view without this process: a context that it keeps on a device between two of its tasks is nobody else's use.
pub(crate) fn without_own(mut snapshot: Snapshot, pid: u32) -> Snapshot {
    if snapshot.mode != HostMode::Gpu {
        return snapshot;
    }
    for reading in snapshot.devices.iter_mut().filter(|reading| reading.pids_match) {
        let Some(listed) = &mut reading.processes else { continue };
        let own = listed.iter().filter(|process| process.pid == pid).filter_map(|process| process.memory).max();
        listed.retain(|process| process.pid != pid);
        reading.memory_used = reading.memory_used.map(|used| used.saturating_sub(own.unwrap_or_default()));
    }
    snapshot
}

#[cfg(test)]
mod tests;
