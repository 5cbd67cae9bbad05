//! NVIDIA's GPUs and MIG instances, through NVML. It only ever reads: no setter, no reset, no clear.
//!
//! A [`Session`] borrows the loaded library, so that nothing of it can outlive the library. Everything here runs on the
//! prober's one thread: the driver serialises all callers anyway, and concurrent ones have crashed systems.

mod fault;
mod raw;
mod unit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

pub(super) use nvml_wrapper::Nvml;

use super::allocation::Allocation;
use super::backend::{Backend, Gone, Looks, Pace, Wishes};
use super::procfs::Procfs;
use super::{DeviceId, DeviceKind, HostMode, Reading, blank};
use crate::config;
use crate::units::{Clock, Moment};
use fault::Fault;
use unit::Unit;

/// Xids that an application causes; the GPU stays well.
const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// A lost GPU comes back only to a newly opened library. With others at work that can wait.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
const LOOK_AGAIN_WHEN_ALL_ARE_LOST: Duration = Duration::from_secs(60);

/// So many failed queries in a row, that a device counts as unknown at once.
const FAILURES: u32 = 3;

/// At most this many events are taken in at once.
const EVENTS: usize = 16;

/// Loads the library, and says how many GPUs it lists; or why it can't, in words for people.
pub(super) fn open() -> Result<(Nvml, u32), String> {
    let nvml = Nvml::init().map_err(|error| fault::words(&error))?;
    let count = nvml.device_count().map_err(|error| fault::words(&error))?;
    Ok((nvml, count))
}

pub(super) struct Session<'n> {
    nvml: &'n Nvml,
    allocation: Allocation,
    procfs: Procfs,
    pids_match: bool,
    units: Vec<Unit<'n>>,
    wishes: Wishes,
    /// Indexes of GPUs this user may not open; said once.
    refused: BTreeSet<u32>,
    /// GPUs that are there and don't say who they are: shown by their index, so that nobody misses them in vain.
    unnamed: Vec<Reading>,
}

impl<'n> Session<'n> {
    /// `known` is what an earlier session knew: a GPU of it that is no longer listed is lost, not forgotten.
    pub(super) fn new(nvml: &'n Nvml, allocation: Allocation, known: &[Reading], now: Moment) -> Session<'n> {
        let procfs = Procfs::default();
        let pids_match = procfs.pids_match();
        let known = known.iter().filter(|reading| reading.kind == DeviceKind::Gpu);
        // What failed before was another library's failure.
        let units = known.map(|reading| Reading { failures: 0, failure: None, ..reading.clone() });
        let units = units.map(|reading| Unit::new(None, reading, now)).collect();
        let mut session = Session {
            nvml,
            allocation,
            procfs,
            pids_match,
            units,
            wishes: Wishes::default(),
            refused: BTreeSet::new(),
            unnamed: Vec::new(),
        };
        session.allocation.resolve(|entry| nvml.device_by_uuid(entry).and_then(|device| device.uuid()).ok());
        session
    }

    fn unit(&mut self, id: &DeviceId) -> Option<&mut Unit<'n>> {
        self.units.iter_mut().find(|unit| unit.reading.id == *id)
    }

    /// Takes in one GPU and its MIG instances; answers which devices it stands for.
    fn take_in(&mut self, index: u32, board: Device<'n>, clock: &Clock) -> Result<Vec<DeviceId>, Fault> {
        let id = DeviceId(board.uuid()?);
        let mig = board.mig_mode().is_ok_and(|mode| mode.current == 1);
        let instances = if mig { instances(&board)? } else { Vec::new() };
        if self.unit(&id).is_none() {
            let reading = self.describe(id.clone(), DeviceKind::Gpu, &board);
            self.units.push(Unit::new(None, reading, clock.now()));
        }
        let mut present = vec![id.clone()];
        let pci = board.pci_info().ok().map(|pci| pci_path(&pci.bus_id));
        let (mut name, nvml) = (String::new(), self.nvml);
        if let Some(unit) = self.unit(&id) {
            if unit.events.is_none() {
                unit.events = listen(nvml, &board);
            }
            unit.found(board);
            unit.reading.index = Some(index);
            unit.reading.pci = pci.clone();
            unit.barred = match (mig, instances.is_empty()) {
                (false, _) => None,
                (true, false) => Some("in MIG mode: its instances take the work".to_owned()),
                (true, true) => Some("in MIG mode without an instance: create one, or switch MIG off".to_owned()),
            };
            name.clone_from(&unit.reading.name);
        }
        for (mig_id, instance) in instances {
            if self.unit(&mig_id).is_none() {
                let reading = self.describe(mig_id.clone(), DeviceKind::Mig, &instance);
                self.units.push(Unit::new(None, reading, clock.now()));
            }
            if let Some(unit) = self.unit(&mig_id) {
                unit.found(instance);
                unit.reading.index = Some(index);
                unit.reading.pci = pci.clone();
                unit.reading.parent = Some(id.clone());
                if unit.reading.name.is_empty() {
                    unit.reading.name = format!("{name} MIG");
                }
            }
            present.push(mig_id);
        }
        Ok(present)
    }

    fn describe(&self, id: DeviceId, kind: DeviceKind, device: &Device<'n>) -> Reading {
        let name = device.name().unwrap_or_default();
        // Nothing of it has been read: its times lie in the past.
        Reading { name, pids_match: self.pids_match, ..blank(id, kind, Moment::default()) }
    }

    /// What happened on the GPUs since the last look.
    fn take_events(&mut self, id: &DeviceId, now: Moment) -> Result<(), Gone> {
        let mut enumerate = false;
        let mut unwell = false;
        let Some(unit) = self.units.iter_mut().find(|unit| unit.reading.id == *id) else { return Ok(()) };
        for _ in 0..EVENTS {
            let Some(events) = &unit.events else { break };
            let event = match events.wait(0) {
                Ok(event) => event,
                Err(NvmlError::Timeout) => break,
                Err(error) => {
                    match Fault::from(error) {
                        Fault::Driver(why) => return Err(Gone::Failed(why)),
                        Fault::Lost => unit.lose(now),
                        // It would answer at once, for ever; the next enumeration makes a new one.
                        _ => unit.events = None,
                    }
                    break;
                }
            };
            let (kind, data) = (event.event_type, event.event_data);
            enumerate |= kind.contains(EventTypes::MIG_CONFIG_CHANGE);
            unwell |= kind.contains(EventTypes::DOUBLE_BIT_ECC_ERROR);
            let xid = match data {
                Some(XidError::Value(xid)) => xid,
                Some(XidError::Unknown) => 999,
                None => continue,
            };
            let harmless = APPLICATION_XIDS.contains(&xid);
            tracing::warn!(device = %unit.reading.id, xid, harmless, "the driver reports an Xid");
            if harmless {
                continue;
            }
            unwell = true;
            // A driver that can say what it calls for decides; where it can't, the Xid counts by itself.
            if unit.says_recovery {
                unit.harmless_xid = Some(xid);
            } else {
                unit.reading.health.xid = Some(xid);
                unit.reading.health.xid_at = Some(now);
            }
        }
        self.wishes.enumerate |= enumerate;
        if unwell {
            self.wishes.health.push(id.clone());
        }
        Ok(())
    }

    /// Whether it is time to open the library afresh.
    fn check_up(&self, now: Moment) -> Result<(), Gone> {
        let boards = || self.units.iter().filter(|unit| unit.reading.kind == DeviceKind::Gpu);
        let lost = boards().filter_map(|unit| unit.lost_at).min();
        let Some(since) = lost else {
            // All at once is the driver's failure, or the container's, not theirs.
            return match boards().all(|unit| unit.reading.failures >= 3) && boards().next().is_some() {
                true => {
                    let why = boards().find_map(|unit| unit.reading.failure.clone()).unwrap_or_default();
                    Err(Gone::Failed(format!("every GPU fails to answer: {why}")))
                }
                false => Ok(()),
            };
        };
        let patience = match boards().all(|unit| unit.lost_at.is_some()) {
            true => LOOK_AGAIN_WHEN_ALL_ARE_LOST,
            false => LOOK_AGAIN,
        };
        if now.since(since) >= patience { Err(Gone::Reopen) } else { Ok(()) }
    }
}

impl Backend for Session<'_> {
    fn mode(&self) -> HostMode {
        HostMode::Gpu
    }

    fn pace(&self) -> Pace {
        Pace::Driver
    }

    fn enumerate(&mut self, clock: &Clock) -> Result<(), Gone> {
        let count = match self.nvml.device_count().map_err(Fault::from) {
            Ok(count) => count,
            Err(Fault::Driver(why) | Fault::Failed(why)) => return Err(Gone::Failed(why)),
            Err(fault) => return Err(Gone::Failed(format!("the driver can't count its GPUs ({fault:?})"))),
        };
        let mut present = BTreeSet::new();
        let mut doubtful = false;
        let before = std::mem::take(&mut self.unnamed);
        for index in 0..count {
            let nvml = self.nvml;
            let board = nvml.device_by_index(index);
            if let Err(NvmlError::NoPermission) = board {
                if self.refused.insert(index) {
                    tracing::warn!(index, "a GPU may not be used by this user or container; it is left out");
                }
                continue;
            }
            match board.map_err(Fault::from).and_then(|board| self.take_in(index, board, clock)) {
                Ok(ids) => present.extend(ids),
                Err(Fault::Driver(why)) => return Err(Gone::Failed(why)),
                Err(fault) => {
                    doubtful |= fault != Fault::Lost;
                    let known = self.units.iter().any(|unit| unit.reading.index == Some(index));
                    if !known {
                        let reading = unnamed(index, &fault, clock.now());
                        if !before.iter().any(|it| it.id == reading.id) {
                            let why = reading.failure.as_deref();
                            tracing::warn!(index, why, "a GPU doesn't say who it is; it takes no work");
                        }
                        self.unnamed.push(reading);
                    }
                    tracing::debug!(index, ?fault, "a GPU can't be described");
                }
            }
        }
        let now = clock.now();
        // An instance that is gone from a present GPU was removed by hand; a GPU that is gone is a fault, and takes its
        // instances with it. One that merely couldn't be described is left as it was.
        self.units.retain(|unit| {
            present.contains(&unit.reading.id)
                || unit.reading.parent.as_ref().is_none_or(|board| !present.contains(board))
        });
        for unit in self.units.iter_mut().filter(|unit| !present.contains(&unit.reading.id) && !doubtful) {
            unit.lose(now);
        }
        self.units.sort_by_key(|unit| (unit.reading.index, unit.reading.kind != DeviceKind::Gpu));
        let readings: Vec<Reading> = self.units.iter().map(|unit| unit.reading.clone()).collect();
        for (unit, words) in self.units.iter_mut().zip(self.allocation.exclusions(&readings)) {
            unit.reading.excluded = unit.barred.clone().or(words);
        }
        self.check_up(now)
    }

    fn look(&mut self, id: &DeviceId, looks: Looks, clock: &Clock) -> Result<(), Gone> {
        if looks.activity {
            self.take_events(id, clock.now())?;
        }
        let Some(unit) = self.units.iter_mut().find(|unit| unit.reading.id == *id) else { return Ok(()) };
        // A GPU in MIG mode answers for its board only.
        let looks = match unit.barred {
            Some(_) => Looks { memory: false, activity: false, processes: false, ..looks },
            None => looks,
        };
        let was_lost = unit.lost_at.is_some();
        unit.look(looks, clock, &mut self.procfs)?;
        // A GPU says so only here; a MIG instance may simply have been removed.
        self.wishes.enumerate |= unit.lost_at.is_some() && !was_lost;
        self.check_up(clock.now())
    }

    fn forget_activity(&mut self, id: &DeviceId) {
        if let Some(unit) = self.unit(id) {
            unit.reading.utilization.clear();
        }
    }

    fn has_seen_an_end(&self, id: &DeviceId) -> bool {
        let Some(unit) = self.units.iter().find(|unit| unit.reading.id == *id) else { return false };
        let listed = unit.reading.processes.as_deref().unwrap_or_default();
        // Of what had no name then, nobody knows whether it lives.
        let named = listed.iter().filter(|process| self.pids_match && process.name.is_some());
        named.into_iter().any(|process| !self.procfs.is_alive(process.pid))
    }

    fn readings(&self) -> Vec<Reading> {
        let mut readings: Vec<Reading> = self.units.iter().map(|unit| unit.reading.clone()).collect();
        // A board's health is that of all its instances; their own handles can't tell.
        let boards: Vec<_> = readings.iter().map(|board| (board.id.clone(), board.health.clone())).collect();
        for reading in &mut readings {
            let board = boards.iter().find(|(id, _)| reading.parent.as_ref() == Some(id));
            if let Some((_, health)) = board {
                reading.health = health.clone();
            }
        }
        readings.extend(self.unnamed.iter().cloned());
        readings
    }

    fn wishes(&mut self) -> Wishes {
        std::mem::take(&mut self.wishes)
    }

    fn reconfigure(&mut self, _rules: &Arc<config::Devices>, allocation: Allocation) {
        self.allocation = allocation;
        let nvml = self.nvml;
        self.allocation.resolve(|entry| nvml.device_by_uuid(entry).and_then(|device| device.uuid()).ok());
        self.wishes.enumerate = true;
    }
}

/// What stands for a GPU without a UUID. It can't be leased: it is lost, or nothing of it can be read.
fn unnamed(index: u32, fault: &Fault, now: Moment) -> Reading {
    let words = match fault {
        Fault::Failed(why) | Fault::Driver(why) => why.clone(),
        Fault::Lost => "it fell off the bus".to_owned(),
        Fault::ResetRequired => "it wants a reset before anything else".to_owned(),
        Fault::Absent | Fault::Grew => "it has no UUID".to_owned(),
    };
    let mut reading = blank(DeviceId(format!("GPU-at-index-{index}")), DeviceKind::Gpu, now);
    reading.index = Some(index);
    reading.name = "unidentified GPU".to_owned();
    reading.health.lost = *fault == Fault::Lost;
    reading.failures = FAILURES;
    reading.failure = Some(words);
    reading
}

/// The MIG instances of a GPU. Their indexes may have gaps.
fn instances<'n>(board: &Device<'n>) -> Result<Vec<(DeviceId, Device<'n>)>, Fault> {
    let mut found = Vec::new();
    for index in 0..board.mig_device_count()? {
        match board.mig_device_by_index(index).and_then(|device| Ok((device.uuid()?, device))) {
            Ok((uuid, device)) => found.push((DeviceId(uuid), device)),
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// One set for each GPU: registering eats a set on any error, and one bad GPU must not silence the others.
fn listen<'n>(nvml: &'n Nvml, board: &Device<'n>) -> Option<nvml_wrapper::EventSet<'n>> {
    let ecc = board.is_ecc_enabled().is_ok_and(|ecc| ecc.currently_enabled);
    let mut wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::MIG_CONFIG_CHANGE;
    wanted.set(EventTypes::DOUBLE_BIT_ECC_ERROR, ecc);
    let wanted = wanted & board.supported_event_types().ok()?;
    if wanted.is_empty() {
        return None;
    }
    let set = nvml.create_event_set().ok()?;
    board.register_events(wanted, set).inspect_err(|error| tracing::debug!(%error, "no events from a GPU")).ok()
}

/// NVML's domain has eight digits, sysfs has at least four, and lower case.
fn pci_path(bus_id: &str) -> String {
    let bus_id = bus_id.to_ascii_lowercase();
    match bus_id.split_once(':') {
        Some((domain, rest)) => format!("{:0>4}:{rest}", domain.trim_start_matches('0')),
        None => bus_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_ids_become_sysfs_names() {
        let check = |bus_id: &str, name: &str| assert_eq!(pci_path(bus_id), name);
        check("00000000:3B:00.0", "0000:3b:00.0");
        check("0000:3B:00.0", "0000:3b:00.0");
        check("00010000:3B:00.0", "10000:3b:00.0");
        check("", "");
    }
}
