//! The resident workers as the state knows them: processes that stay on their devices, hold their leases and take
//! attempts one after another. Invariant: a job that a resident has holds no lease of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Job, Pool, State};
use crate::config::Route;
use crate::devices::{DeviceId, Lease};
use crate::item::{IllegalStep, JobId, Step};
use crate::units::Moment;

/// A resident's id is a ULID like a job's: its lease and its processes carry it in the same places.
pub type ResidentId = JobId;

/// A resident worker.
#[derive(Clone, Debug)]
pub struct Resident {
    /// As it was when the worker was started: a job of a route that has changed since isn't given to it.
    pub route: Arc<Route>,
    pub on: Vec<DeviceId>,
    pub warmth: Warmth,
    /// The jobs it has with the number of their batch, in the order in which it was handed them.
    pub jobs: Vec<(JobId, u64)>,
    /// How many batches it was handed.
    pub batches: u64,
    /// How many of its attempts have ended.
    pub served: u32,
    pub started_at: Moment,
    /// Since when it has nothing to do.
    pub idle_since: Moment,
    /// The leader of its process group.
    pub pid: Option<i32>,
}

/// Whether two routes say the same; mostly they are one.
pub fn is_same(one: &Arc<Route>, other: &Arc<Route>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// Where it stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// It loads what it needs.
    Starting,
    Ready {
        since: Moment,
    },
    /// It ends what it has, takes nothing more, and goes.
    Retiring,
}

impl Resident {
    pub fn new(route: Arc<Route>, on: Vec<DeviceId>, now: Moment) -> Resident {
        Resident {
            route,
            on,
            warmth: Warmth::Starting,
            jobs: Vec::new(),
            batches: 0,
            served: 0,
            started_at: now,
            idle_since: now,
            pid: None,
        }
    }

    /// Whether it was started for this very route.
    pub fn serves(&self, route: &Arc<Route>) -> bool {
        is_same(&self.route, route)
    }

    /// The batches that haven't ended.
    pub fn batches_in_flight(&self) -> usize {
        let mut numbers: Vec<u64> = self.jobs.iter().map(|(_, batch)| *batch).collect();
        numbers.dedup();
        numbers.len()
    }

    /// When it has been idle for too long.
    pub fn idles_until(&self) -> Option<Moment> {
        let ready = matches!(self.warmth, Warmth::Ready { .. });
        (ready && self.jobs.is_empty()).then(|| self.idle_since + self.route.resident.idle_timeout)
    }

    /// From when on an item of another route that is no more urgent may have its device although it is wanted here too:
    /// what its start cost is to be spent three times over in work.
    pub fn may_be_replaced_at(&self) -> Option<Moment> {
        let Warmth::Ready { since } = self.warmth else { return None };
        Some(since + (since.since(self.started_at) * 3).max(SHORTEST_TURN))
    }
}

/// The least time that a resident works before it makes room for another route's.
pub const SHORTEST_TURN: Duration = Duration::from_secs(10);

/// Items of a route that take less than this are handed over one ahead, so that the worker never waits for the director.
/// For longer ones the wait is nothing, and an item in line couldn't go to another worker that is free sooner.
const SHORT: Duration = Duration::from_millis(100);

/// All of them, with what is remembered of their routes.
#[derive(Clone, Debug, Default)]
pub(super) struct Residents {
    pub(super) all: BTreeMap<ResidentId, Resident>,
    /// How long an item takes, a moving average, by route.
    pace: HashMap<String, Duration>,
    /// Devices of theirs that another director waits for.
    awaited: BTreeSet<DeviceId>,
    /// When one last left such a device.
    gave_way: Option<Moment>,
}

impl State {
    pub fn resident(&self, id: ResidentId) -> Option<&Resident> {
        self.residents.all.get(&id)
    }

    pub fn residents(&self) -> impl Iterator<Item = (ResidentId, &Resident)> {
        self.residents.all.iter().map(|(id, resident)| (*id, resident))
    }

    /// Takes in a resident that is being started; its leases last as long as it does.
    pub fn add_resident(&mut self, id: ResidentId, resident: Resident) {
        for device in &resident.on {
            let lease = Lease { job: id, memory: resident.route.gpu_memory, since: self.now, group: None };
            self.devices.entry(device.clone()).or_default().leases.held.push(lease);
            if *device != DeviceId::cpu() {
                self.last_given = Some(device.clone());
            }
        }
        self.residents.all.insert(id, resident);
    }

    pub fn resident_runs(&mut self, id: ResidentId, pid: i32) {
        let Some(resident) = self.residents.all.get_mut(&id) else { return };
        resident.pid = Some(pid);
        for device in &resident.on {
            let held = self.devices.get_mut(device).map(|device| &mut device.leases.held);
            if let Some(lease) = held.and_then(|held| held.iter_mut().find(|lease| lease.job == id)) {
                lease.group = Some(pid);
            }
        }
    }

    pub fn resident_is_ready(&mut self, id: ResidentId) {
        let now = self.now;
        if let Some(resident) = self.residents.all.get_mut(&id)
            && resident.warmth == Warmth::Starting
        {
            (resident.warmth, resident.idle_since) = (Warmth::Ready { since: now }, now);
        }
    }

    pub fn resident_retires(&mut self, id: ResidentId) {
        if let Some(resident) = self.residents.all.get_mut(&id) {
            resident.warmth = Warmth::Retiring;
        }
    }

    /// It has ended: its leases come back.
    pub fn remove_resident(&mut self, id: ResidentId) -> Option<Resident> {
        let resident = self.residents.all.remove(&id)?;
        for device in &resident.on {
            let leases = &mut self.devices.entry(device.clone()).or_default().leases;
            leases.held.retain(|lease| lease.job != id);
            leases.last_exit = Some(self.now);
            if self.residents.awaited.remove(device) {
                self.residents.gave_way = Some(self.now);
            }
        }
        Some(resident)
    }

    /// Hands waiting jobs to a resident, as one batch.
    pub fn hand_over(&mut self, jobs: &[JobId], to: ResidentId) -> Result<(), IllegalStep> {
        let Some(resident) = self.residents.all.get_mut(&to) else { return Ok(()) };
        resident.batches += 1;
        let (on, batch) = (resident.on.clone(), resident.batches);
        resident.jobs.extend(jobs.iter().map(|job| (*job, batch)));
        for id in jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.resident = Some(to);
            }
            self.step(*id, Step::Lease { on: on.clone() })?;
        }
        Ok(())
    }

    /// A job leaves the resident that had it.
    pub(super) fn leave_resident(&mut self, job: &mut Job, began: bool) {
        let Some(id) = job.resident.take() else { return };
        let now = self.now;
        if let Some(resident) = self.residents.all.get_mut(&id) {
            resident.jobs.retain(|(held, _)| *held != job.record.id);
            resident.served += u32::from(began);
            if resident.jobs.is_empty() {
                resident.idle_since = now;
            }
        }
    }

    /// Takes in how long an item took on a resident.
    pub fn note_pace(&mut self, route: &str, took: Duration) {
        match self.residents.pace.get_mut(route) {
            Some(pace) => *pace = (*pace * 7 + took) / 8,
            None => drop(self.residents.pace.insert(route.to_owned(), took)),
        }
    }

    /// How many batches a resident of the route may have at once.
    pub fn depth(&self, route: &Route) -> usize {
        let is_short = self.residents.pace.get(&route.name).is_some_and(|pace| *pace < SHORT);
        if is_short { 2 } else { 1 }
    }

    /// How many items are claimed for a resident of the route, those it has with them: what it may be handed, and where
    /// it takes several at once the next batch, which is to be full when it is asked for.
    pub fn reach(&self, route: &Route) -> usize {
        let most = route.batch.max_items as usize;
        if most > 1 { 2 * most } else { self.depth(route) }
    }

    /// The next moment at which time alone decides something about residents, for the director's timer.
    pub fn next_resident_change(&self) -> Option<Moment> {
        let residents = self.residents.all.values();
        let lives = residents.flat_map(|it| [it.idles_until(), it.may_be_replaced_at()]);
        let heads = self.lines.values().filter_map(|ranks| self.jobs.get(&ranks.first()?.id));
        let waits = heads.filter(|job| job.route().keeps_residents()).flat_map(|job| {
            let since = job.waits_since();
            let batch = &job.route().batch;
            [since.map(|since| since + batch.max_wait), since.map(|since| since + PATIENCE)]
        });
        let next = lives.chain(waits).flatten().filter(|moment| *moment > self.now);
        next.min()
    }

    /// Takes in for which of its residents' devices another director waits.
    pub fn set_awaited(&mut self, devices: BTreeSet<DeviceId>) {
        self.residents.awaited = devices;
    }

    pub fn awaited(&self) -> impl Iterator<Item = &DeviceId> {
        self.residents.awaited.iter()
    }

    pub fn is_awaited(&self, device: &DeviceId) -> bool {
        self.residents.awaited.contains(device)
    }

    /// Until when whoever waits takes what was left to it, before it is left more.
    pub fn gave_way_until(&self) -> Option<Moment> {
        self.residents.gave_way.map(|at| at + TAKING)
    }

    /// The routes of the configuration, whenever it changes.
    pub fn set_routes(&mut self, routes: Vec<Arc<Route>>) {
        self.routes = routes;
    }

    /// Whether a resident's route is one of the configuration's, as it was.
    pub fn is_current(&self, route: &Arc<Route>) -> bool {
        self.routes.iter().any(|current| is_same(current, route))
    }

    /// The pool of a resident's devices.
    pub fn pool_of(resident: &Resident) -> Pool {
        if resident.on.iter().any(|device| *device == DeviceId::cpu()) { Pool::Cpu } else { Pool::Gpu }
    }
}

/// So long an item waits for a warm worker that is busy before another is started for it.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// So long another director may take to see that a device is free now, and to get it.
const TAKING: Duration = Duration::from_secs(5);
