//! The devices with their room while one plan is made: what is leased, what this plan already gave, what is kept for an
//! item that needs more than is free. Invariant: room only shrinks while a plan is made.

use std::cmp::Reverse;
use std::time::Duration;

use crate::config::Policy;
use crate::devices::{DeviceId, DeviceKind, Reading, Snapshot, Verdict, verdict};
use crate::item::JobId;
use crate::state::{Demand, Line, Pool, State, looked_at};
use crate::units::{Bytes, Moment};

/// How old a process list may be when a worker starts beside it. Listing takes some milliseconds under the driver's one
/// lock, so a device isn't asked again for each of several starts in a row; an outsider needs about this long from its
/// own start to its first context, so that a shorter span would see no more of them.
const FRESH: Duration = Duration::from_secs(1);

/// How long after our own worker's exit a device that isn't clean yet still counts as ours: as long as the prober goes
/// on looking before it says that the memory is held by nobody.
const LINGER: Duration = Duration::from_secs(30);

/// What one item asks of the devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need<'a> {
    pub(super) pool: Pool,
    /// Different devices; 1 for the CPU pool.
    pub(super) count: usize,
    /// On each of them.
    pub(super) memory: Option<Bytes>,
    pub(super) avoid: &'a [DeviceId],
    /// Whose need it is; none for what isn't claimed yet.
    pub(super) job: Option<JobId>,
}

impl<'a> Need<'a> {
    pub(super) fn of_job(id: JobId, line: &'a Line, snapshot: &Snapshot) -> Need<'a> {
        Need { job: Some(id), avoid: &line.avoid, ..Need::of(&line.demand, snapshot) }
    }

    pub(super) fn of(demand: &Demand, snapshot: &Snapshot) -> Need<'a> {
        let pool = demand.pool(snapshot.mode);
        let (count, memory) = match pool {
            Pool::Cpu => (1, None),
            Pool::Gpu => (demand.gpus as usize, demand.gpu_memory),
        };
        Need { pool, count, memory, avoid: &[], job: None }
    }
}

/// Whether what is known of a device is recent enough to start something there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Fresh,
    /// Too old, and nobody asked yet.
    Stale,
    /// Asked, not answered.
    Asked,
}

/// One device during a plan.
#[derive(Debug)]
pub(super) struct Spot<'a> {
    pub(super) reading: &'a Reading,
    pub(super) verdict: Verdict,
    pub(super) look: Look,
    /// Not clean after our own worker's exit, as far as an old or a lingering look goes.
    lingers: bool,
    /// Only a look older than our last exit speaks against it.
    doubtful: bool,
    slots: u32,
    /// Leases, with those that this plan gives.
    leases: u32,
    /// Of them those that wait for a fresh look.
    pub(super) promised: u32,
    /// The sum of what the leases declare.
    reserved: Bytes,
    /// Kept for this job.
    kept: Option<JobId>,
    cordoned: bool,
    /// An item that has to wait could have it, did nobody else use it.
    missed: bool,
}

/// Why a device doesn't do for an item.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Bar {
    /// The verdict forbids it.
    Verdict(Verdict),
    /// CUDA shows a process one MIG instance at most.
    MigAlone,
    TooSmall(Bytes),
    Avoided,
    NoSlot(u32),
    NoMemory(Bytes),
    Kept(JobId),
}

impl Spot<'_> {
    fn new<'a>(state: &State, snapshot: &'a Snapshot, reading: &'a Reading) -> Spot<'a> {
        let verdict = for_more(state, snapshot, reading);
        let device = state.device(&reading.id);
        let held = device.map_or(&[][..], |device| &device.leases.held);
        let last_exit = device.and_then(|device| device.leases.last_exit);
        let looked_at = looked_at(reading);
        let since_exit = last_exit.is_none_or(|exit| exit <= looked_at);
        // The CPU pool has no driver to ask, and a simulated device is always as its script says.
        let driven = matches!(reading.kind, DeviceKind::Gpu | DeviceKind::Mig);
        let busy = matches!(verdict, Verdict::Busy(_));
        let doubtful = busy && reading.kind.is_gpu() && !since_exit;
        let fresh = !doubtful && (!driven || (since_exit && state.now.since(looked_at) <= FRESH));
        let asked = device.is_some_and(|device| device.asked_at.is_some());
        let mut spot = Spot {
            reading,
            look: if fresh {
                Look::Fresh
            } else if asked {
                Look::Asked
            } else {
                Look::Stale
            },
            lingers: busy && last_exit.is_some_and(|exit| state.now.since(exit) <= LINGER),
            doubtful,
            verdict,
            slots: state.slots(reading),
            leases: held.len() as u32,
            promised: 0,
            reserved: Bytes(0),
            kept: None,
            cordoned: state.cordon_of(reading).is_some(),
            missed: false,
        };
        spot.reserved = held.iter().map(|lease| lease.memory.unwrap_or(spot.share())).sum();
        spot
    }

    /// What a worker that declares nothing counts for on a shared device.
    fn share(&self) -> Bytes {
        Bytes(self.reading.memory_total.map_or(0, |total| total.0 / u64::from(self.slots.max(1))))
    }

    /// Whether the verdict lets it take work, room or not.
    pub(super) fn usable(&self) -> bool {
        matches!(self.verdict, Verdict::Free | Verdict::Leased)
    }

    /// Whether it will take our work again without anybody else's doing.
    fn ours(&self) -> bool {
        self.usable() || self.lingers || self.doubtful
    }

    /// Whether it could take this item in principle, were it idle.
    fn suits(&self, need: &Need) -> bool {
        let gone = matches!(self.verdict, Verdict::Excluded(_) | Verdict::Unhealthy(_) | Verdict::Unknown(_));
        !gone && !self.cordoned && self.is_for(need)
    }

    /// Kind and size.
    fn is_for(&self, need: &Need) -> bool {
        (need.count == 1 || self.reading.kind != DeviceKind::Mig) && self.is_large_enough(need)
    }

    fn is_large_enough(&self, need: &Need) -> bool {
        need.memory.is_none_or(|memory| self.reading.memory_total.is_none_or(|total| memory <= total))
    }

    /// Memory that is neither declared nor used by anybody; none where the driver doesn't say.
    fn memory_free(&self) -> Option<Bytes> {
        let used = self.reading.memory_used.unwrap_or_default().max(self.reserved);
        Some(self.reading.memory_total?.saturating_sub(used))
    }

    /// How much is missing for the item, when it is: what is left.
    fn lacks_memory(&self, need: &Need, idle: Bytes) -> Option<Bytes> {
        let total = self.reading.memory_total?;
        if need.pool == Pool::Cpu || (self.leases == 0 && need.memory.is_none_or(|memory| memory <= total)) {
            // What an idle device holds is the driver's own: the verdict let it pass.
            return None;
        }
        let free = match need.memory {
            Some(_) => self.memory_free()?,
            // A worker's share is of the whole device, so the driver's own part isn't held against it.
            None => {
                let used = self.reading.memory_used.unwrap_or_default().saturating_sub(idle);
                total.saturating_sub(used.max(self.reserved))
            }
        };
        (need.memory.unwrap_or(self.share()) > free).then_some(free)
    }

    /// Real leases only: a promise may come to nothing.
    fn free_slots(&self) -> u32 {
        if self.usable() { self.slots.saturating_sub(self.leases - self.promised) } else { 0 }
    }

    fn order(&self) -> (u32, &DeviceId) {
        (self.reading.index.unwrap_or(u32::MAX), &self.reading.id)
    }

    /// What people call it.
    pub(super) fn name(&self) -> String {
        let place = self.reading.index.map_or_else(|| self.reading.id.to_string(), |index| index.to_string());
        match self.reading.kind {
            DeviceKind::Cpu => "the CPU pool".to_owned(),
            DeviceKind::Mig => format!("MIG {} of GPU {place}", self.reading.id),
            DeviceKind::Gpu | DeviceKind::Sim => format!("GPU {place}"),
        }
    }
}

/// The verdict, as it bears on more work: whatever a lease outranks in it for the work that runs, a device that was taken
/// out under its workers, or that can't be asked, takes no others.
pub(crate) fn for_more(state: &State, snapshot: &Snapshot, reading: &Reading) -> Verdict {
    let verdict = state.verdict(reading, snapshot);
    if !matches!(verdict, Verdict::Free | Verdict::Leased) {
        return verdict;
    }
    if let Some(why) = &reading.excluded {
        Verdict::Excluded(why.clone())
    } else if reading.health.lost {
        Verdict::Unhealthy("lost".to_owned())
    } else if let Some(cordon) = state.cordon_of(reading) {
        verdict::cordoned(cordon)
    } else if let Some(trouble) = snapshot.trouble.as_ref().filter(|_| reading.kind.is_gpu()) {
        Verdict::Unknown(trouble.clone())
    } else {
        verdict
    }
}

/// All devices during a plan.
#[derive(Debug)]
pub(super) struct Floor<'a> {
    spots: Vec<Spot<'a>>,
    policy: Policy,
    idle: Bytes,
    last_given: Option<DeviceId>,
    /// Only one item at a time has devices kept for it: two that wait for each other's would leave both idle.
    keeping: bool,
}

impl<'a> Floor<'a> {
    pub(super) fn new(state: &State, snapshot: &'a Snapshot) -> Floor<'a> {
        let devices = snapshot.devices.iter();
        Floor {
            spots: devices.map(|reading| Spot::new(state, snapshot, reading)).collect(),
            policy: state.rules.policy,
            idle: state.rules.idle.max_memory_used,
            last_given: state.last_given.clone(),
            keeping: false,
        }
    }

    pub(super) fn spot(&self, at: usize) -> &Spot<'a> {
        &self.spots[at]
    }

    pub(super) fn pool(&self, pool: Pool) -> impl Iterator<Item = &Spot<'a>> {
        self.spots.iter().filter(move |spot| spot.reading.kind.is_gpu() == (pool == Pool::Gpu))
    }

    /// The devices for an item, best first as the policy has it; none when it has to wait.
    pub(super) fn place(&self, need: &Need) -> Option<Vec<usize>> {
        let avoiding = self.avoiding(need);
        let mut fit: Vec<usize> = (0..self.spots.len()).filter(|&at| self.bar(at, need, avoiding).is_none()).collect();
        if fit.len() < need.count {
            return None;
        }
        self.sort(&mut fit);
        fit.truncate(need.count);
        Some(fit)
    }

    /// Why one device doesn't do; none when it does.
    fn bar(&self, at: usize, need: &Need, avoiding: bool) -> Option<Bar> {
        let spot = &self.spots[at];
        if spot.reading.kind.is_gpu() != (need.pool == Pool::Gpu) {
            return Some(Bar::Verdict(Verdict::Excluded("of the other pool".to_owned())));
        }
        if !spot.usable() && !spot.doubtful {
            return Some(Bar::Verdict(spot.verdict.clone()));
        }
        if !spot.is_large_enough(need) {
            return Some(Bar::TooSmall(spot.reading.memory_total.unwrap_or_default()));
        }
        if !spot.is_for(need) {
            return Some(Bar::MigAlone);
        }
        if avoiding && need.avoid.contains(&spot.reading.id) {
            return Some(Bar::Avoided);
        }
        if spot.leases >= spot.slots {
            return Some(Bar::NoSlot(spot.slots));
        }
        if let Some(kept) = spot.kept.filter(|kept| Some(*kept) != need.job) {
            return Some(Bar::Kept(kept));
        }
        spot.lacks_memory(need, self.idle).map(Bar::NoMemory)
    }

    /// An item avoids devices only while enough others could ever take it.
    fn avoiding(&self, need: &Need) -> bool {
        let others = self.pool(need.pool).filter(|spot| spot.suits(need) && !need.avoid.contains(&spot.reading.id));
        !need.avoid.is_empty() && others.count() >= need.count
    }

    fn sort(&self, fit: &mut [usize]) {
        let spots = &self.spots;
        // What only an old look speaks against comes last: it may turn out busy.
        let doubtful = |at: usize| spots[at].doubtful;
        match self.policy {
            Policy::LeastConnections => fit.sort_by_key(|&at| {
                let spot = &spots[at];
                let coolest = spot.reading.temperature.unwrap_or(u32::MAX);
                (doubtful(at), spot.leases, Reverse(spot.memory_free()), coolest, spot.order())
            }),
            Policy::Pack => fit.sort_by_key(|&at| (doubtful(at), Reverse(spots[at].leases), spots[at].order())),
            Policy::RoundRobin => {
                let last = self.last_given.as_ref();
                let last = last.and_then(|last| spots.iter().find(|spot| spot.reading.id == *last)).map(Spot::order);
                fit.sort_by_key(|&at| {
                    let order = spots[at].order();
                    (doubtful(at), last.is_some_and(|last| order <= last), order)
                });
            }
        }
    }

    /// Gives an item the devices it was placed on.
    pub(super) fn take(&mut self, places: &[usize], need: &Need, how: Taking) {
        for &at in places {
            let spot = &mut self.spots[at];
            spot.leases += 1;
            spot.promised += u32::from(how == Taking::Promised);
            spot.reserved = spot.reserved + need.memory.unwrap_or(spot.share());
            if need.pool == Pool::Gpu {
                self.last_given = Some(self.spots[at].reading.id.clone());
            }
        }
    }

    /// Keeps devices for an item that needs several, or a larger part of one than is free: without that a stream of
    /// small items would take each part as it comes free. Only devices that our own work holds are kept: keeping idle
    /// ones until somebody else's work ends would leave them idle for hours.
    pub(super) fn keep(&mut self, need: &Need) {
        if self.keeping || need.pool == Pool::Cpu {
            return;
        }
        let shared = |spot: &Spot| spot.slots > 1;
        let avoiding = self.avoiding(need);
        let could = |spot: &Spot| spot.ours() && spot.is_for(need) && spot.reading.kind.is_gpu();
        let wanted = |spot: &Spot| !avoiding || !need.avoid.contains(&spot.reading.id);
        let candidates = (0..self.spots.len()).filter(|&at| could(&self.spots[at]) && wanted(&self.spots[at]));
        let mut candidates: Vec<usize> = candidates.collect();
        if candidates.len() < need.count || (need.count == 1 && !candidates.iter().any(|&at| shared(&self.spots[at]))) {
            return;
        }
        // No observed number in this order: a choice that wavered would keep no device for long.
        candidates.sort_by_key(|&at| {
            let fits = self.bar(at, need, avoiding).is_none();
            (!fits, self.spots[at].leases, self.spots[at].order())
        });
        candidates.truncate(need.count);
        for at in candidates {
            self.spots[at].kept = need.job;
        }
        self.keeping = true;
    }

    /// An item has to wait: it could have the devices that others use, none of ours among them.
    pub(super) fn miss(&mut self, need: &Need) {
        let avoiding = self.avoiding(need);
        let used = |spot: &Spot| matches!(spot.verdict, Verdict::Busy(_)) && !spot.doubtful && spot.leases == 0;
        let could = |spot: &Spot| used(spot) && spot.is_for(need) && spot.reading.kind.is_gpu();
        let wanted = |spot: &Spot| !avoiding || !need.avoid.contains(&spot.reading.id);
        let missed = self.spots.iter_mut().filter(|spot| need.pool == Pool::Gpu && could(spot) && wanted(spot));
        missed.for_each(|spot| spot.missed = true);
    }

    /// The devices that were missed in this plan.
    pub(super) fn missed(&self) -> impl Iterator<Item = &'a DeviceId> {
        self.spots.iter().filter(|spot| spot.missed).map(|spot| &spot.reading.id)
    }

    /// The devices that would do for an item, were fewer of our own workers on them.
    pub(super) fn taken_by_ours(&self, need: &Need) -> Vec<usize> {
        let avoiding = self.avoiding(need);
        let ours = |bar: Bar| matches!(bar, Bar::NoSlot(_) | Bar::NoMemory(_) | Bar::Kept(_));
        (0..self.spots.len()).filter(|&at| self.bar(at, need, avoiding).is_some_and(ours)).collect()
    }

    /// Slots of a pool that nobody has.
    pub(super) fn free_slots(&self, pool: Pool) -> usize {
        self.pool(pool).map(|spot| spot.free_slots() as usize).sum()
    }

    /// Devices of a pool that take work, room or not.
    pub(super) fn usable(&self, pool: Pool) -> usize {
        self.pool(pool).filter(|spot| spot.usable()).count()
    }

    /// Devices of the kind and size for an item that take work, or will once ours has left them.
    pub(super) fn ours_for(&self, need: &Need) -> usize {
        self.pool(need.pool).filter(|spot| spot.ours() && spot.is_for(need)).count()
    }

    /// How many items of a declared size soon find room: what fits now, and one for each device.
    pub(super) fn room(&self, need: &Need, memory: Bytes) -> usize {
        let room = |spot: &Spot| {
            let slots = spot.free_slots() as usize;
            let parts = spot.memory_free().map_or(slots, |free| (free.0 / memory.0.max(1)) as usize);
            slots.min(parts) + 1
        };
        self.pool(need.pool).filter(|spot| spot.usable() && spot.is_for(need)).map(room).sum()
    }

    /// Why an item has to wait for devices, in words.
    pub(super) fn explain(&self, need: &Need) -> String {
        if need.pool == Pool::Cpu {
            let Some(spot) = self.pool(Pool::Cpu).next() else { return "there is no CPU pool".to_owned() };
            return if spot.usable() { Bar::NoSlot(spot.slots).on(spot, need) } else { spot.verdict.to_string() };
        }
        let avoiding = self.avoiding(need);
        let spots = (0..self.spots.len()).filter(|&at| self.spots[at].reading.kind.is_gpu());
        let bars: Vec<(&Spot, Option<Bar>)> = spots.map(|at| (&self.spots[at], self.bar(at, need, avoiding))).collect();
        let free = bars.iter().filter(|(_, bar)| bar.is_none()).count();
        // What is left out for good says nothing about why it waits, unless nothing else is there.
        let telling = |bar: &Bar| !matches!(bar, Bar::Verdict(Verdict::Excluded(_)));
        let barred = bars.iter().filter_map(|(spot, bar)| Some((spot, bar.as_ref()?)));
        let (why, left_out): (Vec<_>, Vec<_>) = barred.partition(|(_, bar)| telling(bar));
        let why = if why.is_empty() && free == 0 { left_out } else { why };
        let why: Vec<String> = why.into_iter().map(|(spot, bar)| bar.on(spot, need)).collect();
        let head = match need.count {
            1 if bars.is_empty() => "there is no GPU".to_owned(),
            1 => String::new(),
            count => format!("needs {count} GPUs; {free} {} free", if free == 1 { "is" } else { "are" }),
        };
        match (head.is_empty(), why.is_empty()) {
            (true, true) => "it is next".to_owned(),
            (true, false) => why.join("; "),
            (false, true) => head,
            (false, false) => format!("{head}: {}", why.join("; ")),
        }
    }
}

/// Whether what is taken is started by this plan, or waits for a fresh look at its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    Started,
    Promised,
}

impl Bar {
    fn on(&self, spot: &Spot, need: &Need) -> String {
        let name = spot.name();
        match self {
            Bar::Verdict(verdict @ Verdict::Free | verdict @ Verdict::Leased) => format!("{name} is {verdict}"),
            Bar::Verdict(verdict) => format!("{name} is {}: {verdict}", verdict.word()),
            Bar::MigAlone => format!("{name} can't be joined with another device"),
            Bar::TooSmall(total) => format!("{name} has {total} in all"),
            Bar::Avoided => format!("{name} is avoided after a failed attempt"),
            Bar::NoSlot(slots) => match (spot.reading.kind, slots) {
                (DeviceKind::Cpu, 1) => "the one CPU slot is taken".to_owned(),
                (DeviceKind::Cpu, slots) => format!("all {slots} CPU slots are taken"),
                (_, 1) => format!("{name} is taken"),
                (_, slots) => format!("all {slots} slots of {name} are taken"),
            },
            Bar::NoMemory(free) => {
                let memory = need.memory.unwrap_or(spot.share());
                format!("{name} has {free} of memory left for the {memory} it needs")
            }
            Bar::Kept(job) => format!("{name} is kept for {job}, which needs more than is free"),
        }
    }
}

/// How long it is until a moment, in whole seconds.
pub(super) fn until(at: Moment, now: Moment) -> String {
    let left = at.since(now);
    let whole = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
    humantime::format_duration(whole).to_string()
}
