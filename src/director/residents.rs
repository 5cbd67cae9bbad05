//! Resident workers: started where the planner says, handed batches, sent away; and what they tell of themselves.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::attempts::{Holder, uuids, words};
use super::{Director, Running};
use crate::devices::{Cordon, CordonBy, DeviceId};
use crate::item::{ItemName, JobDir, JobId, Stage, Step, StopWhy};
use crate::plan::{self, Parting};
use crate::spool;
use crate::state::{Resident, ResidentId, Warmth};
use crate::worker::{self, End, News, ResidentLaunch};

/// Looks at the devices come in bursts; of the other directors once in a while is enough.
const MEETING: Duration = Duration::from_millis(900);

/// A batch whose attempts are being written down before it can go.
pub(super) struct Forming {
    to: ResidentId,
    jobs: Vec<JobId>,
    /// Those that aren't durable yet.
    awaited: HashSet<JobId>,
}

impl Director {
    /// Starts a resident for a job's route.
    pub(super) fn warm(&mut self, job: JobId, on: Vec<DeviceId>) {
        let Some(route) = self.state.job(job).map(|job| job.route().clone()) else { return };
        let held = match self.lock_devices(&on) {
            Ok(held) => held,
            Err((device, by)) => return self.locked_by_another(device, by),
        };
        let id = self.new_id();
        let name = JobDir::new(&ItemName::new(route.name.as_str()), id);
        let dir = self.root.residents().join(name.as_str());
        let devices = uuids(&on);
        let (told, pinning, cpus) = self.confine(&route, &on);
        let facts = worker::Facts {
            id,
            attempt: 0,
            // It has no item: the placeholders of one are refused in its route.
            name: ItemName::new(""),
            dir: dir.clone(),
            on: told,
            pinning,
        };
        let worker::Expanded { argv, mut env, cwd } = worker::expand(&route, &facts, std::env::vars_os());
        env.retain(|(key, _)| !worker::OF_ONE_ITEM.iter().any(|word| key == word));
        let launch = ResidentLaunch {
            id,
            root: self.root.clone(),
            argv,
            env,
            cwd,
            dir,
            device_locks: held.clone(),
            cpus,
            on: on.clone(),
            devices,
            ready_timeout: route.resident.ready_timeout,
            timeout: route.timeout,
            kill_grace: route.kill_grace,
            max_log: self.config.history.max_log,
        };
        info!(resident = %id, route = route.name, devices = words(&on), "starting a resident worker");
        self.held_locks.insert(id, held);
        self.gaps.occupy(&on);
        self.state.add_resident(id, Resident::new(route, on, self.state.now));
        let handle = worker::start_resident(launch, self.events.clone());
        self.residents.insert(id, handle);
        self.dirty = true;
    }

    pub(super) fn locked_by_another(&mut self, device: DeviceId, by: String) {
        debug!(%device, by, "the device is another director's");
        let cordon = Cordon { by: CordonBy::OtherDirector, since: self.state.now, reason: by };
        // What keeps it out for longer stands.
        if self.state.cordon(&device).is_none() {
            self.state.device_mut(&device).cordon = Some(cordon);
        }
    }

    /// Tells the other directors of this host what waits for their devices here, and hears for which of its residents'
    /// devices they wait. The prober looks once a second while there is either: nothing wakes up for this.
    pub(super) fn meet_others(&mut self) {
        let now = self.state.now;
        if now < self.met_others_at + MEETING {
            return;
        }
        self.met_others_at = now;
        if self.work_waits() {
            plan::wanted(&self.state, &self.snapshot).iter().for_each(|id| self.locks.wait_for(id, now));
        }
        let ours: BTreeSet<DeviceId> = self.state.residents().flat_map(|(_, it)| &it.on).cloned().collect();
        self.state.set_awaited(ours.into_iter().filter(|id| self.locks.is_awaited(id)).collect());
    }

    /// Hands jobs to a resident as one batch, once the attempts of all of them are on disk.
    pub(super) fn hand(&mut self, jobs: Vec<JobId>, to: ResidentId) {
        if let Err(illegal) = self.state.hand_over(&jobs, to) {
            tracing::error!(resident = %to, %illegal, "a step that the lifecycle doesn't know");
            debug_assert!(false, "{illegal}");
        }
        let mut awaited = HashSet::new();
        for &id in &jobs {
            if let Some(record) = self.plan_attempt(id) {
                awaited.insert(id);
                self.to_spool(spool::Task::Prepare { record });
            }
        }
        let forming = Forming { to, jobs, awaited };
        match forming.awaited.is_empty() {
            true => self.send_batch(forming),
            false => self.forming.push(forming),
        }
        self.dirty = true;
    }

    /// The attempt of a job that a resident is to have is on disk.
    pub(super) fn prepared_for_resident(&mut self, id: JobId) {
        let Some(at) = self.forming.iter().position(|forming| forming.awaited.contains(&id)) else { return };
        self.forming[at].awaited.remove(&id);
        if self.forming[at].awaited.is_empty() {
            let forming = self.forming.swap_remove(at);
            self.send_batch(forming);
        }
    }

    fn send_batch(&mut self, forming: Forming) {
        let takes = |it: &Resident| it.warmth != Warmth::Retiring;
        let alive = self.state.resident(forming.to).is_some_and(takes) && self.residents.contains_key(&forming.to);
        let mut tasks = Vec::with_capacity(forming.jobs.len());
        for id in forming.jobs {
            let Some(job) = self.state.job(id) else { continue };
            match job.stage.clone() {
                Stage::Preparing { n, .. } if alive => {
                    let record = job.record.clone();
                    let dir = self.root.claimed().join(record.dir().as_str());
                    tasks.push(worker::Task {
                        job: id,
                        attempt: n,
                        dir,
                        name: record.item_name().as_os_str().into(),
                        signature: record.signature.filter(|_| n == 1),
                        outputs: record.route.outputs.clone(),
                    });
                    self.step(id, Step::Launch);
                    let handle = Holder::Resident(forming.to);
                    self.running.insert(id, Running::new(handle, self.state.now));
                }
                Stage::Preparing { .. } => self.step(id, Step::Unlease),
                // Stopped while its attempt was written: it never started.
                Stage::Stopping { why: StopWhy::Cancelled, .. } => self.commit(id, super::claims::cancelled_ending()),
                Stage::Stopping { .. } => self.step(id, Step::Unlease),
                _ => {}
            }
        }
        if let Some(handle) = self.residents.get(&forming.to).filter(|_| !tasks.is_empty()) {
            handle.hand(tasks);
        }
    }

    pub(super) fn retire(&mut self, id: ResidentId, why: Parting) {
        if let Some(resident) = self.state.resident(id) {
            info!(resident = %id, route = resident.route.name, reason = why.words(), "sending a resident worker away");
        }
        self.state.resident_retires(id);
        if let Some(handle) = self.residents.get(&id) {
            handle.retire();
        }
    }

    pub(super) fn on_resident(&mut self, id: ResidentId, news: News) {
        match news {
            News::Runs { pid } => {
                debug!(resident = %id, pid, "runs");
                self.state.resident_runs(id, pid);
            }
            News::Ready => {
                let since = self.state.resident(id).map_or(Duration::ZERO, |it| self.state.now.since(it.started_at));
                info!(resident = %id, after_ms = since.as_millis() as u64, "ready");
                self.state.resident_is_ready(id);
            }
            News::Retires => self.state.resident_retires(id),
            News::Gone { end, failed_start } => self.on_gone_resident(id, &end, failed_start),
        }
    }

    fn on_gone_resident(&mut self, id: ResidentId, end: &End, failed_start: Option<Box<worker::Report>>) {
        self.residents.remove(&id);
        let Some(resident) = self.state.remove_resident(id) else { return };
        self.held_locks.remove(&id);
        self.take_back_unheard(id);
        let served = resident.served;
        match (resident.warmth, end) {
            (Warmth::Retiring, _) => {
                info!(resident = %id, route = resident.route.name, served, "a resident worker has gone")
            }
            (_, end) => warn!(resident = %id, route = resident.route.name, served, ?end, "a resident worker has ended"),
        }
        self.look_again_at(&resident.on);
        if *end == End::RootAway {
            return self.root_is_away();
        }
        let wanted = !matches!(end, End::Stopped { .. });
        if let Some(report) = failed_start.filter(|_| wanted) {
            self.blame(&resident, *report);
        }
    }

    /// A resident that never got ready was started for an item: that is the attempt that failed.
    fn blame(&mut self, resident: &Resident, mut report: worker::Report) {
        let Some(job) = self.state.waiting().find(|job| resident.serves(job.route())) else { return };
        let (id, Stage::Claimed { next: n, .. }) = (job.record.id, job.stage.clone()) else { return };
        (report.job, report.attempt) = (id, n);
        self.note_attempt(id, n, resident.on.clone());
        self.judge_on(report, resident.on.clone());
    }
}
