//! Attempts: from a lease to a worker, and from its report to what follows.

use std::collections::HashMap;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::{Director, NewsEvent, Running};
use crate::config::{Mode, Route};
use crate::devices::{DeviceId, DeviceKind, ProcessKind, Reading, Snapshot, pin, prober};
use crate::fault::{self, Next};
use crate::item::{Attempt, JobId, JobRecord, Outcome, Stage, Step, StopWhy};
use crate::ledger;
use crate::notifier;
use crate::pool::Device;
use crate::spool;
use crate::state::{Progress, ResidentId, State, looked_at};
use crate::units::{Bytes, Moment};
use crate::worker::{self, End, Report, Said};

/// How long a failed attempt waits for a look at its devices. A driver that takes longer is about to hang.
const EXAMINATION: Duration = Duration::from_secs(2);

/// Who carries an attempt.
#[derive(Debug)]
pub(super) enum Holder {
    /// A process of its own.
    Own(worker::Handle),
    Resident(ResidentId),
}

/// An attempt that failed, while its devices are looked at. Its leases last until it is judged.
pub(super) struct Unjudged {
    report: Report,
    on: Vec<DeviceId>,
    since: Moment,
}

impl Director {
    /// Gives the devices to the job and begins its next attempt.
    pub(super) fn start(&mut self, id: JobId, on: Vec<DeviceId>) {
        if !matches!(self.state.job(id).map(|job| &job.stage), Some(Stage::Claimed { .. })) {
            return;
        }
        // The lease is taken before the process starts and is never derived from the driver's lists.
        let held = match self.lock_devices(&on) {
            Ok(held) => held,
            Err((device, by)) => return self.locked_by_another(device, by),
        };
        self.held_locks.insert(id, held);
        self.gaps.take(id, &on);
        self.step(id, Step::Lease { on });
        match self.plan_attempt(id) {
            None => self.launch(id),
            Some(record) => self.to_spool(spool::Task::Prepare { record }),
        }
    }

    /// The next attempt of a leased job: its record, when it has to be written down first.
    pub(super) fn plan_attempt(&mut self, id: JobId) -> Option<Arc<JobRecord>> {
        let Stage::Preparing { n, on, .. } = self.state.job(id)?.stage.clone() else { return None };
        let (record, durable) = self.note_attempt(id, n, on)?;
        (!durable).then_some(record)
    }

    /// Notes attempt `n` of a job with its devices; and whether it is on disk already, since the claim or since a preparation
    /// that came to nothing.
    pub(super) fn note_attempt(&mut self, id: JobId, n: u32, on: Vec<DeviceId>) -> Option<(Arc<JobRecord>, bool)> {
        let mut durable = false;
        let record = self.state.rewrite(id, |record| {
            match record.attempts.last_mut().filter(|last| last.n == n && last.ended_at.is_none()) {
                Some(planned) => {
                    durable = true;
                    planned.devices = on;
                }
                None => record.attempts.push(Attempt { devices: on, ..Attempt::planned(n) }),
            }
        })?;
        Some((record, durable))
    }

    /// The devices' host-wide locks: held while these descriptors, and the worker's copies, are open.
    pub(super) fn lock_devices(&mut self, on: &[DeviceId]) -> Result<Vec<Arc<OwnedFd>>, (DeviceId, String)> {
        let mut held = Vec::new();
        for device in on {
            held.extend(self.locks.take(device, self.state.now).map_err(|by| (device.clone(), by.to_string()))?);
        }
        Ok(held)
    }

    pub(super) fn on_prepared(&mut self, id: JobId) {
        if self.state.job(id).is_some_and(|job| job.resident.is_some()) {
            return self.prepared_for_resident(id);
        }
        match self.state.job(id).map(|job| job.stage.clone()) {
            Some(Stage::Preparing { .. }) => self.launch(id),
            // Stopped while its attempt was written: it never started.
            Some(Stage::Stopping { why, .. }) => {
                self.held_locks.remove(&id);
                match why {
                    StopWhy::Cancelled => self.commit(id, super::claims::cancelled_ending()),
                    StopWhy::Shutdown | StopWhy::DeviceLost => self.step(id, Step::Unlease),
                }
            }
            _ => {}
        }
    }

    fn launch(&mut self, id: JobId) {
        let Some(job) = self.state.job(id) else { return };
        let Stage::Preparing { n, on, .. } = job.stage.clone() else { return };
        let record = job.record.clone();
        let launch = self.prepare_launch(&record, n, &on);
        self.step(id, Step::Launch);
        let work = self.guest.closures.get(&record.route.name).filter(|_| record.route.command.is_empty()).cloned();
        let handle = Holder::Own(match work {
            Some(work) => {
                let device = Device::new(self.pin(&record.route, &on), on);
                worker::start_closure(launch, work, device, self.events.clone(), self.clock)
            }
            None => worker::start(launch, self.events.clone(), self.clock),
        });
        self.running.insert(id, Running::new(handle, self.state.now));
    }

    /// What is run on these devices for a job, and on which cores.
    pub(super) fn words_for(&mut self, record: &JobRecord, n: u32, on: &[DeviceId]) -> (worker::Expanded, Vec<usize>) {
        let route = &record.route;
        let dir = self.root.claimed().join(record.dir().as_str());
        let name = record.item_name();
        let (on, pinning, cpus) = self.confine(route, on);
        let facts = worker::Facts { id: record.id, attempt: n, name, dir, on, pinning };
        let mut words = worker::expand(route, &facts, std::env::vars_os());
        if route.mode == Mode::Resident {
            words.env.retain(|(key, _)| !worker::OF_ONE_ITEM.iter().any(|word| key == word));
        }
        (words, cpus)
    }

    /// Everything the worker needs.
    fn prepare_launch(&mut self, record: &JobRecord, n: u32, on: &[DeviceId]) -> worker::Launch {
        let route = &record.route;
        let (worker::Expanded { argv, env, cwd }, cpus) = self.words_for(record, n, on);
        let dir = self.root.claimed().join(record.dir().as_str());
        let item = dir.join("item").join(record.item_name().as_os_str());
        worker::Launch {
            job: record.id,
            attempt: n,
            on: on.to_vec(),
            root: self.root.clone(),
            argv,
            env,
            cwd,
            item,
            dir,
            signature: record.signature.filter(|_| n == 1),
            device_locks: self.held_locks.get(&record.id).cloned().unwrap_or_default(),
            cpus,
            timeout: route.timeout,
            kill_grace: route.kill_grace,
            outputs: route.outputs.clone(),
            max_log: self.config.history.max_log,
            split: route.split.as_ref().map(|split| worker::SplitLaunch {
                lines: split.lines.into(),
                compress: split.gzip(),
                retries: route.retries,
                backoff: route.backoff,
                tag: format!("{:?}", (&route.command, &route.env, &route.cwd, route.mode, split.level)),
                counted: record.counters.clone(),
                residents: (route.mode == Mode::Resident).then(|| worker::Residents {
                    ready_timeout: route.resident.ready_timeout,
                    max_batches: route.resident.max_items,
                }),
                devices: uuids(on),
            }),
        }
    }

    /// What confines a route's process to these devices: how it is told them, its variables, and the cores near them.
    pub(super) fn confine(
        &mut self,
        route: &Route,
        on: &[DeviceId],
    ) -> (worker::DeviceWords, Vec<(String, String)>, Vec<usize>) {
        let pin::Pin { device, device_id: id, indexes: gpu, gpus, env } = self.pin(route, on);
        let readings = readings(&self.snapshot, on);
        let pinning = env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let cpus = if self.config.devices.affinity { self.cores.near(&readings) } else { Vec::new() };
        (worker::DeviceWords { device, id, gpu, gpus }, pinning, cpus)
    }

    fn pin(&self, route: &Route, on: &[DeviceId]) -> pin::Pin {
        pin::pin(&readings(&self.snapshot, on), route.visible.unwrap_or(self.config.devices.visible))
    }

    /// Has the GPUs among these looked at: our own worker has just left them.
    pub(super) fn look_again_at(&mut self, on: &[DeviceId]) {
        let gpus: Vec<DeviceId> = on.iter().filter(|device| **device != DeviceId::cpu()).cloned().collect();
        if gpus.is_empty() {
            return;
        }
        for device in &gpus {
            self.state.device_mut(device).asked_at = Some(self.state.now);
        }
        self.to_prober(prober::Ask::Check(gpus));
    }

    /// Asks a running attempt to end; its report says how it did.
    pub(super) fn stop(&mut self, id: JobId, why: StopWhy) {
        self.step(id, Step::Stop { why });
        match self.running.get(&id).map(|running| &running.handle) {
            Some(Holder::Own(handle)) => handle.stop(why),
            Some(Holder::Resident(resident)) => {
                if let Some(handle) = self.residents.get(resident) {
                    handle.stop(Some(id), why);
                }
            }
            None => {}
        }
    }

    pub(super) fn on_worker(&mut self, event: worker::Event) {
        match event {
            worker::Event::Started { job, attempt, pid, at } => {
                if let Some(pid) = pid {
                    self.state.set_pid(job, pid);
                    // A closure: what it starts is in our own group.
                    if pid == std::process::id() as i32 {
                        self.state.set_group(job, rustix::process::getpgrp().as_raw_pid());
                    }
                }
                let record = self.state.rewrite(job, |record| {
                    if let Some(last) = record.attempts.last_mut() {
                        last.pid = pid;
                        last.started_at = Some(at);
                    }
                });
                let Some(record) = record else { return };
                self.count_start(&record, at);
                let devices = record.attempts.last().map_or_else(String::new, |last| words(&last.devices));
                info!(job = %record.dir(), attempt, pid, devices, "started");
                let on = record.attempts.last().map_or(&[][..], |last| &last.devices);
                let ids = || on.iter().map(|device| device.0.clone()).collect();
                self.guest.news.tell(|| NewsEvent::Started { id: job.to_string(), attempt, devices: ids() });
                self.to_ledger(ledger::Entry::Changed { record, state: "running" });
            }
            worker::Event::Progress { job, fraction, message, .. } => {
                let told = || NewsEvent::Progress { id: job.to_string(), fraction, message: message.clone() };
                self.guest.news.tell(told);
                self.state.set_progress(job, Progress { fraction, message });
            }
            worker::Event::Count { job, name, by, .. } => self.on_count(job, &name, by),
            worker::Event::Ahead { job, ahead, .. } => self.state.set_ahead(job, ahead),
            worker::Event::SlotGone { job, no, .. } => self.on_slot_gone(job, no),
            worker::Event::Ended(report) => self.on_ended(*report),
            worker::Event::Resident { id, news } => self.on_resident(id, news),
        }
    }

    /// An attempt has begun to run.
    fn count_start(&mut self, record: &JobRecord, at: Timestamp) {
        let counts = self.metrics.routes.of(&record.route.name);
        counts.started.fetch_add(1, Ordering::Relaxed);
        let is_first = record.attempts.iter().filter(|it| it.started_at.is_some()).count() == 1;
        if let Some(arrived_at) = record.arrived_at.filter(|_| is_first) {
            // A wall clock that was set back leaves nothing to tell.
            counts.waiting.count(Duration::try_from(at.duration_since(arrived_at)).unwrap_or_default());
        }
        if let Some(gap) = self.gaps.end(record.id, self.state.now) {
            self.metrics.gaps.count(gap);
        }
    }

    /// A worker's end. Where an attempt failed on GPUs they are looked at before it is judged: a process dies of its
    /// GPU's fall from the bus long before anybody else hears of that.
    fn on_ended(&mut self, report: Report) {
        let Some(job) = self.state.job(report.job) else { return };
        if job.resident.is_none() {
            self.gaps.freed(job.stage.leased(), self.state.now);
        }
        let on: Vec<DeviceId> = job.devices().into_iter().filter(|it| self.is_driven(it)).collect();
        let failed = match &report.end {
            End::Exited(code) => *code != 0,
            End::Signalled(_) | End::BatchFailed(_) => true,
            End::Returned => matches!(report.said, Some(Said::Failed { .. })),
            _ => false,
        };
        let running = matches!(job.stage, Stage::Running { .. });
        if on.is_empty() || !failed || !running || self.snapshot.trouble.is_some() || self.any_faulty(&on) {
            return self.judge(report);
        }
        self.to_prober(prober::Ask::Examine(on.clone()));
        self.unjudged.push(Unjudged { report, on, since: self.state.now });
    }

    /// Judges the failed attempts whose devices were looked at since, or whose time is up.
    pub(super) fn judge_failed(&mut self) {
        let now = self.state.now;
        let looked = |it: &Unjudged, id: &DeviceId| match self.snapshot.devices.iter().find(|at| at.id == *id) {
            Some(reading) => reading.health.lost || looked_at(reading) >= it.since,
            None => true,
        };
        let is_over = |it: &Unjudged| {
            self.snapshot.trouble.is_some() || it.since + EXAMINATION <= now || it.on.iter().all(|id| looked(it, id))
        };
        let (over, rest) = std::mem::take(&mut self.unjudged).into_iter().partition(is_over);
        self.unjudged = rest;
        over.into_iter().for_each(|it: Unjudged| self.judge(it.report));
    }

    /// When the first of them is judged without a look.
    pub(super) fn next_judgement(&self) -> Option<Moment> {
        self.unjudged.iter().map(|it| it.since + EXAMINATION).min()
    }

    fn judge(&mut self, report: Report) {
        let Some(job) = self.state.job(report.job) else { return };
        let mut on = job.stage.leased().to_vec();
        // Of further slots only what is faulty bears on it: it may be one of many.
        let further = job.devices().into_iter().filter(|id| !on.contains(id));
        let faulty: Vec<DeviceId> = further.filter(|id| self.any_faulty(std::slice::from_ref(id))).collect();
        on.extend(faulty);
        self.judge_on(report, on);
    }

    /// Judges an attempt that had these devices.
    pub(super) fn judge_on(&mut self, report: Report, on: Vec<DeviceId>) {
        let id = report.job;
        self.gaps.give_up(id);
        let running = self.running.remove(&id);
        let Some(job) = self.state.job(id) else { return };
        let (resident, route_name) = (job.resident, job.record.route.name.clone());
        let mut left = job.devices();
        left.extend(on.iter().filter(|id| !job.devices().contains(id)).cloned());
        let lost = matches!(job.stage, Stage::Stopping { why: StopWhy::DeviceLost, .. }) || self.any_faulty(&on);
        let cancelled = matches!(job.stage, Stage::Stopping { why: StopWhy::Cancelled, .. });
        let mut assessment = fault::assess(&job.record, &report, lost);
        // It failed before its worker heard of the wish, which stands.
        if cancelled && matches!(assessment.next, Next::Retry { .. }) {
            assessment.next = Next::Finish(super::claims::cancelled_ending());
        }
        if matches!(assessment.next, Next::Unlease) {
            if report.end == End::RootAway {
                self.root_is_away();
            }
            if resident.is_none() {
                self.held_locks.remove(&id);
            }
            return self.not_begun(id);
        }
        if resident.is_some() {
            self.state.note_pace(&route_name, report.ran);
        }
        if report.started_at.is_some() {
            self.metrics.routes.of(&route_name).running.count(report.ran);
        }
        // With the devices of slots that have left again.
        let touched = job_devices(&self.state, id);
        let peak = running.as_ref().and_then(|running| running.peak_memory);
        let energy = running.as_ref().and_then(|running| self.energy_spent(running, &on, touched));
        let (exit_code, signal) = report.end.codes();
        let record = self.state.rewrite(id, |record| {
            let Some(last) = record.attempts.last_mut() else { return };
            last.pid = report.pid;
            last.started_at = report.started_at;
            last.ended_at = Some(report.ended_at);
            last.exit_code = exit_code;
            last.signal = signal;
            last.reason = assessment.reason;
            last.counted = assessment.counted;
            last.peak_gpu_memory = peak;
            last.energy_joules = energy;
            if let Next::Halve { limit } = assessment.next {
                record.batch_limit = Some(limit);
            }
            if matches!(assessment.next, Next::Retry { avoid: true, .. }) {
                record.avoid.extend(on.iter().filter(|device| **device != DeviceId::cpu()).cloned());
                record.avoid.sort();
                record.avoid.dedup();
            }
        });
        let Some(record) = record else { return };
        let reason = assessment.reason.map(crate::item::Reason::as_str);
        info!(job = %record.dir(), attempt = report.attempt, exit_code, signal, reason, ran_ms = report.ran.as_millis() as u64, "ended");
        self.judge_devices(&record, &report, &on, &assessment);
        match assessment.next {
            Next::Finish(ending) => self.commit(id, ending),
            Next::Retry { after, .. } => {
                let at = self.state.now + after;
                self.step(id, Step::Retry { at });
                let attempt = report.attempt;
                self.metrics.routes.of(&route_name).count_retry(assessment.reason);
                self.guest.news.tell(|| NewsEvent::Retrying { id: id.to_string(), attempt, reason });
                self.to_ledger(ledger::Entry::Changed { record: record.clone(), state: "retrying" });
                // Written down now, so that a counted attempt stays counted if the director dies before the next.
                self.to_spool(spool::Task::Save { record });
            }
            // Answered above.
            Next::Unlease => {}
            Next::Requeue | Next::Halve { .. } => {
                self.step(id, Step::Requeue);
                self.to_spool(spool::Task::Save { record });
            }
        }
        if resident.is_some() {
            return;
        }
        self.held_locks.remove(&id);
        let slots: Vec<(JobId, u32)> = self.slot_locks.range((id, 0)..=(id, u32::MAX)).map(|(key, _)| *key).collect();
        slots.iter().for_each(|slot| drop(self.slot_locks.remove(slot)));
        self.look_again_at(&left);
    }

    /// What a resident was handed when its thread had already looked for the last time: its last word is heard, and of
    /// these there was none.
    pub(super) fn take_back_unheard(&mut self, gone: ResidentId) {
        let judged = |id: &JobId| self.unjudged.iter().any(|it| it.report.job == *id);
        let its = |running: &Running| matches!(running.handle, Holder::Resident(resident) if resident == gone);
        let unheard = self.running.iter().filter(|(id, running)| its(running) && !judged(id)).map(|(id, _)| *id);
        for id in unheard.collect::<Vec<_>>() {
            self.running.remove(&id);
            self.not_begun(id);
        }
    }

    /// What was about to start found the root's path leading elsewhere. Nothing starts until the spool says that it's back.
    pub(super) fn root_is_away(&mut self) {
        self.state.may_start = false;
        self.to_spool(spool::Task::FindRoot);
    }

    /// What a resident had in line when it ended: as if it had never been handed over.
    fn not_begun(&mut self, id: JobId) {
        match self.state.job(id).map(|job| &job.stage) {
            Some(Stage::Stopping { why: StopWhy::Cancelled, .. }) => self.commit(id, super::claims::cancelled_ending()),
            Some(_) => self.step(id, Step::Unlease),
            None => {}
        }
    }

    /// Whether there is a driver to ask about the device.
    fn is_driven(&self, id: &DeviceId) -> bool {
        let reading = self.snapshot.devices.iter().find(|reading| reading.id == *id);
        reading.is_some_and(|reading| matches!(reading.kind, DeviceKind::Gpu | DeviceKind::Mig))
    }

    /// Whether one of them is lost, or has had a fault of its own since it was given out.
    fn any_faulty(&self, on: &[DeviceId]) -> bool {
        on.iter().filter(|id| **id != DeviceId::cpu()).any(|id| {
            if self.state.device(id).is_some_and(|device| device.history.is_faulty()) {
                return true;
            }
            let reading = self.snapshot.devices.iter().find(|reading| reading.id == *id);
            // A device that is missing while the backend can't answer isn't lost.
            reading.map_or(self.snapshot.trouble.is_none(), |reading| reading.health.lost)
        })
    }

    /// Keeps the devices' streaks, and cordons one on which several items failed fast.
    fn judge_devices(&mut self, record: &JobRecord, report: &Report, on: &[DeviceId], assessment: &fault::Assessment) {
        let done = matches!(&assessment.next, Next::Finish(ending) if ending.outcome == Outcome::Done);
        for device in on {
            if done {
                fault::note_success(&mut self.state, device, &record.route.name);
            } else if assessment.against_device
                && let Some(reason) = fault::note_failure(&mut self.state, device, record, report.ran)
            {
                warn!(%device, reason, "cordoned");
                self.notifier.tell(notifier::What::DeviceCordoned { device: device.to_string(), reason });
                self.dirty = true;
            }
        }
    }

    /// Keeps what each running attempt's boards have used.
    pub(super) fn note_energy(&mut self) {
        for (id, running) in &mut self.running {
            let Some(Stage::Running { on, .. } | Stage::Stopping { on, .. }) =
                self.state.job(*id).map(|job| &job.stage)
            else {
                continue;
            };
            for reading in self.snapshot.devices.iter().filter(|reading| on.contains(&reading.id)) {
                running.meter.note(reading, running.started);
            }
        }
    }

    /// None for a short attempt, where it can't be told from others' on the same device, and where slots came and went (it
    /// `touched` more devices).
    fn energy_spent(&self, running: &Running, on: &[DeviceId], touched: usize) -> Option<f64> {
        let shared = |id: &DeviceId| self.state.device(id).is_some_and(|device| device.leases.held.len() > 1);
        let ran = self.state.now.since(running.started);
        if ran < Duration::from_secs(1) || on.iter().any(shared) || touched != on.len() {
            return None;
        }
        running.meter.joules(on.len(), ran)
    }

    /// Keeps the most memory seen in use by each running attempt's own processes, on all of its devices together.
    pub(super) fn note_peaks(&mut self) {
        let mut used_by: HashMap<JobId, Bytes> = HashMap::new();
        for reading in self.snapshot.devices.iter().filter(|reading| reading.pids_match) {
            let Some(processes) = &reading.processes else { continue };
            let Some(device) = self.state.device(&reading.id) else { continue };
            for (n, lease) in device.leases.held.iter().enumerate() {
                // Several slots of one job: its processes are counted once.
                if device.leases.held[..n].iter().any(|other| other.job == lease.job) {
                    continue;
                }
                let job = match self.state.resident(lease.job).map(|resident| &resident.jobs[..]) {
                    None => lease.job,
                    Some([(only, _)]) => *only,
                    // Of several items nobody can tell whose it is.
                    Some(_) => continue,
                };
                let ours = processes.iter().filter(|process| {
                    process.kind != ProcessKind::Graphics
                        && (process.job == Some(lease.job) || (lease.group.is_some() && process.group == lease.group))
                });
                let used: Bytes = ours.filter_map(|process| process.memory).sum();
                let sum = used_by.entry(job).or_default();
                *sum = *sum + used;
            }
        }
        for (job, used) in used_by.into_iter().filter(|(_, used)| used.0 > 0) {
            if let Some(running) = self.running.get_mut(&job) {
                running.peak_memory = running.peak_memory.max(Some(used.0));
            }
        }
    }
}

/// How many devices its last attempt had.
fn job_devices(state: &State, id: JobId) -> usize {
    let attempt = state.job(id).and_then(|job| job.record.attempts.last());
    attempt.map_or(0, |attempt| attempt.devices.len())
}

/// What is known of these devices, in this order.
fn readings<'a>(snapshot: &'a Snapshot, on: &[DeviceId]) -> Vec<&'a Reading> {
    on.iter().filter_map(|id| snapshot.devices.iter().find(|reading| reading.id == *id)).collect()
}

pub(super) fn words(devices: &[DeviceId]) -> String {
    let ids: Vec<&str> = devices.iter().map(|device| device.0.as_str()).collect();
    ids.join(",")
}

/// What a resident worker's word on its GPU is held against; none on the CPU.
pub(super) fn uuids(on: &[DeviceId]) -> Vec<String> {
    on.iter().filter(|device| **device != DeviceId::cpu()).map(|device| device.0.clone()).collect()
}
