//! The slots of jobs that many can work on at once, while one plan is made. Such a job starts with one slot like any
//! other; it takes more while they are free and nothing that waits or is offered could use them, and gives them back
//! when something as urgent can't be placed. Invariant: the first slot is never called back.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::floor::{Floor, Look, Need, Taking};
use super::{Decision, Planner, refusal};
use crate::item::{JobId, Stage};
use crate::state::{Demand, Job, Line, Slot, State};

/// The most items of one kind whose places are looked for: what is claimed ahead is no more.
const MOST: usize = super::MAX_AHEAD;

#[derive(Debug)]
pub(super) struct Sharing<'a> {
    jobs: Vec<Shared<'a>>,
}

#[derive(Debug)]
struct Shared<'a> {
    job: &'a Job,
    further: Vec<Further<'a>>,
    /// The first, those it has, and those that this plan gives.
    slots: usize,
}

#[derive(Debug)]
struct Further<'a> {
    slot: &'a Slot,
    leaving: bool,
    /// An item of this plan counts on it.
    awaited: bool,
}

impl Shared<'_> {
    fn priority(&self) -> i32 {
        self.job.route().priority
    }

    fn may_grow(&self) -> bool {
        let runs = matches!(self.job.stage, Stage::Running { .. });
        runs && self.job.ahead && !self.further.iter().any(|it| it.leaving)
    }
}

impl<'a> Sharing<'a> {
    pub(super) fn new(state: &'a State) -> Sharing<'a> {
        let further = |slot: &'a Slot| Further { slot, leaving: slot.recalled, awaited: false };
        let shared = |job: &'a Job| Shared {
            job,
            further: job.further.iter().map(further).collect(),
            slots: 1 + job.further.len(),
        };
        Sharing { jobs: state.sharing().map(shared).collect() }
    }

    /// These end: all their slots come back anyway.
    pub(super) fn dismiss(&mut self, ending: &BTreeSet<JobId>) {
        self.jobs.retain(|shared| !ending.contains(&shared.job.record.id));
    }

    /// Counts on one slot for an item of this priority, on one of these devices: one that is leaving already, else one
    /// that is called back now. None: there is no such slot.
    fn call_back(&mut self, places: &[usize], floor: &Floor<'_>, priority: i32) -> Option<Option<Decision>> {
        let on_place =
            |it: &Further<'_>| places.iter().any(|&at| it.slot.on.contains(&floor.spot(at).reading.id)) && !it.awaited;
        let all = self.jobs.iter_mut().flat_map(|shared| &mut shared.further);
        if let Some(leaving) = all.into_iter().find(|it| it.leaving && on_place(it)) {
            leaving.awaited = true;
            return Some(None);
        }
        let spared = |shared: &&mut Shared<'_>| {
            shared.priority() <= priority && shared.further.iter().any(|it| !it.leaving && on_place(it))
        };
        // The least urgent first, then who has most.
        let order = |shared: &&mut Shared<'_>| (shared.priority(), Reverse(shared.slots), Reverse(shared.job.rank()));
        let shared = self.jobs.iter_mut().filter(spared).min_by_key(order)?;
        shared.slots -= 1;
        let job = shared.job.record.id;
        let last = shared.further.iter_mut().rfind(|it| !it.leaving && on_place(it))?;
        (last.leaving, last.awaited) = (true, true);
        Some(Some(Decision::Shrink { job, slot: last.slot.no }))
    }
}

impl Planner<'_> {
    /// Calls back slots for items of one line that can't be placed, `count` of them. Whether the first of them can count
    /// on all it needs.
    pub(super) fn call_back(&mut self, need: &Need<'_>, priority: i32, count: usize) -> bool {
        if self.sharing.jobs.is_empty() {
            return false;
        }
        let places = self.floor.taken_by_ours(need);
        let mut found = 0;
        while found < need.count * count.min(MOST) {
            let Some(called) = self.sharing.call_back(&places, &self.floor, priority) else { break };
            self.decisions.extend(called);
            found += 1;
        }
        need.count <= found
    }

    /// Hands out what is left of the slots, when everything else has found its place.
    pub(super) fn share(&mut self) {
        if self.sharing.jobs.is_empty() {
            return;
        }
        self.leave_room();
        let mut growing: Vec<usize> =
            (0..self.sharing.jobs.len()).filter(|&at| self.sharing.jobs[at].may_grow()).collect();
        // Who has least is next.
        let order = |sharing: &Sharing<'_>, at: usize| (sharing.jobs[at].slots, sharing.jobs[at].job.rank());
        while let Some(&next) = growing.iter().min_by_key(|&&at| order(&self.sharing, at)) {
            let shared = &mut self.sharing.jobs[next];
            let line = shared.job.line();
            // Nobody's: what is kept for another job is kept from it too.
            let need = Need { avoid: &line.avoid, ..Need::of(&line.demand, self.snapshot) };
            let Some(places) = self.floor.place(&need) else {
                growing.retain(|at| *at != next);
                continue;
            };
            shared.slots += 1;
            let job = shared.job.record.id;
            self.give(job, &need, &places);
        }
    }

    fn give(&mut self, job: JobId, need: &Need<'_>, places: &[usize]) {
        let fresh = places.iter().all(|&at| self.floor.spot(at).look == Look::Fresh);
        self.floor.take(places, need, if fresh { Taking::Started } else { Taking::Promised });
        if !fresh {
            return self.ask(places);
        }
        let on = places.iter().map(|&at| self.floor.spot(at).reading.id.clone()).collect();
        self.decisions.push(Decision::Grow { job, on });
    }

    /// Takes the places of what is on its way in, and of what lies in the inbox and could start now.
    fn leave_room(&mut self) {
        let state = self.state;
        for (demand, ahead) in state.ahead() {
            self.leave_room_for(demand, ahead.claiming as usize);
        }
        if !state.may_claim {
            return;
        }
        for (route, line) in state.offers().filter(|(route, _)| refusal(route, self.snapshot).is_none()) {
            let placed = self.placed.get(&route.name).copied().unwrap_or(0);
            self.leave_room_for(&Demand::of(route), line.len().saturating_sub(placed));
        }
    }

    fn leave_room_for(&mut self, demand: &Demand, count: usize) {
        let allowed = demand.max_running.map(|most| most.saturating_sub(self.running_of(&demand.route)) as usize);
        let mut count = count.min(allowed.unwrap_or(usize::MAX)).min(MOST);
        if demand.resident {
            // One worker takes many items, and where there is one the next waits for it.
            count = count.min(usize::from(self.warm.of_route(&demand.route) == 0));
        }
        let line = Line { demand: demand.clone(), avoid: Vec::new() };
        let need = Need::of(&line.demand, self.snapshot);
        for left in (1..=count).rev() {
            let Some(places) = self.floor.place(&need) else {
                self.call_back(&need, demand.priority.0, left);
                return;
            };
            self.floor.take(&places, &need, Taking::Promised);
        }
    }
}
