//! What `estimate` is asked, and when: what runs and what waits, in the plan's order, and how long items took of late.
//! The ledger tells that at the start; nobody waits for it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::Director;
use crate::api::view::{Estimate, Span};
use crate::config::Route;
use crate::devices::{DeviceId, DeviceKind, Verdict};
use crate::estimate::{self, Busy, Guess, Paces, Place, Waiting, Want};
use crate::inbox::CandidateKey;
use crate::item::{JobId, Outcome, ResultRecord, Stage};
use crate::state::{Phase, Pool};
use crate::units::Moment;

/// So many that wait are told when; those behind them change places too often.
const QUEUE: usize = 5000;
/// Each of them puts off the next guess by so much: guessing takes about a hundredth of it.
const PAUSE: Duration = Duration::from_micros(100);

/// What was last guessed.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    pub(super) paces: Paces,
    of_jobs: HashMap<JobId, Estimate>,
    of_offers: HashMap<CandidateKey, Estimate>,
    made_at: Option<Moment>,
}

impl Estimates {
    pub(super) fn job(&self, id: JobId) -> Option<Estimate> {
        self.of_jobs.get(&id).copied()
    }

    pub(super) fn offer(&self, key: &CandidateKey) -> Option<Estimate> {
        self.of_offers.get(key).copied()
    }
}

/// Who waits.
enum Who {
    Job(JobId),
    Offer(CandidateKey),
}

impl Director {
    /// An item ended: how long its last attempt took.
    pub(super) fn note_pace(&mut self, result: &ResultRecord) {
        let Some(route) = result.route.as_deref().filter(|_| result.outcome == Outcome::Done) else { return };
        let Some(last) = result.attempts.last() else { return };
        if let (Some(from), Some(to)) = (last.started_at, last.ended_at) {
            self.note_took(route, from, to);
        }
    }

    fn note_took(&mut self, route: &str, from: Timestamp, to: Timestamp) {
        let nanoseconds = i64::try_from(to.as_nanosecond()).unwrap_or(i64::MAX);
        if let Ok(took) = Duration::try_from(to - from) {
            self.estimates.paces.note(route, nanoseconds, took);
        }
    }

    /// Guesses anew, unless that was done a moment ago: then it is done with the next publication, which is due.
    pub(super) fn estimate(&mut self) {
        for pace in self.ledger.paces.try_iter().flatten().collect::<Vec<_>>() {
            self.note_took(&pace.route, pace.started_at, pace.ended_at);
        }
        let now = self.state.now;
        let waiting = self.state.stages().claimed + self.state.stages().retrying;
        let offered: usize = self.state.offers().map(|(_, line)| line.len()).sum();
        let pause = PAUSE * (waiting as usize + offered).min(QUEUE) as u32;
        if self.estimates.made_at.is_some_and(|at| now.since(at) < pause) {
            self.dirty = true;
            return;
        }
        self.estimates.made_at = Some(now);
        (self.estimates.of_jobs, self.estimates.of_offers) = self.guessed();
    }

    fn guessed(&self) -> (HashMap<JobId, Estimate>, HashMap<CandidateKey, Estimate>) {
        let (state, now) = (&self.state, self.state.now);
        let mut numbers: HashMap<&DeviceId, usize> = HashMap::new();
        let mut places = Vec::new();
        for reading in &self.snapshot.devices {
            if matches!(state.verdict(reading, &self.snapshot), Verdict::Free | Verdict::Leased) {
                numbers.insert(&reading.id, places.len());
                let gpu = reading.kind != DeviceKind::Cpu;
                let memory = reading.memory_total.filter(|_| gpu).map(|bytes| bytes.0);
                places.push(Place { gpu, slots: state.slots(reading), memory });
            }
        }
        let mut busy = Vec::new();
        let mut running = Vec::new();
        let mut queue = Vec::new();
        for job in state.jobs() {
            let record = &job.record;
            let not_before = match job.stage {
                Stage::Claiming | Stage::Claimed { .. } => Duration::ZERO,
                Stage::Retrying { at, .. } => at.since(now),
                _ if !job.stage.leased().is_empty() => {
                    let elapsed = self.running.get(&record.id).map_or(Duration::ZERO, |it| now.since(it.started));
                    let on = job.devices().iter().filter_map(|id| numbers.get(id).copied()).collect();
                    busy.push(Busy { want: self.want(&record.route), elapsed, on });
                    running.push(record.id);
                    continue;
                }
                _ => continue,
            };
            let rank = (Reverse(record.route.priority), record.arrived_at);
            queue.push((rank, Who::Job(record.id), Waiting { want: self.want(&record.route), not_before }));
        }
        for (route, line) in state.offers() {
            for offer in line.iter().take(QUEUE) {
                let rank = (Reverse(route.priority), Some(offer.arrived_at));
                let waiting = Waiting { want: self.want(route), not_before: Duration::ZERO };
                queue.push((rank, Who::Offer(offer.key.clone()), waiting));
            }
        }
        if state.phase != Phase::Running || !state.may_start {
            // Nobody knows when it will go on.
            queue.clear();
        }
        queue.sort_by_key(|(rank, ..)| *rank);
        queue.truncate(QUEUE);
        let (who, queue): (Vec<Who>, Vec<Waiting<'_>>) = queue.into_iter().map(|(_, who, it)| (who, it)).unzip();
        let (ends, waits) = estimate::guess(&self.estimates.paces, &places, &busy, &queue);
        let wall = Timestamp::now();
        let told = |guess: &Guess| shown(guess, wall);
        let mut of_jobs: HashMap<JobId, Estimate> =
            running.into_iter().zip(&ends).filter_map(|(id, guess)| Some((id, told(guess)?))).collect();
        let mut of_offers = HashMap::new();
        for (who, guess) in who.into_iter().zip(&waits) {
            let Some(estimate) = told(guess) else { continue };
            match who {
                Who::Job(id) => drop(of_jobs.insert(id, estimate)),
                Who::Offer(key) => drop(of_offers.insert(key, estimate)),
            }
        }
        (of_jobs, of_offers)
    }

    fn want<'a>(&self, route: &'a Route) -> Want<'a> {
        let gpus = match Pool::of(route, self.snapshot.mode) {
            Pool::Cpu => 0,
            Pool::Gpu => route.gpus,
        };
        Want { route: &route.name, gpus, memory: route.gpu_memory.map(|bytes| bytes.0), max_running: route.max_running }
    }
}

/// In whole seconds, as an estimate deserves.
fn shown(guess: &Guess, wall: Timestamp) -> Option<Estimate> {
    let at = |ahead: Duration| {
        let at = wall.checked_add(ahead).ok()?;
        Timestamp::from_second(at.as_second()).ok()
    };
    let span =
        |range: Option<estimate::Range>| range.and_then(|(from, to)| Some(Span { from: at(from)?, to: at(to)? }));
    let estimate = Estimate { start: span(guess.start), end: span(guess.end) };
    (estimate.start.is_some() || estimate.end.is_some()).then_some(estimate)
}
