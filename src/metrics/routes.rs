//! The counts of each route. A route gets its place when it is first seen and keeps it; beyond [`MOST_ROUTES`] all others
//! share one, so that a configuration that is written by a program can't fill Prometheus.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Histogram;
use crate::item::{Outcome, Reason};

/// The routes that are told apart in the life of one director.
pub const MOST_ROUTES: usize = 100;

/// The label of all further ones: no route's name has a `/`.
pub const OTHERS: &str = "/others";

/// From the arrival in the inbox to the first start.
const WAITING: &[f64] =
    &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 86400.0];
/// Of one attempt.
const RUNNING: &[f64] =
    &[0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 86400.0];

const OUTCOMES: [Outcome; 3] = [Outcome::Done, Outcome::Failed, Outcome::Cancelled];
const REASONS: usize = Reason::ALL.len();

#[derive(Debug)]
pub struct Routes {
    places: Box<[OnceLock<RouteCounts>]>,
    others: OnceLock<RouteCounts>,
}

#[derive(Debug)]
pub struct RouteCounts {
    name: String,
    pub claimed: AtomicU64,
    pub started: AtomicU64,
    pub waiting: Histogram,
    pub running: Histogram,
    /// By outcome, and by reason; the last one has none.
    ended: [[AtomicU64; REASONS + 1]; 3],
    retries: [AtomicU64; REASONS + 1],
}

impl Default for Routes {
    fn default() -> Routes {
        Routes { places: (0..MOST_ROUTES).map(|_| OnceLock::new()).collect(), others: OnceLock::new() }
    }
}

impl Routes {
    /// The counts of a route, which has a place from here on.
    pub fn of(&self, name: &str) -> &RouteCounts {
        for place in &self.places {
            let counts = place.get_or_init(|| RouteCounts::new(name));
            if counts.name == name {
                return counts;
            }
        }
        self.others.get_or_init(|| RouteCounts::new(OTHERS))
    }

    /// Gives a route its place.
    pub fn place(&self, name: &str) {
        self.of(name);
    }

    /// What a route is called in labels: by its name once it has a place.
    pub fn label<'n>(&self, name: &'n str) -> &'n str {
        if self.all().any(|counts| counts.name == name) { name } else { OTHERS }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &RouteCounts> {
        self.places.iter().map_while(OnceLock::get).chain(self.others.get())
    }
}

impl RouteCounts {
    fn new(name: &str) -> RouteCounts {
        RouteCounts {
            name: name.to_owned(),
            claimed: AtomicU64::new(0),
            started: AtomicU64::new(0),
            waiting: Histogram::new(WAITING),
            running: Histogram::new(RUNNING),
            ended: Default::default(),
            retries: Default::default(),
        }
    }

    pub fn count_end(&self, outcome: Outcome, reason: Option<Reason>) {
        let at = OUTCOMES.iter().position(|it| *it == outcome).unwrap_or_default();
        self.ended[at][place(reason)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_retry(&self, reason: Option<Reason>) {
        self.retries[place(reason)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ended items by outcome and reason: what can occur, and what occurred. A series that begins with its first item
    /// would hide that item from `increase`.
    pub(super) fn ended(&self) -> Vec<(Outcome, Option<Reason>, u64)> {
        let mut rows = Vec::new();
        for (outcome, counts) in OUTCOMES.into_iter().zip(&self.ended) {
            for (reason, count) in reasons().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                let usual = match (outcome, reason) {
                    (Outcome::Done, reason) => reason.is_none(),
                    (Outcome::Cancelled, reason) => reason == Some(Reason::Cancelled),
                    (Outcome::Failed, Some(reason)) => is_usual(reason),
                    (Outcome::Failed, None) => false,
                };
                if usual || count > 0 {
                    rows.push((outcome, reason, count));
                }
            }
        }
        rows
    }

    /// Retries by the reason of the attempt before, likewise.
    pub(super) fn retries(&self) -> Vec<(Option<Reason>, u64)> {
        let rows = reasons().zip(&self.retries).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)));
        rows.filter(|(reason, count)| reason.is_some_and(is_usual) || *count > 0).collect()
    }
}

fn is_usual(reason: Reason) -> bool {
    !matches!(reason, Reason::Cancelled | Reason::Unrecognised)
}

fn reasons() -> impl Iterator<Item = Option<Reason>> {
    Reason::ALL.into_iter().map(Some).chain([None])
}

fn place(reason: Option<Reason>) -> usize {
    reason.and_then(|reason| Reason::ALL.iter().position(|it| *it == reason)).unwrap_or(REASONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_beyond_the_bound_share_a_place() {
        let routes = Routes::default();
        for n in 0..MOST_ROUTES + 20 {
            routes.of(&format!("r{n}")).count_end(Outcome::Done, None);
        }
        let done = |counts: &RouteCounts| counts.ended().iter().map(|(.., count)| count).sum::<u64>();
        let check = |name: &str, label: &str, expected: u64| {
            assert_eq!((routes.label(name), done(routes.of(name))), (label, expected), "{name}");
        };
        check("r0", "r0", 1);
        check("r99", "r99", 1);
        check("r100", OTHERS, 20);
        check("never seen", OTHERS, 20);
        assert_eq!(routes.all().count(), MOST_ROUTES + 1);
    }

    #[test]
    fn what_can_occur_is_told_before_it_does() {
        let routes = Routes::default();
        let counts = routes.of("r");
        let before = counts.ended();
        assert!(before.iter().all(|(.., count)| *count == 0));
        assert!(before.contains(&(Outcome::Failed, Some(Reason::Timeout), 0)));
        assert_eq!(counts.retries().len(), REASONS - 2);
        counts.count_end(Outcome::Failed, None);
        counts.count_retry(Some(Reason::Unrecognised));
        assert!(counts.ended().contains(&(Outcome::Failed, None, 1)));
        assert!(counts.retries().contains(&(Some(Reason::Unrecognised), 1)));
    }
}
