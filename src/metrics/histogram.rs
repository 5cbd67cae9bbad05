//! A histogram of durations that is counted and read without a lock. A reading beside a count may miss it, and is whole
//! in itself: its count is the sum of its buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug)]
pub struct Histogram {
    /// The upper bounds in seconds, ascending; the last bucket has none.
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    /// Enough for 584 years.
    nanoseconds: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Seconds.
    pub sum: f64,
    pub count: u64,
    /// Upper bounds, and how many lie in each bucket alone.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, nanoseconds: AtomicU64::new(0) }
    }

    pub fn count(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = self.bounds.partition_point(|bound| *bound < seconds);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn read(&self) -> Reading {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        Reading { sum, count, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        let check = |milliseconds: &[u64], expected: [u64; 3]| {
            let histogram = Histogram::new(&[0.01, 1.0]);
            milliseconds.iter().for_each(|took| histogram.count(Duration::from_millis(*took)));
            let reading = histogram.read();
            assert_eq!(reading.buckets.iter().map(|(_, count)| *count).collect::<Vec<_>>(), expected);
            assert_eq!(reading.count, milliseconds.len() as u64);
            assert_eq!((reading.sum * 1000.0).round() as u64, milliseconds.iter().sum::<u64>());
            assert_eq!(reading.buckets.last().map(|(bound, _)| *bound), Some(f64::INFINITY));
        };
        check(&[], [0, 0, 0]);
        check(&[0, 10, 11, 1000, 1001], [2, 2, 1]);
        check(&[3_600_000], [0, 0, 1]);
    }

    #[test]
    fn counts_from_several_threads_are_all_there() {
        let histogram = Histogram::new(&[0.5]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.count(Duration::from_secs(1))));
            }
        });
        assert_eq!(
            histogram.read(),
            Reading { sum: 4000.0, count: 4000, buckets: vec![(0.5, 0), (f64::INFINITY, 4000)] }
        );
    }
}
