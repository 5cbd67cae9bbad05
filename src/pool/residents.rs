//! Processes that stay: each loads what it needs once, and takes one task of the program after another as JSON on its
//! descriptor 3.

mod carrier;
mod course;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use serde::Serialize;
use serde_json::Value;

use super::slot::Devices;
use super::ticket::{Promise, TaskError, Ticket, pair};
use super::worker::Hurry;
use super::{PoolError, build, close_to};
use carrier::Carrier;

/// The longest task, as JSON: what one line of the channel may have.
const LONGEST: usize = 1 << 20;

/// A task in line. Dropped unanswered, it tells its ticket that it was cancelled.
#[derive(Debug)]
struct Order {
    json: Vec<u8>,
    promise: Promise<Value>,
}

/// What every process of a pool is.
#[derive(Clone, Debug)]
struct Plan {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    ready_timeout: Duration,
    idle_timeout: Duration,
    timeout: Option<Duration>,
}

/// How the processes are to be; from [`Residents::builder`].
///
/// ```no_run
/// use std::time::Duration;
///
/// use gamdok::{Devices, Residents};
///
/// let embed = Residents::builder(["python3", "embed.py"])
///     .devices(Devices::gpus(1))
///     .timeout(Duration::from_secs(60))
///     .build()?;
/// # Ok::<(), gamdok::pool::PoolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ResidentsBuilder {
    plan: Plan,
    slots: Option<usize>,
    name: String,
    queue: Option<usize>,
    devices: Devices,
}

impl ResidentsBuilder {
    /// How many processes there are at most (65,536 at the very most): each is started when a task finds no idle one. By default one for each CPU
    /// this process may use; with GPUs, as many as they take.
    ///
    /// ```no_run
    /// let two = gamdok::Residents::builder(["python3", "embed.py"]).slots(2).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = Some(slots);
        self
    }

    /// What its threads are called: `<name>-0`, `<name>-1`, … (`residents` by default). It may hold no NUL byte.
    ///
    /// ```no_run
    /// let named = gamdok::Residents::builder(["python3", "embed.py"]).name("embed").build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// At most so many tasks wait in line: [`submit`](Residents::submit) then waits for room. More than 1,048,576 count as
    /// so many.
    ///
    /// ```no_run
    /// let bounded = gamdok::Residents::builder(["python3", "embed.py"]).queue(100).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn queue(mut self, most: usize) -> Self {
        self.queue = Some(most);
        self
    }

    /// What the processes run on: CPU slots by default. A GPU is theirs from their start to their end.
    ///
    /// ```no_run
    /// use gamdok::{Devices, Residents};
    ///
    /// let embed = Residents::builder(["python3", "embed.py"]).devices(Devices::gpus(1)).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn devices(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// A variable for their environment, beside what they inherit. What confines them to their device stands above it.
    ///
    /// ```no_run
    /// let offline = gamdok::Residents::builder(["python3", "embed.py"]).env("HF_HUB_OFFLINE", "1").build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.plan.env.retain(|(known, _)| *known != key);
        self.plan.env.push((key, value));
        self
    }

    /// Their working directory; by default this process'. It has to be there when the pool is built.
    ///
    /// ```no_run
    /// let there = gamdok::Residents::builder(["python3", "embed.py"]).cwd("/srv/models").build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.plan.cwd = dir.into();
        self
    }

    /// How long one may take until it says that it is ready (5 minutes by default); more than nothing.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// let quick = gamdok::Residents::builder(["python3", "w.py"]).ready_timeout(Duration::from_secs(5)).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn ready_timeout(mut self, limit: Duration) -> Self {
        self.plan.ready_timeout = limit;
        self
    }

    /// How long one stays without a task (10 minutes by default); its GPU is free for others after that.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// let brief = gamdok::Residents::builder(["python3", "w.py"]).idle_timeout(Duration::from_secs(30)).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.plan.idle_timeout = limit;
        self
    }

    /// How long a task may take, more than nothing; then its process is ended, and the task has failed. Without it there is
    /// no limit.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// let strict = gamdok::Residents::builder(["python3", "w.py"]).timeout(Duration::from_secs(9)).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.plan.timeout = Some(limit);
        self
    }

    /// Starts the threads that look after the processes; those come with the first tasks. A program that isn't there, or
    /// a folder, or a word that no process can be given, is told here.
    ///
    /// ```
    /// use gamdok::pool::PoolError;
    ///
    /// let none = gamdok::Residents::builder(["no-such-program"]).build();
    /// assert!(matches!(none, Err(PoolError::Command(_))));
    /// ```
    pub fn build(self) -> Result<Residents, PoolError> {
        self.plan.check()?;
        let (lender, most) = build::ground(self.devices, &self.name, self.slots)?;
        let (orders, taken) = build::line(self.queue);
        let (open, closed) = bounded(0);
        let hurry = Hurry { given_up: Arc::new(AtomicBool::new(false)), closed };
        let plan = Arc::new(self.plan);
        let mut residents = Residents {
            slots: most,
            orders: RwLock::new(Some(orders)),
            open: Mutex::new(Some(open)),
            hurry,
            threads: Vec::with_capacity(most),
        };
        for index in 0..most {
            let carrier = Carrier {
                orders: taken.clone(),
                plan: plan.clone(),
                lender: lender.clone(),
                hurry: residents.hurry.clone(),
            };
            let named = thread::Builder::new().name(format!("{}-{index}", self.name));
            // One that can't be started ends the others with the half-made pool.
            residents.threads.push(named.spawn(move || carrier.run()).map_err(PoolError::Thread)?);
        }
        Ok(residents)
    }
}

/// A pool of processes that stay: what a task needs (a model, a table, a connection) is loaded once for each process, and
/// the tasks are JSON in, JSON out.
///
/// In Python, with `gamdok_worker.py` (`gamdok init --python DIR` writes it):
///
/// ```python
/// from gamdok_worker import serve_tasks
/// model = load_model()
/// serve_tasks(lambda task: model.embed(task["text"]))
/// ```
///
/// ```no_run
/// use serde_json::json;
///
/// let embed = gamdok::Residents::builder(["python3", "embed.py"]).slots(2).build()?;
/// let ticket = embed.submit(json!({ "text": "so many words" }));
/// println!("{}", ticket.wait()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Any program will do that speaks the report channel: it says `{"type":"ready"}`, gets
/// `{"type":"items","items":[{"id","task","attempt"}…]}`, and answers each `id`, in that order, with
/// `{"type":"done","id","result"}` or `{"type":"failed","id","error"}`. Short tasks are handed over several at a time, so
/// that the process never waits for this one.
///
/// A task that fails is an error of its ticket ([`TaskError::Failed`]); its process is replaced then, unless it said
/// `"retry":false`, which means that it is well. A process that ends, speaks nonsense or takes too long costs the task it was
/// at ([`TaskError::Lost`]); what it hadn't come to goes to the next one. Nothing is tried twice by itself.
/// What a process starts is ended with it: what is in its process group, and what left that but kept `GAMDOK_ID` in its
/// environment.
///
/// **Ends**: [`join`](Residents::join) lets everything submitted run; dropping it, or [`shutdown`](Residents::shutdown), lets
/// what was handed over end and cancels the rest.
pub struct Residents {
    slots: usize,
    /// None once nothing more is taken.
    orders: RwLock<Option<Sender<Order>>>,
    /// Dropped when what hasn't begun is given up.
    open: Mutex<Option<Sender<()>>>,
    hurry: Hurry,
    threads: Vec<JoinHandle<()>>,
}

impl Residents {
    /// Processes of this command, its program first. No shell takes it apart.
    ///
    /// ```no_run
    /// let workers = gamdok::Residents::builder(["python3", "embed.py", "--half"]).build()?;
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn builder<W: Into<OsString>>(command: impl IntoIterator<Item = W>) -> ResidentsBuilder {
        ResidentsBuilder {
            plan: Plan {
                argv: command.into_iter().map(Into::into).collect(),
                env: std::env::vars_os().collect(),
                cwd: PathBuf::from("."),
                ready_timeout: Duration::from_secs(300),
                idle_timeout: Duration::from_secs(600),
                timeout: None,
            },
            slots: None,
            name: "residents".to_owned(),
            queue: None,
            devices: Devices::cpu(),
        }
    }

    /// How many processes there are at most.
    ///
    /// ```
    /// assert_eq!(gamdok::Residents::builder(["true"]).slots(3).build()?.slots(), 3);
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Puts a task in line: anything that is JSON, up to 1 MiB of it. Where the line has a bound
    /// ([`ResidentsBuilder::queue`]) this waits for room.
    ///
    /// ```no_run
    /// # let embed = gamdok::Residents::builder(["python3", "embed.py"]).build()?;
    /// let answer = embed.submit("so many words").wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit(&self, task: impl Serialize) -> Ticket<Value> {
        let (promise, ticket) = pair();
        match serde_json::to_vec(&task) {
            Err(error) => promise.settle(Err(TaskError::Failed(format!("the task can't be written as JSON: {error}")))),
            Ok(json) if json.len() > LONGEST => {
                let length = json.len();
                let why = format!("the task has {length} bytes as JSON, the longest may have {LONGEST}: pass a path");
                promise.settle(Err(TaskError::Failed(why)));
            }
            Ok(json) => {
                // With nobody to take it, it is dropped, and says that it was cancelled.
                let orders = self.orders.read().unwrap_or_else(PoisonError::into_inner).clone();
                let _ = orders.map(|orders| orders.send(Order { json, promise }));
            }
        }
        ticket
    }

    /// The answers to these tasks, in their order. The iterator is pulled on the reader's thread, and only so far ahead
    /// that the processes stay busy.
    ///
    /// ```no_run
    /// # let embed = gamdok::Residents::builder(["python3", "embed.py"]).build()?;
    /// for answer in embed.map(["so", "many", "words"]) {
    ///     println!("{}", answer?);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<I>(&self, tasks: I) -> Answers<'_, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: Serialize,
    {
        let ahead = (self.slots * carrier::WINDOW * 2).max(32);
        Answers { residents: self, tasks: tasks.into_iter().fuse(), line: VecDeque::with_capacity(ahead), ahead }
    }

    /// Takes no more tasks and gives up those that haven't been handed over: their tickets say so. What runs goes on; this
    /// doesn't wait for it.
    ///
    /// ```
    /// use gamdok::{Residents, TaskError};
    ///
    /// let residents = Residents::builder(["true"]).build()?;
    /// residents.shutdown();
    /// assert_eq!(residents.submit(1).wait(), Err(TaskError::Cancelled));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn shutdown(&self) {
        self.hurry.give_up(&self.open);
        close_to(&self.orders);
    }

    /// Takes no more tasks, and waits until all that were submitted have an answer and the processes have ended.
    ///
    /// ```
    /// gamdok::Residents::builder(["true"]).build()?.join();
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn join(mut self) {
        close_to(&self.orders);
        self.wait();
    }

    fn wait(&mut self) {
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Residents {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.shutdown();
            self.wait();
        }
    }
}

impl fmt::Debug for Residents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Residents").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// See [`Residents::map`].
pub struct Answers<'a, I> {
    residents: &'a Residents,
    tasks: std::iter::Fuse<I>,
    line: VecDeque<Ticket<Value>>,
    ahead: usize,
}

impl<I> Iterator for Answers<'_, I>
where
    I: Iterator,
    I::Item: Serialize,
{
    type Item = Result<Value, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.line.len() < self.ahead {
            let Some(task) = self.tasks.next() else { break };
            self.line.push_back(self.residents.submit(task));
        }
        Some(self.line.pop_front()?.wait())
    }
}

impl<I> Drop for Answers<'_, I> {
    fn drop(&mut self) {
        for ticket in &self.line {
            ticket.cancel();
        }
    }
}

impl<I> fmt::Debug for Answers<'_, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("in_flight", &self.line.len()).finish_non_exhaustive()
    }
}
