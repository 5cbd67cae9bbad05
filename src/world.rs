//! A world of chance for the pure parts: items arrive, workers end in every way, devices fall ill, vanish and come back,
//! the clock jumps, the spool answers late and out of order. After each event the plan is made, judged by rules of its own
//! and carried out as the director does. When the world calms down, every item must end, once.
//!
//! `GAMDOK_SEED=<n> cargo test world` runs one seed again and tells its story, `GAMDOK_SEEDS=<n>` runs more of them.

pub(crate) mod fixtures;
mod gear;
mod judge;
mod residents;
mod scenarios;
mod slots;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Batch, Compress, Mode, Policy, Route, Split};
use crate::devices::{Cordon, CordonBy, DeviceId, DeviceKind, HostMode, Snapshot};
use crate::fault::{self, Next};
use crate::inbox::{Candidate, CandidateKey};
use crate::item::{JobId, Outcome, Stage, Step, StopWhy};
use crate::plan::{Decision, Parting, plan, refusal};
use crate::state::{Job, Phase, State};
use crate::units::{Bytes, Moment};
use crate::worker::{End, Report, Said};
use fixtures::{arrival, candidate, gib, job_id, key, reading, record, route, rules};
use gear::Gear;

/// SplitMix64: small, and the same on every machine.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Where an item is, as its producer would tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// In the inbox, offered.
    Offered,
    /// In the inbox, settling again or held.
    Aside,
    /// Taken back by its producer.
    TakenBack,
    Claimed(JobId),
    Ended(Outcome),
}

/// What the spool has yet to answer.
#[derive(Clone, Debug)]
enum Task {
    Claim { id: JobId, candidate: Box<Candidate> },
    Prepare { id: JobId },
    Finish { id: JobId, outcome: Outcome },
}

struct World {
    seed: u64,
    alone: bool,
    chance: Chance,
    /// Nothing goes wrong any more.
    calm: bool,
    state: State,
    snapshot: Snapshot,
    gear: Vec<Gear>,
    trouble: bool,
    routes: Vec<Arc<Route>>,
    spool: Vec<Task>,
    items: BTreeMap<u64, Fate>,
    /// The route an item matches.
    matched: BTreeMap<u64, Arc<Route>>,
    of_job: BTreeMap<JobId, u64>,
    next_item: u64,
    next_job: u64,
    /// Items in the order in which their attempts started.
    started: Vec<u64>,
    /// Further slots that were given, and those that were called back.
    grown: u64,
    shrunk: u64,
    /// Residents that left for another director.
    gave_way: u64,
    trace: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.trace.len().saturating_sub(60);
            eprintln!("{}\nGAMDOK_SEED={} (alone it tells its story)", self.trace[from..].join("\n"), self.seed);
        }
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut chance = Chance(seed);
        let mut rules = rules();
        rules.slots = chance.of(&[1, 1, 2, 3]);
        rules.cpu_slots = Some(chance.of(&[1, 2, 4]));
        rules.policy =
            chance.of(&[Policy::LeastConnections, Policy::LeastConnections, Policy::Pack, Policy::RoundRobin]);
        let mode = chance.of(&[HostMode::Gpu, HostMode::Gpu, HostMode::Gpu, HostMode::Sim, HostMode::Cpu]);
        let mut gear = vec![Gear::new(reading(DeviceKind::Cpu, 0, Moment::default()))];
        let gpus = if mode == HostMode::Cpu { 0 } else { 1 + chance.below(6) as u32 };
        for index in 0..gpus {
            let kind = match mode {
                HostMode::Sim => DeviceKind::Sim,
                _ => chance.of(&[DeviceKind::Gpu, DeviceKind::Gpu, DeviceKind::Gpu, DeviceKind::Mig]),
            };
            let mut reading = reading(kind, index, Moment::default());
            reading.memory_total = chance.of(&[Some(gib(80)), Some(gib(80)), Some(gib(24)), None]);
            reading.memory_used = reading.memory_total.map(|_| Bytes(0));
            reading.excluded = chance.percent(5).then(|| "excluded by the configuration".to_owned());
            gear.push(Gear::new(reading));
        }
        let routes = (0..2 + chance.below(5)).map(|n| Arc::new(some_route(n, &mut chance))).collect();
        World::of(seed, chance, rules, mode, gear, routes)
    }

    fn of(
        seed: u64,
        chance: Chance,
        rules: crate::config::Devices,
        mode: HostMode,
        gear: Vec<Gear>,
        routes: Vec<Arc<Route>>,
    ) -> World {
        let devices = gear.iter().map(|gear| gear.reading.clone()).collect();
        let snapshot = Snapshot { taken_at: Moment::default(), number: 0, mode, devices, trouble: None };
        let mut world = World {
            seed,
            alone: std::env::var_os("GAMDOK_SEED").is_some(),
            chance,
            calm: false,
            state: State::new(rules),
            snapshot,
            gear,
            trouble: false,
            routes,
            spool: Vec::new(),
            items: BTreeMap::new(),
            matched: BTreeMap::new(),
            of_job: BTreeMap::new(),
            next_item: 0,
            next_job: 0,
            started: Vec::new(),
            grown: 0,
            shrunk: 0,
            gave_way: 0,
            trace: Vec::new(),
        };
        world.state.observe(&world.snapshot);
        world
    }

    /// Only a seed that runs alone keeps notes: they would cost more than all else.
    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.alone {
            self.trace.push(format!("{:?} {}", self.state.now.0, what()));
        }
    }

    /// One event of chance, the plan after it, and the judgement of both.
    fn happen(&mut self) {
        let span = match self.chance.below(100) {
            0 => Duration::from_secs(self.chance.below(7200)),
            1..10 => Duration::from_secs(self.chance.below(10)),
            _ => Duration::from_micros(self.chance.below(20_000)),
        };
        self.advance(span);
        match self.chance.below(100) {
            0..22 => self.arrive(),
            22..46 => self.spool_answers(),
            46..50 => self.meet_others(),
            50..68 => self.worker_ends(),
            68..72 => self.resident_lives(),
            72..76 => self.slots_live(),
            76..86 => self.sweep(),
            86..92 => self.device_changes(),
            92..94 => self.cordon_by_hand(),
            94..96 => self.cancel(),
            96..97 => self.take_back(),
            97..98 => {
                self.state.may_claim = self.chance.percent(70);
                self.state.may_start = self.chance.percent(90);
            }
            98..99 => self.state.phase = self.chance.of(&[Phase::Running, Phase::Running, Phase::Paused]),
            _ => self.offer_again(),
        }
        self.decide();
    }

    /// Time goes on; what time alone ends, ends.
    fn advance(&mut self, span: Duration) {
        self.state.now = self.state.now + span;
        let now = self.state.now;
        let ids: Vec<DeviceId> = self.state.devices().map(|(id, _)| id.clone()).collect();
        for id in ids {
            let device = self.state.device_mut(&id);
            let other = |cordon: &Cordon| cordon.by == CordonBy::OtherDirector;
            if device.cordon.as_ref().is_some_and(|it| other(it) && now.since(it.since) >= Duration::from_secs(1)) {
                device.cordon = None;
            }
        }
    }

    fn decide(&mut self) {
        let decisions = plan(&self.state, &self.snapshot);
        if self.chance.percent(10) {
            assert_eq!(decisions, plan(&self.state, &self.snapshot), "the same question has the same answer");
        }
        self.judge(&decisions);
        for decision in decisions {
            self.carry_out(decision);
        }
        self.state.check().expect("the invariants hold");
        self.judge_items();
    }

    fn carry_out(&mut self, decision: Decision) {
        self.note(|| format!("{decision:?}"));
        match decision {
            Decision::Check { devices } => {
                for id in devices {
                    self.state.device_mut(&id).asked_at = Some(self.state.now);
                }
            }
            Decision::Claim { key } => self.claim(&key),
            Decision::Refuse { key, .. } => {
                let offer = self.state.take_offer(&key).expect("what is refused was offered");
                assert!(refusal(&offer.route, &self.snapshot).is_some());
                self.items.insert(number(&key), Fate::Aside);
            }
            Decision::Start { job, on } => self.start(job, on),
            Decision::Warm { job, on } => self.warm(job, on),
            Decision::Hand { jobs, to } => self.hand(jobs, to),
            Decision::Retire { resident, why } => {
                self.state.resident_retires(resident);
                self.gave_way += u64::from(why == Parting::OtherDirector);
            }
            Decision::Grow { job, on } => self.grow(job, on),
            Decision::Shrink { job, slot } => {
                self.state.recall(job, slot);
                self.shrunk += 1;
            }
            Decision::Stop { job } => self.step(job, Step::Stop { why: StopWhy::DeviceLost }),
            Decision::Due { job } => self.step(job, Step::Due),
        }
    }

    fn step(&mut self, job: JobId, step: Step) {
        self.state.step(job, step).expect("the director takes legal steps only");
    }

    fn arrive(&mut self) {
        let offered = self.state.offers().map(|(_, line)| line.len()).sum::<usize>();
        for _ in 0..1 + self.chance.below(4) {
            if offered < 40 {
                let route = self.routes[self.chance.below(self.routes.len() as u64) as usize].clone();
                self.drop_item(route);
            }
        }
    }

    fn drop_item(&mut self, route: Arc<Route>) -> u64 {
        let n = self.next_item;
        self.next_item += 1;
        self.items.insert(n, Fate::Offered);
        self.matched.insert(n, route.clone());
        self.state.offer(candidate(n, route));
        n
    }

    fn claim(&mut self, key: &CandidateKey) {
        let candidate = self.state.take_offer(key).expect("what is claimed was offered");
        let n = number(key);
        let id = job_id(1_000_000 + self.next_job);
        self.next_job += 1;
        let mut record = record(n, candidate.route.clone());
        record.id = id;
        self.state.insert(Job::new(Arc::new(record), Stage::Claiming));
        self.spool.push(Task::Claim { id, candidate: Box::new(candidate) });
        self.of_job.insert(id, n);
        assert_eq!(self.items.insert(n, Fate::Claimed(id)), Some(Fate::Offered), "an item is claimed once");
    }

    /// Answers come in any order.
    fn spool_answers(&mut self) {
        if self.spool.is_empty() {
            return;
        }
        let at = self.chance.below(self.spool.len() as u64) as usize;
        match self.spool.swap_remove(at) {
            Task::Claim { id, candidate } => self.claim_answered(id, *candidate),
            Task::Prepare { id } if self.state.job(id).is_some_and(|job| job.resident.is_some()) => {
                let to = self.state.job(id).and_then(|job| job.resident).expect("a resident's job");
                self.prepared_for_resident(id, to);
            }
            Task::Prepare { id } => match self.state.job(id).expect("a prepared job").stage.clone() {
                Stage::Preparing { .. } => self.launch(id),
                // A stop came first: nothing was started, and its worker says so.
                Stage::Stopping { why, .. } => {
                    self.report(id, End::Stopped { why, exit_code: None, signal: None });
                }
                stage => panic!("prepared in {stage:?}"),
            },
            Task::Finish { id, outcome } => {
                let n = self.of_job.remove(&id).expect("a job ends once");
                self.step(id, Step::Filed);
                self.note(|| format!("item {n} ended {outcome:?}"));
                assert_eq!(self.items.insert(n, Fate::Ended(outcome)), Some(Fate::Claimed(id)), "an item ends once");
            }
        }
    }

    fn claim_answered(&mut self, id: JobId, candidate: Candidate) {
        let fails = !self.calm && self.chance.percent(8);
        if !fails {
            self.step(id, Step::Claimed);
            return;
        }
        self.step(id, Step::Withdraw);
        let n = self.of_job.remove(&id).expect("a claim is undone once");
        let fate = match self.chance.below(3) {
            0 => Fate::TakenBack,
            1 => Fate::Aside,
            _ => {
                self.state.offer_first(candidate);
                Fate::Offered
            }
        };
        self.items.insert(n, fate);
    }

    fn start(&mut self, id: JobId, on: Vec<DeviceId>) {
        // Another director got its lock since the plan was made: it isn't free for this one either.
        if on.iter().any(|id| self.state.cordon(id).is_some_and(|it| it.by == CordonBy::OtherDirector)) {
            return;
        }
        self.judge_start(id, &on);
        if !self.calm && self.chance.percent(3) && on[0] != DeviceId::cpu() {
            let since = self.state.now;
            let cordon = Cordon { by: CordonBy::OtherDirector, since, reason: "pid 9".to_owned() };
            self.state.device_mut(&on[0]).cordon = Some(cordon);
            return;
        }
        self.step(id, Step::Lease { on: on.clone() });
        let n = match &self.state.job(id).expect("a job that starts").stage {
            Stage::Preparing { n, .. } => *n,
            stage => panic!("leased in {stage:?}"),
        };
        if self.plan_attempt(id, n, on) { self.launch(id) } else { self.spool.push(Task::Prepare { id }) }
    }

    fn launch(&mut self, id: JobId) {
        self.step(id, Step::Launch);
        self.state.set_pid(id, 100 + (id.0.timestamp_ms() % 100_000) as i32);
        self.started.push(self.of_job[&id]);
    }

    fn running(&self) -> Vec<JobId> {
        let carried = |job: &&Job| match job.stage {
            Stage::Running { .. } => true,
            Stage::Stopping { .. } => job.pid.is_some(),
            _ => false,
        };
        self.state.jobs().filter(carried).map(|job| job.record.id).collect()
    }

    fn worker_ends(&mut self) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let id = self.chance.of(&running);
        let code = self.chance.of(&[1, 3, 65, 75]);
        let end = match self.state.job(id).map(|job| &job.stage) {
            Some(Stage::Stopping { why, .. }) if self.calm || self.chance.percent(90) => {
                End::Stopped { why: *why, exit_code: None, signal: Some(15) }
            }
            _ if self.calm || self.chance.percent(55) => End::Exited(0),
            _ => match self.chance.below(12) {
                0..5 => End::Exited(code),
                5 => End::Signalled(9),
                6 => End::TimedOut { exit_code: None, signal: Some(15) },
                7 => End::NotStarted { error: "no".to_owned(), host: code == 1 },
                8 => End::ItemChanged,
                9 => End::Protocol("nonsense".to_owned()),
                10 => End::Io("no".to_owned()),
                _ => End::Panicked,
            },
        };
        self.report(id, end);
    }

    /// A worker's one report, taken in as the director does.
    fn report(&mut self, id: JobId, end: End) {
        self.report_beside(id, end, 0);
    }

    fn report_beside(&mut self, id: JobId, end: End, beside: u32) {
        let job = self.state.job(id).expect("a job that ran").clone();
        let on = job.stage.leased().to_vec();
        let attempt = job.record.attempts.last().expect("the attempt is recorded").n;
        let quiet = self.calm;
        let report = Report {
            job: id,
            attempt,
            pid: job.pid,
            started_at: Some(arrival(1)),
            ended_at: arrival(2),
            ran: Duration::from_secs(self.chance.below(20)),
            end,
            said: (!quiet && self.chance.percent(5))
                .then(|| Said::Failed { error: "no".to_owned(), retry: attempt.is_multiple_of(2) }),
            missing_outputs: if !quiet && self.chance.percent(3) { vec!["*".to_owned()] } else { Vec::new() },
            out_of_memory: !quiet && self.chance.percent(10),
            beside,
        };
        let gone = |id: &DeviceId| self.snapshot.devices.iter().find(|it| it.id == *id).is_none_or(|it| it.health.lost);
        let lost = matches!(job.stage, Stage::Stopping { why: StopWhy::DeviceLost, .. }) || on.iter().any(gone);
        let found = fault::assess(&job.record, &report, lost);
        self.note(|| format!("{id} ended: {:?} -> {found:?}", report.end));
        let record = self.state.rewrite(id, |record| {
            let last = record.attempts.last_mut().expect("the attempt is recorded");
            (last.ended_at, last.reason, last.counted) = (Some(report.ended_at), found.reason, found.counted);
            last.exit_code = if let End::Exited(code) = report.end { Some(code) } else { None };
            if let Next::Halve { limit } = found.next {
                record.batch_limit = Some(limit);
            }
            if matches!(found.next, Next::Retry { avoid: true, .. }) {
                record.avoid.extend(on.iter().filter(|id| **id != DeviceId::cpu()).cloned());
                record.avoid.sort();
                record.avoid.dedup();
            }
        });
        let record = record.expect("a job that ran");
        self.judge_attempts(&record);
        for device in &on {
            match &found.next {
                Next::Finish(ending) if ending.outcome == Outcome::Done => {
                    fault::note_success(&mut self.state, device, &record.route.name);
                }
                _ if found.against_device => {
                    fault::note_failure(&mut self.state, device, &record, report.ran);
                }
                _ => {}
            }
        }
        match found.next {
            Next::Finish(ending) => self.commit(id, ending.outcome),
            Next::Retry { after, .. } => {
                let at = self.state.now + after;
                self.step(id, Step::Retry { at });
            }
            Next::Requeue | Next::Halve { .. } => self.step(id, Step::Requeue),
            Next::Unlease => self.step(id, Step::Unlease),
        }
        if let Some(resident) = job.resident {
            self.state.note_pace(&job.route().name, report.ran / 1000);
            // A stop ends the whole process.
            if matches!(report.end, End::Stopped { .. }) {
                self.state.resident_retires(resident);
            }
            return;
        }
        for gear in self.gear.iter_mut().filter(|gear| on.contains(&gear.reading.id)) {
            gear.lingers_until = self.state.now + Duration::from_millis(self.chance.below(300));
        }
        // The director asks for a look at once; the planner must get on without that too.
        if self.chance.percent(70) {
            for device in on.iter().filter(|id| **id != DeviceId::cpu()) {
                self.state.device_mut(device).asked_at = Some(self.state.now);
            }
        }
    }

    fn commit(&mut self, id: JobId, outcome: Outcome) {
        self.step(id, Step::Commit { outcome });
        self.spool.push(Task::Finish { id, outcome });
    }

    fn cancel(&mut self) {
        let ids: Vec<JobId> = self.state.jobs().map(|job| job.record.id).collect();
        if ids.is_empty() {
            return;
        }
        let id = self.chance.of(&ids);
        self.note(|| format!("cancel {id}"));
        match self.state.job(id).map(|job| job.stage.clone()) {
            Some(Stage::Claimed { .. } | Stage::Retrying { .. }) => self.commit(id, Outcome::Cancelled),
            Some(Stage::Preparing { .. } | Stage::Running { .. } | Stage::Stopping { .. }) => {
                self.step(id, Step::Stop { why: StopWhy::Cancelled });
            }
            _ => {}
        }
    }

    fn take_back(&mut self) {
        let first = self.state.offers().next().and_then(|(_, line)| line.front().map(|offer| offer.key.clone()));
        if let Some(key) = first {
            self.state.take_offer(&key);
            self.items.insert(number(&key), Fate::TakenBack);
        }
    }

    /// What was held or settled again is offered again, behind its successors.
    fn offer_again(&mut self) {
        let aside: Vec<u64> = self.items.iter().filter(|(_, fate)| **fate == Fate::Aside).map(|(n, _)| *n).collect();
        for n in aside {
            self.items.insert(n, Fate::Offered);
            self.state.offer(candidate(n, self.matched[&n].clone()));
        }
    }

    /// Nothing goes wrong from here on, and people put right what they did.
    fn calm_down(&mut self) {
        self.calm = true;
        self.trouble = false;
        self.state.may_claim = true;
        self.state.may_start = true;
        self.state.phase = Phase::Running;
        for at in 0..self.gear.len() {
            let gear = &mut self.gear[at];
            (gear.lost, gear.present, gear.foreign) = (false, true, false);
            let id = gear.reading.id.clone();
            if self.state.device(&id).and_then(|it| it.cordon.as_ref()).is_some_and(|it| it.by == CordonBy::Hand) {
                self.state.device_mut(&id).cordon = None;
            }
        }
        self.note(|| "calm".to_owned());
    }

    /// One round of a calm world: what runs ends, what was asked is answered.
    fn go_on(&mut self) {
        let idle = self.spool.is_empty() && self.running().is_empty();
        // Where nothing is under way, what is waited for lies in time: a retry, a cordon, a quarantine.
        let timers = [self.state.next_retry(), self.state.next_change(&self.snapshot)];
        let next = timers.into_iter().flatten().min().map_or(Duration::ZERO, |at| at.since(self.state.now));
        let span = if idle { next.max(Duration::from_secs(20)) } else { Duration::from_millis(5) };
        self.advance(span);
        self.sweep();
        self.meet_others();
        self.decide();
        for _ in 0..self.spool.len() {
            self.spool_answers();
        }
        self.slots_go_on();
        self.worker_ends();
        self.residents_go_on();
        self.decide();
    }

    fn is_empty(&self) -> bool {
        self.state.jobs().next().is_none() && self.state.offers().next().is_none()
    }

    /// Runs a calm world until everything ended.
    fn settle(&mut self) {
        self.calm_down();
        self.sweep();
        self.offer_again();
        let bound = 4000 + 50 * self.items.len();
        for _ in 0..bound {
            if self.is_empty() {
                return;
            }
            self.go_on();
        }
        let left: Vec<String> = self.state.jobs().map(|job| format!("{} {:?}", job.record.id, job.stage)).collect();
        let why: Vec<String> =
            self.state.jobs().map(|job| crate::plan::why_waiting(&self.state, &self.snapshot, job)).collect();
        panic!("starved: {left:?} {why:?}");
    }
}

fn some_route(n: u64, chance: &mut Chance) -> Route {
    let mut route = route(&format!("route-{n}"));
    route.gpus = chance.of(&[0, 0, 1, 1, 1, 1, 2, 3]);
    route.gpu_memory = chance.of(&[None, None, Some(gib(10)), Some(gib(30)), Some(gib(70))]);
    route.cpu_fallback = chance.percent(70);
    route.priority = chance.of(&[0, 0, 0, 5]);
    route.max_running = chance.of(&[None, None, Some(1), Some(2)]);
    route.retries = chance.of(&[0, 2, 5]);
    route.backoff = Duration::from_millis(chance.of(&[0, 10, 5000]));
    if chance.percent(30) {
        route.split = Some(Split { lines: 1, compress: Compress::None, level: 6 });
    } else if chance.percent(45) {
        route.mode = Mode::Resident;
        let max_wait = Duration::from_millis(chance.of(&[0, 0, 500]));
        route.batch = Batch { max_items: chance.of(&[1, 1, 4, 16]), max_wait };
        route.resident.max_items = chance.of(&[None, None, Some(1), Some(20)]);
        route.resident.idle_timeout = Duration::from_millis(chance.of(&[0, 100, 600_000]));
    }
    route
}

fn number(wanted: &CandidateKey) -> u64 {
    let name = wanted.name.escaped();
    let n = name.strip_prefix("item-").and_then(|n| n.parse().ok()).expect("a name of this world");
    assert_eq!(key(n), *wanted);
    n
}
