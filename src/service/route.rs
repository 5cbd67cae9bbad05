//! Which items are taken, and what is done with them: what a `[[route]]` says in a configuration, in code.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::check::{self, Kind};
use crate::config::{self, Batch, Compress, Mode, RouteKind};
use crate::item::escape;
use crate::rules::{Bytes, Visible};
use crate::worker::{Failure, Job, Outcome, Work};

/// Which items are taken, and what is done with each: a closure of this program, or a command. Without more words it
/// takes every file of the inbox, gives each one GPU (on a host without GPUs a CPU slot), and tries three times.
///
/// ```
/// use std::time::Duration;
///
/// use gamdok::rules::Bytes;
/// use gamdok::service::Route;
///
/// let pages = Route::closure("pages", |job| Ok(serde_json::json!({ "device": job.device().name() })))
///     .matching(["*.pdf"])
///     .gpu_memory(Bytes(8 << 30))
///     .retries(1);
/// let rest = Route::command("rest", ["./convert.sh", "{item}", "{out}"]).cpu().timeout(Duration::from_secs(600));
/// # drop((pages, rest));
/// ```
#[derive(Clone)]
pub struct Route {
    pub(super) route: config::Route,
    pub(super) work: Option<Work>,
}

impl Route {
    /// A route whose items are worked on by a closure, which is given each attempt as a [`Job`]. It may answer `Ok(())`, a
    /// JSON value for the result, or an [`Outcome`].
    pub fn closure<F, R>(name: impl Into<String>, work: F) -> Route
    where
        F: Fn(&Job) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Outcome>,
    {
        let work: Work = Arc::new(move |job| work(job).map(Into::into));
        Route { route: config::Route::new(name, Vec::new(), PathBuf::new()), work: Some(work) }
    }

    /// A route whose items are worked on by a process each: a program and its arguments, with placeholders such as
    /// `{item}` and `{out}`.
    pub fn command<W: Into<String>>(name: impl Into<String>, words: impl IntoIterator<Item = W>) -> Route {
        let words = words.into_iter().map(Into::into).collect();
        Route { route: config::Route::new(name, words, PathBuf::new()), work: None }
    }

    fn with(mut self, change: impl FnOnce(&mut config::Route)) -> Route {
        change(&mut self.route);
        self
    }

    /// Only items whose names fit one of these patterns, such as `*.wav`.
    pub fn matching<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Route {
        self.with(|route| route.patterns = patterns.into_iter().map(Into::into).collect())
    }

    /// Only items in this folder of the inbox, which is made.
    pub fn folder(self, name: impl Into<String>) -> Route {
        self.with(|route| route.folder = name.into())
    }

    /// Takes directories instead of files: each is one item.
    pub fn directories(self) -> Route {
        self.with(|route| route.kind = RouteKind::Directory)
    }

    /// Takes files and directories.
    pub fn files_and_directories(self) -> Route {
        self.with(|route| route.kind = RouteKind::Any)
    }

    /// So many GPUs for each item, at most 256; 1 unless told.
    pub fn gpus(self, each: u32) -> Route {
        self.with(|route| route.gpus = each)
    }

    /// A CPU slot for each item.
    pub fn cpu(self) -> Route {
        self.gpus(0)
    }

    /// How much of a GPU's memory an item needs: several share a GPU as far as that goes.
    pub fn gpu_memory(self, each: Bytes) -> Route {
        self.with(|route| route.gpu_memory = Some(each))
    }

    /// Whether CPU slots do on a host without GPUs; they do unless this says `false`.
    pub fn cpu_fallback(self, allowed: bool) -> Route {
        self.with(|route| route.cpu_fallback = allowed)
    }

    /// How a command is told its GPUs.
    pub fn visible(self, visible: Visible) -> Route {
        self.with(|route| route.visible = Some(visible))
    }

    /// Higher goes first; 0 unless told.
    pub fn priority(self, priority: i32) -> Route {
        self.with(|route| route.priority = priority)
    }

    /// At most so many at a time; no bound unless told, and for 0.
    pub fn max_running(self, most: u32) -> Route {
        self.with(|route| route.max_running = Some(most).filter(|most| *most > 0))
    }

    /// How long an attempt may take; as long as it likes unless told. Only for commands: nothing can end a closure, so a
    /// route with one is refused.
    pub fn timeout(self, limit: Duration) -> Route {
        self.with(|route| route.timeout = Some(limit))
    }

    /// How long a process that was asked to end may take until it is killed; 10 s unless told. Of a closure: what it left
    /// behind.
    pub fn kill_grace(self, grace: Duration) -> Route {
        self.with(|route| route.kill_grace = grace)
    }

    /// The folder that the command starts in; the working directory unless told, and a relative one starts from there.
    /// Placeholders are filled in.
    pub fn cwd(self, folder: impl Into<String>) -> Route {
        self.with(|route| route.cwd = Some(folder.into()))
    }

    /// How often an item is tried again after a failure of its own, at most 100 times; 2 unless told.
    pub fn retries(self, retries: u32) -> Route {
        self.with(|route| route.retries = retries)
    }

    /// The wait before the first retry, which doubles up to ten minutes; 5 s unless told.
    pub fn backoff(self, wait: Duration) -> Route {
        self.with(|route| route.backoff = wait)
    }

    /// What has to lie in `out/` afterwards, as patterns: an attempt without it has failed.
    pub fn outputs<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Route {
        self.with(|route| route.outputs = patterns.into_iter().map(Into::into).collect())
    }

    /// Links what lies in `out/` to `<folder>/<item's name>/` too, once the item is done (it is copied to another file system);
    /// nowhere unless told. A relative folder starts from the working directory.
    pub fn publish(self, folder: impl Into<PathBuf>) -> Route {
        self.with(|route| route.publish = Some(folder.into()))
    }

    /// A variable of the environment, for a command and for [`Job::env`]. Placeholders are filled in.
    pub fn env(self, key: impl Into<String>, value: impl Into<String>) -> Route {
        self.with(|route| drop(route.env.insert(key.into(), value.into())))
    }

    /// Keeps the command's process, which takes one item after the other on file descriptor 3, as the README tells.
    pub fn resident(self) -> Route {
        self.with(|route| route.mode = Mode::Resident)
    }

    /// How many items such a process is handed at once, and how long the first of them waits for more; 1 and no wait
    /// unless told. At most 512, and an hour.
    pub fn batch(self, max_items: u32, max_wait: Duration) -> Route {
        self.with(|route| route.batch = Batch { max_items, max_wait })
    }

    /// How long such a process stays without an item; 10 minutes unless told. Then it ends, and its GPU is free for others.
    pub fn idle_timeout(self, limit: Duration) -> Route {
        self.with(|route| route.resident.idle_timeout = limit)
    }

    /// After how many items such a process is replaced; never unless told, and for 0.
    pub fn max_items(self, most: u32) -> Route {
        self.with(|route| route.resident.max_items = Some(most).filter(|most| *most > 0))
    }

    /// How long such a process may take until it says that it is ready; 5 minutes unless told.
    pub fn ready_timeout(self, limit: Duration) -> Route {
        self.with(|route| route.resident.ready_timeout = limit)
    }

    /// Each item is a file of lines, plain or gzip: the command works on batches of at most so many, several at once, and
    /// what stands for them comes together in order in `out/`. Only for commands: a closure calls [`split`](crate::split).
    pub fn split(self, lines: u32) -> Route {
        self.with(|route| route.split.get_or_insert(NO_SPLIT).lines = lines)
    }

    /// What a [`split`](Route::split) puts together is gzip of this level, 0 (stored) to 12 (small); plain unless told.
    pub fn compress(self, level: u8) -> Route {
        self.with(|route| {
            let split = route.split.get_or_insert(NO_SPLIT);
            (split.compress, split.level) = (Compress::Gzip, level);
        })
    }

    /// How long an item that others write into the inbox must be quiet before it counts as whole, in place of what
    /// [`Builder::settle`](super::Builder::settle) says.
    pub fn settle(self, quiet: Duration) -> Route {
        self.with(|route| route.ready.settle = Some(quiet))
    }

    /// Only items beside which a file of their name and this suffix lies, such as `.done`; of a directory also those in
    /// which a file is called that.
    pub fn marker(self, suffix: impl Into<String>) -> Route {
        self.with(|route| route.ready.marker = Some(suffix.into()))
    }

    /// Only items beside which a `<name>.manifest.json` lies with the right sizes and SHA-256 sums.
    pub fn manifest(self) -> Route {
        self.with(|route| route.ready.manifest = true)
    }

    /// Only items of at least this size; empty ones are items, too, unless told.
    pub fn min_bytes(self, least: Bytes) -> Route {
        self.with(|route| route.ready.min_bytes = least)
    }

    /// Only items that this program says are whole: 0 is yes, 75 not yet, all else holds them. Of the placeholders it may
    /// have `{item}` and `{name}`.
    pub fn validator<W: Into<String>>(self, words: impl IntoIterator<Item = W>) -> Route {
        self.with(|route| route.ready.validator = words.into_iter().map(Into::into).collect())
    }

    /// The first thing that can't be.
    pub(super) fn check(&self, root: &Path) -> Result<(), Error> {
        let kind = if self.work.is_some() { Kind::Closure } else { Kind::Command };
        let refused = |what: String| Error::Route { route: escape(self.route.name.as_bytes()), what };
        check::route(&self.route, kind, root).map_err(refused)
    }
}

/// Until it is told of how many lines.
const NO_SPLIT: config::Split = config::Split { lines: 0, compress: Compress::None, level: 6 };

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.work.is_some() { "closure" } else { "command" };
        f.debug_struct("Route").field("name", &self.route.name).field("runs", &kind).finish_non_exhaustive()
    }
}
