//! The devices of the world: as they are, as they change, and as the director gets to see them.

use std::collections::BTreeSet;

use super::World;
use super::fixtures::gib;
use crate::devices::{Cordon, CordonBy, DeviceId, DeviceKind, GpuProcess, HostMode, ProcessKind, Reading};
use crate::fault;
use crate::units::{Bytes, Moment};

/// A device as it really is; the director sees readings.
#[derive(Clone, Debug)]
pub(super) struct Gear {
    pub(super) reading: Reading,
    pub(super) present: bool,
    pub(super) lost: bool,
    pub(super) foreign: bool,
    /// The memory of an ended worker lingers until then.
    pub(super) lingers_until: Moment,
}

impl Gear {
    pub(super) fn new(reading: Reading) -> Gear {
        Gear { reading, present: true, lost: false, foreign: false, lingers_until: Moment::default() }
    }
}

impl World {
    pub(super) fn device_changes(&mut self) {
        let at = self.chance.below(self.gear.len() as u64) as usize;
        let what = self.chance.below(8);
        let gear = &mut self.gear[at];
        if gear.reading.kind == DeviceKind::Cpu {
            self.trouble = what == 0 && self.snapshot.mode == HostMode::Gpu;
            return;
        }
        match what {
            0 => gear.lost = !gear.lost,
            1 => gear.present = !gear.present,
            2..4 => gear.foreign = !gear.foreign,
            4 => gear.reading.temperature = Some(30 + (self.state.now.0.as_millis() % 50) as u32),
            _ => (gear.lost, gear.present, gear.foreign) = (false, true, false),
        }
        let gear = gear.clone();
        self.note(|| {
            let Gear { reading, present, lost, foreign, .. } = gear;
            format!("{} present {present} lost {lost} foreign {foreign}", reading.id)
        });
    }

    pub(super) fn cordon_by_hand(&mut self) {
        let at = self.chance.below(self.gear.len() as u64) as usize;
        let id = self.gear[at].reading.id.clone();
        if self.chance.percent(60) {
            fault::forgive(&mut self.state, &id);
        } else {
            let cordon = Cordon { by: CordonBy::Hand, since: self.state.now, reason: String::new() };
            self.state.device_mut(&id).cordon = Some(cordon);
        }
    }

    /// The prober's next view: asked devices are mostly among what it read, others sometimes.
    pub(super) fn sweep(&mut self) {
        let now = self.state.now;
        self.snapshot.taken_at = now;
        self.snapshot.number += 1;
        self.snapshot.trouble = self.trouble.then(|| "the driver doesn't answer".to_owned());
        if !self.trouble {
            let mut devices = Vec::new();
            for at in 0..self.gear.len() {
                let id = self.gear[at].reading.id.clone();
                let asked = self.state.device(&id).is_some_and(|device| device.asked_at.is_some());
                let simple = matches!(self.gear[at].reading.kind, DeviceKind::Cpu | DeviceKind::Sim);
                if self.calm || simple || self.chance.percent(if asked { 80 } else { 50 }) {
                    self.read(at, now);
                }
                if self.gear[at].present {
                    devices.push(self.gear[at].reading.clone());
                }
            }
            self.snapshot.devices = devices;
        }
        self.state.observe(&self.snapshot);
    }

    /// Another director waits for some of the residents' devices.
    pub(super) fn meet_others(&mut self) {
        let ours: BTreeSet<DeviceId> = self.state.residents().flat_map(|(_, it)| &it.on).cloned().collect();
        let mut is_awaited = |id: &DeviceId| *id != DeviceId::cpu() && self.chance.percent(50);
        let awaited = ours.into_iter().filter(|id| is_awaited(id)).collect();
        self.state.set_awaited(awaited);
    }

    fn read(&mut self, at: usize, now: Moment) {
        let gear = &mut self.gear[at];
        let held = self.state.device(&gear.reading.id).map_or(&[][..], |device| &device.leases.held);
        gear.reading.health.lost = gear.lost;
        (gear.reading.memory_at, gear.reading.processes_at) = (now, now);
        if !gear.reading.kind.is_gpu() {
            return;
        }
        let ours = held.iter().filter_map(|lease| Some((lease.group?, lease.job, lease.memory.unwrap_or(gib(4)))));
        let mut processes: Vec<GpuProcess> = ours
            .map(|(group, job, memory)| GpuProcess {
                pid: group as u32,
                kind: ProcessKind::Compute,
                memory: Some(memory),
                name: Some("worker".to_owned()),
                user: None,
                group: Some(group),
                job: Some(job),
            })
            .collect();
        if gear.foreign {
            processes.push(GpuProcess {
                pid: 5,
                kind: ProcessKind::Compute,
                memory: Some(gib(3)),
                name: Some("jupyter".to_owned()),
                user: Some("bob".to_owned()),
                group: Some(5),
                job: None,
            });
        }
        let used: Bytes = processes.iter().filter_map(|process| process.memory).sum();
        let lingering = if gear.lingers_until > now && held.is_empty() { gib(2) } else { Bytes(0) };
        gear.reading.memory_used = gear.reading.memory_total.map(|_| used + lingering);
        gear.reading.utilization = vec![if gear.foreign { 90 } else { 0 }; 3];
        gear.reading.processes = Some(processes);
    }
}
