//! One device of the driver: its handle, what it can't say, and its reading. Each query keeps its own count of failures;
//! a failed one leaves the old view, with its old time.

use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{self as wrapped, EccCounter, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, EventSet};

use super::super::backend::{Gone, Looks};
use super::super::procfs::Procfs;
use super::super::{ComputeMode, DeviceKind, GpuProcess, ProcessKind, Reading, RecoveryAction};
use super::fault::Fault;
use super::raw;
use crate::units::{Bytes, Clock, Moment};

/// How many utilisation samples are kept.
const SAMPLES: usize = 5;

/// After the first touch of a device that nothing keeps awake, its utilisation is its own start-up.
const WAKING: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Query {
    Memory,
    Utilization,
    Compute,
    Mps,
    Graphics,
    Mode,
    Temperature,
    Power,
    Throttle,
    Energy,
    Recovery,
    Ecc,
    Rows,
    Pages,
    Persistence,
}

impl Query {
    const COUNT: usize = Query::Persistence as usize + 1;

    fn word(self) -> &'static str {
        match self {
            Query::Memory => "memory",
            Query::Utilization => "utilisation",
            Query::Compute => "compute processes",
            Query::Mps => "MPS processes",
            Query::Graphics => "graphics processes",
            Query::Mode => "compute mode",
            Query::Temperature => "temperature",
            Query::Power => "power",
            Query::Throttle => "slowdown reasons",
            Query::Energy => "energy",
            Query::Recovery => "recovery action",
            Query::Ecc => "memory errors",
            Query::Rows => "remapped rows",
            Query::Pages => "retired pages",
            Query::Persistence => "persistence mode",
        }
    }
}

enum Answer<T> {
    Value(T),
    Absent,
    Failed,
}

pub(super) struct Unit<'n> {
    /// None once it is lost.
    pub(super) handle: Option<Device<'n>>,
    pub(super) reading: Reading,
    /// Why this can never take work, beside what the rules say.
    pub(super) barred: Option<String>,
    /// GPUs only: where its Xids arrive.
    pub(super) events: Option<EventSet<'n>>,
    pub(super) lost_at: Option<Moment>,
    absent: [bool; Query::COUNT],
    failures: [u32; Query::COUNT],
    ecc_at_start: Option<u64>,
    first_seen: Moment,
    looked_at: Moment,
    persistent: bool,
    /// Whether the driver can say itself what an Xid calls for.
    pub(super) says_recovery: bool,
    rows_pending: bool,
    pages_pending: bool,
    unified: bool,
    distrusted: bool,
    pub(super) harmless_xid: Option<u64>,
}

impl<'n> Unit<'n> {
    pub(super) fn new(handle: Option<Device<'n>>, reading: Reading, now: Moment) -> Unit<'n> {
        Unit {
            handle,
            reading,
            barred: None,
            events: None,
            lost_at: None,
            absent: [false; Query::COUNT],
            failures: [0; Query::COUNT],
            ecc_at_start: None,
            first_seen: now,
            looked_at: now,
            persistent: true,
            says_recovery: false,
            rows_pending: false,
            pages_pending: false,
            unified: false,
            distrusted: false,
            harmless_xid: None,
        }
    }

    /// The driver lists it (again).
    pub(super) fn found(&mut self, handle: Device<'n>) {
        self.handle = Some(handle);
        self.lost_at = None;
        if self.reading.health.lost {
            tracing::info!(device = %self.reading.id, "a lost GPU is back");
            self.reading.health.lost = false;
            self.failures = [0; Query::COUNT];
            self.sum_up();
        }
    }

    pub(super) fn lose(&mut self, now: Moment) {
        if self.lost_at.is_none() {
            tracing::error!(device = %self.reading.id, index = self.reading.index, "a GPU is lost");
            self.lost_at = Some(now);
        }
        self.reading.health.lost = true;
        self.handle = None;
        self.events = None;
    }

    pub(super) fn look(&mut self, looks: Looks, clock: &Clock, procfs: &mut Procfs) -> Result<(), Gone> {
        self.looked_at = clock.now();
        if self.handle.is_none() {
            // Its loss is seen again at this moment; that is what its quarantine counts from.
            self.reading.memory_at = self.looked_at;
            self.reading.processes_at = self.looked_at;
            return Ok(());
        }
        if looks.memory {
            self.memory(clock.now(), procfs)?;
        }
        if looks.activity {
            self.utilization(clock.now())?;
        }
        if looks.processes {
            self.processes(clock.now(), procfs)?;
        }
        if looks.energy && self.reading.kind == DeviceKind::Gpu {
            self.energy(clock.now())?;
        }
        if looks.sensors && self.reading.kind == DeviceKind::Gpu {
            self.sensors()?;
        }
        if looks.health && self.reading.kind == DeviceKind::Gpu {
            self.health()?;
        }
        self.sum_up();
        Ok(())
    }

    /// Asks the driver one thing.
    fn ask<T>(&mut self, query: Query, call: impl Fn(&Device<'n>) -> Result<T, NvmlError>) -> Result<Answer<T>, Gone> {
        let Some(handle) = &self.handle else { return Ok(Answer::Failed) };
        if self.absent[query as usize] {
            return Ok(Answer::Absent);
        }
        let mut answer = call(handle).map_err(Fault::from);
        if matches!(answer, Err(Fault::Grew)) {
            answer = call(handle).map_err(Fault::from);
        }
        let failed = match answer {
            Ok(value) => {
                self.failures[query as usize] = 0;
                return Ok(Answer::Value(value));
            }
            Err(Fault::Absent) => {
                self.absent[query as usize] = true;
                self.failures[query as usize] = 0;
                return Ok(Answer::Absent);
            }
            Err(Fault::Driver(why)) => return Err(Gone::Failed(why)),
            Err(Fault::Lost) => {
                self.lose(self.looked_at);
                return Ok(Answer::Failed);
            }
            Err(Fault::ResetRequired) => {
                self.reading.health.recovery_action = Some(RecoveryAction::Reset);
                "it requires a reset".to_owned()
            }
            Err(Fault::Grew) => "the list grew while it was read".to_owned(),
            Err(Fault::Failed(why)) => why,
        };
        let failures = &mut self.failures[query as usize];
        *failures += 1;
        if *failures == 1 {
            tracing::debug!(device = %self.reading.id, query = query.word(), why = failed, "a query failed");
        }
        if matches!(query, Query::Memory | Query::Compute) {
            self.reading.failure = Some(format!("{}: {failed}", query.word()));
        }
        Ok(Answer::Failed)
    }

    fn sum_up(&mut self) {
        // Only what a verdict can't do without; a sensor that fails is just silent.
        let essential = [Query::Memory, Query::Compute].map(|query| self.failures[query as usize]);
        self.reading.failures = essential.into_iter().max().unwrap_or(0);
        if self.reading.failures == 0 {
            self.reading.failure = None;
        }
        let notes = &mut self.reading.health.notes;
        notes.clear();
        let mut note = |there: bool, words: &str| {
            if there {
                notes.push(words.to_owned());
            }
        };
        note(self.rows_pending, "row remapping takes effect at the next reset");
        note(self.pages_pending, "page retirement takes effect at the next reset");
        note(!self.persistent, "persistence mode is off: the first touch of this GPU takes seconds");
        note(self.unified, "it shares the host's memory");
        note(self.distrusted, "the driver's process list is garbled (fixed in newer ones), so it isn't used");
        if let Some(xid) = self.harmless_xid {
            notes.push(format!("Xid {xid} was reported, and the driver asks for no recovery"));
        }
    }

    fn memory(&mut self, now: Moment, procfs: &Procfs) -> Result<(), Gone> {
        let answer = self.ask(Query::Memory, |device| {
            match device.memory_info() {
                Ok(memory) => Ok((memory.total, memory.used)),
                // Drivers before R510.
                Err(NvmlError::FailedToLoadSymbol(_)) => raw::memory_v1(device),
                Err(error) => Err(error),
            }
        })?;
        match answer {
            Answer::Value((total, used)) => {
                self.reading.memory_total = Some(Bytes(total));
                self.reading.memory_used = Some(Bytes(used));
                self.reading.memory_at = now;
            }
            // A part that shares the host's memory: what the host can give is what there is, and what others use of it
            // says nothing about the device.
            Answer::Absent => {
                self.unified = self.reading.kind == DeviceKind::Gpu && !procfs.is_wsl();
                let available = procfs.memory().map(|(_, available)| Bytes(available));
                self.reading.memory_total = available.filter(|_| self.unified);
                self.reading.memory_used = None;
                self.reading.memory_at = now;
            }
            Answer::Failed => {}
        }
        Ok(())
    }

    fn utilization(&mut self, now: Moment) -> Result<(), Gone> {
        if let Answer::Value(rates) = self.ask(Query::Utilization, |device| device.utilization_rates())? {
            if !self.persistent && now.since(self.first_seen) < WAKING {
                return Ok(());
            }
            let samples = &mut self.reading.utilization;
            samples.push(rates.gpu);
            let extra = samples.len().saturating_sub(SAMPLES);
            samples.drain(..extra);
        }
        Ok(())
    }

    fn processes(&mut self, now: Moment, procfs: &mut Procfs) -> Result<(), Gone> {
        if let Answer::Value(mode) = self.ask(Query::Mode, |device| device.compute_mode())? {
            self.reading.compute_mode = Some(match mode {
                wrapped::ComputeMode::Default => ComputeMode::Default,
                wrapped::ComputeMode::ExclusiveThread => ComputeMode::ExclusiveThread,
                wrapped::ComputeMode::ExclusiveProcess => ComputeMode::ExclusiveProcess,
                wrapped::ComputeMode::Prohibited => ComputeMode::Prohibited,
            });
        }
        let compute = self.ask(Query::Compute, |device| match device.running_compute_processes() {
            Err(NvmlError::FailedToLoadSymbol(_)) => device.running_compute_processes_v2(),
            answer => answer,
        })?;
        let mut listed: Vec<(ProcessKind, ProcessInfo)> = match compute {
            Answer::Value(list) => list.into_iter().map(|process| (ProcessKind::Compute, process)).collect(),
            Answer::Absent => {
                self.reading.processes = None;
                self.reading.processes_at = now;
                return Ok(());
            }
            Answer::Failed => return Ok(()),
        };
        let mps = self.ask(Query::Mps, |device| device.mps_running_compute_processes())?;
        let graphics = self.ask(Query::Graphics, |device| match device.running_graphics_processes() {
            Err(NvmlError::FailedToLoadSymbol(_)) => device.running_graphics_processes_v2(),
            answer => answer,
        })?;
        let others = [(ProcessKind::Mps, Query::Mps, mps), (ProcessKind::Graphics, Query::Graphics, graphics)];
        for (kind, query, answer) in others {
            match answer {
                Answer::Value(list) => listed.extend(list.into_iter().map(|process| (kind, process))),
                // One that never answers isn't worth the device.
                Answer::Failed if self.handle.is_none() || self.failures[query as usize] < 3 => return Ok(()),
                Answer::Absent | Answer::Failed => {}
            }
        }
        self.reading.processes_at = now;
        // Some R535 drivers fill the list with entries of another size.
        let total = self.reading.memory_total.filter(|_| !self.unified).map_or(u64::MAX, |total| total.0);
        let garbled = |process: &ProcessInfo| {
            process.pid == 0 || matches!(process.used_gpu_memory, UsedGpuMemory::Used(used) if used > total)
        };
        self.distrusted = listed.iter().any(|(_, process)| garbled(process));
        self.reading.processes = (!self.distrusted).then(|| self.name(listed, procfs));
        Ok(())
    }

    fn name(&self, listed: Vec<(ProcessKind, ProcessInfo)>, procfs: &mut Procfs) -> Vec<GpuProcess> {
        let mut named = Vec::with_capacity(listed.len());
        for (kind, process) in listed {
            let known = if self.reading.pids_match { procfs.look_up(process.pid) } else { Default::default() };
            let memory = match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(Bytes(bytes)),
                UsedGpuMemory::Unavailable => None,
            };
            named.push(GpuProcess {
                pid: process.pid,
                kind,
                memory,
                name: known.name,
                user: known.user,
                group: known.group,
                job: known.job,
            });
        }
        named
    }

    fn energy(&mut self, now: Moment) -> Result<(), Gone> {
        if let Answer::Value(energy) = self.ask(Query::Energy, |device| device.total_energy_consumption())? {
            self.reading.energy_millijoules = Some(energy);
            self.reading.energy_at = now;
        }
        Ok(())
    }

    fn sensors(&mut self) -> Result<(), Gone> {
        if let Answer::Value(degrees) = self.ask(Query::Temperature, |d| d.temperature(TemperatureSensor::Gpu))? {
            self.reading.temperature = Some(degrees);
        }
        if let Answer::Value(milliwatts) = self.ask(Query::Power, |device| device.power_usage())? {
            self.reading.power_w = Some(f64::from(milliwatts) / 1000.0);
        }
        if let Answer::Value(reasons) = self.ask(Query::Throttle, |device| device.current_throttle_reasons())? {
            self.reading.health.slowed = slowdown(reasons).map(str::to_owned);
        }
        Ok(())
    }

    fn health(&mut self) -> Result<(), Gone> {
        let action = self.ask(Query::Recovery, |device| {
            let mut samples = device.field_values_for(&[FieldId(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)])?;
            samples.pop().ok_or(NvmlError::NotSupported)??.value
        })?;
        match action {
            Answer::Value(value) => {
                self.says_recovery = true;
                self.reading.health.recovery_action = recovery_action(&value);
            }
            Answer::Absent => self.says_recovery = false,
            Answer::Failed => {}
        }
        let errors =
            |device: &Device<'n>| device.total_ecc_errors(wrapped::MemoryError::Uncorrected, EccCounter::Volatile);
        if let Answer::Value(errors) = self.ask(Query::Ecc, errors)? {
            // The counter starts again when the driver does.
            let start = self.ecc_at_start.filter(|&start| start <= errors).unwrap_or(errors);
            self.ecc_at_start = Some(start);
            self.reading.health.new_uncorrected_ecc = errors - start;
        }
        if let Answer::Value(rows) = self.ask(Query::Rows, raw::remapped_rows)? {
            self.reading.health.row_remap_failed = rows.failed;
            self.rows_pending = rows.pending;
        }
        if let Answer::Value(pending) = self.ask(Query::Pages, |device| device.are_pages_pending_retired())? {
            self.pages_pending = pending;
        }
        if let Answer::Value(persistent) = self.ask(Query::Persistence, |device| device.is_in_persistent_mode())? {
            self.persistent = persistent;
        }
        Ok(())
    }
}

fn recovery_action(value: &SampleValue) -> Option<RecoveryAction> {
    let number = match *value {
        SampleValue::U32(n) => u64::from(n),
        SampleValue::U64(n) => n,
        SampleValue::I64(n) => u64::try_from(n).ok()?,
        SampleValue::F64(n) => n as u64,
    };
    match number {
        1 => Some(RecoveryAction::Reset),
        2 => Some(RecoveryAction::Reboot),
        3 => Some(RecoveryAction::DrainP2p),
        4 => Some(RecoveryAction::DrainAndReset),
        // 0 is nothing; 5 concerns links between hosts.
        _ => None,
    }
}

/// The slowdowns that speak of trouble; power caps and idle clocks are everyday.
fn slowdown(reasons: ThrottleReasons) -> Option<&'static str> {
    if reasons.contains(ThrottleReasons::HW_THERMAL_SLOWDOWN) {
        Some("too hot")
    } else if reasons.contains(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN) {
        Some("power brake")
    } else if reasons.contains(ThrottleReasons::HW_SLOWDOWN) {
        Some("hardware slowdown")
    } else {
        None
    }
}
