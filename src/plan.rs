//! Decides what happens next. Pure: no clock, no channel, no file, no driver call. Invariants: a plan gives a device no
//! more leases than it has slots, gives nothing to a device whose verdict forbids it, and starts a job at most once.
//! A job that many can work on at once gets what is left over, and its further slots are called back for what waits.
//! It is made after every event, so it looks at the devices and at the heads of the lines, never at all jobs.

mod floor;
mod share;
mod waits;
mod warm;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque, btree_set};

use crate::config::Route;
use crate::devices::{DeviceId, DeviceKind, HostMode, Snapshot};
use crate::inbox::{Candidate, CandidateKey};
use crate::item::{JobId, Stage};
use crate::state::{Demand, Line, Phase, Pool, Rank, ResidentId, State};

pub(crate) use floor::for_more;
use floor::{Floor, Look, Need, Taking};
use share::Sharing;
pub use waits::{Waits, why_offer_waits, why_waiting};
use warm::{Hope, Warm};

/// What the director is to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Read these devices before something is started on them: what is known of them is too old.
    Check { devices: Vec<DeviceId> },
    /// Claim this offer.
    Claim { key: CandidateKey },
    /// The offer can't be taken on this host as it is; hold it for this reason.
    Refuse { key: CandidateKey, reason: String },
    /// Give these devices to the job and start its next attempt.
    Start { job: JobId, on: Vec<DeviceId> },
    /// Start a resident worker on these devices for the job's route; the job waits until one is ready for it.
    Warm { job: JobId, on: Vec<DeviceId> },
    /// Hand these jobs to a resident worker, as one batch.
    Hand { jobs: Vec<JobId>, to: ResidentId },
    /// The resident worker ends what it has, and goes.
    Retire { resident: ResidentId, why: Parting },
    /// Give a running job that many can work on at once a further slot on these devices.
    Grow { job: JobId, on: Vec<DeviceId> },
    /// A further slot is wanted elsewhere: it leaves after the batch it has.
    Shrink { job: JobId, slot: u32 },
    /// A running attempt lost its device.
    Stop { job: JobId },
    /// A retry's time has come. The same plan may start it.
    Due { job: JobId },
}

/// Why a resident worker is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Too long idle, at the end of its items, of a route that is no more, or with a director that ends.
    Over,
    /// Its device is gone, was taken out, or somebody else is on it.
    Unwelcome,
    /// An item of another route gets the device.
    OtherRoute,
    /// Another director of this host waits for the device.
    OtherDirector,
}

impl Parting {
    pub fn words(self) -> &'static str {
        match self {
            Parting::Over => "its time is over",
            Parting::Unwelcome => "its device is gone, taken out or used by others",
            Parting::OtherRoute => "an item of another route gets its device",
            Parting::OtherDirector => "another director of this host waits for its device",
        }
    }
}

/// The most items claimed and not started, however many slots there are: what a crash has to sort out, and what people
/// can no longer withdraw from the inbox.
pub const MAX_AHEAD: usize = 64;

/// What to do in this state of things; the same answer for the same question.
pub fn plan(state: &State, snapshot: &Snapshot) -> Vec<Decision> {
    let due = state.due();
    let mut decisions: Vec<Decision> = due.iter().map(|&job| Decision::Due { job }).collect();
    let lost = lost(state, snapshot);
    decisions.extend(lost.iter().map(|&job| Decision::Stop { job }));
    let mut over = warm::over(state, snapshot);
    over.extend(warm::giving_way(state, &over));
    decisions.extend(over.iter().map(|&(resident, why)| Decision::Retire { resident, why }));
    if state.phase != Phase::Running || !state.may_start {
        return decisions;
    }
    let mut planner = Planner::new(state, snapshot, &due);
    planner.warm.dismiss(&over);
    planner.sharing.dismiss(&lost);
    planner.start_waiting();
    planner.take_offers();
    planner.decisions.extend(planner.warm.batches());
    planner.share();
    decisions.append(&mut planner.decisions);
    if !planner.checks.is_empty() {
        decisions.push(Decision::Check { devices: planner.checks });
    }
    decisions
}

/// The devices that what waits could use, did others not use them: a director of this host that has one lets it go in its
/// turn when it hears of that.
pub fn wanted(state: &State, snapshot: &Snapshot) -> BTreeSet<DeviceId> {
    if state.phase != Phase::Running || !state.may_start {
        return BTreeSet::new();
    }
    let mut planner = Planner::new(state, snapshot, &[]);
    planner.start_waiting();
    planner.miss_offers();
    planner.floor.missed().cloned().collect()
}

/// The running jobs whose device is lost. A device that is missing while the backend can't answer isn't.
fn lost(state: &State, snapshot: &Snapshot) -> BTreeSet<JobId> {
    let gone = |id: &DeviceId| match snapshot.devices.iter().find(|reading| reading.id == *id) {
        Some(reading) => reading.health.lost,
        None => snapshot.trouble.is_none(),
    };
    let leased = state.devices().filter(|(_, device)| !device.leases.held.is_empty());
    let held = leased.filter(|(id, _)| gone(id)).flat_map(|(_, device)| &device.leases.held);
    let running = |id: &JobId| matches!(state.job(*id).map(|job| &job.stage), Some(Stage::Running { .. }));
    let theirs = |id: JobId| match state.resident(id) {
        Some(resident) => resident.jobs.iter().map(|(job, _)| *job).collect(),
        None => vec![id],
    };
    held.flat_map(|lease| theirs(lease.job)).filter(running).collect()
}

/// One plan in the making.
struct Planner<'a> {
    state: &'a State,
    snapshot: &'a Snapshot,
    floor: Floor<'a>,
    warm: Warm<'a>,
    sharing: Sharing<'a>,
    /// The retries that this plan lets in, by line.
    due: BTreeMap<Line, BTreeSet<Rank>>,
    /// What this plan changes in the counts of running and waiting jobs.
    started: HashMap<String, u32>,
    /// Jobs claimed and not started, by pool and by route.
    ahead: Ahead,
    /// Offers that this plan claims and has a place for, by route.
    placed: HashMap<String, usize>,
    decisions: Vec<Decision>,
    checks: Vec<DeviceId>,
}

#[derive(Default)]
struct Ahead {
    pool: HashMap<Pool, usize>,
    claiming: HashMap<Pool, usize>,
    route: HashMap<String, usize>,
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, snapshot: &'a Snapshot, due: &[JobId]) -> Planner<'a> {
        let mut ahead = Ahead::default();
        let mut add = |demand: &Demand, count: usize, claiming: usize| {
            let pool = demand.pool(snapshot.mode);
            *ahead.pool.entry(pool).or_default() += count;
            *ahead.claiming.entry(pool).or_default() += claiming;
            *ahead.route.entry(demand.route.clone()).or_default() += count;
        };
        for (demand, jobs) in state.ahead() {
            add(demand, (jobs.claiming + jobs.claimed) as usize, jobs.claiming as usize);
        }
        let mut lines: BTreeMap<Line, BTreeSet<Rank>> = BTreeMap::new();
        for job in due.iter().filter_map(|id| state.job(*id)) {
            let line = job.line();
            add(&line.demand, 1, 0);
            lines.entry(line).or_default().insert(job.rank());
        }
        let floor = Floor::new(state, snapshot);
        let (started, decisions, checks) = (HashMap::new(), Vec::new(), Vec::new());
        let (warm, sharing, placed) = (Warm::new(state), Sharing::new(state), HashMap::new());
        Planner { state, snapshot, floor, warm, sharing, due: lines, started, ahead, placed, decisions, checks }
    }

    fn running_of(&self, route: &str) -> u32 {
        self.state.running_of(route) + self.started.get(route).copied().unwrap_or(0)
    }

    /// Starts waiting jobs in the order of their rank. When the first of a line can't start, none of it can.
    fn start_waiting(&mut self) {
        let due = std::mem::take(&mut self.due);
        let lines: Vec<(&Line, btree_set::Iter<'_, Rank>)> =
            self.state.lines().chain(&due).map(|(line, ranks)| (line, ranks.iter())).collect();
        let (lines, mut rests): (Vec<&Line>, Vec<_>) = lines.into_iter().unzip();
        let heads = rests.iter_mut().enumerate().filter_map(|(at, rest)| Some(Reverse((*rest.next()?, at))));
        let mut heads: BinaryHeap<Reverse<(Rank, usize)>> = heads.collect();
        while let Some(Reverse((rank, at))) = heads.pop() {
            if self.place(rank.id, lines[at], 1 + rests[at].len())
                && let Some(next) = rests[at].next()
            {
                heads.push(Reverse((*next, at)));
            }
        }
        self.due = due;
    }

    /// Starts one job, or takes its devices for it until they were looked at. False when its line has to wait, with so many
    /// jobs in it.
    fn place(&mut self, job: JobId, line: &Line, waiting: usize) -> bool {
        let demand = &line.demand;
        if demand.max_running.is_some_and(|most| self.running_of(&demand.route) >= most) {
            return false;
        }
        let need = Need::of_job(job, line, self.snapshot);
        if demand.resident
            && let Some(settled) = self.seat(job, demand)
        {
            return settled;
        }
        let Some(places) = self.floor.place(&need) else {
            let allowed = demand.max_running.map(|most| (most - self.running_of(&demand.route)) as usize);
            // One worker of a resident route takes many.
            let count = if demand.resident { 1 } else { waiting.min(allowed.unwrap_or(usize::MAX)) };
            if !self.call_back(&need, demand.priority.0, count) {
                self.make_room(job, &need);
            }
            self.floor.miss(&need);
            self.floor.keep(&need);
            return false;
        };
        // A worker that is started is no item that runs.
        *self.started.entry(demand.route.clone()).or_default() += u32::from(!demand.resident);
        let fresh = places.iter().all(|&at| self.floor.spot(at).look == Look::Fresh);
        self.floor.take(&places, &need, if fresh { Taking::Started } else { Taking::Promised });
        if !fresh {
            self.ask(&places);
            return true;
        }
        let on = places.iter().map(|&at| self.floor.spot(at).reading.id.clone()).collect();
        if demand.resident {
            if let Some(route) = self.state.job(job).map(|job| job.route().clone()) {
                self.warm.start(&route);
            }
            self.decisions.push(Decision::Warm { job, on });
            return true;
        }
        self.has_left(&need, demand);
        self.decisions.push(Decision::Start { job, on });
        true
    }

    /// One job less is claimed and not started.
    fn has_left(&mut self, need: &Need, demand: &Demand) {
        for count in [self.ahead.pool.get_mut(&need.pool), self.ahead.route.get_mut(&demand.route)] {
            count.into_iter().for_each(|count| *count = count.saturating_sub(1));
        }
    }

    /// Finds a resident worker for the job. None: one must be started; else whether its line goes on.
    fn seat(&mut self, job: JobId, demand: &Demand) -> Option<bool> {
        let hope = self.warm.seat(self.state.job(job)?, self.state);
        match hope {
            Hope::Seated => {
                *self.started.entry(demand.route.clone()).or_default() += 1;
                Some(true)
            }
            Hope::Starting => Some(true),
            Hope::Soon => Some(false),
            Hope::None => warm::is_full(&self.warm, demand).then_some(false),
        }
    }

    /// Sends away resident workers whose devices the job could have.
    fn make_room(&mut self, job: JobId, need: &Need) {
        let Some(job) = self.state.job(job) else { return };
        let places = self.floor.taken_by_ours(need);
        for _ in 0..need.count {
            self.decisions.extend(self.warm.make_room(&places, &self.floor, job, self.state));
        }
    }

    fn ask(&mut self, places: &[usize]) {
        for spot in places.iter().map(|&at| self.floor.spot(at)).filter(|spot| spot.look == Look::Stale) {
            if !self.checks.contains(&spot.reading.id) {
                self.checks.push(spot.reading.id.clone());
            }
        }
    }

    /// Refuses what can never run here, and claims as far ahead as slots can soon use: the highest priority first, then
    /// by arrival across the routes.
    fn take_offers(&mut self) {
        let state = self.state;
        let mut lines: Vec<(&Route, &VecDeque<Candidate>)> = Vec::new();
        for (route, line) in state.offers() {
            match refusal(route, self.snapshot) {
                Some(reason) => {
                    let refuse =
                        |offer: &Candidate| Decision::Refuse { key: offer.key.clone(), reason: reason.clone() };
                    self.decisions.extend(line.iter().map(refuse));
                }
                None => lines.push((route, line)),
            }
        }
        if !state.may_claim || lines.is_empty() {
            return;
        }
        let head = |at: usize, n: usize| {
            let (route, line) = lines[at];
            Some(Reverse((Reverse(route.priority), line.get(n)?.arrived_at, at, n)))
        };
        let mut claimed = Vec::new();
        let mut heads: BinaryHeap<_> = (0..lines.len()).filter_map(|at| head(at, 0)).collect();
        while let Some(Reverse((_, _, at, n))) = heads.pop() {
            let (route, line) = lines[at];
            if !self.may_claim(route) {
                continue;
            }
            let pool = Pool::of(route, self.snapshot.mode);
            *self.ahead.pool.entry(pool).or_default() += 1;
            *self.ahead.claiming.entry(pool).or_default() += 1;
            *self.ahead.route.entry(route.name.clone()).or_default() += 1;
            self.decisions.push(Decision::Claim { key: line[n].key.clone() });
            claimed.push((&route.name, Need::of(&Demand::of(route), self.snapshot)));
            heads.extend(head(at, n + 1));
        }
        // Their devices are looked at while the claims are written: a start right after them needs no second wait.
        for (route, need) in claimed {
            if let Some(places) = self.floor.place(&need) {
                *self.placed.entry(route.clone()).or_default() += 1;
                self.floor.take(&places, &need, Taking::Promised);
                self.ask(&places);
            }
        }
    }

    /// Notes what the first offer of each route could have, did others not use it.
    fn miss_offers(&mut self) {
        if !self.state.may_claim {
            return;
        }
        for (route, _) in self.state.offers() {
            let full = route.max_running.is_some_and(|most| self.running_of(&route.name) >= most);
            if full || self.warm.serves(route) || refusal(route, self.snapshot).is_some() {
                continue;
            }
            let need = Need::of(&Demand::of(route), self.snapshot);
            if self.floor.place(&need).is_none() {
                self.floor.miss(&need);
            }
        }
    }

    /// Whether one more item of a route may be claimed.
    fn may_claim(&self, route: &Route) -> bool {
        let demand = Demand::of(route);
        let need = Need::of(&demand, self.snapshot);
        let ahead = self.ahead.route.get(&route.name).copied().unwrap_or(0);
        // Past its own limits nothing but the very next item is taken out of people's sight.
        let most = route.max_running.map(|most| most.saturating_sub(self.running_of(&route.name)) as usize + 1);
        if most.is_some_and(|most| ahead >= most) {
            return false;
        }
        if need.count > 1 && (ahead > 0 || self.floor.ours_for(&need) < need.count) {
            return false;
        }
        let room = |memory| self.floor.room(&need, memory) + self.warm.room(need.pool, self.state);
        if need.memory.is_some_and(|memory| need.count == 1 && ahead >= room(memory)) {
            return false;
        }
        let waiting = self.ahead.pool.get(&need.pool).copied().unwrap_or(0);
        if waiting < self.allowance(need.pool) {
            return true;
        }
        // What waits may be waiting for something else than what is free (several GPUs, a larger part of one): an item
        // that could start this moment isn't held up by that.
        self.ahead.claiming.get(&need.pool).is_none_or(|count| *count == 0)
            && route.max_running.is_none_or(|most| self.running_of(&route.name) < most)
            && self.floor.place(&need).is_some_and(|places| places.iter().all(|&at| self.floor.spot(at).usable()))
    }

    /// How many jobs of a pool may be claimed and not started: what slots can soon use.
    fn allowance(&self, pool: Pool) -> usize {
        let soon = self.floor.free_slots(pool) + self.floor.usable(pool) + self.warm.room(pool, self.state);
        soon.max(self.state.recent_ends(pool)).min(MAX_AHEAD)
    }
}

/// Why a route's items can never run on this host as it is, in words; none when they can.
pub fn refusal(route: &Route, snapshot: &Snapshot) -> Option<String> {
    lack(route, snapshot).map(|lacking| format!("route `{}` {lacking}", route.name))
}

/// What this host lacks for a route's items, as the end of a sentence that begins with the route.
pub(crate) fn lack(route: &Route, snapshot: &Snapshot) -> Option<String> {
    if Pool::of(route, snapshot.mode) == Pool::Cpu {
        return None;
    }
    if snapshot.mode == HostMode::Cpu {
        return Some("needs a GPU, this host has none, and its cpu_fallback is false".to_owned());
    }
    // A driver that doesn't answer may do so later.
    if snapshot.trouble.is_some() {
        return None;
    }
    let gpus = snapshot.devices.iter().filter(|reading| reading.kind.is_gpu() && reading.excluded.is_none());
    let joinable = |kind: DeviceKind| route.gpus == 1 || kind != DeviceKind::Mig;
    let gpus: Vec<_> = gpus.filter(|reading| joinable(reading.kind)).collect();
    let wanted = route.gpus as usize;
    let of = |count: usize| if count == 1 { "GPU" } else { "GPUs" };
    if gpus.len() < wanted {
        let has = gpus.len();
        let what = format!("needs {wanted} {}, this host has {has} that can be used", of(wanted));
        return Some(if route.gpus > 1 { format!("{what} together") } else { what });
    }
    let memory = route.gpu_memory?;
    // Where a device doesn't tell its size, it may be large enough.
    let large = gpus.iter().filter(|reading| reading.memory_total.is_none_or(|total| memory <= total)).count();
    if large >= wanted {
        return None;
    }
    let most = gpus.iter().filter_map(|reading| reading.memory_total).max().unwrap_or_default();
    Some(match wanted {
        1 => format!("needs {memory} of GPU memory, the largest GPU here has {most}"),
        _ => format!("needs {wanted} GPUs with {memory} of memory each, this host has {large}"),
    })
}
