//! The line files of the world: they say whether they have more to do, take further slots and leave them again.

use super::World;
use crate::devices::{CordonBy, DeviceId};
use crate::item::{JobId, Stage};
use crate::state::{Job, Pool};

impl World {
    pub(super) fn grow(&mut self, id: JobId, on: Vec<DeviceId>) {
        // Another director got its lock since the plan was made: it isn't free for this one either.
        if on.iter().any(|id| self.state.cordon(id).is_some_and(|it| it.by == CordonBy::OtherDirector)) {
            return;
        }
        self.judge_grow(id, &on);
        self.state.grow(id, on).expect("a job that runs");
        self.grown += 1;
    }

    fn line_files(&self) -> Vec<JobId> {
        let runs = |job: &&Job| job.route().split.is_some() && matches!(job.stage, Stage::Running { .. });
        self.state.jobs().filter(runs).map(|job| job.record.id).collect()
    }

    /// Slots that were called back and haven't left.
    fn recalled(&self) -> Vec<(JobId, u32)> {
        let recalled = |job: &Job| {
            let slots = job.further.iter().filter(|slot| slot.recalled).map(|slot| slot.no);
            slots.map(|no| (job.record.id, no)).collect::<Vec<_>>()
        };
        self.state.jobs().flat_map(recalled).collect()
    }

    /// Something happens to one of them.
    pub(super) fn slots_live(&mut self) {
        let recalled = self.recalled();
        if !recalled.is_empty() && self.chance.percent(60) {
            return self.slot_leaves(recalled);
        }
        let files = self.line_files();
        if !files.is_empty() {
            let ahead = self.chance.percent(75);
            files.into_iter().for_each(|id| self.state.set_ahead(id, ahead));
        }
    }

    fn slot_leaves(&mut self, recalled: Vec<(JobId, u32)>) {
        let (id, no) = self.chance.of(&recalled);
        let on = self.state.give_back(id, no).expect("a slot that was given");
        for gear in self.gear.iter_mut().filter(|gear| on.contains(&gear.reading.id)) {
            gear.lingers_until = self.state.now;
        }
    }

    pub(super) fn slots_go_on(&mut self) {
        for id in self.line_files() {
            self.state.set_ahead(id, true);
        }
        for slot in self.recalled() {
            self.slot_leaves(vec![slot]);
        }
    }

    /// One further slot, just before it is given.
    fn judge_grow(&self, id: JobId, on: &[DeviceId]) {
        let job = self.state.job(id).expect("a job that runs");
        assert!(matches!(job.stage, Stage::Running { .. }) && job.ahead && job.route().split.is_some());
        assert!(!job.further.iter().any(|slot| slot.recalled), "what it gives back isn't given to it");
        self.judge_devices(job.route(), on);
        // On the CPU one slot is like the other: whatever could start has done so before.
        if on[0] != DeviceId::cpu() {
            return;
        }
        for job in self.state.jobs().filter(|job| matches!(job.stage, Stage::Claimed { .. } | Stage::Claiming)) {
            let (route, wants) = (job.route(), Pool::of(job.route(), self.snapshot.mode));
            let full = route.max_running.is_some_and(|most| self.state.running_of(&route.name) >= most);
            let resident = route.keeps_residents();
            if wants == Pool::Cpu && !full && !resident {
                let reading = self.snapshot.devices.iter().find(|it| it.id == on[0]).expect("the pool");
                let held = self.state.device(&on[0]).map_or(0, |it| it.leases.held.len());
                let waiting = matches!(job.stage, Stage::Claimed { .. });
                assert!(!waiting && held + 1 < self.state.slots(reading) as usize, "{} could start", job.record.id);
            }
        }
    }
}
