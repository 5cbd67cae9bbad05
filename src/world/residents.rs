//! The residents of the world: they get ready or never do, die with what they have, retire.

use std::time::Duration;

use super::{Task, World};
use crate::config::Mode;
use crate::devices::{CordonBy, DeviceId};
use crate::item::{Attempt, JobId, Outcome, Stage, Step, StopWhy};
use crate::state::{Resident, ResidentId, Warmth};
use crate::worker::End;

impl World {
    pub(super) fn warm(&mut self, job: JobId, on: Vec<DeviceId>) {
        // Another director got its lock since the plan was made: it isn't free for this one either.
        if on.iter().any(|id| self.state.cordon(id).is_some_and(|it| it.by == CordonBy::OtherDirector)) {
            return;
        }
        self.judge_start(job, &on);
        let route = self.state.job(job).expect("a job that waits").route().clone();
        assert_eq!(route.mode, Mode::Resident);
        let id = super::fixtures::job_id(5_000_000 + self.next_job);
        self.next_job += 1;
        self.state.add_resident(id, Resident::new(route, on, self.state.now));
        self.state.resident_runs(id, 7);
    }

    pub(super) fn hand(&mut self, jobs: Vec<JobId>, to: ResidentId) {
        self.state.hand_over(&jobs, to).expect("the director takes legal steps only");
        for id in jobs {
            let Stage::Preparing { n, on, .. } = self.state.job(id).expect("handed over").stage.clone() else {
                panic!("handed over in another stage");
            };
            if self.plan_attempt(id, n, on) { self.launch(id) } else { self.spool.push(Task::Prepare { id }) }
        }
    }

    /// Whether the attempt was on disk already.
    pub(super) fn plan_attempt(&mut self, id: JobId, n: u32, on: Vec<DeviceId>) -> bool {
        let mut durable = false;
        self.state.rewrite(id, |record| match record.attempts.last_mut().filter(|last| last.ended_at.is_none()) {
            Some(planned) => {
                assert_eq!(planned.n, n, "attempts count on");
                (planned.devices, durable) = (on, true);
            }
            None => record.attempts.push(Attempt { devices: on, ..Attempt::planned(n) }),
        });
        durable
    }

    /// Something happens to one of them.
    pub(super) fn resident_lives(&mut self) {
        let ids: Vec<ResidentId> = self.state.residents().map(|(id, _)| id).collect();
        if ids.is_empty() {
            return;
        }
        let id = self.chance.of(&ids);
        let resident = self.state.resident(id).expect("one of them").clone();
        let well = self.calm || self.chance.percent(70);
        match resident.warmth {
            Warmth::Starting if well => self.state.resident_is_ready(id),
            Warmth::Starting => self.never_ready(id),
            Warmth::Retiring if resident.jobs.is_empty() => drop(self.state.remove_resident(id)),
            _ if !well => self.dies(id, &resident),
            _ => {}
        }
    }

    pub(super) fn residents_go_on(&mut self) {
        for _ in 0..2 * self.state.residents().count() {
            self.resident_lives();
        }
    }

    fn never_ready(&mut self, id: ResidentId) {
        let resident = self.state.remove_resident(id).expect("one of them");
        let Some(job) = self.state.waiting().find(|job| resident.serves(job.route())) else { return };
        let (job, Stage::Claimed { next, .. }) = (job.record.id, job.stage.clone()) else { return };
        self.plan_attempt(job, next, resident.on);
        self.report(job, End::TimedOut { exit_code: None, signal: Some(15) });
    }

    /// With everything it has: of its first batch nobody knows for which item, the rest it never began.
    fn dies(&mut self, id: ResidentId, resident: &Resident) {
        let first = resident.jobs.first().map(|(_, batch)| *batch);
        let launched = |id: &JobId| match &self.state.job(*id).expect("its job").stage {
            Stage::Running { .. } => true,
            Stage::Stopping { .. } => self.state.job(*id).is_some_and(|job| job.pid.is_some()),
            _ => false,
        };
        let jobs: Vec<(JobId, u64)> = resident.jobs.iter().filter(|(job, _)| launched(job)).copied().collect();
        let beside = jobs.iter().filter(|(_, batch)| Some(*batch) == first).count().saturating_sub(1) as u32;
        for (job, batch) in jobs {
            match self.state.job(job).map(|job| job.stage.clone()) {
                Some(Stage::Stopping { why, .. }) => {
                    self.report(job, End::Stopped { why, exit_code: None, signal: Some(9) });
                }
                _ if Some(batch) == first => self.report_beside(job, End::Signalled(11), beside),
                _ => self.step(job, Step::Unlease),
            }
        }
        self.state.remove_resident(id);
        self.advance(Duration::from_millis(1));
    }

    /// An attempt that was written down for a resident, with nobody to have it.
    pub(super) fn prepared_for_resident(&mut self, id: JobId, to: ResidentId) {
        let alive = self.state.resident(to).is_some_and(|it| it.warmth != Warmth::Retiring);
        match self.state.job(id).expect("a prepared job").stage.clone() {
            Stage::Preparing { .. } if alive => self.launch(id),
            Stage::Preparing { .. } => self.step(id, Step::Unlease),
            Stage::Stopping { why: StopWhy::Cancelled, .. } => self.commit(id, Outcome::Cancelled),
            Stage::Stopping { .. } => self.step(id, Step::Unlease),
            stage => panic!("prepared in {stage:?}"),
        }
    }
}
