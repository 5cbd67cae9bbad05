//! The claim on a task's result: waited for, asked, or given up. The task's side settles it exactly once, by `Drop` when
//! the task never ran.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// Why a task has no result.
///
/// ```
/// use gamdok::{Pool, TaskError};
///
/// let pool = Pool::new()?;
/// let ticket = pool.submit(|| -> u32 { panic!("no luck") });
/// assert_eq!(ticket.wait(), Err(TaskError::Panicked("no luck".to_owned())));
/// assert_eq!(pool.submit(|| 7).wait(), Ok(7));
/// # Ok::<(), gamdok::pool::PoolError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// The task panicked; what it said, where that was text.
    #[error("the task panicked: {0}")]
    Panicked(String),
    /// A resident worker says that it failed, with its words.
    #[error("the task failed: {0}")]
    Failed(String),
    /// The process that was at it ended, broke the protocol, or took too long.
    #[error("the task was lost: {0}")]
    Lost(String),
    /// It never began: cancelled by hand, or the pool ended before its turn.
    #[error("the task was cancelled before it began")]
    Cancelled,
}

/// A claim on one task's result, from [`Pool::submit`](super::Pool::submit). Dropping it lets the task run on unheard.
///
/// ```
/// let pool = gamdok::Pool::new()?;
/// let ticket = pool.submit(|| 6 * 7);
/// assert_eq!(ticket.wait()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ticket<R> {
    cell: Arc<Cell<R>>,
}

impl<R> Ticket<R> {
    /// Waits for the result. A task must not wait for another one of its own pool that may be behind it in line: when
    /// every slot does so, none goes on.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.submit(|| "done").wait(), Ok("done"));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn wait(self) -> Result<R, TaskError> {
        let mut inner = self.cell.lock();
        loop {
            if let Stage::Settled(_) = inner.stage
                && let Stage::Settled(result) = std::mem::replace(&mut inner.stage, Stage::Taken)
            {
                return result;
            }
            inner.awaited = true;
            inner = self.cell.settled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The result if it is there; else the ticket back.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let mut ticket = pool.submit(|| 1);
    /// let one = loop {
    ///     match ticket.try_wait() {
    ///         Ok(result) => break result?,
    ///         Err(still) => ticket = still, // do something else
    ///     }
    /// };
    /// assert_eq!(one, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_wait(self) -> Result<Result<R, TaskError>, Ticket<R>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Waits for at most so long; then the ticket back.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let pool = gamdok::Pool::new()?;
    /// let (go, wait) = std::sync::mpsc::channel::<()>();
    /// let ticket = pool.submit(move || wait.recv().is_ok());
    /// let ticket = ticket.wait_timeout(Duration::from_millis(1)).unwrap_err();
    /// go.send(())?;
    /// assert_eq!(ticket.wait(), Ok(true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<R, TaskError>, Ticket<R>> {
        let until = Instant::now().checked_add(timeout);
        let mut inner = self.cell.lock();
        loop {
            if inner.is_settled()
                && let Stage::Settled(result) = std::mem::replace(&mut inner.stage, Stage::Taken)
            {
                return Ok(result);
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                drop(inner);
                return Err(self);
            }
            inner.awaited = true;
            inner = self.cell.settled.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the result is there, an error included.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let ticket = pool.submit(|| ());
    /// while !ticket.is_done() {
    ///     std::thread::yield_now();
    /// }
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn is_done(&self) -> bool {
        self.cell.lock().is_settled()
    }

    /// Gives the task up. True if it had not begun: it never will, and the ticket says [`TaskError::Cancelled`]. What
    /// runs can't be stopped from outside, and goes on to its end.
    ///
    /// ```
    /// use gamdok::{Pool, TaskError};
    ///
    /// let pool = Pool::builder().slots(1).build()?;
    /// let (go, wait) = std::sync::mpsc::channel::<()>();
    /// let first = pool.submit(move || wait.recv().is_ok());
    /// let second = pool.submit(|| "never");
    /// assert!(second.cancel());
    /// assert_eq!(second.wait(), Err(TaskError::Cancelled));
    /// go.send(())?;
    /// assert!(first.wait()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cancel(&self) -> bool {
        let mut inner = self.cell.lock();
        if !matches!(inner.stage, Stage::Waiting) {
            return false;
        }
        self.cell.settle(&mut inner, Err(TaskError::Cancelled));
        true
    }
}

impl<R> fmt::Debug for Ticket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.cell.lock().stage {
            Stage::Waiting => "waiting",
            Stage::Running => "running",
            Stage::Settled(_) | Stage::Taken => "done",
        };
        f.debug_tuple("Ticket").field(&word).finish()
    }
}

/// The results of these tickets in the order in which they come, each with its ticket's place in the order given.
///
/// ```
/// let pool = gamdok::Pool::new()?;
/// let tickets: Vec<_> = (0..10).map(|n| pool.submit(move || n * n)).collect();
/// let mut sum = 0;
/// for (place, square) in gamdok::pool::as_completed(tickets) {
///     let square = square?;
///     assert_eq!(square, place * place);
///     sum += square;
/// }
/// assert_eq!(sum, 285);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn as_completed<R>(tickets: impl IntoIterator<Item = Ticket<R>>) -> AsCompleted<R> {
    // As many places as there are tickets are ever used, so a task's end never waits for its reader.
    let (tell, done) = unbounded();
    let tickets: Vec<Option<Ticket<R>>> = tickets.into_iter().map(Some).collect();
    for (place, ticket) in tickets.iter().flatten().enumerate() {
        let mut inner = ticket.cell.lock();
        if inner.is_settled() {
            let _ = tell.send(place);
        } else {
            inner.watcher = Some((place, tell.clone()));
        }
    }
    AsCompleted { tickets, done }
}

/// See [`as_completed`].
pub struct AsCompleted<R> {
    tickets: Vec<Option<Ticket<R>>>,
    done: Receiver<usize>,
}

impl<R> Iterator for AsCompleted<R> {
    type Item = (usize, Result<R, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        // Every sender goes with the end of its task: none left means that all were told of.
        let place = self.done.recv().ok()?;
        Some((place, self.tickets[place].take()?.wait()))
    }
}

impl<R> fmt::Debug for AsCompleted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted").field("left", &self.tickets.iter().flatten().count()).finish()
    }
}

/// What a task and its ticket share.
struct Cell<R> {
    inner: Mutex<Inner<R>>,
    settled: Condvar,
}

struct Inner<R> {
    stage: Stage<R>,
    /// Somebody sleeps on the condition: waking nobody would cost a system call a task.
    awaited: bool,
    watcher: Option<(usize, Sender<usize>)>,
}

enum Stage<R> {
    Waiting,
    Running,
    Settled(Result<R, TaskError>),
    Taken,
}

impl<R> Inner<R> {
    fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Settled(_))
    }
}

impl<R> Cell<R> {
    fn lock(&self) -> MutexGuard<'_, Inner<R>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, inner: &mut Inner<R>, result: Result<R, TaskError>) {
        inner.stage = Stage::Settled(result);
        if inner.awaited {
            self.settled.notify_all();
        }
        if let Some((place, tell)) = inner.watcher.take() {
            let _ = tell.send(place);
        }
    }
}

/// The task's side.
pub(super) struct Promise<R> {
    cell: Arc<Cell<R>>,
}

/// A task's two ends.
pub(super) fn pair<R>() -> (Promise<R>, Ticket<R>) {
    let inner = Inner { stage: Stage::Waiting, awaited: false, watcher: None };
    let cell = Arc::new(Cell { inner: Mutex::new(inner), settled: Condvar::new() });
    (Promise { cell: cell.clone() }, Ticket { cell })
}

impl<R> fmt::Debug for Promise<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Promise")
    }
}

impl<R> Promise<R> {
    /// The task's turn has come; false if it was given up.
    pub(super) fn begin(&self) -> bool {
        let mut inner = self.cell.lock();
        let begins = matches!(inner.stage, Stage::Waiting);
        if begins {
            inner.stage = Stage::Running;
        }
        begins
    }

    pub(super) fn settle(self, result: Result<R, TaskError>) {
        self.cell.settle(&mut self.cell.lock(), result);
    }
}

impl<R> Drop for Promise<R> {
    fn drop(&mut self) {
        let mut inner = self.cell.lock();
        if matches!(inner.stage, Stage::Waiting | Stage::Running) {
            self.cell.settle(&mut inner, Err(TaskError::Cancelled));
        }
    }
}
