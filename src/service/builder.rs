//! How a director is to be, and its start.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::{Director, Error, News, Route};
use crate::config::Config;
use crate::director::{self, Guest, Options};
use crate::root::shown;
use crate::rules::{Bytes, Rules};

/// How a director is to be; from [`Director::builder`].
///
/// ```
/// use gamdok::service::{Error, Route};
///
/// # let folder = tempfile::tempdir()?;
/// # let root = folder.path().join("root");
/// let route = Route::closure("nothing", |_| Ok(())).cpu();
/// let builder = gamdok::Director::builder().root(&root).route(route);
/// // Without `init` a root is never made: its file system may just not be mounted.
/// assert!(matches!(builder.clone().start(), Err(Error::Unavailable(_))));
/// let director = builder.clone().init().start()?;
/// assert!(matches!(builder.start(), Err(Error::Held(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    root: Option<PathBuf>,
    init: bool,
    rules: Rules,
    settle: Option<Duration>,
    max_log: Option<Bytes>,
    routes: Vec<Route>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder { root: None, init: false, rules: Rules::default(), settle: None, max_log: None, routes: Vec::new() }
    }

    /// The root directory, which has the inbox and all that becomes of its items. A relative one starts from the working
    /// directory.
    pub fn root(mut self, root: impl Into<PathBuf>) -> Builder {
        self.root = Some(root.into());
        self
    }

    /// Makes the root if it isn't one yet.
    pub fn init(mut self) -> Builder {
        self.init = true;
        self
    }

    /// Which devices count, how many workers share one, when one is idle.
    pub fn devices(mut self, rules: Rules) -> Builder {
        self.rules = rules;
        self
    }

    /// How many items are worked on at a time on the CPU; one for each CPU that this process may use unless told.
    pub fn cpu_slots(mut self, slots: u32) -> Builder {
        self.rules.cpu_slots = Some(slots);
        self
    }

    /// How many items share a GPU; 1 unless told.
    pub fn slots(mut self, slots: u32) -> Builder {
        self.rules.slots = slots;
        self
    }

    /// How long an item that others write into the inbox must be quiet before it counts as whole; by the file system
    /// unless told. What is submitted, or renamed into the inbox, is taken to be whole when the director hears of it.
    pub fn settle(mut self, quiet: Duration) -> Builder {
        self.settle = Some(quiet);
        self
    }

    /// The most that an attempt's log keeps: beyond it the middle is cut; 100 MiB unless told.
    pub fn max_log(mut self, most: Bytes) -> Builder {
        self.max_log = Some(most);
        self
    }

    /// Adds a route. The first that takes an item has it.
    pub fn route(mut self, route: Route) -> Builder {
        self.routes.push(route);
        self
    }

    /// Opens the root, takes up what an earlier director left in it, and begins. It is ready when this returns.
    pub fn start(self) -> Result<Director, Error> {
        let Some(root) = self.root.as_ref() else {
            return Err(Error::Settings("a director needs a root: name its directory with `Builder::root`".to_owned()));
        };
        let mut names = HashSet::new();
        for route in &self.routes {
            route.check()?;
            if !names.insert(route.route.name.as_str()) {
                let what = "another route has this name: jobs are told by it".to_owned();
                return Err(Error::Route { route: route.route.name.clone(), what });
            }
        }
        if self.rules.slots == 0 || self.rules.cpu_slots == Some(0) {
            return Err(Error::Settings("a device needs at least one slot".to_owned()));
        }
        let cannot =
            |what: &str, error: std::io::Error| Error::Settings(format!("cannot tell where {what} lies: {error}"));
        let dir = std::env::current_dir().map_err(|error| cannot("the working directory", error))?;
        let root = std::path::absolute(root).map_err(|error| cannot(&format!("`{}`", shown(root)), error))?;
        let mut config = Config::builtin(&dir, &root);
        config.devices = self.rules;
        config.inbox.settle = self.settle;
        config.history.max_log = self.max_log.unwrap_or(config.history.max_log);
        let mut closures = HashMap::new();
        for Route { mut route, work } in self.routes {
            route.dir.clone_from(&dir);
            closures.extend(work.map(|work| (route.name.clone(), work)));
            config.routes.push(Arc::new(route));
        }
        begin(config, closures, self.init)
    }
}

fn begin(config: Config, closures: HashMap<String, crate::worker::Work>, init: bool) -> Result<Director, Error> {
    let (root, routes) = (config.root.clone(), config.routes.clone());
    let (asks, requests) = bounded(director::REQUESTS);
    let (stop, stops) = bounded(16);
    let (ready, is_ready) = bounded(1);
    let news = News::default();
    let guest = Guest { closures, news: news.clone(), asks: Some((asks.clone(), requests)), ready: Some(ready) };
    let options = Options { config, warnings: Vec::new(), source: None, once: false, init, stops, guest };
    let theirs = news.clone();
    let run = move || {
        // Also when it panics: nobody may wait for news from then on.
        let _close = Close(theirs);
        director::run(options)
    };
    let started = thread::Builder::new().name("director".to_owned()).spawn(run);
    let thread = started.map_err(|error| Error::Broken(format!("no thread can be started: {error}")))?;
    let mut director = Director { root, routes, news, asks, stops: stop, thread: Some(thread) };
    match is_ready.recv() {
        Ok(()) => Ok(director),
        // It ended before it was ready, and says why.
        Err(_) => Err(director.end().err().unwrap_or(Error::Over)),
    }
}

struct Close(News);

impl Drop for Close {
    fn drop(&mut self) {
        self.0.close();
    }
}
