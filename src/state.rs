//! What the director knows: its jobs, what the inbox offers, the devices with their leases. Pure: it is told, it answers,
//! it decides nothing. Invariants (`State::check`): a job's leases stand in `devices` and nowhere else, a device holds no
//! more leases than slots, the indexes agree with the stages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::{self, Route};
use crate::devices::{self, Cordon, DeviceId, HostMode, Lease, Leases, Reading, Snapshot, Verdict};
use crate::inbox::{Candidate, CandidateKey};
use crate::item::{IllegalStep, JobId, JobRecord, Stage, Step};
use crate::units::Moment;

/// What the director as a whole is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// No new starts and no new claims, until `resume`.
    Paused,
    /// No new claims, no new starts; ends when nothing runs.
    Draining,
    /// Running items are being stopped; ends when they have reported.
    Stopping,
}

/// The devices a route's items run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pool {
    Cpu,
    Gpu,
}

impl Pool {
    /// On a host without GPUs, routes that may fall back run on CPU slots.
    pub fn of(route: &Route, mode: HostMode) -> Pool {
        if route.gpus == 0 || (mode == HostMode::Cpu && route.cpu_fallback) { Pool::Cpu } else { Pool::Gpu }
    }
}

/// The order in which waiting jobs are looked at: priority, then arrival, then the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub priority: Reverse<i32>,
    pub arrived_at: Option<Timestamp>,
    pub id: JobId,
}

/// A claimed job.
#[derive(Clone, Debug)]
pub struct Job {
    pub record: Arc<JobRecord>,
    pub stage: Stage,
    pub pid: Option<i32>,
    pub progress: Option<Progress>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// 0 to 1.
    pub fraction: Option<f64>,
    pub message: Option<String>,
}

impl Job {
    pub fn route(&self) -> &Arc<Route> {
        &self.record.route
    }

    pub fn rank(&self) -> Rank {
        Rank { priority: Reverse(self.record.route.priority), arrived_at: self.record.arrived_at, id: self.record.id }
    }
}

/// One device as the director sees it.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pub history: devices::History,
    pub leases: Leases,
    pub cordon: Option<Cordon>,
    /// A check was asked for at this moment and hasn't been answered.
    pub asked_at: Option<Moment>,
    /// Different items that failed fast on it in a row, and when its streak began.
    pub streak: Streak,
}

/// The failures in a row on one device; the rule that reads it is in `fault`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Streak {
    pub jobs: BTreeSet<JobId>,
    pub routes: BTreeSet<String>,
    pub since: Moment,
}

/// Everything that `plan` decides on, beside the snapshot.
#[derive(Clone, Debug)]
pub struct State {
    /// Set before each event is taken in.
    pub now: Moment,
    pub phase: Phase,
    pub rules: config::Devices,
    /// The spool can write, the inbox can be read: claims make sense.
    pub may_claim: bool,
    /// For `round-robin`: the device given last.
    pub last_given: Option<DeviceId>,
    /// When the routes' items last succeeded, by route and device: tells a sick device from a bad script.
    pub successes: HashMap<(String, DeviceId), Moment>,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs in `Claimed`, in the order in which the planner looks at them.
    waiting: BTreeSet<Rank>,
    /// Jobs in `Retrying`, by their time.
    retrying: BTreeSet<(Moment, JobId)>,
    /// What the inbox offers, oldest first, by priority and route.
    offers: BTreeMap<(Reverse<i32>, String), VecDeque<Candidate>>,
    devices: BTreeMap<DeviceId, Device>,
    /// The last ends, for the claims ahead.
    ends: HashMap<Pool, VecDeque<Moment>>,
    counts: Stages,
}

/// How many jobs are in which stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// `Claiming`, `Claimed`.
    pub claimed: u64,
    /// `Preparing`, `Running`, `Stopping`.
    pub running: u64,
    pub retrying: u64,
    pub committing: u64,
}

/// The ends within this span decide how far ahead claims go.
pub const RECENT: Duration = Duration::from_millis(100);

impl State {
    pub fn new(rules: config::Devices) -> State {
        State {
            now: Moment::default(),
            phase: Phase::Running,
            rules,
            may_claim: true,
            last_given: None,
            successes: HashMap::new(),
            jobs: BTreeMap::new(),
            waiting: BTreeSet::new(),
            retrying: BTreeSet::new(),
            offers: BTreeMap::new(),
            devices: BTreeMap::new(),
            ends: HashMap::new(),
            counts: Stages::default(),
        }
    }

    // Jobs.

    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs that could start now, first things first.
    pub fn waiting(&self) -> impl Iterator<Item = &Job> {
        self.waiting.iter().filter_map(|rank| self.jobs.get(&rank.id))
    }

    /// The moment of the next retry, for the director's timer.
    pub fn next_retry(&self) -> Option<Moment> {
        self.retrying.first().map(|(at, _)| *at)
    }

    /// Jobs whose time has come.
    pub fn due(&self) -> Vec<JobId> {
        self.retrying.iter().take_while(|(at, _)| *at <= self.now).map(|(_, id)| *id).collect()
    }

    pub fn stages(&self) -> Stages {
        self.counts
    }

    /// Takes in a job: a claim that begins, a recovered one, a revived one.
    pub fn insert(&mut self, job: Job) {
        debug_assert!(!self.jobs.contains_key(&job.record.id), "a job is inserted once");
        self.index(&job, Indexing::In);
        self.jobs.insert(job.record.id, job);
    }

    /// Carries out one step of one job's lifecycle; leases and indexes follow.
    pub fn step(&mut self, id: JobId, step: Step) -> Result<(), IllegalStep> {
        let Some(mut job) = self.jobs.remove(&id) else {
            return Err(IllegalStep { stage: Stage::Withdrawn, step });
        };
        let next = match job.stage.after(step, self.now) {
            Ok(next) => next,
            Err(illegal) => {
                self.jobs.insert(id, job);
                return Err(illegal);
            }
        };
        self.index(&job, Indexing::Out);
        self.move_leases(&job, &next);
        job.stage = next;
        if job.stage.leased().is_empty() {
            job.pid = None;
            job.progress = None;
        }
        if matches!(job.stage, Stage::Ended { .. } | Stage::Withdrawn) {
            return Ok(());
        }
        self.index(&job, Indexing::In);
        self.jobs.insert(id, job);
        Ok(())
    }

    /// Replaces what is recorded of a job (a new attempt, an avoided device); its stage stays.
    pub fn rewrite(&mut self, id: JobId, change: impl FnOnce(&mut JobRecord)) -> Option<Arc<JobRecord>> {
        let job = self.jobs.get_mut(&id)?;
        change(Arc::make_mut(&mut job.record));
        Some(job.record.clone())
    }

    /// The worker's process runs.
    pub fn set_pid(&mut self, id: JobId, pid: i32) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.pid = Some(pid);
        for device in job.stage.leased() {
            let leases = self.devices.get_mut(device).map(|device| &mut device.leases.held);
            if let Some(lease) = leases.and_then(|held| held.iter_mut().find(|lease| lease.job == id)) {
                lease.group = Some(pid);
            }
        }
    }

    pub fn set_progress(&mut self, id: JobId, progress: Progress) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.progress = Some(progress);
        }
    }

    fn move_leases(&mut self, job: &Job, next: &Stage) {
        let (held, wanted) = (job.stage.leased(), next.leased());
        if held == wanted {
            return;
        }
        let id = job.record.id;
        for device in held {
            let device = self.devices.entry(device.clone()).or_default();
            device.leases.held.retain(|lease| lease.job != id);
            // Only an attempt that could have started a process leaves something behind on its device.
            if !matches!(job.stage, Stage::Preparing { .. }) {
                device.leases.last_exit = Some(self.now);
            }
        }
        if !held.is_empty() && !matches!(job.stage, Stage::Preparing { .. }) {
            let pool = if held.iter().any(|device| *device == DeviceId::cpu()) { Pool::Cpu } else { Pool::Gpu };
            let ends = self.ends.entry(pool).or_default();
            ends.push_back(self.now);
            while ends.len() > 64 {
                ends.pop_front();
            }
        }
        for device in wanted {
            let lease = Lease { job: id, memory: job.route().gpu_memory, since: self.now, group: None };
            self.devices.entry(device.clone()).or_default().leases.held.push(lease);
            self.last_given = Some(device.clone());
        }
    }

    fn index(&mut self, job: &Job, way: Indexing) {
        let count = match &job.stage {
            Stage::Claiming => &mut self.counts.claimed,
            Stage::Claimed { .. } => {
                match way {
                    Indexing::In => self.waiting.insert(job.rank()),
                    Indexing::Out => self.waiting.remove(&job.rank()),
                };
                &mut self.counts.claimed
            }
            Stage::Retrying { at, .. } => {
                match way {
                    Indexing::In => self.retrying.insert((*at, job.record.id)),
                    Indexing::Out => self.retrying.remove(&(*at, job.record.id)),
                };
                &mut self.counts.retrying
            }
            Stage::Preparing { .. } | Stage::Running { .. } | Stage::Stopping { .. } => &mut self.counts.running,
            Stage::Committing { .. } => &mut self.counts.committing,
            Stage::Ended { .. } | Stage::Withdrawn => return,
        };
        match way {
            Indexing::In => *count += 1,
            Indexing::Out => *count -= 1,
        }
    }

    // Offers.

    pub fn offer(&mut self, candidate: Candidate) {
        let line = (Reverse(candidate.route.priority), candidate.route.name.clone());
        self.offers.entry(line).or_default().push_back(candidate);
    }

    /// Takes an offer back, because it is being claimed, was withdrawn or refused.
    pub fn take_offer(&mut self, key: &CandidateKey) -> Option<Candidate> {
        // Nearly always the first of its line: the planner claims oldest first.
        for line in self.offers.values_mut() {
            if let Some(at) = line.iter().position(|candidate| candidate.key == *key) {
                return line.remove(at);
            }
        }
        None
    }

    /// Empties the offers, for a changed configuration.
    pub fn take_offers(&mut self) -> Vec<Candidate> {
        std::mem::take(&mut self.offers).into_values().flatten().collect()
    }

    /// The lines of offers, highest priority first; within a line the oldest first.
    pub fn offers(&self) -> impl Iterator<Item = (&Arc<Route>, &VecDeque<Candidate>)> {
        self.offers.values().filter_map(|line| line.front().map(|first| (&first.route, line)))
    }

    // Devices.

    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    pub fn device_mut(&mut self, id: &DeviceId) -> &mut Device {
        self.devices.entry(id.clone()).or_default()
    }

    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &Device)> {
        self.devices.iter()
    }

    /// Takes in a snapshot: the histories follow, and checks that were asked for before it are answered.
    pub fn observe(&mut self, snapshot: &Snapshot) {
        for reading in &snapshot.devices {
            let device = self.devices.entry(reading.id.clone()).or_default();
            device.history.observe(reading, &device.leases, &self.rules);
            if device.asked_at.is_some_and(|asked| asked <= reading.processes_at) {
                device.asked_at = None;
            }
        }
        // A device that vanished is forgotten once nothing runs on it and nobody cordoned it.
        let present = |id: &DeviceId| snapshot.devices.iter().any(|reading| reading.id == *id);
        self.devices.retain(|id, device| present(id) || !device.leases.held.is_empty() || device.cordon.is_some());
    }

    /// How many slots a device has.
    pub fn slots(&self, reading: &Reading) -> u32 {
        match reading.kind {
            devices::DeviceKind::Cpu => self.rules.cpu_slots.unwrap_or(1),
            _ => self.rules.slots,
        }
    }

    /// The verdict on one device of the snapshot.
    pub fn verdict(&self, reading: &Reading, snapshot: &Snapshot) -> Verdict {
        static NONE: std::sync::LazyLock<Device> = std::sync::LazyLock::new(Device::default);
        let device = self.devices.get(&reading.id).unwrap_or(&NONE);
        let cordon = device.cordon.as_ref();
        devices::verdict(reading, &device.history, &device.leases, cordon, snapshot, &self.rules, self.now)
    }

    /// How many attempts of a pool ended within [`RECENT`].
    pub fn recent_ends(&self, pool: Pool) -> usize {
        let recent = |at: &&Moment| self.now.since(**at) < RECENT;
        self.ends.get(&pool).map_or(0, |ends| ends.iter().rev().take_while(recent).count())
    }
}

#[derive(Clone, Copy)]
enum Indexing {
    In,
    Out,
}
