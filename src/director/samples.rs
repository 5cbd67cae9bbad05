//! Samples of the devices for the ledger, taken from the snapshots that come anyway: nothing is asked of a driver, and
//! nobody is woken, for their sake. What wasn't read anew is no sample.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::Director;
use crate::devices::{DeviceId, Reading};
use crate::ledger::{self, Sample, Sampled};
use crate::units::Moment;

/// So long samples are gathered before the ledger is woken for them; a kill loses as much.
const GATHER: Duration = Duration::from_secs(60);
/// So many are handed over before their time.
const MANY: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// When each device was last read, and the second of its last sample.
    last: HashMap<DeviceId, (Moment, i64)>,
    batch: ledger::Samples,
    handed_at: Moment,
}

impl Sampler {
    /// Takes in a device as it was read; `wall` is the time at `now`.
    fn note(&mut self, reading: &Reading, verdict: &'static str, leases: u32, now: Moment, wall: Timestamp) {
        let age = i64::try_from(now.since(reading.memory_at).as_secs()).unwrap_or(i64::MAX);
        let at = wall.as_second().saturating_sub(age);
        // The driver may have answered several times within a second, or not at all since.
        let known = self.last.get(&reading.id);
        if known.is_some_and(|(read, second)| reading.memory_at <= *read || at == *second) {
            return;
        }
        if self.last.insert(reading.id.clone(), (reading.memory_at, at)).is_none() || self.batch.devices.is_empty() {
            self.batch.add(ledger::Samples { devices: vec![described(reading)], samples: Vec::new() });
        }
        self.batch.samples.push(Sample {
            at,
            device: reading.id.0.clone(),
            utilization: reading.utilization.last().copied(),
            memory: reading.memory_used.map(|bytes| bytes.0),
            temperature: reading.temperature,
            power: reading.power_w,
            verdict,
            leases,
        });
    }

    /// Those that are to be written now.
    fn due(&mut self, now: Moment) -> Option<ledger::Samples> {
        let due = now.since(self.handed_at) >= GATHER || self.batch.samples.len() >= MANY;
        due.then(|| self.take(now)).flatten()
    }

    fn take(&mut self, now: Moment) -> Option<ledger::Samples> {
        self.handed_at = now;
        let batch = std::mem::take(&mut self.batch);
        (!batch.samples.is_empty()).then_some(batch)
    }
}

fn described(reading: &Reading) -> Sampled {
    Sampled {
        id: reading.id.0.clone(),
        index: reading.index,
        name: reading.name.clone(),
        memory_total: reading.memory_total.map(|bytes| bytes.0),
    }
}

impl Director {
    pub(super) fn note_samples(&mut self) {
        let (now, wall) = (self.state.now, Timestamp::now());
        for reading in self.snapshot.devices.iter().filter(|reading| reading.kind.is_gpu()) {
            let leases = self.state.device(&reading.id).map_or(0, |device| device.leases.held.len());
            let verdict = self.state.verdict(reading, &self.snapshot).word();
            self.sampler.note(reading, verdict, leases as u32, now, wall);
        }
        let present = |id: &DeviceId| self.snapshot.devices.iter().any(|reading| reading.id == *id);
        self.sampler.last.retain(|id, _| present(id));
        if let Some(batch) = self.sampler.due(now) {
            self.to_ledger(ledger::Entry::Sampled(batch));
        }
    }

    /// Hands over what is left at the end.
    pub(super) fn hand_over_samples(&mut self) {
        if let Some(batch) = self.sampler.take(self.state.now) {
            self.to_ledger(ledger::Entry::Sampled(batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{DeviceKind, blank};
    use crate::units::Bytes;

    fn at(milliseconds: u64) -> Moment {
        Moment(Duration::from_millis(milliseconds))
    }

    /// Snapshots as `milliseconds:read at`; the seconds that were sampled.
    fn check(snapshots: &[(u64, u64)], expected: &[i64]) {
        let mut sampler = Sampler::default();
        let start: Timestamp = "2026-11-22T10:00:00Z".parse().expect("a time");
        for &(now, read) in snapshots {
            let board = blank(DeviceId("GPU-a".into()), DeviceKind::Gpu, at(0));
            let reading = Reading { memory_at: at(read), memory_used: Some(Bytes(1)), ..board };
            let wall = start + Duration::from_millis(now);
            sampler.note(&reading, "free", 0, at(now), wall);
        }
        let seconds: Vec<i64> = sampler.batch.samples.iter().map(|it| it.at - start.as_second()).collect();
        assert_eq!(seconds, expected, "{snapshots:?}");
        assert_eq!(sampler.batch.devices.len(), 1);
        assert!(sampler.batch.samples.iter().all(|it| it.utilization.is_none() && it.memory == Some(1)));
    }

    #[test]
    fn only_what_was_read_anew_is_a_sample_and_one_a_second() {
        check(&[(1000, 1000), (2000, 2000), (3000, 3000)], &[1, 2, 3]);
        // Watched closely after an exit.
        check(&[(1000, 1000), (1050, 1050), (1100, 1100), (2050, 2050)], &[1, 2]);
        // Others were read, this one wasn't.
        check(&[(1000, 1000), (2000, 1000), (3000, 1000), (6000, 6000)], &[1, 6]);
        // What is heard late was true then.
        check(&[(5000, 2000)], &[2]);
    }

    #[test]
    fn the_ledger_is_woken_once_a_minute() {
        let mut sampler = Sampler::default();
        let mut handed = Vec::new();
        for second in 1..=180 {
            let reading = blank(DeviceId("GPU-a".into()), DeviceKind::Gpu, at(second * 1000));
            let wall = Timestamp::UNIX_EPOCH + Duration::from_secs(second);
            sampler.note(&reading, "free", 0, at(second * 1000), wall);
            handed.extend(sampler.due(at(second * 1000)).map(|batch| (batch.devices.len(), batch.samples.len())));
        }
        assert_eq!(handed, [(1, 60); 3]);
    }
}
