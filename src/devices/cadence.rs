//! When to read what of which device. Pure: no clock, no driver. Cheap queries run each second only while they matter;
//! the costly ones on request, after a change, and now and then; after an exit the memory is watched closely.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backend::Looks;
use super::{DeviceId, ProcessKind, Reading};
use crate::units::{Bytes, Moment};

const SECOND: Duration = Duration::from_secs(1);
const ENUMERATION: Duration = Duration::from_secs(60);
const HEALTH: Duration = Duration::from_secs(60);

/// How soon, and for how long, a device is looked at again while it gives back what a worker held.
const WATCH_PERIOD: Duration = Duration::from_millis(50);
const WATCH_FOR: Duration = Duration::from_secs(30);

/// What is due this soon comes along now: devices read one after another would drift apart otherwise.
const SLACK: Duration = Duration::from_millis(50);

/// Whose memory this is, the list of before can't tell any more.
const CHANGED: Bytes = Bytes(64 << 20);

/// The least time between two lists of a device with work on it, however its memory moves.
const LIST_PAUSE: Duration = SECOND.saturating_mul(2);

/// An attempt that is over by then has no energy worth a reading of the counter.
const ENERGY_AFTER: Duration = Duration::from_millis(500);

/// This much above its resting value, memory is still held.
const REST_MARGIN: Bytes = Bytes(256 << 20);

#[derive(Debug, Default)]
pub(super) struct Cadence {
    leased: BTreeSet<DeviceId>,
    work_waits: bool,
    enumerate_at: Moment,
    devices: BTreeMap<DeviceId, Dues>,
}

#[derive(Debug, Default)]
struct Dues {
    cheap: Moment,
    processes: Moment,
    sensors: Moment,
    health: Moment,
    /// While leased: since when.
    leased_at: Option<Moment>,
    /// When the processes were last listed, and what memory was in use then.
    listed_at: Moment,
    listed_memory: Option<Bytes>,
    /// How soon processes that are listed, and nowhere to be seen, are asked for again.
    ghost_wait: Option<Duration>,
    watch: Option<Watch>,
    /// What it held when it was last seen at rest.
    rest: Option<Bytes>,
    listed: bool,
    /// Whether the last look showed more than a device at rest.
    occupied: bool,
}

/// A device that is being given back.
#[derive(Clone, Copy, Debug)]
struct Watch {
    next: Moment,
    until: Moment,
    /// Memory only, until that is back.
    looks: Looks,
    wait: Duration,
}

impl Watch {
    fn new(now: Moment) -> Watch {
        Watch { next: now, until: now + WATCH_FOR, looks: Looks::MEMORY, wait: WATCH_PERIOD }
    }
}

impl Cadence {
    /// The devices there are; those that are new are due at once, as a whole.
    pub(super) fn enumerated<'a>(&mut self, ids: impl Iterator<Item = &'a DeviceId>, now: Moment) {
        let ids: BTreeSet<&DeviceId> = ids.collect();
        self.devices.retain(|id, _| ids.contains(id));
        for id in ids {
            self.devices.entry(id.clone()).or_default();
        }
        self.enumerate_at = now + ENUMERATION;
    }

    pub(super) fn enumeration_is_due(&self, now: Moment) -> bool {
        self.enumerate_at <= now
    }

    pub(super) fn enumerate_soon(&mut self) {
        self.enumerate_at = Moment::default();
    }

    pub(super) fn health_soon(&mut self, id: &DeviceId) {
        if let Some(dues) = self.devices.get_mut(id) {
            dues.health = Moment::default();
        }
    }

    /// What matters now. Answers the devices whose lease ended.
    pub(super) fn attend(&mut self, leased: BTreeSet<DeviceId>, work_waits: bool, now: Moment) -> Vec<DeviceId> {
        let ended: Vec<DeviceId> = self.leased.difference(&leased).cloned().collect();
        (self.leased, self.work_waits) = (leased, work_waits);
        // What was put off while nothing mattered is due within the new period.
        for (id, dues) in &mut self.devices {
            let leased = self.leased.contains(id);
            dues.cheap = dues.cheap.min(now + cheap_period(leased, work_waits));
            dues.processes = dues.processes.min(now + processes_period(leased, work_waits));
            if leased {
                dues.watch = None;
                dues.leased_at.get_or_insert(now);
            } else {
                dues.leased_at = None;
            }
        }
        // The check after an exit may have come before the news that the lease is over.
        for id in &ended {
            if let Some(dues) = self.devices.get_mut(id).filter(|dues| dues.occupied) {
                dues.watch.get_or_insert(Watch::new(now));
            }
        }
        ended
    }

    /// Everything that is due. What is due a little later comes along, so that wake-ups don't scatter.
    pub(super) fn due(&self, now: Moment) -> Vec<(DeviceId, Looks)> {
        let (near, soon) = (now + SLACK, now + SLACK * 4);
        let looks = |(id, dues): (&DeviceId, &Dues)| {
            let mut looks = dues.watch.filter(|watch| watch.next <= now).map_or(Looks::NONE, |watch| watch.looks);
            // Only the cheap ones decide about waking up, so the rest waits for them.
            if dues.cheap <= near {
                let energy = dues.leased_at.is_some_and(|at| at + ENERGY_AFTER <= near);
                looks = looks.and(Looks { memory: true, activity: true, energy, ..Looks::NONE });
                looks.sensors = dues.sensors <= soon;
            }
            looks.processes |= dues.processes <= near;
            looks.health |= dues.health <= near;
            (looks != Looks::NONE).then(|| (id.clone(), looks))
        };
        self.devices.iter().filter_map(looks).collect()
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Moment> {
        let dues = self.devices.values().flat_map(|dues| {
            let watch = dues.watch.map(|watch| watch.next);
            [Some(dues.cheap), Some(dues.processes), Some(dues.health), watch].into_iter().flatten()
        });
        dues.chain([self.enumerate_at]).min()
    }

    /// Whether the list of processes no longer explains what a look without it found: memory has come or gone, or a
    /// process that was listed `ended`. It is read along then, so that nobody is told of memory that nobody holds.
    pub(super) fn list_is_outdated(&self, reading: &Reading, ended: bool, now: Moment) -> bool {
        let Some(dues) = self.devices.get(&reading.id).filter(|dues| dues.watch.is_none()) else { return false };
        let moved = match (dues.listed_memory, reading.memory_used) {
            (Some(then), Some(now)) => then.0.abs_diff(now.0) > CHANGED.0,
            _ => false,
        };
        let pause = if self.leased.contains(&reading.id) { LIST_PAUSE } else { Duration::ZERO };
        (moved || ended) && now.since(dues.listed_at) >= pause
    }

    /// Takes in what a look found. `floor` is how much memory an idle device may hold. Answers whether the device is
    /// still being watched while it gives back memory.
    pub(super) fn looked(
        &mut self,
        reading: &Reading,
        looks: Looks,
        checked: bool,
        floor: Bytes,
        now: Moment,
    ) -> Given {
        let leased = self.leased.contains(&reading.id);
        let work_waits = self.work_waits;
        let Some(dues) = self.devices.get_mut(&reading.id) else { return Given::Back };
        if looks.activity {
            dues.cheap = now + cheap_period(leased, work_waits);
        }
        if looks.sensors {
            dues.sensors = now + if work_waits || leased { SECOND * 10 } else { SECOND * 30 };
        }
        if looks.health {
            dues.health = now + HEALTH;
        }
        if looks.processes {
            let listed = reading.processes.as_ref().is_some_and(|list| !list.is_empty());
            // A device that has just become empty needs a second look before it counts as free.
            let emptied = dues.listed && !listed && !leased;
            dues.listed = listed;
            (dues.listed_at, dues.listed_memory) = (now, reading.memory_used);
            let period = processes_period(leased, work_waits);
            dues.ghost_wait =
                has_ghosts(reading).then(|| dues.ghost_wait.map_or(SECOND, |wait| (wait * 2).min(period)));
            dues.processes = now + if emptied { SECOND + WATCH_PERIOD } else { dues.ghost_wait.unwrap_or(period) };
        }
        let held =
            reading.memory_used.is_some_and(|used| used > floor.max(dues.rest.map_or(floor, |r| r + REST_MARGIN)));
        let ours = remains(reading);
        if !leased && !dues.listed && !held {
            dues.rest = reading.memory_used;
        }
        dues.occupied = held || ours;
        if checked && !leased && dues.occupied {
            dues.watch.get_or_insert(Watch::new(now));
        }
        dues.watch_on(held, ours, looks.processes, now)
    }
}

/// Whether a device has given back what a worker held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Back,
    NotYet,
}

impl Dues {
    fn watch_on(&mut self, held: bool, ours: bool, processes_read: bool, now: Moment) -> Given {
        let Some(watch) = &mut self.watch else { return Given::Back };
        if now >= watch.until || (!held && processes_read && !ours) {
            self.watch = None;
            return Given::Back;
        }
        if held {
            (watch.looks, watch.wait, watch.next) = (Looks::MEMORY, WATCH_PERIOD, now + WATCH_PERIOD);
        } else if processes_read {
            // The list is the costly query: ask less and less often.
            watch.looks = Looks::CHECK;
            watch.next = now + watch.wait;
            watch.wait = (watch.wait * 2).min(SECOND);
        } else {
            (watch.looks, watch.next) = (Looks::CHECK, now);
        }
        Given::NotYet
    }
}

fn cheap_period(leased: bool, work_waits: bool) -> Duration {
    if leased || work_waits { SECOND } else { SECOND * 5 }
}

fn processes_period(leased: bool, work_waits: bool) -> Duration {
    if leased || work_waits { SECOND * 10 } else { SECOND * 30 }
}

/// Whether the driver lists a process that this host doesn't know: it has ended, and its memory is on its way back.
fn has_ghosts(reading: &Reading) -> bool {
    let listed = reading.processes.as_deref().unwrap_or_default();
    reading.pids_match && listed.iter().any(|process| process.name.is_none())
}

/// Whether processes are listed that look like an ended worker's.
fn remains(reading: &Reading) -> bool {
    let listed = reading.processes.as_deref().unwrap_or_default();
    listed
        .iter()
        .filter(|process| process.kind != ProcessKind::Graphics)
        .any(|process| !reading.pids_match || process.job.is_some() || process.name.is_none())
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceKind, GpuProcess, blank};
    use super::*;

    const FLOOR: Bytes = Bytes(600 << 20);

    const EVERYTHING: Looks = Looks { activity: true, sensors: true, health: true, ..Looks::CHECK };

    fn at(milliseconds: u64) -> Moment {
        Moment(Duration::from_millis(milliseconds))
    }

    fn gpu() -> DeviceId {
        DeviceId("GPU-a".into())
    }

    fn reading(used: u64, listed: u32) -> Reading {
        let process = |pid| GpuProcess {
            pid,
            kind: ProcessKind::Compute,
            memory: None,
            name: None,
            user: None,
            group: None,
            job: None,
        };
        Reading {
            memory_used: Some(Bytes(used)),
            processes: Some((0..listed).map(process).collect()),
            ..blank(gpu(), DeviceKind::Gpu, at(0))
        }
    }

    fn started(leased: bool, work_waits: bool) -> Cadence {
        let mut cadence = Cadence::default();
        cadence.enumerated([gpu()].iter(), at(0));
        cadence.attend(leased.then(gpu).into_iter().collect(), work_waits, at(0));
        assert_eq!(cadence.due(at(0)), [(gpu(), EVERYTHING)]);
        cadence.looked(&reading(0, 0), EVERYTHING, false, FLOOR, at(0));
        cadence
    }

    /// How often each query runs within a minute.
    fn minute(leased: bool, work_waits: bool) -> [u32; 5] {
        let mut cadence = started(leased, work_waits);
        let mut counts = [0; 5];
        while let Some(now) = cadence.next().filter(|&next| next < at(60_000)) {
            counts[4] += 1;
            for (_, looks) in cadence.due(now) {
                for (count, asked) in
                    counts.iter_mut().zip([looks.activity, looks.processes, looks.sensors, looks.health])
                {
                    *count += u32::from(asked);
                }
                cadence.looked(&reading(0, 0), looks, false, FLOOR, now);
            }
        }
        counts
    }

    #[test]
    fn queries_follow_what_matters() {
        // Cheap ones, process lists, sensors, health, wake-ups.
        assert_eq!(minute(false, true), [59, 5, 5, 0, 59]);
        assert_eq!(minute(true, false), [59, 5, 5, 0, 59]);
        assert_eq!(minute(false, false), [11, 1, 1, 0, 11]);
    }

    #[test]
    fn memory_is_watched_until_it_is_back() {
        let mut cadence = started(true, true);
        assert_eq!(cadence.attend(BTreeSet::new(), true, at(100)), [gpu()]);
        let big = reading(20 << 30, 0);
        assert_eq!(cadence.looked(&big, Looks::CHECK, true, FLOOR, at(100)), Given::NotYet);
        for now in [150, 200, 250] {
            assert_eq!(cadence.next(), Some(at(now)));
            assert_eq!(cadence.due(at(now)), [(gpu(), Looks::MEMORY)]);
            assert_eq!(cadence.looked(&big, Looks::MEMORY, false, FLOOR, at(now)), Given::NotYet);
        }
        // Once it is back, the processes are read at once.
        assert_eq!(cadence.looked(&reading(0, 0), Looks::MEMORY, false, FLOOR, at(300)), Given::NotYet);
        assert_eq!(cadence.due(at(300)), [(gpu(), Looks::CHECK)]);
        assert_eq!(cadence.looked(&reading(0, 0), Looks::CHECK, false, FLOOR, at(300)), Given::Back);
        assert!(cadence.next() > Some(at(300)));
    }

    #[test]
    fn an_exit_is_watched_whichever_news_comes_first() {
        let big = reading(20 << 30, 0);
        let mut cadence = started(true, true);
        // The check while the lease still stood, the end of the lease after it.
        cadence.looked(&big, Looks::CHECK, true, FLOOR, at(100));
        cadence.attend(BTreeSet::new(), true, at(110));
        assert_eq!(cadence.due(at(110)), [(gpu(), Looks::MEMORY)]);
        assert_eq!(cadence.looked(&big, Looks::MEMORY, false, FLOOR, at(110)), Given::NotYet);
        // A device that was at rest needs no watch.
        let mut cadence = started(true, true);
        cadence.attend(BTreeSet::new(), true, at(110));
        assert_eq!(cadence.due(at(110)), []);
    }

    #[test]
    fn lingering_processes_are_read_less_and_less_often() {
        let mut cadence = started(false, true);
        let listed = reading(0, 1);
        assert_eq!(cadence.looked(&listed, Looks::CHECK, true, FLOOR, at(100)), Given::NotYet);
        for now in [150, 250, 450] {
            assert_eq!(cadence.next(), Some(at(now)));
            assert_eq!(cadence.looked(&listed, Looks::CHECK, false, FLOOR, at(now)), Given::NotYet);
        }
        assert_eq!(cadence.looked(&reading(0, 0), Looks::CHECK, false, FLOOR, at(850)), Given::Back);
    }

    #[test]
    fn the_watch_ends_by_itself_and_with_a_new_lease() {
        let big = reading(20 << 30, 0);
        let mut cadence = started(false, true);
        cadence.looked(&big, Looks::CHECK, true, FLOOR, at(100));
        assert_eq!(cadence.looked(&big, Looks::MEMORY, false, FLOOR, at(30_100)), Given::Back);
        cadence.looked(&big, Looks::CHECK, true, FLOOR, at(30_200));
        cadence.attend([gpu()].into(), true, at(30_300));
        assert_eq!(cadence.looked(&big, Looks::MEMORY, false, FLOOR, at(30_300)), Given::Back);
    }

    #[test]
    fn a_device_that_was_emptied_is_looked_at_again_soon() {
        let mut cadence = started(false, true);
        cadence.looked(&reading(0, 1), Looks::LIST, false, FLOOR, at(1000));
        cadence.looked(&reading(0, 0), Looks::LIST, false, FLOOR, at(2000));
        assert!(cadence.due(at(3050)).iter().any(|(_, looks)| looks.processes));
        assert!(!cadence.due(at(2900)).iter().any(|(_, looks)| looks.processes));
    }

    #[test]
    fn a_list_is_read_again_when_it_explains_nothing_any_more() {
        let check = |leased: bool, used: u64, ended: bool, now: u64, expected: bool| {
            let mut cadence = started(leased, true);
            cadence.looked(&reading(1 << 30, 1), Looks::CHECK, false, FLOOR, at(1000));
            assert_eq!(cadence.list_is_outdated(&reading(used, 1), ended, at(now)), expected, "{used} {ended} {now}");
        };
        check(false, 1 << 30, false, 2000, false);
        check(false, (1 << 30) + (60 << 20), false, 2000, false);
        check(false, 2 << 30, false, 2000, true);
        check(false, 0, false, 2000, true);
        check(false, 1 << 30, true, 2000, true);
        // What runs here takes and gives memory all the time.
        check(true, 2 << 30, false, 2000, false);
        check(true, 2 << 30, false, 3000, true);
    }

    #[test]
    fn processes_that_nobody_knows_are_asked_for_less_and_less_often() {
        let mut cadence = started(false, true);
        let mut now = at(1000);
        for wait in [1000, 2000, 4000, 8000, 10_000, 10_000] {
            cadence.looked(&reading(0, 1), Looks::LIST, false, FLOOR, now);
            now = now + Duration::from_millis(wait);
            assert!(cadence.due(now).iter().any(|(_, looks)| looks.processes), "after {wait}");
            assert!(!cadence.due(Moment(now.0 - Duration::from_millis(100))).iter().any(|(_, looks)| looks.processes));
        }
    }

    #[test]
    fn the_energy_of_short_attempts_is_nobodys_time() {
        let check = |leased_at: u64, now: u64, expected: bool| {
            let mut cadence = started(false, true);
            cadence.attend([gpu()].into(), true, at(leased_at));
            assert_eq!(cadence.due(at(now)).iter().any(|(_, looks)| looks.energy), expected, "{leased_at} {now}");
        };
        check(600, 1000, false);
        check(400, 1000, true);
        check(400, 900, false);
        let mut cadence = started(true, true);
        cadence.attend(BTreeSet::new(), true, at(900));
        cadence.attend([gpu()].into(), true, at(950));
        assert!(!cadence.due(at(1000)).iter().any(|(_, looks)| looks.energy));
    }

    #[test]
    fn devices_are_read_together() {
        let mut cadence = started(false, true);
        let other = DeviceId("GPU-b".into());
        cadence.enumerated([gpu(), other.clone()].iter(), at(0));
        cadence.looked(&Reading { id: other, ..reading(0, 0) }, EVERYTHING, false, FLOOR, at(3));
        assert_eq!((cadence.next(), cadence.due(at(1000)).len()), (Some(at(1000)), 2));
    }

    #[test]
    fn devices_come_and_go() {
        let mut cadence = started(false, true);
        let other = DeviceId("GPU-b".into());
        cadence.enumerated([other.clone()].iter(), at(1000));
        assert_eq!(cadence.due(at(1000)).into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [other]);
        assert!(!cadence.enumeration_is_due(at(60_999)));
        assert!(cadence.enumeration_is_due(at(61_000)));
        cadence.enumerate_soon();
        assert!(cadence.enumeration_is_due(at(1001)));
    }
}
