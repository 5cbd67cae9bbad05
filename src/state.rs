//! What the director knows: its jobs, what the inbox offers, the devices with their leases. Pure: it is told, it answers,
//! it decides nothing. Invariants (`State::check`): a job's leases stand in `devices` and nowhere else, a device holds no
//! more leases than slots, the indexes agree with the stages.

mod check;
mod residents;
mod slots;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map, hash_map};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::{self, Route};
use crate::devices::{self, Cordon, CordonBy, DeviceId, HostMode, Lease, Leases, Reading, Snapshot, Verdict};
use crate::inbox::{Candidate, CandidateKey};
use crate::item::{IllegalStep, JobId, JobRecord, Stage, Step};
use crate::units::{Bytes, Moment};
use residents::Residents;
pub use residents::{PATIENCE, Resident, ResidentId, SHORTEST_TURN, Warmth, is_same};
pub use slots::Slot;

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
        Pool::choose(route.gpus, route.cpu_fallback, mode)
    }

    fn choose(gpus: u32, cpu_fallback: bool, mode: HostMode) -> Pool {
        if gpus == 0 || (mode == HostMode::Cpu && cpu_fallback) { Pool::Cpu } else { Pool::Gpu }
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
    /// The resident worker that has it; the leases are that one's.
    pub resident: Option<ResidentId>,
    /// Slots beside its first, while many work on it at once.
    pub further: Vec<Slot>,
    /// More of them would have something to do.
    pub ahead: bool,
    /// How many it was ever given.
    slots_given: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// 0 to 1.
    pub fraction: Option<f64>,
    pub message: Option<String>,
}

impl Job {
    /// One that nothing was done for yet.
    pub fn new(record: Arc<JobRecord>, stage: Stage) -> Job {
        let (further, ahead, slots_given) = (Vec::new(), false, 0);
        Job { record, stage, pid: None, progress: None, resident: None, further, ahead, slots_given }
    }

    /// Since when it could start.
    pub fn waits_since(&self) -> Option<Moment> {
        match self.stage {
            Stage::Claimed { since, .. } => Some(since),
            _ => None,
        }
    }

    pub fn route(&self) -> &Arc<Route> {
        &self.record.route
    }

    pub fn rank(&self) -> Rank {
        Rank { priority: Reverse(self.record.route.priority), arrived_at: self.record.arrived_at, id: self.record.id }
    }

    pub fn line(&self) -> Line {
        Line { demand: Demand::of(self.route()), avoid: self.record.avoid.clone() }
    }
}

/// What a route's items ask for: all that tells one waiting item's chances from another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Demand {
    pub route: String,
    pub priority: Reverse<i32>,
    pub gpus: u32,
    pub gpu_memory: Option<Bytes>,
    pub cpu_fallback: bool,
    pub max_running: Option<u32>,
    /// Its items go to resident workers.
    pub resident: bool,
}

impl Demand {
    pub fn of(route: &Route) -> Demand {
        Demand {
            route: route.name.clone(),
            priority: Reverse(route.priority),
            gpus: route.gpus,
            gpu_memory: route.gpu_memory,
            cpu_fallback: route.cpu_fallback,
            max_running: route.max_running,
            resident: route.keeps_residents(),
        }
    }

    pub fn pool(&self, mode: HostMode) -> Pool {
        Pool::choose(self.gpus, self.cpu_fallback, mode)
    }
}

/// Waiting jobs that are alike: when the first of a line can't start, none of it can. So a plan looks at the heads of a
/// few lines, however many jobs wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    pub demand: Demand,
    pub avoid: Vec<DeviceId>,
}

/// How many jobs of one demand were claimed and don't run yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    pub claiming: u64,
    pub claimed: u64,
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
    /// How often it was cordoned for failures; each such cordon lasts twice as long as the one before.
    pub cordons: u32,
}

impl Device {
    /// When its cordon ends by itself; a person's ends by a person's hand, another director's when its lock is free.
    pub fn cordon_ends(&self) -> Option<Moment> {
        let cordon = self.cordon.as_ref().filter(|cordon| cordon.by == CordonBy::Failures)?;
        let doublings = self.cordons.saturating_sub(1).min(16);
        Some(cordon.since + (CORDON * (1 << doublings)).min(MAX_CORDON))
    }
}

/// How long the first cordon for failures lasts: a device that fails everything may come back after a driver's own
/// recovery, and one that doesn't is found out again by three quick failures.
pub const CORDON: Duration = Duration::from_secs(5 * 60);

/// The longest cordon for failures.
pub const MAX_CORDON: Duration = Duration::from_secs(24 * 3600);

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
    /// The root's path leads to it: what is started there finds its item.
    pub may_start: bool,
    /// For `round-robin`: the device given last.
    pub last_given: Option<DeviceId>,
    /// When the routes' items last succeeded, by route and device: tells a sick device from a bad script.
    pub successes: HashMap<(String, DeviceId), Moment>,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs in `Claimed`, in the order in which the planner looks at them.
    waiting: BTreeSet<Rank>,
    /// The same jobs by line.
    lines: BTreeMap<Line, BTreeSet<Rank>>,
    /// Jobs in `Claiming` and `Claimed`.
    ahead: BTreeMap<Demand, Ahead>,
    /// Jobs that hold leases, by the name of their route.
    running: HashMap<String, u32>,
    /// Jobs in `Retrying`, by their time.
    retrying: BTreeSet<(Moment, JobId)>,
    /// What the inbox offers, oldest first, by priority and route.
    offers: BTreeMap<(Reverse<i32>, String), VecDeque<Candidate>>,
    devices: BTreeMap<DeviceId, Device>,
    residents: Residents,
    /// Jobs with further slots, or with a use for them.
    sharing: BTreeSet<JobId>,
    /// The routes in force: a resident of another one has nothing to wait for.
    routes: Vec<Arc<Route>>,
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

/// The moment since which nothing of the reading is older. Where processes can't be listed, memory is all there is.
pub(crate) fn looked_at(reading: &Reading) -> Moment {
    match reading.processes {
        Some(_) => reading.memory_at.min(reading.processes_at),
        None => reading.memory_at,
    }
}

/// After this long a check counts as failed, as far as the driver answers at all.
const UNANSWERED: Duration = Duration::from_secs(1);

/// The ends within this span decide how far ahead claims go.
pub const RECENT: Duration = Duration::from_millis(100);

impl State {
    pub fn new(rules: config::Devices) -> State {
        State {
            now: Moment::default(),
            phase: Phase::Running,
            rules,
            may_claim: true,
            may_start: true,
            last_given: None,
            successes: HashMap::new(),
            jobs: BTreeMap::new(),
            waiting: BTreeSet::new(),
            lines: BTreeMap::new(),
            ahead: BTreeMap::new(),
            running: HashMap::new(),
            retrying: BTreeSet::new(),
            offers: BTreeMap::new(),
            devices: BTreeMap::new(),
            residents: Residents::default(),
            sharing: BTreeSet::new(),
            routes: Vec::new(),
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

    /// The waiting jobs by line, first things first within each.
    pub fn lines(&self) -> impl Iterator<Item = (&Line, &BTreeSet<Rank>)> {
        self.lines.iter()
    }

    /// How many jobs of which demand are claimed ahead of their start.
    pub fn ahead(&self) -> impl Iterator<Item = (&Demand, Ahead)> {
        self.ahead.iter().map(|(demand, ahead)| (demand, *ahead))
    }

    /// Whether a claim is under way.
    pub fn is_claiming(&self) -> bool {
        self.ahead.values().any(|ahead| ahead.claiming > 0)
    }

    /// How many jobs of a route hold leases.
    pub fn running_of(&self, route: &str) -> u32 {
        self.running.get(route).copied().unwrap_or(0)
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
        let unleased = step == Step::Unlease;
        let next = match job.stage.after(step, self.now) {
            Ok(next) => next,
            Err(illegal) => {
                self.jobs.insert(id, job);
                return Err(illegal);
            }
        };
        self.index(&job, Indexing::Out);
        self.move_leases(&job, &next);
        let began = !unleased && !matches!(job.stage, Stage::Preparing { .. });
        job.stage = next;
        if job.stage.leased().is_empty() {
            job.pid = None;
            job.progress = None;
            self.leave_resident(&mut job, began);
            self.end_sharing(&mut job);
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
        let mut job = self.jobs.remove(&id)?;
        // What it avoids and where it stands in line may be part of the change.
        self.index(&job, Indexing::Out);
        change(Arc::make_mut(&mut job.record));
        self.index(&job, Indexing::In);
        let record = job.record.clone();
        self.jobs.insert(id, job);
        Some(record)
    }

    /// Adds to a counter of the job; false when there is no such job.
    pub fn count(&mut self, id: JobId, name: &str, by: f64) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        Arc::make_mut(&mut job.record).counters.add(name, by);
        true
    }

    /// The worker's process runs.
    pub fn set_pid(&mut self, id: JobId, pid: i32) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.pid = Some(pid);
        self.set_group(id, pid);
    }

    /// What works on its devices is in this process group.
    pub fn set_group(&mut self, id: JobId, group: i32) {
        let Some(job) = self.jobs.get(&id) else { return };
        for device in job.stage.leased() {
            let leases = self.devices.get_mut(device).map(|device| &mut device.leases.held);
            if let Some(lease) = leases.and_then(|held| held.iter_mut().find(|lease| lease.job == id)) {
                lease.group = Some(group);
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
        let own = job.resident.is_none();
        for device in held.iter().filter(|_| own) {
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
        for device in wanted.iter().filter(|_| own) {
            let lease = Lease { job: id, memory: job.route().gpu_memory, since: self.now, group: None };
            self.devices.entry(device.clone()).or_default().leases.held.push(lease);
            // The CPU pool has no neighbour to go on to.
            if *device != DeviceId::cpu() {
                self.last_given = Some(device.clone());
            }
        }
    }

    fn index(&mut self, job: &Job, way: Indexing) {
        let count = match &job.stage {
            Stage::Claiming => {
                self.index_ahead(job, way, |ahead| &mut ahead.claiming);
                &mut self.counts.claimed
            }
            Stage::Claimed { .. } => {
                self.index_ahead(job, way, |ahead| &mut ahead.claimed);
                self.index_waiting(job, way);
                &mut self.counts.claimed
            }
            Stage::Retrying { at, .. } => {
                match way {
                    Indexing::In => self.retrying.insert((*at, job.record.id)),
                    Indexing::Out => self.retrying.remove(&(*at, job.record.id)),
                };
                &mut self.counts.retrying
            }
            Stage::Preparing { .. } | Stage::Running { .. } | Stage::Stopping { .. } => {
                self.index_running(job, way);
                &mut self.counts.running
            }
            Stage::Committing { .. } => &mut self.counts.committing,
            Stage::Ended { .. } | Stage::Withdrawn => return,
        };
        match way {
            Indexing::In => *count += 1,
            Indexing::Out => *count -= 1,
        }
    }

    fn index_waiting(&mut self, job: &Job, way: Indexing) {
        let (rank, line) = (job.rank(), job.line());
        match way {
            Indexing::In => {
                self.waiting.insert(rank);
                self.lines.entry(line).or_default().insert(rank);
            }
            Indexing::Out => {
                self.waiting.remove(&rank);
                if let btree_map::Entry::Occupied(mut ranks) = self.lines.entry(line) {
                    ranks.get_mut().remove(&rank);
                    if ranks.get().is_empty() {
                        ranks.remove();
                    }
                }
            }
        }
    }

    fn index_ahead(&mut self, job: &Job, way: Indexing, which: impl Fn(&mut Ahead) -> &mut u64) {
        let demand = Demand::of(job.route());
        match way {
            Indexing::In => *which(self.ahead.entry(demand).or_default()) += 1,
            Indexing::Out => {
                if let btree_map::Entry::Occupied(mut ahead) = self.ahead.entry(demand) {
                    *which(ahead.get_mut()) -= 1;
                    if *ahead.get() == Ahead::default() {
                        ahead.remove();
                    }
                }
            }
        }
    }

    fn index_running(&mut self, job: &Job, way: Indexing) {
        let name = &job.route().name;
        match way {
            Indexing::In => *self.running.entry(name.clone()).or_default() += 1,
            Indexing::Out => {
                if let hash_map::Entry::Occupied(mut count) = self.running.entry(name.clone()) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
        }
    }

    // Offers.

    pub fn offer(&mut self, candidate: Candidate) {
        let line = (Reverse(candidate.route.priority), candidate.route.name.clone());
        self.offers.entry(line).or_default().push_back(candidate);
    }

    /// Puts an offer back to where it was taken from: its claim came to nothing.
    pub fn offer_first(&mut self, candidate: Candidate) {
        let line = (Reverse(candidate.route.priority), candidate.route.name.clone());
        self.offers.entry(line).or_default().push_front(candidate);
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
            // A look that failed answers nothing, and may be asked for again.
            let is_open = |asked: &Moment| *asked > looked_at(reading) && self.now.since(*asked) < UNANSWERED;
            device.asked_at = device.asked_at.filter(is_open);
        }
        for device in self.devices.values_mut() {
            if device.cordon_ends().is_some_and(|end| end <= self.now) {
                device.cordon = None;
                device.streak = Streak::default();
            }
        }
        // A device that vanished is forgotten once nothing runs on it and nobody cordoned it, and answers no question.
        // While the backend can't answer, nothing has vanished.
        if snapshot.trouble.is_none() {
            let present = |id: &DeviceId| snapshot.devices.iter().any(|reading| reading.id == *id);
            self.devices.retain(|id, device| {
                device.asked_at = device.asked_at.filter(|_| present(id));
                present(id) || !device.leases.held.is_empty() || device.cordon.is_some()
            });
        }
    }

    /// What keeps a device out at this moment; a cordon that has run its time no longer does.
    pub fn cordon(&self, id: &DeviceId) -> Option<&Cordon> {
        let device = self.devices.get(id)?;
        device.cordon.as_ref().filter(|_| device.cordon_ends().is_none_or(|end| end > self.now))
    }

    /// The same for a device of the snapshot: what keeps a GPU out keeps its MIG instances out.
    pub fn cordon_of(&self, reading: &Reading) -> Option<&Cordon> {
        self.cordon(&reading.id).or_else(|| self.cordon(reading.parent.as_ref()?))
    }

    /// The next moment at which time alone changes what a device may take, for the director's timer.
    pub fn next_change(&self, snapshot: &Snapshot) -> Option<Moment> {
        let present = snapshot.devices.iter().filter_map(|reading| self.devices.get(&reading.id));
        let cordons = present.filter_map(Device::cordon_ends).filter(|end| *end > self.now);
        cordons.chain(self.next_resident_change()).min()
    }

    /// How many slots a device has.
    pub fn slots(&self, reading: &Reading) -> u32 {
        match reading.kind {
            devices::DeviceKind::Cpu => devices::cpu_slots(&self.rules),
            _ => self.rules.slots,
        }
    }

    /// The verdict on one device of the snapshot.
    pub fn verdict(&self, reading: &Reading, snapshot: &Snapshot) -> Verdict {
        static NONE: std::sync::LazyLock<Device> = std::sync::LazyLock::new(Device::default);
        let device = self.devices.get(&reading.id).unwrap_or(&NONE);
        let cordon = self.cordon_of(reading);
        devices::verdict(reading, &device.history, &device.leases, cordon, snapshot, &self.rules, self.now)
    }

    /// Who else uses a device on which our own worker is, in words.
    pub fn strangers_on(&self, reading: &Reading) -> Option<String> {
        let device = self.devices.get(&reading.id)?;
        devices::verdict::strangers(reading, &device.history, &device.leases, &self.rules, self.now)
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
