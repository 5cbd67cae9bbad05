//! The rules by which the world judges what it sees. Written apart from the planner, so that a mistake there isn't made
//! here too.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Fate, World};
use crate::config::Route;
use crate::devices::{DeviceId, DeviceKind, Verdict};
use crate::item::{JobId, JobRecord, Stage};
use crate::plan::{Decision, MAX_AHEAD, Parting};
use crate::state::{Phase, Pool, ResidentId, State, Warmth};
use crate::units::Bytes;

impl World {
    pub(super) fn judge(&self, decisions: &[Decision]) {
        let mut touched = BTreeSet::new();
        for decision in decisions {
            match decision {
                Decision::Check { devices } => {
                    let asked = |id: &DeviceId| self.state.device(id).is_some_and(|device| device.asked_at.is_some());
                    assert!(!devices.is_empty() && !devices.iter().any(asked), "a device is asked once");
                    assert_eq!(devices.iter().collect::<BTreeSet<_>>().len(), devices.len());
                }
                Decision::Due { job } => {
                    let due = matches!(self.state.job(*job).map(|job| &job.stage), Some(Stage::Retrying { at, .. }) if *at <= self.state.now);
                    assert!(due, "a retry isn't before its time");
                }
                Decision::Stop { job } => {
                    let job = self.state.job(*job).expect("a job that runs");
                    let (stage, on) = (&job.stage, job.devices());
                    assert!(matches!(stage, Stage::Running { .. }));
                    let sound = |id: &DeviceId| self.snapshot.devices.iter().any(|it| it.id == *id && !it.health.lost);
                    assert!(!on.iter().all(sound), "only a lost device stops a worker");
                    assert!(self.snapshot.trouble.is_none() || on.iter().any(|id| !sound(id)));
                }
                Decision::Start { job, .. } => assert!(touched.insert(*job), "a job starts once"),
                Decision::Warm { job, .. } => assert!(touched.insert(*job), "a worker is started for one job"),
                Decision::Hand { jobs, to } => {
                    assert!(jobs.iter().all(|job| touched.insert(*job)), "a job is handed over once");
                    self.judge_batch(jobs, *to);
                }
                Decision::Retire { resident, why } => {
                    let warmth = self.state.resident(*resident).expect("a resident").warmth;
                    assert!(warmth != Warmth::Retiring && touched.insert(*resident), "it is sent away once");
                    if *why == Parting::OtherDirector {
                        self.judge_giving_way(*resident, decisions);
                    }
                }
                Decision::Shrink { job, slot } => {
                    let shared = self.state.job(*job).expect("a job that runs");
                    let slot = shared.further.iter().find(|it| it.no == *slot).expect("a slot of it");
                    assert!(!slot.recalled, "a slot is called back once");
                    let urgent = |priority: i32| priority >= shared.route().priority;
                    let waits = self.state.ahead().any(|(demand, _)| urgent(demand.priority.0));
                    let offered = self.state.offers().any(|(route, _)| urgent(route.priority));
                    let due = decisions.iter().any(|it| matches!(it, Decision::Due { .. }));
                    assert!(waits || offered || due, "nothing as urgent wants it");
                }
                Decision::Grow { .. } | Decision::Claim { .. } | Decision::Refuse { .. } => {}
            }
            let moves = !matches!(decision, Decision::Due { .. } | Decision::Stop { .. } | Decision::Retire { .. });
            let may = self.state.phase == Phase::Running && self.state.may_start;
            assert!(!moves || may, "{decision:?} while {:?}", self.state.phase);
        }
        self.judge_claims(decisions);
    }

    /// For another director one goes that could be spared, and all of what keeps the device's lock goes with it.
    fn judge_giving_way(&self, id: ResidentId, decisions: &[Decision]) {
        let resident = self.state.resident(id).expect("a resident");
        let Warmth::Ready { since } = resident.warmth else { panic!("one that starts, or goes, gives way") };
        let had_its_turn = self.state.now.since(since) >= Duration::from_secs(10);
        let waits = self.state.waiting().any(|job| job.route().name == resident.route.name);
        assert!(had_its_turn || (resident.jobs.is_empty() && !waits), "who is wanted has its turn");
        let goes = |id: JobId| {
            let away = |it: &Decision| matches!(it, Decision::Retire { resident, why: Parting::OtherDirector } if *resident == id);
            decisions.iter().any(away)
        };
        let leases = |id: &DeviceId| self.state.device(id).map_or(&[][..], |device| &device.leases.held);
        let is_left = |id: &DeviceId| self.state.is_awaited(id) && leases(id).iter().all(|lease| goes(lease.job));
        assert!(resident.on.iter().any(is_left), "nothing is gained by its going");
    }

    fn judge_batch(&self, jobs: &[JobId], to: ResidentId) {
        let resident = self.state.resident(to).expect("a resident");
        let batch = &resident.route.batch;
        assert!(matches!(resident.warmth, Warmth::Ready { .. }), "only a ready one is handed something");
        assert!(resident.batches_in_flight() < 2, "one ahead at most");
        assert!(!jobs.is_empty() && jobs.len() <= batch.max_items as usize);
        if let Some(most) = resident.route.resident.max_items {
            assert!(resident.served as usize + resident.jobs.len() + jobs.len() <= most as usize, "a life has its end");
        }
        for id in jobs {
            let job = self.state.job(*id).expect("a job that waits");
            // A retry whose time has come is let in by the same plan.
            let waits = match job.stage {
                Stage::Claimed { .. } => true,
                Stage::Retrying { at, .. } => at <= self.state.now,
                _ => false,
            };
            assert!(waits && resident.route == *job.route());
            assert!(job.record.batch_limit.is_none_or(|most| jobs.len() <= most as usize), "a halved batch stays so");
        }
        if let Some(most) = resident.route.max_running {
            assert!(self.state.running_of(&resident.route.name) as usize + jobs.len() <= most as usize);
        }
    }

    fn judge_claims(&self, decisions: &[Decision]) {
        let offers: Vec<_> = self.state.offers().flat_map(|(_, line)| line).collect();
        let claimed: Vec<_> = decisions
            .iter()
            .filter_map(|decision| match decision {
                Decision::Claim { key } => Some(offers.iter().find(|offer| offer.key == *key).expect("an offer")),
                _ => None,
            })
            .collect();
        assert!(claimed.is_empty() || self.state.may_claim);
        for pool in [Pool::Cpu, Pool::Gpu] {
            let claims = claimed.iter().filter(|offer| Pool::of(&offer.route, self.snapshot.mode) == pool).count();
            if claims == 0 {
                continue;
            }
            let of_pool = |id: &DeviceId| (*id == DeviceId::cpu()) == (pool == Pool::Cpu);
            let starts =
                decisions.iter().filter(|it| matches!(it, Decision::Start { on, .. } if of_pool(&on[0]))).count();
            let given: usize =
                decisions
                    .iter()
                    .map(|it| {
                        if let Decision::Start { on, .. } = it { on.iter().filter(|id| of_pool(id)).count() } else { 0 }
                    })
                    .sum();
            let (mut slots, mut usable) = (0, 0);
            for reading in self.snapshot.devices.iter().filter(|reading| of_pool(&reading.id)) {
                if self.takes_work(&reading.id) {
                    let held = self.state.device(&reading.id).map_or(0, |device| device.leases.held.len());
                    slots += self.state.slots(reading) as usize - held;
                    usable += 1;
                }
            }
            let free = slots - given;
            let (mut ahead, mut claiming) = (0, 0);
            for (_, jobs) in self.state.ahead().filter(|(demand, _)| demand.pool(self.snapshot.mode) == pool) {
                ahead += (jobs.claiming + jobs.claimed) as usize;
                claiming += jobs.claiming;
            }
            let due = decisions.iter().filter(|it| match it {
                Decision::Due { job } => {
                    self.state.job(*job).is_some_and(|job| Pool::of(job.route(), self.snapshot.mode) == pool)
                }
                _ => false,
            });
            let ahead = ahead + due.count() - starts + claims;
            let residents = self.state.residents().filter(|(_, it)| State::pool_of(it) == pool);
            let warm: usize = residents.map(|(_, it)| self.state.reach(&it.route)).sum();
            let allowance = (free + usable + warm).max(self.state.recent_ends(pool)).min(MAX_AHEAD);
            // One that could start this moment isn't held up by what waits for something else.
            let stuck = claims == 1 && claiming == 0 && free > 0;
            assert!(ahead <= allowance || stuck, "{claims} claims make {ahead} ahead, {allowance} are allowed");
        }
    }

    fn takes_work(&self, id: &DeviceId) -> bool {
        let reading = self.snapshot.devices.iter().find(|reading| reading.id == *id);
        let Some(reading) = reading else { return false };
        let cordoned = self.state.cordon(id).is_some();
        let verdict = self.state.verdict(reading, &self.snapshot);
        let asked = reading.kind == DeviceKind::Cpu || self.snapshot.trouble.is_none();
        matches!(verdict, Verdict::Free | Verdict::Leased)
            && !cordoned
            && asked
            && !reading.health.lost
            && reading.excluded.is_none()
    }

    /// One start, just before its leases are given.
    pub(super) fn judge_start(&self, id: JobId, on: &[DeviceId]) {
        let job = self.state.job(id).expect("a job that starts");
        assert!(matches!(job.stage, Stage::Claimed { .. }), "{:?}", job.stage);
        let route = job.route();
        if let Some(most) = route.max_running {
            assert!(self.state.running_of(&route.name) < most, "no more than `max_running`");
        }
        self.judge_devices(route, on);
    }

    /// Devices for one worker of a route, just before they are given.
    pub(super) fn judge_devices(&self, route: &Route, on: &[DeviceId]) {
        let pool = Pool::of(route, self.snapshot.mode);
        let count = if pool == Pool::Cpu { 1 } else { route.gpus as usize };
        assert_eq!(on.iter().collect::<BTreeSet<_>>().len(), count, "as many different devices as it needs");
        for id in on {
            let reading =
                self.snapshot.devices.iter().find(|reading| reading.id == *id).expect("a device that is there");
            assert_eq!(reading.kind.is_gpu(), pool == Pool::Gpu);
            assert!(self.takes_work(id), "{id} may not take work: {:?}", self.state.verdict(reading, &self.snapshot));
            assert!(count == 1 || reading.kind != DeviceKind::Mig, "MIG instances are never joined");
            let device = self.state.device(id);
            let held = device.map_or(&[][..], |device| &device.leases.held);
            assert!(held.len() < self.state.slots(reading) as usize, "a slot is given once");
            if let Some(total) = reading.memory_total {
                let share = Bytes(total.0 / u64::from(self.state.rules.slots));
                let declared: Bytes = held.iter().map(|lease| lease.memory.unwrap_or(share)).sum();
                assert!(declared + route.gpu_memory.unwrap_or(share) <= total, "{id} is given more than it has");
            }
            if matches!(reading.kind, DeviceKind::Gpu | DeviceKind::Mig) {
                let seen = reading.processes_at;
                assert!(self.state.now.since(seen) <= Duration::from_secs(1), "{id} was looked at long ago");
                assert!(device.and_then(|device| device.leases.last_exit).is_none_or(|exit| exit <= seen));
            }
        }
    }

    /// Attempts are bounded, whoever's fault they were.
    pub(super) fn judge_attempts(&self, record: &JobRecord) {
        let counted = record.attempts.iter().filter(|attempt| attempt.counted).count();
        assert!(counted <= record.route.retries as usize + 1, "no more tries than the route allows");
        // What was cut off with others has no reason: nobody says whose fault it was.
        let uncounted = record.attempts.iter().filter(|attempt| !attempt.counted && attempt.reason.is_some());
        assert!(uncounted.count() <= crate::fault::MAX_UNCOUNTED);
        assert!(record.attempts.iter().zip(1..).all(|(attempt, n)| attempt.n == n), "attempts count on");
    }

    /// Every item is in one place, and the state agrees.
    pub(super) fn judge_items(&self) {
        let offered = self.state.offers().map(|(_, line)| line.len()).sum::<usize>();
        let in_inbox = self.items.values().filter(|fate| **fate == Fate::Offered).count();
        assert_eq!(offered, in_inbox, "what is offered is offered once");
        let claimed = self.items.values().filter(|fate| matches!(fate, Fate::Claimed(_))).count();
        assert_eq!(claimed, self.state.jobs().count(), "a claimed item is one job");
        let stages = self.state.stages();
        assert_eq!(stages.claimed + stages.running + stages.retrying + stages.committing, claimed as u64);
        assert!(self.of_job.keys().all(|id| self.state.job(*id).is_some()));
    }
}
