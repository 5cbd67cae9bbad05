//! A director within a program: the service, with closures beside commands. Items, claims, attempts, outcomes and what a
//! crash leaves behind go by the same code as `gamdok run`, under the same kind of root, so `gamdok status`, `list`,
//! `logs` and all else work on it from outside.
//!
//! ```
//! use gamdok::Director;
//! use gamdok::service::{Failure, Outcome, Route};
//!
//! # let folder = tempfile::tempdir()?;
//! # let root = folder.path().join("root");
//! let director = Director::builder()
//!     .root(&root)
//!     .init()
//!     .cpu_slots(2)
//!     .route(Route::closure("count", |job| {
//!         let text = std::fs::read_to_string(job.item())?;
//!         if text.is_empty() {
//!             return Err(Failure::for_good("there is nothing to count"));
//!         }
//!         std::fs::write(job.out().join("words.txt"), text.replace(' ', "\n"))?;
//!         Ok(Outcome::with(text.split(' ').count()))
//!     }))
//!     .start()?;
//!
//! let counted = director.submit_bytes("three.txt", b"one two three")?;
//! let empty = director.submit_bytes("empty.txt", b"")?;
//! let ended = counted.wait()?;
//! assert!(ended.is_done() && ended.result == Some(3.into()));
//! assert!(ended.dir.join("out/words.txt").is_file());
//! assert_eq!(empty.wait()?.message.as_deref(), Some("there is nothing to count"));
//! assert_eq!(director.join()?.done, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Closures.** A closure runs on a thread of its own, named after its route, with the device that it was given in
//! [`Job::device`]; the process sees all GPUs, so it must keep to that one by itself. An error is tried again while the
//! route has `retries` left, [`Failure::for_good`] isn't, and a panic is an error like any other. **Nothing can end a
//! closure from outside**: a route with a closure and a `timeout` is refused, and a cancelled item's closure goes on until
//! it looks at [`Job::is_stopping`], or returns. What needs a hard limit is a command. The `pid` of its attempts, in
//! `result.json` and in `gamdok status`, is this program's.
//!
//! **A root** has one director at a time, in whatever program. A job keeps the route it was claimed with: after a crash the
//! next start goes on with it by the closure of the same name; a director without one fails it, to be retried.
//!
//! **Ends**: [`Director::drain`] stops taking work, [`Director::join`] waits for the end too, and so does dropping it. The
//! program's signals stay its own: nothing is caught here.

mod builder;
mod check;
mod route;
mod submission;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde_json::Value;

pub use builder::Builder;
pub use route::Route;
pub use submission::Submission;

#[doc(inline)]
pub use crate::config::Watch;
#[doc(inline)]
pub use crate::director::{Ended, Events, NewsEvent as Event, Summary};
#[doc(inline)]
pub use crate::item::Outcome as How;
#[doc(inline)]
pub use crate::pool::Device;
#[doc(inline)]
pub use crate::worker::{Failure, Job, Outcome};

use crate::api::{Command, Refusal, Request};
use crate::config;
use crate::director::{self, News, RunError};
use crate::inbox::{self, CandidateKey};
use crate::item::{ItemKind, ItemName};
use crate::root::shown;
use submission::Payload;

/// How many events may lie unread before some are dropped; see [`Director::subscribe`].
const EVENTS: usize = 1024;
/// How long a submission waits for a director that has just started to have seen its inbox: on a dead mount it never has.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Why something didn't come to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A route that can't be as it was told.
    #[error("route `{route}`: {what}")]
    Route {
        /// Its name.
        route: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The settings contradict each other, or what they name isn't there.
    #[error("{0}")]
    Settings(String),
    /// Another director has the root.
    #[error("{0}")]
    Held(String),
    /// The root isn't there, isn't one, or can't be written to.
    #[error("{0}")]
    Unavailable(String),
    /// The item can't be put into the inbox.
    #[error("cannot submit `{item}`: {what}")]
    Submit {
        /// Its name or path.
        item: String,
        /// Why not, and what to do.
        what: String,
    },
    /// The director refuses what was asked of it.
    #[error("{0}")]
    Refused(String),
    /// The item was taken out of the inbox by somebody before it was claimed.
    #[error("the item was taken out of the inbox before it was claimed")]
    Withdrawn,
    /// The director has ended; what isn't done lies where it was, and the next start goes on with it.
    #[error("the director has ended")]
    Over,
    /// A part of the director failed.
    #[error("{0}")]
    Broken(String),
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Error {
        let (code, text) = (error.exit_code(), error.to_string());
        match code {
            2 => Error::Settings(text),
            4 => Error::Held(text),
            5 => Error::Unavailable(text),
            _ => Error::Broken(text),
        }
    }
}

/// A director that runs in this program; the [module](self) tells the rest.
///
/// ```
/// use gamdok::Director;
/// use gamdok::service::Route;
///
/// # let folder = tempfile::tempdir()?;
/// # let root = folder.path().join("root");
/// // With a command instead of a closure; both may stand beside each other.
/// let copy = Route::command("copy", ["cp", "{item}", "{out}/{name}"]).cpu().outputs(["*"]);
/// let director = Director::builder().root(&root).init().cpu_slots(1).route(copy).start()?;
/// assert!(director.submit_bytes("a.txt", b"text")?.wait()?.is_done());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Director {
    root: std::path::PathBuf,
    routes: Vec<Arc<config::Route>>,
    /// Names that are no items.
    ignore: Vec<String>,
    news: News,
    asks: Sender<Request>,
    /// A message is what a signal is to the service.
    stops: Sender<()>,
    /// None once it was joined.
    thread: Option<JoinHandle<Result<director::Summary, RunError>>>,
}

impl Director {
    /// A director that is told how to be.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Puts a copy of a file into the inbox, whole and under its name, where the first route that takes the name finds
    /// it. The file itself stays.
    ///
    /// ```
    /// # use gamdok::{Director, service::Route};
    /// # let folder = tempfile::tempdir()?;
    /// # let root = folder.path().join("root");
    /// let sizes = Route::closure("size", |job| Ok(serde_json::json!(std::fs::metadata(job.item())?.len()))).cpu();
    /// let director = Director::builder().root(&root).init().route(sizes).start()?;
    /// let file = folder.path().join("five.txt");
    /// std::fs::write(&file, "12345")?;
    /// let submission = director.submit(&file)?;
    /// assert_eq!(submission.wait()?.result, Some(5.into()));
    /// assert!(file.is_file());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit(&self, path: impl AsRef<Path>) -> Result<Submission, Error> {
        self.put_in(Payload::Copy(path.as_ref()))
    }

    /// Moves a file or a directory into the inbox. It has to lie on the inbox's file system.
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let root = folder.path().join("root");
    /// # let route = gamdok::service::Route::closure("x", |_| Ok(())).cpu();
    /// # let director = gamdok::Director::builder().root(&root).init().route(route).start()?;
    /// let file = folder.path().join("large.bin");
    /// std::fs::write(&file, "imagine a terabyte")?;
    /// assert!(director.submit_moved(&file)?.wait()?.is_done());
    /// assert!(!file.exists());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_moved(&self, path: impl AsRef<Path>) -> Result<Submission, Error> {
        self.put_in(Payload::Move(path.as_ref()))
    }

    /// Puts these bytes into the inbox as a file of this name.
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let root = folder.path().join("root");
    /// # let route = gamdok::service::Route::closure("x", |_| Ok(())).cpu();
    /// # let director = gamdok::Director::builder().root(&root).init().route(route).start()?;
    /// let ended = director.submit_bytes("greeting.txt", b"hello")?.wait()?;
    /// assert_eq!(std::fs::read(ended.dir.join("item/greeting.txt"))?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_bytes(&self, name: &str, content: &[u8]) -> Result<Submission, Error> {
        self.put_in(Payload::Bytes(name.as_ref(), content))
    }

    fn put_in(&self, payload: Payload<'_>) -> Result<Submission, Error> {
        let item = || shown(payload.named());
        let refused = |what: String| Error::Submit { item: item(), what };
        let (name, kind) = payload.look().map_err(refused)?;
        if inbox::is_never_an_item(&name, kind, &self.ignore) {
            let what = "names like this are temporary files to the inbox, or ignored: give it another one";
            return Err(refused(what.to_owned()));
        }
        let Some(route) = inbox::first_of_all(&self.routes, &name, kind) else {
            let kind = if kind == ItemKind::Directory { "directory" } else { "file" };
            return Err(refused(format!("no route takes a {kind} of this name: add one, or rename it")));
        };
        if payload.size().is_some_and(|size| size < route.ready.min_bytes.0) {
            let (name, least) = (&route.name, route.ready.min_bytes);
            return Err(refused(format!("route `{name}` takes items of at least {least}, and it is smaller")));
        }
        let key = CandidateKey { folder: route.folder.clone(), name: ItemName::new(name) };
        let Some(ended) = self.news.await_item(&key) else {
            if self.news.is_over() {
                return Err(Error::Over);
            }
            return Err(refused("another one of this name waits to be claimed: wait for it, or rename it".to_owned()));
        };
        self.news.wait_for_look(FIRST_LOOK);
        let folder = self.root.join("inbox").join(&route.folder);
        payload.put(&folder, key.name.as_os_str(), |inode| self.news.arrives(&key, inode)).map_err(|what| {
            self.news.forget_item(&key);
            refused(what)
        })?;
        self.news.lies_there(&key);
        Ok(Submission::new(ended, self.news.clone()))
    }

    /// Starts nothing new until [`resume`](Director::resume); what runs goes on.
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let root = folder.path().join("root");
    /// # let route = gamdok::service::Route::closure("x", |_| Ok(())).cpu();
    /// # let director = gamdok::Director::builder().root(&root).init().route(route).start()?;
    /// director.pause()?;
    /// let submission = director.submit_bytes("a", b"")?;
    /// let waits = submission.wait_timeout(std::time::Duration::from_millis(10)).unwrap_err();
    /// director.resume()?;
    /// assert!(waits.wait()?.is_done());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pause(&self) -> Result<(), Error> {
        self.ask(Command::Pause).map(drop)
    }

    /// Goes on after a [`pause`](Director::pause).
    pub fn resume(&self) -> Result<(), Error> {
        self.ask(Command::Resume).map(drop)
    }

    /// Takes no more work: what runs ends, what waits stays where it is for the next start, and then the director ends.
    /// This doesn't wait for it; [`join`](Director::join) does.
    pub fn drain(&self) -> Result<(), Error> {
        self.ask(Command::Drain).map(drop)
    }

    /// What happens from here on; at most 1,024 events lie unread.
    ///
    /// ```
    /// use gamdok::service::{Event, Route};
    /// # let folder = tempfile::tempdir()?;
    /// # let root = folder.path().join("root");
    /// # let route = Route::closure("nothing", |_| Ok(())).cpu();
    /// # let director = gamdok::Director::builder().root(&root).init().route(route).start()?;
    /// let events = director.subscribe();
    /// director.submit_bytes("a", b"")?.wait()?;
    /// director.join()?;
    /// let ended = events.filter(|event| matches!(event, Event::Ended(ended) if ended.is_done())).count();
    /// assert_eq!(ended, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscribe(&self) -> Events {
        self.subscribe_with(EVENTS)
    }

    /// The same with room for this many unread events, from 1 to 65,536.
    pub fn subscribe_with(&self, most: usize) -> Events {
        self.news.subscribe(most)
    }

    /// Waits until nothing is left to do: what was submitted has ended, and so has what others put into the inbox, as far
    /// as the director has seen it. What is held, such as what no route takes, isn't waited for.
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let root = folder.path().join("root");
    /// # let route = gamdok::service::Route::closure("x", |_| Ok(())).cpu();
    /// # let director = gamdok::Director::builder().root(&root).init().route(route).start()?;
    /// for n in 0..10 {
    ///     director.submit_bytes(&n.to_string(), b"")?;
    /// }
    /// director.wait()?;
    /// assert_eq!(director.join()?.done, 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self) -> Result<(), Error> {
        if self.news.wait_for_rest(None) { Ok(()) } else { Err(Error::Over) }
    }

    /// The same for at most so long; whether nothing is left.
    pub fn wait_timeout(&self, at_most: Duration) -> bool {
        self.news.wait_for_rest(Some(at_most))
    }

    /// Drains, and waits until the director has ended: what runs ends first. [`wait`](Director::wait) before it lets
    /// everything that waits be done, too.
    pub fn join(mut self) -> Result<Summary, Error> {
        match self.drain() {
            Ok(()) | Err(Error::Over) => {}
            Err(error) => return Err(error),
        }
        self.end()
    }

    fn end(&mut self) -> Result<Summary, Error> {
        let Some(thread) = self.thread.take() else { return Err(Error::Over) };
        match thread.join() {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Error::Broken("the director's thread has panicked; its message is on stderr".to_owned())),
        }
    }

    fn ask(&self, what: Command) -> Result<Value, Error> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.asks.send(Request { what, reply }).map_err(|_| Error::Over)?;
        match self.news.wait_for(answer) {
            Some(Ok(answer)) => answer.map_err(|Refusal { message, .. }| Error::Refused(message)),
            // It ended, and what it hadn't read yet stays unanswered.
            Some(Err(_)) | None => Err(Error::Over),
        }
    }
}

/// As [`Director::join`].
impl Drop for Director {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // As the first signal: it reaches a director that is busy with requests, too.
            let _ = self.stops.send(());
            let _ = self.end();
        }
    }
}

impl fmt::Debug for Director {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Director").field("root", &self.root).finish_non_exhaustive()
    }
}
