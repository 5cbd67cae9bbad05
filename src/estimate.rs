//! Guesses when what waits will start and end, as ranges, from how long items of its route took of late. Pure: no clock,
//! no file. The plan is played twice, once with the lower quartile of each route's running times and once with the upper.
//! Invariants: what isn't known is absent, never made up (a route with fewer than [`ENOUGH`] ends has no running time);
//! the first end of a range is never after its second.
//!
//! It is a guess, and takes no account of failures and retries, of devices that come and go, or of what will yet arrive.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// With fewer ends nothing is said of a route.
pub const ENOUGH: usize = 5;
/// So many of a route's latest ends are looked at.
pub const LATEST: usize = 200;
/// More routes than these are names that come and go.
const ROUTES: usize = 1000;

/// How long the items of each route took: those that were done, the attempt that did it.
#[derive(Clone, Debug, Default)]
pub struct Paces(HashMap<String, VecDeque<(i64, Duration)>>);

impl Paces {
    /// One took so long; `ended` puts them in order (any unit) and tells one from another.
    pub fn note(&mut self, route: &str, ended: i64, took: Duration) {
        if !self.0.contains_key(route) {
            if self.0.len() >= ROUTES {
                return;
            }
            self.0.insert(route.to_owned(), VecDeque::new());
        }
        let Some(known) = self.0.get_mut(route) else { return };
        let at = known.partition_point(|it| *it < (ended, took));
        if known.get(at) == Some(&(ended, took)) {
            return;
        }
        known.insert(at, (ended, took));
        if known.len() > LATEST {
            known.pop_front();
        }
    }

    /// The quartiles of what lies ahead of an item that has run for `elapsed`: those are looked at that took longer.
    /// None when too few ends are known, or none that took longer.
    pub fn rest(&self, route: &str, elapsed: Duration) -> Option<(Duration, Duration)> {
        let known = self.0.get(route).filter(|known| known.len() >= ENOUGH)?;
        let mut rest: Vec<Duration> = known.iter().filter_map(|(_, took)| took.checked_sub(elapsed)).collect();
        rest.sort_unstable();
        Some((quantile(&rest, 25)?, quantile(&rest, 75)?))
    }
}

/// The nearest rank: the least value with at least `percent` of all at or below it.
pub fn quantile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// What can take work: a GPU, or the pool of CPU slots.
#[derive(Clone, Debug)]
pub struct Place {
    pub gpu: bool,
    pub slots: u32,
    /// Bytes.
    pub memory: Option<u64>,
}

/// What an item asks for.
#[derive(Clone, Debug)]
pub struct Want<'a> {
    pub route: &'a str,
    /// 0: a CPU slot.
    pub gpus: u32,
    /// Bytes on each GPU.
    pub memory: Option<u64>,
    pub max_running: Option<u32>,
}

/// An item that runs, for so long, on these places (by their numbers).
#[derive(Clone, Debug)]
pub struct Busy<'a> {
    pub want: Want<'a>,
    pub elapsed: Duration,
    pub on: Vec<usize>,
}

/// An item that waits, not to start before.
#[derive(Clone, Debug)]
pub struct Waiting<'a> {
    pub want: Want<'a>,
    pub not_before: Duration,
}

/// From now: at the earliest and at the latest.
pub type Range = (Duration, Duration);

/// When something is thought to start and to end; each absent where it isn't known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guess {
    pub start: Option<Range>,
    pub end: Option<Range>,
}

/// For each that runs when it ends, and for each that waits, in the order of the queue, when it starts and ends.
pub fn guess(paces: &Paces, places: &[Place], busy: &[Busy<'_>], queue: &[Waiting<'_>]) -> (Vec<Guess>, Vec<Guess>) {
    let rests: Vec<Option<Range>> = busy.iter().map(|it| paces.rest(it.want.route, it.elapsed)).collect();
    let ends = rests.iter().map(|rest| Guess { start: None, end: *rest }).collect();
    let mut spans: HashMap<&str, Option<Range>> = HashMap::new();
    let spans: Vec<Option<Range>> = queue
        .iter()
        .map(|it| *spans.entry(it.want.route).or_insert_with(|| paces.rest(it.want.route, Duration::ZERO)))
        .collect();
    // What isn't known may be over at once, or last for ever.
    let mut soon = Floor::new(places);
    let mut late = Floor::new(places);
    for (it, rest) in busy.iter().zip(&rests) {
        soon.occupy(it, rest.map_or(Duration::ZERO, |rest| rest.0));
        late.occupy(it, rest.map_or(Duration::MAX, |rest| rest.1));
    }
    let known = |first: Option<Duration>, last: Option<Duration>| {
        let (first, last) = (first?, last?);
        // Fewer that run at the same time may let one begin earlier: the range is one all the same.
        (first.max(last) < Duration::MAX).then(|| (first.min(last), first.max(last)))
    };
    let waiting = queue
        .iter()
        .zip(&spans)
        .map(|(it, span)| {
            let first = soon.take(it, span.map_or(Duration::ZERO, |span| span.0));
            let last = late.take(it, span.map_or(Duration::MAX, |span| span.1));
            let start = known(first, last);
            let end = start.zip(*span).and_then(|(start, span)| {
                known(Some(start.0.saturating_add(span.0)), Some(start.1.saturating_add(span.1)))
            });
            Guess { start, end }
        })
        .collect();
    (ends, waiting)
}

/// When each slot is free, while the plan is played.
struct Floor<'a> {
    places: &'a [Place],
    /// Of each place its slots, the first to be free first.
    free: Vec<Vec<Duration>>,
    /// Of each route with a limit on how many run.
    running: HashMap<String, Vec<Duration>>,
}

impl<'a> Floor<'a> {
    fn new(places: &'a [Place]) -> Floor<'a> {
        let free = places.iter().map(|place| vec![Duration::ZERO; place.slots as usize]).collect();
        Floor { places, free, running: HashMap::new() }
    }

    fn occupy(&mut self, busy: &Busy<'_>, until: Duration) {
        for at in &busy.on {
            if let Some(free) = self.free.get_mut(*at) {
                replace_first(free, until);
            }
        }
        if let Some(running) = self.limit(&busy.want) {
            replace_first(running, until);
        }
    }

    /// Gives the item the slots that are free first, for so long; none where nothing can ever take it.
    fn take(&mut self, waiting: &Waiting<'_>, span: Duration) -> Option<Duration> {
        let want = &waiting.want;
        let allowed = self.limit(want).map_or(Some(Duration::ZERO), |running| running.first().copied())?;
        let mut places: Vec<(Duration, usize)> =
            (0..self.places.len()).filter_map(|at| Some((self.free_at(at, want)?, at))).collect();
        let needed = want.gpus.max(1) as usize;
        if places.len() < needed {
            return None;
        }
        // Of those that are free in time the one that has only just become so: another may take the rest at once.
        let ready = allowed.max(waiting.not_before);
        places.sort_unstable_by_key(|(free, at)| (ready.max(*free), Reverse(*free), *at));
        places.truncate(needed);
        let free = places.iter().map(|(free, _)| *free).max()?;
        let start = free.max(ready);
        let end = start.saturating_add(span);
        for (_, at) in places {
            replace_first(&mut self.free[at], end);
        }
        if let Some(running) = self.limit(want) {
            replace_first(running, end);
        }
        Some(start)
    }

    /// When a place can take one more of these: all its slots may be too many for its memory.
    fn free_at(&self, at: usize, want: &Want<'_>) -> Option<Duration> {
        let place = &self.places[at];
        if place.gpu != (want.gpus > 0) {
            return None;
        }
        let slots = self.free[at].len();
        let fit = match (place.memory, want.memory) {
            (Some(memory), Some(each)) if each > 0 => usize::try_from(memory / each).unwrap_or(usize::MAX).min(slots),
            _ => slots,
        };
        self.free[at].get(slots.checked_sub(fit)?).copied()
    }

    fn limit(&mut self, want: &Want<'_>) -> Option<&mut Vec<Duration>> {
        let most = want.max_running? as usize;
        if !self.running.contains_key(want.route) {
            self.running.insert(want.route.to_owned(), vec![Duration::ZERO; most]);
        }
        self.running.get_mut(want.route)
    }
}

/// The slot that is free first is taken until then.
fn replace_first(free: &mut Vec<Duration>, until: Duration) {
    if free.is_empty() {
        return;
    }
    free.remove(0);
    let at = free.partition_point(|it| *it <= until);
    free.insert(at, until);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// `a` takes 10 to 20 s (quartiles), `b` 100 to 200 s; `rare` has run too seldom.
    fn paces() -> Paces {
        let mut paces = Paces::default();
        for (n, took) in [5, 10, 10, 15, 15, 20, 20, 40].into_iter().enumerate() {
            paces.note("a", n as i64, seconds(took));
            paces.note("b", n as i64, seconds(took * 10));
            if n < ENOUGH - 1 {
                paces.note("rare", n as i64, seconds(took));
            }
        }
        paces
    }

    fn want(text: &str) -> Want<'_> {
        let mut words = text.split('/');
        let route = words.next().expect("a route");
        let mut number = |default: u32| words.next().and_then(|word| word.parse().ok()).unwrap_or(default);
        let (gpus, memory, most) = (number(1), number(0), number(0));
        Want { route, gpus, memory: (memory > 0).then(|| memory.into()), max_running: (most > 0).then_some(most) }
    }

    fn shown(guess: &Guess) -> String {
        let range = |range: Option<Range>| match range {
            Some((first, last)) => format!("{}-{}", first.as_secs(), last.as_secs()),
            None => "?".to_owned(),
        };
        format!("{} {}", range(guess.start), range(guess.end))
    }

    /// `busy`: `route@elapsed:places`; `queue`: `route/gpus/memory/max_running+not_before`. GPUs are `slots*memory`.
    fn check(gpus: &str, busy: &str, queue: &str, expected: &str) {
        let place = |text: &str| {
            let (slots, memory) = text.split_once('*').unwrap_or((text, "100"));
            Place { gpu: true, slots: slots.parse().expect("slots"), memory: memory.parse().ok() }
        };
        let mut places: Vec<Place> = gpus.split_whitespace().map(place).collect();
        places.push(Place { gpu: false, slots: 2, memory: None });
        let running = |text: &'static str| {
            let (what, on) = text.split_once(':').expect("places");
            let (what, elapsed) = what.split_once('@').expect("elapsed");
            let on = on.split(',').map(|at| at.parse().expect("a place")).collect();
            Busy { want: want(what), elapsed: seconds(elapsed.parse().expect("seconds")), on }
        };
        let waits = |text: &'static str| {
            let (what, not_before) = text.split_once('+').unwrap_or((text, "0"));
            Waiting { want: want(what), not_before: seconds(not_before.parse().expect("seconds")) }
        };
        let (busy, queue): (&'static str, &'static str) = (busy.to_owned().leak(), queue.to_owned().leak());
        let busy: Vec<Busy<'_>> = busy.split_whitespace().map(running).collect();
        let queue: Vec<Waiting<'_>> = queue.split_whitespace().map(waits).collect();
        let (ends, waiting) = guess(&paces(), &places, &busy, &queue);
        for range in ends.iter().chain(&waiting).flat_map(|it| [it.start, it.end]).flatten() {
            assert!(range.0 <= range.1);
        }
        let lines: Vec<String> = ends.iter().chain(&waiting).map(shown).collect();
        assert_eq!(lines.join(" | "), expected, "{gpus} [{busy:?}] [{queue:?}]");
    }

    #[test]
    fn what_waits_starts_when_what_is_ahead_of_it_has_ended() {
        // One GPU, one slot.
        check("1", "", "a", "0-0 10-20");
        check("1", "", "a a b", "0-0 10-20 | 10-20 20-40 | 20-40 120-240");
        check("1 1", "", "a b a", "0-0 10-20 | 0-0 100-200 | 10-20 20-40");
        // Slots of one GPU, and as many as its memory has room for.
        check("2", "", "a a a", "0-0 10-20 | 0-0 10-20 | 10-20 20-40");
        check("4*100", "", "a/1/60 a/1/60", "0-0 10-20 | 10-20 20-40");
        check("4*100", "", "a/1/50 a/1/50 a/1/50", "0-0 10-20 | 0-0 10-20 | 10-20 20-40");
        // Several GPUs at once wait for the last of them.
        check("1 1", "", "a b/2 a", "0-0 10-20 | 10-20 110-220 | 110-220 120-240");
        // CPU slots are apart.
        check("1", "", "a/0 a/0 a/0 a", "0-0 10-20 | 0-0 10-20 | 10-20 20-40 | 0-0 10-20");
        check("1", "", "a+30", "30-30 40-50");
        // No more of a route than it allows; others pass by.
        check("1 1", "", "a/1/0/1 a/1/0/1 b", "0-0 10-20 | 10-20 20-40 | 0-0 100-200");
    }

    #[test]
    fn what_runs_ends_as_those_did_that_ran_as_long() {
        check("1", "a@0:0", "", "? 10-20");
        // Of those that took more than 12 s: 15 15 20 20 40.
        check("1", "a@12:0", "", "? 3-8");
        check("1", "a@12:0", "a", "? 3-8 | 3-8 13-28");
        check("1 1", "b@0:0,1", "a", "? 100-200 | 100-200 110-220");
        check("1 1", "a/1/0/1@0:0", "a/1/0/1", "? 10-20 | 10-20 20-40");
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        // Nothing is known of its route: it starts at some time, and what is behind it, too.
        check("1", "", "rare", "0-0 ?");
        check("1", "", "rare a", "0-0 ? | ? ?");
        check("1 1", "", "rare a a", "0-0 ? | 0-0 10-20 | 0-20 10-40");
        // It runs longer than any before it.
        check("1", "a@50:0", "a", "? ? | ? ?");
        check("1 1", "a@50:0", "a a", "? ? | 0-0 10-20 | 0-20 10-40");
        check("1", "rare@1:0", "", "? ?");
        // Nothing here can ever take it.
        check("1", "", "a/2 a", "? ? | 0-0 10-20");
        check("1*100", "", "a/1/200", "? ?");
        check("", "", "a a/0", "? ? | 0-0 10-20");
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let check = |values: &[f64], percent, expected| assert_eq!(quantile(values, percent), expected, "{values:?}");
        check(&[], 50, None);
        check(&[3.0], 95, Some(3.0));
        check(&[1.0, 2.0, 3.0, 4.0], 50, Some(2.0));
        check(&[1.0, 2.0, 3.0, 4.0], 95, Some(4.0));
    }

    #[test]
    fn the_latest_ends_count_and_each_once() {
        let mut paces = Paces::default();
        assert_eq!(paces.rest("a", Duration::ZERO), None);
        for n in 0..LATEST as i64 * 2 {
            for _ in 0..2 {
                paces.note("a", n, seconds(if n < LATEST as i64 { 1000 } else { 1 }));
            }
        }
        // An early one that is heard of late is none of the latest.
        paces.note("a", 3, seconds(9));
        assert_eq!(paces.0["a"].len(), LATEST);
        assert_eq!(paces.rest("a", Duration::ZERO), Some((seconds(1), seconds(1))));
        (0..3 * ROUTES).for_each(|n| paces.note(&n.to_string(), 1, seconds(1)));
        assert_eq!(paces.0.len(), ROUTES);
    }
}
