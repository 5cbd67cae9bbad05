//! Further slots of big line files: given where the planner says, called back, and taken back once they have left.

use tracing::{debug, warn};

use super::Director;
use super::attempts::{Holder, uuids, words};
use crate::devices::DeviceId;
use crate::item::{JobId, Stage};
use crate::worker;

impl Director {
    /// Gives a running job one more slot.
    pub(super) fn grow(&mut self, id: JobId, on: Vec<DeviceId>) {
        let Some(job) = self.state.job(id) else { return };
        let Stage::Running { n, .. } = job.stage else { return };
        let record = job.record.clone();
        let held = match self.lock_devices(&on) {
            Ok(held) => held,
            Err((device, by)) => return self.locked_by_another(device, by),
        };
        let (worker::Expanded { argv, env, cwd }, cpus) = self.words_for(&record, n, &on);
        let Some(Holder::Own(handle)) = self.running.get(&id).map(|running| &running.handle) else { return };
        let Some(no) = self.state.grow(id, on.clone()) else { return };
        debug!(job = %record.dir(), slot = no, devices = words(&on), "takes a further slot");
        let devices = uuids(&on);
        self.gaps.occupy(&on);
        handle.grow(worker::SlotLaunch { no, argv, env, cwd, device_locks: held.clone(), cpus, devices });
        self.slot_locks.insert((id, no), held);
        self.state.rewrite(id, |record| {
            let Some(last) = record.attempts.last_mut() else { return };
            let new = on.into_iter().filter(|device| !last.devices.contains(device)).collect::<Vec<_>>();
            last.devices.extend(new);
        });
        self.dirty = true;
    }

    /// Asks for a further slot back.
    pub(super) fn shrink(&mut self, id: JobId, slot: u32) {
        self.state.recall(id, slot);
        if let Some(Holder::Own(handle)) = self.running.get(&id).map(|running| &running.handle) {
            handle.shrink(slot);
        }
    }

    /// A further slot has left.
    pub(super) fn on_slot_gone(&mut self, id: JobId, no: u32) {
        self.slot_locks.remove(&(id, no));
        let Some(on) = self.state.give_back(id, no) else {
            warn!(job = %id, slot = no, "a slot has left that nobody had");
            return;
        };
        debug!(job = %id, slot = no, devices = words(&on), "a further slot has left");
        self.look_again_at(&on);
    }
}
