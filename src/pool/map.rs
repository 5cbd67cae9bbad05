//! A function over an iterator, a bounded number of items ahead of who reads the results. Invariant: what was pulled and
//! not yet given out is never more than `in_flight`, so that neither a fast iterator nor one slow task fills the memory.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::TaskError;
use super::slot::Slot;
use super::worker::{Task, caught};

/// How often a reader gives its core to others before it sleeps: with tasks of a microsecond, a sleep and a wake-up for
/// each would cost ten times the task.
const YIELDS: usize = 32;

/// The least that is in flight unless somebody says otherwise: enough for small tasks to be handed over by the dozen.
const FLOOR: usize = 32;

/// The results in the order of their items; see [`Pool::map`](super::Pool::map).
pub struct Map<'s, I: Iterator, R> {
    pub(super) flow: Flow<'s, I, R>,
    /// From the next one to give out on; those not there yet are empty.
    ordered: VecDeque<Option<Result<R, TaskError>>>,
    given: u64,
}

/// The results as they come; see [`Pool::map_unordered`](super::Pool::map_unordered).
pub struct MapUnordered<'s, I: Iterator, R> {
    flow: Flow<'s, I, R>,
}

impl<'s, I: Iterator, R> Map<'s, I, R> {
    pub(super) fn new(flow: Flow<'s, I, R>) -> Self {
        Map { flow, ordered: VecDeque::new(), given: 0 }
    }

    /// At most so many items are pulled from the iterator ahead of the results given out (at least 1).
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let lengths: Result<Vec<_>, _> = pool.map(["a", "bb"], str::len).in_flight(1).collect();
    /// assert_eq!(lengths?, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_flight(mut self, most: usize) -> Self {
        self.flow.most = most.max(1);
        self
    }
}

impl<'s, I: Iterator, R> MapUnordered<'s, I, R> {
    pub(super) fn new(flow: Flow<'s, I, R>) -> Self {
        MapUnordered { flow }
    }

    /// At most so many items are pulled from the iterator ahead of the results given out (at least 1).
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.map_unordered(0..100, |n| n).in_flight(4).count(), 100);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn in_flight(mut self, most: usize) -> Self {
        self.flow.most = most.max(1);
        self
    }
}

impl<I: Iterator, R> Iterator for Map<'_, I, R> {
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.flow.fill();
            if let Some(Some(_)) = self.ordered.front() {
                self.given += 1;
                self.flow.pulled_and_not_given -= 1;
                return self.ordered.pop_front().flatten();
            }
            for (place, result) in self.flow.take()? {
                let at = (place - self.given) as usize;
                if self.ordered.len() <= at {
                    self.ordered.resize_with(at + 1, || None);
                }
                self.ordered[at] = Some(result);
            }
        }
    }
}

impl<I: Iterator, R> Iterator for MapUnordered<'_, I, R> {
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.flow.fill();
        if self.flow.taken.is_empty() {
            let came = self.flow.take()?;
            self.flow.taken.extend(came.into_iter().map(|(_, result)| result));
        }
        self.flow.pulled_and_not_given -= 1;
        self.flow.taken.pop_front()
    }
}

/// What both have in common: the way to the workers, and the way back.
pub(super) struct Flow<'s, I: Iterator, R> {
    /// None once it has said that it is at its end.
    items: Option<I>,
    most: usize,
    slots: usize,
    pulled: u64,
    pulled_and_not_given: usize,
    taken: VecDeque<Result<R, TaskError>>,
    back: Arc<Back<R>>,
    /// Makes a task of one item and puts it in line.
    submit: Box<dyn Fn(u64, I::Item) + Send + 's>,
}

impl<'s, I: Iterator, R> Flow<'s, I, R> {
    /// `line` takes a task, or drops it.
    pub(super) fn new<'t: 's, F>(items: I, slots: usize, line: impl Fn(Task<'t>) + Send + 's, function: F) -> Self
    where
        I::Item: Send + 't,
        R: Send + 't,
        F: Fn(&Slot, I::Item) -> R + Send + Sync + 't,
    {
        let back = Arc::new(Back::default());
        let function = Arc::new(function);
        let to = back.clone();
        let submit = move |place, item| {
            let (answer, function) = (Answer { place, back: Some(to.clone()) }, function.clone());
            line(Box::new(move |slot| answer.run(|| function(slot, item))));
        };
        let (items, taken, submit) = (Some(items), VecDeque::new(), Box::new(submit));
        Flow { items, most: (slots * 4).max(FLOOR), slots, pulled: 0, pulled_and_not_given: 0, taken, back, submit }
    }

    /// Pulls as many items as may be in flight, once there is room for some: one wake-up of the workers serves them all.
    pub(super) fn fill(&mut self) {
        let room = self.most.saturating_sub(self.slots * 2).clamp(1, (self.most / 4).max(1));
        if self.pulled_and_not_given > self.most - room {
            return;
        }
        while self.pulled_and_not_given < self.most
            && let Some(items) = &mut self.items
        {
            let Some(item) = items.next() else {
                self.items = None;
                return;
            };
            // Counted first: a result that comes at once finds its place.
            let place = self.pulled;
            self.pulled += 1;
            self.pulled_and_not_given += 1;
            (self.submit)(place, item);
        }
    }

    /// What has come, at least one; none when nothing is in flight.
    fn take(&mut self) -> Option<Vec<(u64, Result<R, TaskError>)>> {
        if self.pulled_and_not_given == 0 {
            return None;
        }
        Some(self.back.take())
    }
}

impl<I: Iterator, R> Drop for Flow<'_, I, R> {
    fn drop(&mut self) {
        // Nobody reads on: what hasn't begun needn't.
        self.back.unread.store(true, Ordering::Relaxed);
    }
}

/// Where results wait for their reader.
struct Back<R> {
    results: Mutex<Waiting<R>>,
    came: Condvar,
    unread: AtomicBool,
}

struct Waiting<R> {
    results: Vec<(u64, Result<R, TaskError>)>,
    /// The reader sleeps.
    asleep: bool,
}

impl<R> Default for Back<R> {
    fn default() -> Self {
        let results = Mutex::new(Waiting { results: Vec::new(), asleep: false });
        Back { results, came: Condvar::new(), unread: AtomicBool::new(false) }
    }
}

impl<R> Back<R> {
    fn put(&self, place: u64, result: Result<R, TaskError>) {
        let mut waiting = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.results.push((place, result));
        let wake = std::mem::take(&mut waiting.asleep);
        drop(waiting);
        if wake {
            self.came.notify_one();
        }
    }

    fn take(&self) -> Vec<(u64, Result<R, TaskError>)> {
        let mut waiting = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..YIELDS {
            if !waiting.results.is_empty() {
                break;
            }
            drop(waiting);
            thread::yield_now();
            waiting = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        }
        while waiting.results.is_empty() {
            waiting.asleep = true;
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut waiting.results)
    }
}

/// One task's side of it: answers exactly once, by `Drop` when it never ran.
struct Answer<R> {
    place: u64,
    /// None once it has answered.
    back: Option<Arc<Back<R>>>,
}

impl<R> Answer<R> {
    fn run(mut self, task: impl FnOnce() -> R) {
        let Some(back) = self.back.take_if(|back| !back.unread.load(Ordering::Relaxed)) else { return };
        back.put(self.place, caught(task));
    }
}

impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            back.put(self.place, Err(TaskError::Cancelled));
        }
    }
}

impl<I: Iterator, R> fmt::Debug for Map<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("pulled", &self.flow.pulled).field("given", &self.given).finish_non_exhaustive()
    }
}

impl<I: Iterator, R> fmt::Debug for MapUnordered<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapUnordered").field("pulled", &self.flow.pulled).finish_non_exhaustive()
    }
}
