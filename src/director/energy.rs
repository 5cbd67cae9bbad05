//! What the boards used while an attempt ran, from counters that are read now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::devices::{DeviceId, Reading};
use crate::units::Moment;

/// The first and the last reading of each board's counter within one attempt.
#[derive(Debug, Default)]
pub(super) struct Meter(BTreeMap<DeviceId, (Count, Count)>);

/// A counter's stand: millijoules since the driver was loaded.
#[derive(Clone, Copy, Debug)]
struct Count {
    millijoules: u64,
    at: Moment,
}

impl Meter {
    /// Takes in a board's reading, if its counter was read since the attempt `started`.
    pub(super) fn note(&mut self, reading: &Reading, started: Moment) {
        let Some(millijoules) = reading.energy_millijoules.filter(|_| reading.energy_at >= started) else { return };
        let count = Count { millijoules, at: reading.energy_at };
        self.0.entry(reading.id.clone()).or_insert((count, count)).1 = count;
    }

    /// The energy in joules of an attempt that ran for `ran` on this many boards: what lies outside the readings is
    /// taken at their mean power. None where they cover less than half of it.
    pub(super) fn joules(&self, boards: usize, ran: Duration) -> Option<f64> {
        if self.0.len() != boards {
            return None;
        }
        let ran = ran.as_secs_f64();
        let spent = |(first, last): &(Count, Count)| {
            let covered = last.at.since(first.at).as_secs_f64();
            // A counter that went back was started again with its driver.
            let millijoules = last.millijoules.checked_sub(first.millijoules)?;
            (covered > 0.0 && covered * 2.0 >= ran).then(|| millijoules as f64 / 1000.0 * (ran / covered).max(1.0))
        };
        self.0.values().map(spent).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{DeviceKind, blank};

    fn at(milliseconds: u64) -> Moment {
        Moment(Duration::from_millis(milliseconds))
    }

    #[test]
    fn energy_is_told_where_the_readings_cover_the_attempt() {
        // (milliseconds, millijoules) as read; the attempt begins at 1 s.
        let check = |readings: &[(u64, u64)], ran: u64, expected: Option<f64>| {
            let mut meter = Meter::default();
            for &(milliseconds, millijoules) in readings {
                let board = blank(DeviceId("GPU-a".into()), DeviceKind::Gpu, at(0));
                let reading = Reading { energy_millijoules: Some(millijoules), energy_at: at(milliseconds), ..board };
                meter.note(&reading, at(1000));
            }
            assert_eq!(meter.joules(1, Duration::from_millis(ran)), expected, "{readings:?} {ran}");
        };
        check(&[(1000, 5_000), (2000, 105_000), (3000, 205_000)], 2000, Some(200.0));
        // Half of it unseen, at the same power; what was read before it doesn't count.
        check(&[(900, 0), (1500, 5_000), (2500, 105_000)], 2000, Some(200.0));
        check(&[(1500, 5_000), (2500, 105_000)], 2100, None);
        check(&[(1500, 5_000)], 600, None);
        check(&[(1500, 5_000), (2500, 4_000)], 1500, None);
        check(&[], 1500, None);
    }
}
