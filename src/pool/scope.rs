//! Tasks that borrow. Its workers are threads of [`std::thread::scope`], so the compiler itself holds that none outlives
//! what it borrows.

use std::fmt;
use std::marker::PhantomData;

use crossbeam_channel::Sender;

use super::map::{Flow, Map, MapUnordered};
use super::slot::Slot;
use super::ticket::{Ticket, pair};
use super::worker::{Task, caught};

/// A pool for borrowed data, within [`Pool::scope`](super::Pool::scope).
///
/// ```
/// let text = String::from("one two three");
/// let pool = gamdok::Pool::new()?;
/// let longest = pool.scope(|scope| scope.map_unordered(text.split(' '), str::len).flatten().max());
/// assert_eq!(longest, Some(5));
/// # Ok::<(), gamdok::pool::PoolError>(())
/// ```
pub struct Scope<'scope, 'env: 'scope> {
    pub(super) tasks: Sender<Task<'scope>>,
    pub(super) slots: usize,
    pub(super) env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// Puts a task in line, as [`Pool::submit`](super::Pool::submit) does.
    ///
    /// ```
    /// let numbers = vec![1, 2, 3];
    /// let pool = gamdok::Pool::new()?;
    /// let sum = pool.scope(|scope| scope.submit(|| numbers.iter().sum::<i32>()).wait());
    /// assert_eq!(sum, Ok(6));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn submit<F, R>(&self, task: F) -> Ticket<R>
    where
        F: FnOnce() -> R + Send + 'scope,
        R: Send + 'scope,
    {
        self.submit_with(move |_| task())
    }

    /// The same for a task that wants to know its slot.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let seen = std::sync::Mutex::new(Vec::new());
    /// pool.scope(|scope| {
    ///     scope.submit_with(|slot| seen.lock().unwrap().push(slot.index()));
    /// });
    /// assert_eq!(seen.into_inner()?.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_with<F, R>(&self, task: F) -> Ticket<R>
    where
        F: FnOnce(&Slot) -> R + Send + 'scope,
        R: Send + 'scope,
    {
        let (promise, ticket) = pair();
        let run = move |slot: &Slot| {
            if promise.begin() {
                promise.settle(caught(|| task(slot)));
            }
        };
        self.put(Box::new(run));
        ticket
    }

    fn put(&self, task: Task<'scope>) {
        // Its workers stay for as long as this sender does.
        let _ = self.tasks.send(task);
    }

    /// The results of a function over an iterator, in order; see [`Pool::map`](super::Pool::map).
    ///
    /// ```
    /// let words = ["a", "bb", "ccc"];
    /// let pool = gamdok::Pool::new()?;
    /// let lengths: Vec<_> = pool.scope(|scope| scope.map(&words, |word| word.len()).flatten().collect());
    /// assert_eq!(lengths, [1, 2, 3]);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn map<I, F, R>(&self, items: I, function: F) -> Map<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'scope,
        F: Fn(I::Item) -> R + Send + Sync + 'scope,
        R: Send + 'scope,
    {
        Map::new(Flow::new(items.into_iter(), self.slots, |task| self.put(task), move |_, item| function(item)))
    }

    /// The results as they come; see [`Pool::map_unordered`](super::Pool::map_unordered).
    ///
    /// ```
    /// let words = ["a", "bb", "ccc"];
    /// let pool = gamdok::Pool::new()?;
    /// let total: usize = pool.scope(|scope| scope.map_unordered(&words, |word| word.len()).flatten().sum());
    /// assert_eq!(total, 6);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn map_unordered<I, F, R>(&self, items: I, function: F) -> MapUnordered<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'scope,
        F: Fn(I::Item) -> R + Send + Sync + 'scope,
        R: Send + 'scope,
    {
        MapUnordered::new(Flow::new(
            items.into_iter(),
            self.slots,
            |task| self.put(task),
            move |_, item| function(item),
        ))
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("slots", &self.slots).finish_non_exhaustive()
    }
}
