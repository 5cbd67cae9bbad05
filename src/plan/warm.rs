//! The resident workers while one plan is made: who has room for another item, who is still starting, who must go because
//! something else needs the device. Invariants: a batch goes to a worker that was started for just this route, is no
//! larger than the route and each of its items allow, and no item is in two batches.

use std::sync::Arc;

use super::floor::Floor;
use super::{Decision, Parting};
use crate::config::Route;
use crate::devices::{DeviceId, Snapshot};
use crate::item::{JobId, Stage};
use crate::state::{Demand, Job, PATIENCE, Phase, Pool, Resident, ResidentId, State, Warmth, is_same};
use crate::units::Moment;

/// One resident during a plan.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    pub(super) id: ResidentId,
    pub(super) resident: &'a Resident,
    /// Batches it has.
    in_flight: usize,
    /// The next one, as far as this plan has filled it.
    forming: Vec<JobId>,
    /// The most items that the ones in it allow.
    limit: usize,
    /// One of them has waited long enough for more.
    due: bool,
    /// It goes: its device will be free.
    leaving: bool,
    /// A job of this plan counts on its device.
    awaited: bool,
}

impl Seat<'_> {
    /// How many more items it may be handed in its life.
    fn life_left(&self) -> usize {
        let most = self.resident.route.resident.max_items.unwrap_or(u32::MAX);
        (most.saturating_sub(self.resident.served) as usize).saturating_sub(self.resident.jobs.len())
    }

    fn is_ready(&self) -> bool {
        !self.leaving && matches!(self.resident.warmth, Warmth::Ready { .. })
    }

    fn is_starting(&self) -> bool {
        !self.leaving && self.resident.warmth == Warmth::Starting
    }

    fn is_idle(&self) -> bool {
        self.resident.jobs.is_empty() && self.forming.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct Warm<'a> {
    seats: Vec<Seat<'a>>,
    /// Jobs that wait for a worker that is starting, or that this plan starts, by route.
    on_starting: Vec<(Arc<Route>, usize)>,
    /// Workers that this plan starts.
    fresh: Vec<Arc<Route>>,
}

/// What a waiting item of a resident route can hope for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// It has a place in a batch.
    Seated,
    /// A worker that is starting will take it.
    Starting,
    /// Its route's workers are busy, and soon one is free.
    Soon,
    /// A worker must be started for it.
    None,
}

impl<'a> Warm<'a> {
    pub(super) fn new(state: &'a State) -> Warm<'a> {
        let seat = |(id, resident): (ResidentId, &'a Resident)| Seat {
            id,
            resident,
            in_flight: resident.batches_in_flight(),
            forming: Vec::new(),
            limit: resident.route.batch.max_items as usize,
            due: false,
            leaving: resident.warmth == Warmth::Retiring,
            awaited: false,
        };
        Warm { seats: state.residents().map(seat).collect(), on_starting: Vec::new(), fresh: Vec::new() }
    }

    /// These are sent away already.
    pub(super) fn dismiss(&mut self, over: &[(ResidentId, Parting)]) {
        let is_over = |seat: &&mut Seat| over.iter().any(|(id, _)| *id == seat.id);
        self.seats.iter_mut().filter(is_over).for_each(|seat| seat.leaving = true);
    }

    /// Finds a worker for a waiting job.
    pub(super) fn seat(&mut self, job: &Job, state: &State) -> Hope {
        let (route, now) = (job.route(), state.now);
        let own = job.record.batch_limit.unwrap_or(u32::MAX).max(1) as usize;
        let depth = state.depth(route);
        let fits = |seat: &Seat| {
            let room = seat.limit.min(own).min(seat.life_left());
            seat.is_ready() && seat.resident.serves(route) && seat.in_flight < depth && seat.forming.len() < room
        };
        let fitting = self.seats.iter_mut().filter(|seat| fits(seat));
        if let Some(seat) = fitting.min_by_key(|seat| (seat.in_flight, seat.forming.len())) {
            seat.limit = seat.limit.min(own);
            // A retry has waited already, and company would be in danger from it.
            let again = !matches!(job.stage, Stage::Claimed { next: 1, .. });
            seat.due |= again || job.waits_since().is_none_or(|since| since + route.batch.max_wait <= now);
            seat.forming.push(job.record.id);
            return Hope::Seated;
        }
        let starting = |seat: &&Seat| seat.is_starting() && seat.resident.serves(route);
        let starting = self.seats.iter().filter(starting).count()
            + self.fresh.iter().filter(|fresh| is_same(fresh, route)).count();
        let waiting = self.on_starting(route);
        if *waiting < starting * route.batch.max_items as usize {
            *waiting += 1;
            return Hope::Starting;
        }
        let serving = self.seats.iter().any(|seat| seat.is_ready() && seat.resident.serves(route));
        let patient = job.waits_since().is_some_and(|since| now < since + PATIENCE);
        if serving && patient { Hope::Soon } else { Hope::None }
    }

    /// This plan starts a worker for the job's route; the job waits for it.
    pub(super) fn start(&mut self, route: &Arc<Route>) {
        self.fresh.push(route.clone());
        *self.on_starting(route) += 1;
    }

    /// How many jobs wait for a worker of the route that is starting.
    fn on_starting(&mut self, route: &Arc<Route>) -> &mut usize {
        let at = self.on_starting.iter().position(|(of, _)| is_same(of, route)).unwrap_or_else(|| {
            self.on_starting.push((route.clone(), 0));
            self.on_starting.len() - 1
        });
        &mut self.on_starting[at].1
    }

    /// Whether items of the route have a worker, be it a busy one.
    pub(super) fn serves(&self, route: &Arc<Route>) -> bool {
        self.seats.iter().any(|seat| !seat.leaving && seat.resident.serves(route))
    }

    /// How many workers of a route live, or are started by this plan.
    pub(super) fn of_route(&self, name: &str) -> usize {
        let seats = self.seats.iter().filter(|seat| !seat.leaving && seat.resident.route.name == name);
        seats.count() + self.fresh.iter().filter(|route| route.name == name).count()
    }

    /// The batches that can go: full ones, those whose first item has waited long enough, and none ahead of time.
    pub(super) fn batches(&self) -> impl Iterator<Item = Decision> {
        let goes = |seat: &&Seat<'a>| {
            let most = seat.limit.min(seat.life_left());
            let full = seat.forming.len() >= most;
            !seat.forming.is_empty() && (full || (seat.due && seat.in_flight == 0))
        };
        let hand = |seat: &Seat<'a>| Decision::Hand { jobs: seat.forming.clone(), to: seat.id };
        self.seats.iter().filter(goes).map(hand)
    }

    /// How many more items the workers of a pool could be handed at once: claims go so far ahead.
    pub(super) fn room(&self, pool: Pool, state: &State) -> usize {
        let here = |seat: &&Seat<'_>| !seat.leaving && State::pool_of(seat.resident) == pool;
        let room = |seat: &Seat<'_>| {
            let most = state.reach(&seat.resident.route);
            most.min(seat.life_left()).saturating_sub(seat.resident.jobs.len())
        };
        self.seats.iter().filter(here).map(room).sum()
    }

    /// Makes room on one of these devices for a job that can't be placed: the worker that can best be spared leaves it.
    /// None when one is leaving already, or nobody can be spared.
    pub(super) fn make_room(
        &mut self,
        places: &[usize],
        floor: &Floor<'_>,
        job: &Job,
        state: &State,
    ) -> Option<Decision> {
        let on_place = |seat: &Seat| places.iter().any(|&at| seat.resident.on.contains(&floor.spot(at).reading.id));
        let serves = |seat: &Seat| seat.resident.serves(job.route());
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.leaving && !seat.awaited && on_place(seat)) {
            seat.awaited = true;
            return None;
        }
        let spared = |seat: &&mut Seat| {
            !seat.leaving && on_place(seat) && !serves(seat) && may_go(seat, job.route().priority, state)
        };
        let order = |seat: &&mut Seat| (!seat.is_idle(), seat.forming.len(), seat.resident.idle_since);
        let seat = self.seats.iter_mut().filter(spared).min_by_key(order)?;
        (seat.leaving, seat.awaited) = (true, true);
        seat.forming.clear();
        Some(Decision::Retire { resident: seat.id, why: Parting::OtherRoute })
    }

    /// Why a job of a resident route waits, when that is for a worker.
    pub(super) fn why(&self, job: &Job, state: &State) -> Option<String> {
        let route = job.route();
        let seats = || self.seats.iter().filter(|seat| !seat.leaving && seat.resident.serves(route));
        if let Some(seat) = seats().find(|seat| seat.forming.contains(&job.record.id)) {
            let (has, most) = (seat.forming.len(), seat.limit);
            return Some(format!("waits until its batch is full ({has} of {most}) or max_wait is over"));
        }
        let starting = seats().find(|seat| seat.is_starting());
        if let Some(seat) = starting {
            let devices: Vec<&str> = seat.resident.on.iter().map(|device| device.0.as_str()).collect();
            let since = state.now.since(seat.resident.started_at).as_secs();
            return Some(format!("the resident worker for it is starting on {} ({since} s so far)", devices.join(",")));
        }
        seats().next().is_some().then(|| "the resident workers of its route are busy".to_owned())
    }
}

/// Whether a worker may be sent away for an item of another route.
fn may_go(seat: &Seat, priority: i32, state: &State) -> bool {
    let resident = seat.resident;
    if resident.warmth == Warmth::Starting {
        return priority > resident.route.priority;
    }
    let idle = resident.jobs.is_empty();
    if idle && !is_wanted(&resident.route, state) {
        return true;
    }
    let had_its_turn = resident.may_be_replaced_at().is_some_and(|from| from <= state.now);
    priority > resident.route.priority || had_its_turn
}

/// Whether items of the route wait.
fn is_wanted(route: &Arc<Route>, state: &State) -> bool {
    state.lines().any(|(line, _)| line.demand.route == route.name)
        || state.offers().any(|(offered, _)| offered.name == route.name)
}

/// The residents whose time is over by itself: too long idle, at the end of their items, of a route that is no more, on a
/// device that somebody else is on or that has turned bad, or with a director that ends.
pub(super) fn over(state: &State, snapshot: &Snapshot) -> Vec<(ResidentId, Parting)> {
    let ends = matches!(state.phase, Phase::Draining | Phase::Stopping);
    let parting = |resident: &Resident| {
        if resident.warmth == Warmth::Retiring || !resident.jobs.is_empty() {
            return None;
        }
        let spent = resident.route.resident.max_items.is_some_and(|most| most <= resident.served);
        let idle = resident.idles_until().is_some_and(|until: Moment| until <= state.now);
        let stale = !state.is_current(&resident.route);
        if ends || spent || ((stale || idle) && !is_wanted(&resident.route, state)) {
            return Some(Parting::Over);
        }
        let starting = resident.warmth == Warmth::Starting;
        (!starting && unwelcome(resident, state, snapshot)).then_some(Parting::Unwelcome)
    };
    state.residents().filter_map(|(id, it)| Some((id, parting(it)?))).collect()
}

/// The residents of one device that another director waits for. It is treated like an item of another route: who has
/// nothing to do goes at once, who is wanted here after its turn, with what it has in hand done. One device at a time,
/// since nobody knows how many of them the other one needs; and only where nothing else of ours would keep the lock.
pub(super) fn giving_way(state: &State, over: &[(ResidentId, Parting)]) -> Vec<(ResidentId, Parting)> {
    let leaves = |id: ResidentId, it: &Resident| it.warmth == Warmth::Retiring || over.iter().any(|(o, _)| *o == id);
    let on_awaited = |it: &Resident| it.on.iter().any(|device| state.is_awaited(device));
    let one_leaves = state.residents().any(|(id, it)| leaves(id, it) && on_awaited(it));
    if one_leaves || state.gave_way_until().is_some_and(|until| state.now < until) {
        return Vec::new();
    }
    let may_go = |resident: &Resident| match resident.warmth {
        Warmth::Ready { .. } if resident.jobs.is_empty() && !is_wanted(&resident.route, state) => true,
        Warmth::Ready { .. } => resident.may_be_replaced_at().is_some_and(|from| from <= state.now),
        Warmth::Starting | Warmth::Retiring => false,
    };
    let residents_of = |device: &DeviceId| -> Option<Vec<(ResidentId, &Resident)>> {
        let held = &state.device(device)?.leases.held;
        let all: Option<Vec<_>> = held.iter().map(|it| Some((it.job, state.resident(it.job)?))).collect();
        all.filter(|all| !all.is_empty() && all.iter().all(|(_, it)| may_go(it)))
    };
    let order = |all: &Vec<(ResidentId, &Resident)>| {
        let busy = all.iter().any(|(_, it)| !it.jobs.is_empty());
        (busy, all.iter().map(|(_, it)| it.idle_since).max())
    };
    let first = state.awaited().filter_map(residents_of).min_by_key(order);
    first.into_iter().flatten().map(|(id, _)| (id, Parting::OtherDirector)).collect()
}

/// Whether one of its devices should be left: it is gone or taken out, or somebody else is on it.
fn unwelcome(resident: &Resident, state: &State, snapshot: &Snapshot) -> bool {
    resident.on.iter().any(|id| match snapshot.devices.iter().find(|reading| reading.id == *id) {
        None => snapshot.trouble.is_none(),
        Some(reading) => {
            reading.health.lost
                || reading.excluded.is_some()
                || state.cordon_of(reading).is_some()
                || state.strangers_on(reading).is_some()
        }
    })
}

/// Whether the demand's worker count is at its limit.
pub(super) fn is_full(warm: &Warm, demand: &Demand) -> bool {
    demand.max_running.is_some_and(|most| warm.of_route(&demand.route) >= most as usize)
}
