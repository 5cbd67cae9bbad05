//! The one thread that owns the backend. It answers with whole snapshots, keeps its own cadence, and beats a heart that
//! others watch: a call into a driver can hang for good, and nobody can end it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::allocation::Allocation;
use super::backend::{self, Backend, CpuOnly, Gone, Looks, Opened, Pace};
use super::cadence::{Cadence, Given};
use super::{DeviceId, HostMode, Reading, Snapshot, cpu, nvml};
use crate::config;
use crate::units::{Clock, Moment};

/// A driver may take seconds for its first touch of a GPU; after this long it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pauses between attempts to reach the driver: doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A backend that worked this long starts the pauses afresh.
const PROVEN: Duration = Duration::from_secs(60);

/// Snapshots that wait for the director. More than a few would only be older views; a full channel makes the prober wait,
/// and it has nothing better to do then.
const SNAPSHOTS: usize = 4;

/// What a snapshot says once a hand took the driver away: it is closed by then.
const RELEASED: &str = "released by hand: `gamdok resume` takes the driver back";

impl Snapshot {
    /// Whether the driver was let go of, as asked for.
    pub fn is_released(&self) -> bool {
        self.trouble.as_deref() == Some(RELEASED)
    }
}

/// What the director asks of the prober.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Read these devices now, memory and processes: before a launch, after an exit, while memory lingers.
    Check(Vec<DeviceId>),
    /// The same with their events and their health: an attempt failed on them.
    Examine(Vec<DeviceId>),
    /// What matters at present, for the cadence: devices with a lease, and whether work waits.
    Attend {
        leased: Vec<DeviceId>,
        work_waits: bool,
    },
    /// Let go of the driver until [`Ask::Resume`].
    Release,
    Resume,
    /// A changed configuration.
    Reconfigure(Arc<config::Devices>),
    /// End the thread.
    Stop,
}

/// The running prober. Dropping it asks the thread to stop, and doesn't wait for one that hangs in a driver.
pub struct Prober {
    pub asks: Sender<Ask>,
    pub snapshots: Receiver<Snapshot>,
    heart: Arc<Heart>,
}

impl Prober {
    /// A prober played by somebody else: what takes the asks and sends the snapshots holds the other ends.
    pub fn played(asks: Sender<Ask>, snapshots: Receiver<Snapshot>) -> Prober {
        Prober { asks, snapshots, heart: Arc::default() }
    }

    /// How long the thread has been in one and the same call into the driver, when that is too long: it hangs. Its
    /// devices are unknown then, and what runs on them goes on.
    pub fn silent_for(&self, now: Moment) -> Option<Duration> {
        self.heart.busy_since().map(|since| now.since(since)).filter(|&silence| silence >= PATIENCE)
    }

    /// When the call that the thread is in will have taken too long; none while it rests.
    pub fn hangs_at(&self) -> Option<Moment> {
        self.heart.busy_since().map(|since| since + PATIENCE)
    }

    /// What to go by while the prober has said nothing at all: CPU slots, and the words.
    pub fn unheard(now: Moment, why: impl Into<String>) -> Snapshot {
        Snapshot {
            taken_at: now,
            number: 0,
            mode: HostMode::Gpu,
            devices: vec![cpu::reading(now)],
            trouble: Some(why.into()),
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.asks.send(Ask::Stop);
    }
}

/// Starts the thread. The first snapshot comes as soon as the backend has answered.
pub fn start(rules: Arc<config::Devices>, clock: Clock) -> Prober {
    let (asks, asked) = unbounded();
    let (snapshots, taken) = bounded(SNAPSHOTS);
    let heart = Arc::new(Heart::default());
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let thread = Thread {
        allocation: Allocation::new(visible.as_deref(), &rules),
        visible,
        rules,
        clock,
        asked,
        snapshots,
        heart: heart.clone(),
        cadence: Cadence::default(),
        known: Vec::new(),
        mode: HostMode::Gpu,
        number: 0,
    };
    // The heart beats from here on: a thread that can't start is silent.
    heart.begin(clock.now());
    if let Err(error) = thread::Builder::new().name("prober".to_owned()).spawn(move || thread.run()) {
        tracing::error!(%error, "the prober's thread can't be started");
    }
    Prober { asks, snapshots: taken, heart }
}

/// Since when the thread is at work, in microseconds on the director's clock plus one; 0 while it waits for something
/// to do.
#[derive(Debug, Default)]
struct Heart(AtomicU64);

impl Heart {
    fn begin(&self, now: Moment) {
        self.0.store(u64::try_from(now.0.as_micros()).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
    }

    fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn busy_since(&self) -> Option<Moment> {
        let since = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Moment(Duration::from_micros(since)))
    }
}

struct Thread {
    rules: Arc<config::Devices>,
    /// `CUDA_VISIBLE_DEVICES` as this process was started with it.
    visible: Option<String>,
    allocation: Allocation,
    clock: Clock,
    asked: Receiver<Ask>,
    snapshots: Sender<Snapshot>,
    heart: Arc<Heart>,
    cadence: Cadence,
    /// The devices as last seen: a backend in trouble doesn't make them vanish.
    known: Vec<Reading>,
    mode: HostMode,
    number: u64,
}

/// Why a backend is left.
enum Left {
    Stopped,
    Released,
    Gone(Gone),
}

/// Nobody listens any more, or was told to end.
struct Stopped;

impl Thread {
    fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let opened_at = self.clock.now();
            self.heart.begin(opened_at);
            let left = match backend::open(&self.rules, &self.allocation, opened_at) {
                Opened::Cpu => self.serve(&mut CpuOnly),
                Opened::Sim(mut sim) => self.serve(&mut *sim),
                Opened::Nvml(nvml) => {
                    let known = std::mem::take(&mut self.known);
                    let mut session = nvml::Session::new(&nvml, self.allocation.clone(), &known, opened_at);
                    self.known = known;
                    self.serve(&mut session)
                }
                Opened::Trouble(why) => Left::Gone(Gone::Failed(why)),
            };
            if self.clock.now().since(opened_at) >= PROVEN {
                pause = FIRST_PAUSE;
            }
            let held = match left {
                Left::Stopped => Err(Stopped),
                Left::Gone(Gone::Reopen) => Ok(()),
                Left::Gone(Gone::Failed(why)) => {
                    tracing::warn!(why, retry_in = ?pause, "no GPUs to be had");
                    let until = self.clock.now() + pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.hold(&why, Some(until))
                }
                Left::Released => {
                    tracing::info!("the driver was let go of");
                    self.hold(RELEASED, None)
                }
            };
            if held.is_err() {
                return;
            }
        }
    }

    /// Answers and sweeps until the backend is left.
    fn serve(&mut self, backend: &mut dyn Backend) -> Left {
        self.mode = backend.mode();
        self.cadence.enumerate_soon();
        match self.serve_until(backend) {
            Ok(left) => left,
            Err(Gone::Failed(why)) => {
                self.known = backend.readings();
                Left::Gone(Gone::Failed(why))
            }
            Err(Gone::Reopen) => {
                self.known = backend.readings();
                Left::Gone(Gone::Reopen)
            }
        }
    }

    fn serve_until(&mut self, backend: &mut dyn Backend) -> Result<Left, Gone> {
        let mut news = self.sweep(backend, &BTreeMap::new())?;
        loop {
            if news && self.publish(backend.readings(), None).is_err() {
                return Ok(Left::Stopped);
            }
            let next = match backend.pace() {
                Pace::Still => None,
                Pace::Every(period) => Some(self.clock.now() + period),
                Pace::Driver => self.cadence.next(),
            };
            let mut checks: BTreeMap<DeviceId, Looks> = BTreeMap::new();
            let mut wait = self.wait(next);
            // Everything that was asked is taken in before the driver is: one sweep answers it all.
            while let Some(ask) = wait.take() {
                match ask {
                    Ask::Check(ids) => {
                        for id in ids {
                            checks.entry(id).or_insert(Looks::CHECK);
                        }
                    }
                    Ask::Examine(ids) => checks.extend(ids.into_iter().map(|id| (id, Looks::EXAMINATION))),
                    Ask::Attend { leased, work_waits } => {
                        let leased = leased.into_iter().collect();
                        for ended in self.cadence.attend(leased, work_waits, self.clock.now()) {
                            backend.forget_activity(&ended);
                        }
                    }
                    Ask::Release => {
                        self.known = backend.readings();
                        return Ok(Left::Released);
                    }
                    Ask::Resume => {}
                    Ask::Reconfigure(rules) => {
                        self.reconfigure(rules);
                        backend.reconfigure(&self.rules, self.allocation.clone());
                        self.cadence.enumerate_soon();
                    }
                    Ask::Stop => return Ok(Left::Stopped),
                }
                wait = self.asked.try_recv().ok();
            }
            news = self.sweep(backend, &checks)?;
        }
    }

    /// Reads what is due and what was asked for. Answers whether that is worth a snapshot.
    fn sweep(&mut self, backend: &mut dyn Backend, checks: &BTreeMap<DeviceId, Looks>) -> Result<bool, Gone> {
        let mut news = !checks.is_empty();
        self.beat();
        if backend.pace() != Pace::Driver {
            // Such a backend reads all of its devices at once, for next to nothing.
            let before = backend.readings();
            backend.enumerate(&self.clock)?;
            let asked = self.cadence.enumeration_is_due(self.clock.now());
            self.cadence.enumerated(std::iter::empty(), Moment(Duration::MAX));
            return Ok(news || asked || differ(&before, &backend.readings()));
        }
        if self.cadence.enumeration_is_due(self.clock.now()) {
            backend.enumerate(&self.clock)?;
            let readings = backend.readings();
            self.cadence.enumerated(readings.iter().map(|reading| &reading.id), self.clock.now());
            self.warn_of_unmatched(&readings);
            news = true;
        }
        let now = self.clock.now();
        let mut due = self.cadence.due(now);
        // What was asked for comes first: a launch waits for it.
        let mut looks: Vec<(DeviceId, Looks)> = checks.iter().map(|(id, looks)| (id.clone(), *looks)).collect();
        for (id, asked) in &mut looks {
            if let Some(at) = due.iter().position(|(due, _)| due == id) {
                *asked = asked.and(due.swap_remove(at).1);
            }
        }
        looks.extend(due);
        for (id, looks) in looks {
            self.beat();
            backend.look(&id, looks, &self.clock)?;
            let (mut looks, mut readings) = (looks, backend.readings());
            if looks.activity && !looks.processes && self.list_is_outdated(&readings, &id, backend.has_seen_an_end(&id))
            {
                backend.look(&id, Looks::LIST, &self.clock)?;
                looks = looks.and(Looks::LIST);
                readings = backend.readings();
            }
            let Some(reading) = readings.iter().find(|reading| reading.id == id) else { continue };
            let floor = self.rules.idle.max_memory_used;
            let given = self.cadence.looked(reading, looks, checks.contains_key(&id), floor, self.clock.now());
            // Memory that hasn't come back yet is no news.
            news |= given == Given::Back || looks != Looks::MEMORY;
        }
        let wishes = backend.wishes();
        if wishes.enumerate {
            self.cadence.enumerate_soon();
        }
        for id in wishes.health {
            self.cadence.health_soon(&id);
        }
        Ok(news)
    }

    fn list_is_outdated(&self, readings: &[Reading], id: &DeviceId, ended: bool) -> bool {
        let reading = readings.iter().find(|reading| reading.id == *id);
        reading.is_some_and(|reading| self.cadence.list_is_outdated(reading, ended, self.clock.now()))
    }

    /// Waits while there is no backend: for a moment to try again, or until a hand gives it back.
    fn hold(&mut self, why: &str, until: Option<Moment>) -> Result<(), Stopped> {
        let mut until = until;
        let mut words = why.to_owned();
        self.publish(self.known.clone(), Some(words.clone()))?;
        loop {
            if until.is_some_and(|until| self.clock.now() >= until) {
                return Ok(());
            }
            match self.wait(until) {
                None => {}
                Some(Ask::Check(_) | Ask::Examine(_)) => self.publish(self.known.clone(), Some(words.clone()))?,
                Some(Ask::Attend { leased, work_waits }) => {
                    self.cadence.attend(leased.into_iter().collect(), work_waits, self.clock.now());
                }
                Some(Ask::Release) => {
                    until = None;
                    RELEASED.clone_into(&mut words);
                    self.publish(self.known.clone(), Some(words.clone()))?;
                }
                Some(Ask::Resume) => return Ok(()),
                Some(Ask::Reconfigure(rules)) => self.reconfigure(rules),
                Some(Ask::Stop) => return Err(Stopped),
            }
        }
    }

    /// The next thing asked for; nothing when `until` comes first.
    fn wait(&self, until: Option<Moment>) -> Option<Ask> {
        self.heart.rest();
        match until {
            None => Some(self.asked.recv().unwrap_or(Ask::Stop)),
            Some(until) => match self.asked.recv_deadline(self.clock.instant(until)) {
                Ok(ask) => Some(ask),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Ask::Stop),
            },
        }
    }

    fn publish(&mut self, mut devices: Vec<Reading>, trouble: Option<String>) -> Result<(), Stopped> {
        let now = self.clock.now();
        self.number += 1;
        devices.push(cpu::reading(now));
        // A director that doesn't take its snapshots isn't the driver's silence.
        self.heart.rest();
        let snapshot = Snapshot { taken_at: now, number: self.number, mode: self.mode, devices, trouble };
        self.snapshots.send(snapshot).map_err(|_| Stopped)
    }

    fn beat(&self) {
        self.heart.begin(self.clock.now());
    }

    fn reconfigure(&mut self, rules: Arc<config::Devices>) {
        // Which backend it is needs a restart.
        let backend = self.rules.backend;
        self.rules = Arc::new(config::Devices { backend, ..(*rules).clone() });
        self.allocation = Allocation::new(self.visible.as_deref(), &self.rules);
    }

    fn warn_of_unmatched(&self, readings: &[Reading]) {
        if self.number == 0 {
            for entry in self.allocation.unmatched(readings) {
                tracing::warn!(entry, "an entry of devices.include or devices.exclude names no device of this host");
            }
        }
    }
}

/// Whether two views differ in more than their times.
fn differ(before: &[Reading], after: &[Reading]) -> bool {
    let facts = |reading: &Reading| {
        let listed =
            reading.processes.as_ref().map(|list| list.iter().map(|p| (p.pid, p.name.clone())).collect::<Vec<_>>());
        let numbers = (reading.memory_used, reading.utilization.clone(), reading.temperature, reading.failures);
        let words = (reading.health.clone(), reading.excluded.clone(), reading.compute_mode);
        (reading.id.clone(), listed, numbers, words)
    };
    before.len() != after.len() || before.iter().zip(after).any(|(a, b)| facts(a) != facts(b))
}

#[cfg(test)]
pub(super) mod tests;
