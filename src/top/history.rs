//! What happened over the last minutes, in buckets of a few seconds: items that ended, and how busy each device was. Kept
//! while the view is open, and gone with it. Pure: the time is handed in.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;

use super::facts::Facts;

/// Seconds in a bucket.
const BUCKET: i64 = 5;
/// Twenty minutes.
const KEPT: usize = 240;
/// A minute's.
const MINUTE: usize = 12;

/// Numbers by bucket; the last is that of now. What wasn't seen is absent, not 0.
#[derive(Clone, Debug, Default)]
struct Series(VecDeque<Option<(u64, u64)>>);

impl Series {
    fn roll(&mut self, buckets: usize) {
        for _ in 0..buckets.min(KEPT) {
            self.0.push_back(None);
        }
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    fn add(&mut self, value: u64) {
        if self.0.is_empty() {
            self.0.push_back(None);
        }
        if let Some(last) = self.0.back_mut() {
            let (sum, samples) = last.unwrap_or_default();
            *last = Some((sum + value, samples + 1));
        }
    }

    /// The last `width` buckets, oldest first.
    fn last(&self, width: usize) -> impl Iterator<Item = Option<(u64, u64)>> {
        let missing = width.saturating_sub(self.0.len());
        let from = self.0.len().saturating_sub(width);
        std::iter::repeat_n(None, missing).chain(self.0.iter().skip(from).copied())
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    bucket: i64,
    ended: Series,
    /// How many there were when they were last counted.
    counted: Option<u64>,
    load: BTreeMap<String, Series>,
}

impl History {
    /// Goes on to `now`.
    fn roll(&mut self, now: Timestamp) {
        let bucket = now.as_second().div_euclid(BUCKET);
        let passed = usize::try_from(bucket - self.bucket).unwrap_or(0);
        if self.bucket != 0 && passed > 0 {
            self.ended.roll(passed);
            self.load.values_mut().for_each(|series| series.roll(passed));
        }
        self.bucket = bucket.max(self.bucket);
    }

    /// New facts: what has ended since the last. Fewer than before were retried, pruned or deleted.
    pub(super) fn count(&mut self, facts: &Facts, now: Timestamp) {
        self.roll(now);
        let ended = facts.ended();
        self.ended.add(ended.saturating_sub(self.counted.unwrap_or(ended)));
        self.counted = Some(ended);
    }

    /// One look at the devices, once a second.
    pub(super) fn sample(&mut self, facts: &Facts, now: Timestamp) {
        self.roll(now);
        self.ended.add(0);
        let devices = &facts.status.devices;
        self.load.retain(|id, _| devices.iter().any(|device| device.id == *id));
        for device in devices {
            if let Some(load) = device.utilization {
                self.load.entry(device.id.clone()).or_default().add(load.into());
            }
        }
    }

    /// How many ended in each of the last buckets, as a line of bars.
    pub(super) fn ended(&self, width: usize) -> String {
        let values: Vec<Option<u64>> = self.ended.last(width).map(|it| it.map(|(sum, _)| sum)).collect();
        let most = values.iter().flatten().copied().max().unwrap_or(0);
        bars(&values, most)
    }

    /// How many ended in the last minute.
    pub(super) fn a_minute(&self) -> u64 {
        self.ended.last(MINUTE).flatten().map(|(sum, _)| sum).sum()
    }

    /// How busy a device was in each of the last buckets, as a line of bars.
    pub(super) fn load(&self, device: &str, width: usize) -> String {
        let Some(series) = self.load.get(device) else { return String::new() };
        let values: Vec<Option<u64>> = series.last(width).map(|it| it.map(|(sum, n)| sum / n.max(1))).collect();
        bars(&values, 100)
    }
}

/// One character a value; a space where there is none.
fn bars(values: &[Option<u64>], most: u64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |value: u64| BARS[(value.min(most) * 7).div_ceil(most.max(1)).min(7) as usize];
    values.iter().map(|value| value.map_or(' ', bar)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    #[test]
    fn what_ended_is_counted_by_its_time() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).expect("a time");
        let mut history = History::default();
        let mut facts = facts();
        let mut see = |done: u64, second: i64| {
            facts.status.counts.done = done;
            history.count(&facts, at(second));
        };
        see(100, 0);
        see(104, 1);
        see(104, 6);
        see(90, 7); // pruned
        see(98, 21);
        assert_eq!((history.ended(6).as_str(), history.a_minute()), (" ▅▁  █", 12));
        history.sample(&facts, at(70));
        assert_eq!(history.a_minute(), 8);
    }

    #[test]
    fn load_is_the_mean_of_a_bucket_and_absent_where_nobody_looked() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).expect("a time");
        let (mut history, mut facts) = (History::default(), facts());
        let device = facts.status.devices[0].id.clone();
        for (second, load) in [(0, Some(100)), (1, Some(0)), (11, Some(100)), (16, None)] {
            facts.status.devices[0].utilization = load;
            history.sample(&facts, at(second));
        }
        assert_eq!(history.load(&device, 5), " ▅ █ ");
        assert_eq!(history.load("nobody", 5), "");
        facts.status.devices.clear();
        history.sample(&facts, at(17));
        assert_eq!(history.load(&device, 5), "", "a device that left");
    }

    #[test]
    fn a_long_night_stays_bounded() {
        let (mut history, facts) = (History::default(), facts());
        for minute in 0..600 {
            history.sample(&facts, Timestamp::from_second(1_000_000 + minute * 60).expect("a time"));
        }
        assert_eq!(history.ended.0.len(), KEPT);
        assert!(history.load.values().all(|series| series.0.len() <= KEPT));
    }
}
