//! The dispatch gap: from a worker's end to the next start on its device, while items for it waited. A device that nobody
//! waits for is at rest, and that is no gap.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::Director;
use crate::devices::{DeviceId, Verdict};
use crate::item::JobId;
use crate::state::{Phase, Pool};
use crate::units::Moment;

#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// When slots of a device became free that nothing has taken since.
    freed: BTreeMap<DeviceId, VecDeque<Moment>>,
    /// Of jobs that have such slots, and haven't begun to run.
    taken: HashMap<JobId, Moment>,
}

impl Gaps {
    pub(super) fn freed(&mut self, on: &[DeviceId], now: Moment) {
        on.iter().for_each(|device| self.freed.entry(device.clone()).or_default().push_back(now));
    }

    /// A job takes slots of these devices: the gap counts from the last of them that became free.
    pub(super) fn take(&mut self, job: JobId, on: &[DeviceId]) {
        if let Some(since) = self.occupy(on) {
            self.taken.insert(job, since);
        }
    }

    /// Something takes slots of these devices that no gap ends with, such as a resident worker.
    pub(super) fn occupy(&mut self, on: &[DeviceId]) -> Option<Moment> {
        on.iter().filter_map(|device| self.freed.get_mut(device)?.pop_front()).max()
    }

    /// The job runs: how long the gap was, if there was one.
    pub(super) fn end(&mut self, job: JobId, now: Moment) -> Option<Duration> {
        self.taken.remove(&job).map(|since| now.since(since))
    }

    /// The job didn't come to run.
    pub(super) fn give_up(&mut self, job: JobId) {
        self.taken.remove(&job);
    }

    /// Nothing waits for the others.
    fn keep(&mut self, is_awaited: impl Fn(&DeviceId) -> bool) {
        self.freed.retain(|device, since| !since.is_empty() && is_awaited(device));
    }
}

impl Director {
    /// After a plan: what is free still is awaited by nobody, unless something waits that could run there.
    pub(super) fn forget_gaps(&mut self) {
        if self.gaps.freed.is_empty() {
            return;
        }
        let starts = self.state.phase == Phase::Running && self.state.may_start;
        let awaited = if starts { self.awaited_pools() } else { BTreeSet::new() };
        let (state, snapshot) = (&self.state, &self.snapshot);
        self.gaps.keep(|device| {
            let pool = if *device == DeviceId::cpu() { Pool::Cpu } else { Pool::Gpu };
            let reading = snapshot.devices.iter().find(|reading| reading.id == *device);
            let works = |verdict| matches!(verdict, Verdict::Free | Verdict::Leased | Verdict::Busy(_));
            awaited.contains(&pool) && reading.is_some_and(|reading| works(state.verdict(reading, snapshot)))
        });
    }

    /// The devices that something waits for which may run more than it does.
    fn awaited_pools(&self) -> BTreeSet<Pool> {
        let (state, mode) = (&self.state, self.snapshot.mode);
        let may_run = |route: &str, most: Option<u32>| most.is_none_or(|most| state.running_of(route) < most);
        let ahead =
            state.ahead().map(|(demand, _)| demand).filter(|it| !it.resident && may_run(&it.route, it.max_running));
        let offered = state.offers().map(|(route, _)| route);
        let offered = offered.filter(|it| !it.keeps_residents() && may_run(&it.name, it.max_running));
        ahead.map(|demand| demand.pool(mode)).chain(offered.map(|route| Pool::of(route, mode))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment(Duration::from_millis(milliseconds))
    }

    fn device(name: &str) -> DeviceId {
        DeviceId(name.to_owned())
    }

    #[test]
    fn a_gap_lasts_from_an_end_to_the_next_start_there() {
        // `free DEVICE`, `take DEVICE…`, `run`, `rest`; one a millisecond. The gaps in milliseconds.
        let check = |script: &str, expected: &[u64]| {
            let (mut gaps, mut seen, mut job) = (Gaps::default(), Vec::new(), 0);
            for (now, line) in (0..).zip(script.split(',')) {
                let mut words = line.split_whitespace();
                let what = words.next().expect("a word");
                let on: Vec<DeviceId> = words.map(device).collect();
                let id = JobId(ulid::Ulid::from_parts(job, 0));
                match what {
                    "free" => gaps.freed(&on, at(now)),
                    "take" => gaps.take(id, &on),
                    "occupy" => assert!(gaps.occupy(&on).is_some()),
                    "run" => {
                        seen.extend(gaps.end(id, at(now)));
                        job += 1;
                    }
                    "leave" => gaps.give_up(id),
                    _ => gaps.keep(|_| false),
                }
            }
            let seen: Vec<u64> = seen.iter().map(|gap| gap.as_millis() as u64).collect();
            assert_eq!(seen, expected, "{script}");
        };
        check("free a, take a, run", &[2]);
        check("take a, run", &[]);
        check("free a, take b, run", &[]);
        check("free a, free b, take a b, run", &[2]);
        check("free a, rest, take a, run", &[]);
        check("free a, take a, rest, run", &[3]);
        check("free a, take a, leave, run", &[]);
        check("free a, occupy a, free a, take a, run", &[2]);
        check("free a, free a, take a, run, take a, run, take a, run", &[3, 4]);
    }
}
