//! The invariants of the state, for tests: everything that is kept as an index is made again from the stages.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::{Indexing, State};
use crate::devices::DeviceId;
use crate::item::Stage;

/// Words are made only for what is wrong: this runs after each event of many worlds.
fn agree(holds: bool, what: impl Display) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_string()) }
}

impl State {
    /// Every invariant, checked from the stages up; the first that doesn't hold. For tests.
    pub fn check(&self) -> Result<(), String> {
        let mut rebuilt = State::new(self.rules.clone());
        for (id, job) in &self.jobs {
            agree(*id == job.record.id, "a job lies under its own id")?;
            agree(!matches!(job.stage, Stage::Ended { .. } | Stage::Withdrawn), "an ended job is forgotten")?;
            rebuilt.index(job, Indexing::In);
            let on = job.stage.leased();
            agree(on.iter().collect::<BTreeSet<_>>().len() == on.len(), "a job's devices are different ones")?;
            agree(job.resident.is_none() || !on.is_empty(), "only a leased job is a resident's")?;
            if let Some(resident) = job.resident.and_then(|id| self.residents.all.get(&id)) {
                agree(resident.jobs.iter().any(|(held, _)| held == id), "a resident knows its jobs")?;
            }
            for device in on.iter().filter(|_| job.resident.is_none()) {
                let held = self.devices.get(device).map_or(&[][..], |device| &device.leases.held);
                let leases = held.iter().filter(|lease| lease.job == *id).count();
                let slots = 1 + job.further.iter().filter(|slot| slot.on.contains(device)).count();
                agree(leases == slots, format_args!("job {id} has {leases} leases on {device} for {slots} slots"))?;
            }
            for device in job.further.iter().flat_map(|slot| &slot.on) {
                let held = self.devices.get(device).map_or(&[][..], |device| &device.leases.held);
                let leases = held.iter().filter(|lease| lease.job == *id).count();
                let slots = job.further.iter().filter(|slot| slot.on.contains(device)).count();
                let slots = slots + usize::from(on.contains(device));
                agree(leases == slots, format_args!("job {id} has {leases} leases on {device} for {slots} slots"))?;
            }
            let numbers: BTreeSet<u32> = job.further.iter().map(|slot| slot.no).collect();
            agree(numbers.len() == job.further.len(), "a slot's number is given once")?;
            agree(!job.shares() || !on.is_empty(), "only a leased job has further slots")?;
            agree(job.shares() == self.sharing.contains(id), "the sharing jobs are those with further slots")?;
            agree(!on.is_empty() || (job.pid.is_none() && job.progress.is_none()), "only a leased job has a process")?;
        }
        for (id, resident) in &self.residents.all {
            for device in &resident.on {
                let held = self.devices.get(device).map_or(&[][..], |device| &device.leases.held);
                let leases = held.iter().filter(|lease| lease.job == *id).count();
                agree(leases == 1, format_args!("resident {id} has {leases} leases on {device}"))?;
            }
            for (held, _) in &resident.jobs {
                let theirs = self.jobs.get(held).is_some_and(|job| job.resident == Some(*id));
                agree(theirs, format_args!("{held} is the job of resident {id}"))?;
            }
        }
        agree(self.sharing.iter().all(|id| self.jobs.contains_key(id)), "a sharing job is one")?;
        agree(rebuilt.waiting == self.waiting, "the waiting jobs are those in `Claimed`")?;
        agree(rebuilt.lines == self.lines, "the lines hold the waiting jobs")?;
        agree(rebuilt.ahead == self.ahead, "the jobs ahead are those in `Claiming` and `Claimed`")?;
        agree(rebuilt.running == self.running, "the running jobs are those with leases")?;
        agree(rebuilt.retrying == self.retrying, "the retrying jobs are those in `Retrying`")?;
        agree(rebuilt.counts == self.counts, "the counts are those of the stages")?;
        for (id, device) in &self.devices {
            let held = &device.leases.held;
            let most = if *id == DeviceId::cpu() { self.rules.cpu_slots.unwrap_or(1) } else { self.rules.slots };
            agree(held.len() <= most as usize, format_args!("{id} has {} leases for {most} slots", held.len()))?;
            for lease in held {
                let by_job = self.jobs.get(&lease.job).is_some_and(|job| job.devices().contains(id));
                let by_resident = self.residents.all.get(&lease.job).is_some_and(|it| it.on.contains(id));
                agree(by_job || by_resident, format_args!("the lease of {} on {id} is somebody's", lease.job))?;
            }
        }
        Ok(())
    }
}
