//! The further slots of a job that many can work on at once. Its first one is the lease of its stage and lasts as long as
//! the attempt; further ones come and go meanwhile, and end with it. Invariant: each has a lease of its own.

use super::{Job, State};
use crate::devices::{DeviceId, Lease};
use crate::item::{JobId, Stage};

/// A place for one more worker on a running job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Never given twice to one job.
    pub no: u32,
    pub on: Vec<DeviceId>,
    /// It leaves after the batch it has.
    pub recalled: bool,
}

impl Job {
    /// All devices that are worked on for it, each once.
    pub fn devices(&self) -> Vec<DeviceId> {
        let mut devices = self.stage.leased().to_vec();
        for device in self.further.iter().flat_map(|slot| &slot.on) {
            if !devices.contains(device) {
                devices.push(device.clone());
            }
        }
        devices
    }

    /// Whether it has further slots or would have a use for them.
    pub(super) fn shares(&self) -> bool {
        self.ahead || !self.further.is_empty()
    }
}

impl State {
    /// The jobs that have further slots or would have a use for them.
    pub fn sharing(&self) -> impl Iterator<Item = &Job> {
        self.sharing.iter().filter_map(|id| self.jobs.get(id))
    }

    /// Whether further slots would have something to do, as the worker says.
    pub fn set_ahead(&mut self, id: JobId, ahead: bool) {
        self.change_sharing(id, |job| job.ahead = ahead);
    }

    /// Gives a running job a further slot; answers its number.
    pub fn grow(&mut self, id: JobId, on: Vec<DeviceId>) -> Option<u32> {
        let now = self.now;
        let job = self.jobs.get_mut(&id).filter(|job| matches!(job.stage, Stage::Running { .. }))?;
        job.slots_given += 1;
        let no = job.slots_given;
        for device in &on {
            let lease = Lease { job: id, memory: job.record.route.gpu_memory, since: now, group: None };
            self.devices.entry(device.clone()).or_default().leases.held.push(lease);
            if *device != DeviceId::cpu() {
                self.last_given = Some(device.clone());
            }
        }
        self.change_sharing(id, |job| job.further.push(Slot { no, on, recalled: false }));
        Some(no)
    }

    /// A further slot is wanted elsewhere.
    pub fn recall(&mut self, id: JobId, no: u32) {
        let slot = self.jobs.get_mut(&id).and_then(|job| job.further.iter_mut().find(|slot| slot.no == no));
        if let Some(slot) = slot {
            slot.recalled = true;
        }
    }

    /// A further slot has left; answers where it was.
    pub fn give_back(&mut self, id: JobId, no: u32) -> Option<Vec<DeviceId>> {
        let job = self.jobs.get_mut(&id)?;
        let at = job.further.iter().position(|slot| slot.no == no)?;
        let slot = job.further.remove(at);
        self.release(id, &slot);
        self.change_sharing(id, |_| ());
        Some(slot.on)
    }

    /// The attempt has ended, and all its slots with it.
    pub(super) fn end_sharing(&mut self, job: &mut Job) {
        for slot in std::mem::take(&mut job.further) {
            self.release(job.record.id, &slot);
        }
        job.ahead = false;
        self.sharing.remove(&job.record.id);
    }

    fn release(&mut self, id: JobId, slot: &Slot) {
        for device in &slot.on {
            let leases = &mut self.devices.entry(device.clone()).or_default().leases;
            // They are alike but for their age: the youngest goes.
            if let Some(at) = leases.held.iter().rposition(|lease| lease.job == id) {
                leases.held.remove(at);
            }
            leases.last_exit = Some(self.now);
        }
    }

    fn change_sharing(&mut self, id: JobId, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.stage.leased().is_empty()) else { return };
        change(job);
        match job.shares() {
            true => self.sharing.insert(id),
            false => self.sharing.remove(&id),
        };
    }
}
