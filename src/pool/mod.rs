//! A pool for a program's own tasks: the director without a folder. Tasks are closures of any type, slots are CPU slots
//! or this host's idle GPUs, and results come back through tickets or iterators.
//!
//! ```
//! use gamdok::Pool;
//!
//! let pool = Pool::builder().slots(4).name("resize").build()?;
//! // One task, its result by its ticket.
//! let ticket = pool.submit(|| 6 * 7);
//! assert_eq!(ticket.wait()?, 42);
//! // A function over an iterator, in order; no more of it is pulled than is in flight.
//! let squares: Result<Vec<u64>, _> = pool.map(0..1_000, |n| n * n).collect();
//! assert_eq!(squares?[999], 998_001);
//! // Borrowed data.
//! let words = vec!["so", "many", "words"];
//! let total: usize = pool.scope(|scope| scope.map_unordered(&words, |word| word.len()).flatten().sum());
//! assert_eq!(total, 11);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What a task does stays in the task: a panic is its ticket's [`TaskError::Panicked`] (Rust's own panic message still goes
//! to stderr), and the slot goes on with the next task. A task waits in line for a free slot, first come, first served.
//! **Ends**: [`join`](Pool::join) lets everything submitted run; dropping the pool, or [`shutdown`](Pool::shutdown), lets
//! what runs end and cancels what hasn't begun.
//!
//! **GPUs.** With [`Devices::gpus`] a slot runs a task only while idle GPUs are lent to it, by the rules that the service
//! goes by: nobody else is on them, the driver calls them well, and a host-wide lock keeps other programs that use gamdok
//! off. A slot keeps its GPUs from one task to the next for a second at most. A context that this process leaves on a GPU
//! isn't held against it, where its number means the same to the driver (not in a container with PIDs of its own).
//!
//! A task must not wait for another one of its own pool that may stand in line behind it: when every slot waits so, none
//! goes on.

mod build;
mod map;
mod residents;
mod scope;
mod slot;
mod ticket;
mod worker;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

pub use map::{Map, MapUnordered};
pub use residents::{Answers, Residents, ResidentsBuilder};
pub use scope::Scope;
pub use slot::{Device, Devices, Slot, Slots};
pub use ticket::{AsCompleted, TaskError, Ticket, as_completed};

use crate::lender::Lender;
use map::Flow;
use ticket::pair;
pub(crate) use worker::caught;
use worker::{Hurry, Task, Worker};

/// Why there is no pool.
///
/// ```
/// let wrong = gamdok::Pool::builder().slots(0).build().unwrap_err();
/// assert_eq!(wrong.to_string(), "a pool needs at least one slot");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// [`Builder::slots`] was given 0.
    #[error("a pool needs at least one slot")]
    NoSlots,
    /// A setting that can't be: a name with a NUL byte, more slots than any host has threads, a time of nothing. The words
    /// say which, and what to do.
    #[error("{0}")]
    Settings(String),
    /// The devices asked for can't be had here; the words say what is missing and what to do.
    #[error("{0}")]
    Devices(String),
    /// The command of [`Residents`] can't be run; the words say why.
    #[error("{0}")]
    Command(String),
    /// The system starts no more threads.
    #[error("no thread can be started: {0}")]
    Thread(#[source] io::Error),
}

/// How a pool is to be; from [`Pool::builder`].
///
/// ```
/// let pool = gamdok::Pool::builder().slots(2).name("thumbnails").queue(100).build()?;
/// assert_eq!(pool.slots(), 2);
/// # Ok::<(), gamdok::pool::PoolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    slots: Option<usize>,
    name: String,
    queue: Option<usize>,
    devices: Devices,
}

impl Builder {
    /// How many tasks run at a time, at most 65,536. By default one for each CPU this process may use
    /// ([`Slots::cpu_count`]); with GPUs, as many as they take, and this is the most.
    ///
    /// ```
    /// assert_eq!(gamdok::Pool::builder().slots(3).build()?.slots(), 3);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn slots(mut self, slots: usize) -> Builder {
        self.slots = Some(slots);
        self
    }

    /// What its threads are called: `<name>-0`, `<name>-1`, … (`pool` by default). It may hold no NUL byte.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().slots(1).name("ocr").build()?;
    /// let name = pool.submit(|| std::thread::current().name().map(str::to_owned)).wait()?;
    /// assert_eq!(name.as_deref(), Some("ocr-0"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// At most so many tasks wait in line: [`submit`](Pool::submit) then waits for room, and a fast producer can't fill
    /// the memory. Without it the line is as long as it gets. With 0 a task is taken only by a slot that waits for one; more
    /// than 1,048,576 count as so many, since the room for them is set aside.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().queue(10).build()?;
    /// for n in 0..1_000 {
    ///     pool.submit(move || n); // waits whenever ten are in line
    /// }
    /// pool.join();
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn queue(mut self, most: usize) -> Builder {
        self.queue = Some(most);
        self
    }

    /// What the tasks run on: CPU slots by default.
    ///
    /// ```
    /// use gamdok::{Devices, Pool};
    ///
    /// let pool = Pool::builder().devices(Devices::cpu()).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn devices(mut self, devices: Devices) -> Builder {
        self.devices = devices;
        self
    }

    /// Starts the threads; with GPUs, once the driver has answered.
    ///
    /// ```
    /// use gamdok::pool::PoolError;
    ///
    /// assert!(matches!(gamdok::Pool::builder().slots(0).build(), Err(PoolError::NoSlots)));
    /// ```
    pub fn build(self) -> Result<Pool, PoolError> {
        let (lender, most) = build::ground(self.devices, &self.name, self.slots)?;
        let (tasks, taken) = build::line(self.queue);
        let (open, closed) = bounded(0);
        let hurry = Hurry { given_up: Arc::new(AtomicBool::new(false)), closed };
        let mut pool = Pool {
            name: self.name.into(),
            slots: most,
            queue: self.queue,
            lender,
            tasks: RwLock::new(Some(tasks)),
            open: Mutex::new(Some(open)),
            hurry,
            threads: Vec::with_capacity(most),
        };
        for index in 0..most {
            let worker = pool.worker(index, taken.clone());
            // One that can't be started ends the others with the half-made pool.
            let thread = pool.thread(index).spawn(move || worker.run()).map_err(PoolError::Thread)?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

/// Slots for a program's own tasks; the [module](self) tells the rest.
///
/// ```
/// let pool = gamdok::Pool::new()?;
/// let answers: Vec<_> = (0..4).map(|n| pool.submit(move || n + 1)).collect();
/// for (n, answer) in answers.into_iter().enumerate() {
///     assert_eq!(answer.wait()?, n + 1);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pool {
    name: Arc<str>,
    slots: usize,
    queue: Option<usize>,
    lender: Option<Lender>,
    /// None once nothing more is taken.
    tasks: RwLock<Option<Sender<Task<'static>>>>,
    /// Dropped when what hasn't begun is given up.
    open: Mutex<Option<Sender<()>>>,
    hurry: Hurry,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool on CPU slots, one for each CPU this process may use.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.slots(), gamdok::Slots::cpu_count());
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn new() -> Result<Pool, PoolError> {
        Pool::builder().build()
    }

    /// A pool that is told how to be.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().slots(2).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn builder() -> Builder {
        Builder { slots: None, name: "pool".to_owned(), queue: None, devices: Devices::cpu() }
    }

    /// How many tasks run at a time.
    ///
    /// ```
    /// assert_eq!(gamdok::Pool::builder().slots(5).build()?.slots(), 5);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Puts a task in line. Where the line has a bound ([`Builder::queue`]) this waits for room; after a
    /// [`shutdown`](Pool::shutdown) the ticket says that it was cancelled.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let word = String::from("moved in");
    /// assert_eq!(pool.submit(move || word.len()).wait(), Ok(8));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn submit<F, R>(&self, task: F) -> Ticket<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.submit_with(move |_| task())
    }

    /// The same for a task that wants to know where it runs.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let place = pool.submit_with(|slot| format!("slot {} on {}", slot.index(), slot.device().name()));
    /// assert!(place.wait()?.ends_with(" on cpu"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_with<F, R>(&self, task: F) -> Ticket<R>
    where
        F: FnOnce(&Slot) -> R + Send + 'static,
        R: Send + 'static,
    {
        let (task, ticket) = with_ticket(task);
        self.put(task);
        ticket
    }

    /// Puts a task in line if there is room; else, and after a [`shutdown`](Pool::shutdown), nothing.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().slots(1).queue(1).build()?;
    /// let (go, wait) = std::sync::mpsc::channel::<()>();
    /// let mut accepted = vec![pool.submit(move || wait.recv().is_ok())];
    /// while let Some(ticket) = pool.try_submit(|| true) {
    ///     accepted.push(ticket);
    /// }
    /// go.send(())?;
    /// assert!(accepted.into_iter().all(|ticket| ticket.wait() == Ok(true)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_submit<F, R>(&self, task: F) -> Option<Ticket<R>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let (task, ticket) = with_ticket(move |_: &Slot| task());
        match self.line()?.try_send(task) {
            Ok(()) => Some(ticket),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }

    /// The results of a function over an iterator, in the order of its items.
    ///
    /// The iterator is pulled on the reader's thread, and only so far ahead that the slots stay busy: four items a slot,
    /// at least 32, or what [`in_flight`](Map::in_flight) says. So it may be endless, or larger than the memory. Dropping the
    /// results gives up what hasn't begun.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let first: Vec<u64> = pool.map(0.., |n| n * 10).take(3).flatten().collect();
    /// assert_eq!(first, [0, 10, 20]);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn map<I, F, R>(&self, items: I, function: F) -> Map<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + Sync + 'static,
        R: Send + 'static,
    {
        self.map_with(items, move |_, item| function(item))
    }

    /// The same for a function that wants to know where it runs.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let on: Vec<_> = pool.map_with(["a", "b"], |slot, item| format!("{item} on {}", slot.device().name())).collect();
    /// assert_eq!(on, [Ok("a on cpu".to_owned()), Ok("b on cpu".to_owned())]);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn map_with<I, F, R>(&self, items: I, function: F) -> Map<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(&Slot, I::Item) -> R + Send + Sync + 'static,
        R: Send + 'static,
    {
        Map::new(self.flow(items, function))
    }

    /// The results as they come, whatever their order: a slow item holds up nothing. Else as [`map`](Pool::map).
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let sum: u64 = pool.map_unordered(1..=100, |n: u64| n).flatten().sum();
    /// assert_eq!(sum, 5_050);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn map_unordered<I, F, R>(&self, items: I, function: F) -> MapUnordered<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + Sync + 'static,
        R: Send + 'static,
    {
        self.map_unordered_with(items, move |_, item| function(item))
    }

    /// The same for a function that wants to know where it runs.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let slots = pool.map_unordered_with(0..10, |slot, _| slot.index()).flatten();
    /// assert!(slots.max() < Some(pool.slots()));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn map_unordered_with<I, F, R>(&self, items: I, function: F) -> MapUnordered<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(&Slot, I::Item) -> R + Send + Sync + 'static,
        R: Send + 'static,
    {
        MapUnordered::new(self.flow(items, function))
    }

    /// Runs tasks that borrow, and ends when all of them have ended. They run on threads of their own, as many as the
    /// pool has slots and named `<name>-scope-0`…, beside what the pool itself runs; its GPUs they share with it.
    ///
    /// # Panics
    /// When the system starts no thread, as [`std::thread::scope`] does.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// let mut halves = [1, 2, 3, 4];
    /// let (left, right) = halves.split_at_mut(2);
    /// pool.scope(|scope| {
    ///     scope.submit(|| left.iter_mut().for_each(|n| *n *= 10));
    ///     scope.submit(|| right.iter_mut().for_each(|n| *n *= 100));
    /// });
    /// assert_eq!(halves, [10, 20, 300, 400]);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn scope<'env, F, T>(&self, body: F) -> T
    where
        F: for<'scope> FnOnce(&Scope<'scope, 'env>) -> T,
    {
        thread::scope(|threads| {
            let (tasks, taken) = build::line(self.queue);
            let mut started = 0;
            for index in 0..self.slots {
                let worker = self.worker(index, taken.clone());
                let named = thread::Builder::new().name(format!("{}-scope-{index}", self.name));
                match named.spawn_scoped(threads, move || worker.run()) {
                    Ok(_) => started += 1,
                    Err(error) => assert!(started > 0, "no thread can be started: {error}"),
                }
            }
            // With the last sender goes the reason to wait for more.
            body(&Scope { tasks, slots: started, env: PhantomData })
        })
    }

    /// Takes no more tasks and gives up those that haven't begun: their tickets say so. What runs goes on; this doesn't
    /// wait for it.
    ///
    /// ```
    /// use gamdok::{Pool, TaskError};
    ///
    /// let pool = Pool::new()?;
    /// pool.shutdown();
    /// assert_eq!(pool.submit(|| 1).wait(), Err(TaskError::Cancelled));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn shutdown(&self) {
        self.hurry.give_up(&self.open);
        close_to(&self.tasks);
    }

    /// Takes no more tasks, and waits until all that were submitted have ended.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().slots(1).build()?;
    /// let last = (0..100).map(|n| pool.submit(move || n)).last();
    /// pool.join();
    /// assert!(last.is_some_and(|ticket| ticket.is_done()));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn join(mut self) {
        close_to(&self.tasks);
        self.wait();
    }

    fn wait(&mut self) {
        let me = thread::current().id();
        for thread in self.threads.drain(..) {
            // A task may hold the last of the pool: its own thread can't be waited for, and ends after it.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }

    /// Puts a task in line. With nobody to take it, it is dropped, and says that it was cancelled.
    fn put(&self, task: Task<'static>) {
        if let Some(tasks) = self.line() {
            let _ = tasks.send(task);
        }
    }

    /// A sender of its own for each use: whoever waits for room must not hold up who ends the pool.
    fn line(&self) -> Option<Sender<Task<'static>>> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn worker<'a>(&self, index: usize, tasks: Receiver<Task<'a>>) -> Worker<'a> {
        Worker { index, tasks, lender: self.lender.clone(), hurry: self.hurry.clone() }
    }

    fn thread(&self, index: usize) -> thread::Builder {
        thread::Builder::new().name(format!("{}-{index}", self.name))
    }

    fn flow<I, F, R>(&self, items: I, function: F) -> Flow<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(&Slot, I::Item) -> R + Send + Sync + 'static,
        R: Send + 'static,
    {
        Flow::new(items.into_iter(), self.slots, |task| self.put(task), function)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.shutdown();
            self.wait();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// Nothing more is put in line.
fn close_to<T>(line: &RwLock<Option<Sender<T>>>) {
    line.write().unwrap_or_else(PoisonError::into_inner).take();
}

fn with_ticket<F, R>(task: F) -> (Task<'static>, Ticket<R>)
where
    F: FnOnce(&Slot) -> R + Send + 'static,
    R: Send + 'static,
{
    let (promise, ticket) = pair();
    let run = move |slot: &Slot| {
        if promise.begin() {
            promise.settle(caught(|| task(slot)));
        }
    };
    (Box::new(run), ticket)
}

#[cfg(test)]
mod tests;
