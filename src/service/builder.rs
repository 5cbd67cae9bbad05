//! How a director is to be, and its start.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::{Director, Error, News, Route, Watch, check};
use crate::config::{self, Config, place, route as rules};
use crate::director::{self, Guest, Options};
use crate::item::escape;
use crate::root::shown;
use crate::rules::{Bytes, Rules};
use crate::worker::Work;

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
///
/// What a configuration says can be said here and of a [`Route`], by the same names:
///
/// ```
/// use std::time::Duration;
///
/// use gamdok::rules::Bytes;
/// use gamdok::service::Route;
///
/// # let folder = tempfile::tempdir()?;
/// # let root = folder.path().join("root");
/// let made = folder.path().join("made");
/// let copy = Route::command("copy", ["cp", "{item}", "copy.txt"])
///     .cpu()
///     .cwd("{out}")
///     .min_bytes(Bytes(1))
///     .kill_grace(Duration::from_secs(2))
///     .publish(&made);
/// let week = Duration::from_secs(7 * 24 * 3600);
/// let director = gamdok::Director::builder().root(&root).init().keep_done(week).ignore(["*.bak"]).route(copy).start()?;
/// assert!(director.submit_bytes("a.txt", b"text")?.wait()?.is_done());
/// director.join()?;
/// assert_eq!(std::fs::read(made.join("a.txt/copy.txt"))?, b"text");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    root: Option<PathBuf>,
    init: bool,
    rules: Rules,
    inbox: config::Inbox,
    history: config::History,
    api: config::Api,
    routes: Vec<Route>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder {
            root: None,
            init: false,
            rules: Rules::default(),
            inbox: config::Inbox::default(),
            history: config::History::default(),
            api: config::Api::default(),
            routes: Vec::new(),
        }
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
        self.inbox.settle = Some(quiet);
        self
    }

    /// Names in the inbox that are no items, as patterns, beside the temporary names that never are.
    pub fn ignore<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Builder {
        self.inbox.ignore = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// How the inbox is watched; by the kernel's events where its file system has them unless told.
    pub fn watch(mut self, how: Watch) -> Builder {
        self.inbox.watch = how;
        self
    }

    /// How often an inbox without events is looked at; every 5 s unless told. From 100 ms to an hour.
    pub fn poll_interval(mut self, every: Duration) -> Builder {
        self.inbox.poll_interval = every;
        self
    }

    /// How long `done/` keeps an item; forever unless told, else at least a second. Payload and outputs go with it.
    pub fn keep_done(mut self, span: Duration) -> Builder {
        self.history.keep_done = Some(span);
        self
    }

    /// The same for `failed/`, where cancelled items lie, too.
    pub fn keep_failed(mut self, span: Duration) -> Builder {
        self.history.keep_failed = Some(span);
        self
    }

    /// The most that an attempt's log keeps: beyond it the middle is cut; 100 MiB unless told, at least 1 KiB.
    pub fn max_log(mut self, most: Bytes) -> Builder {
        self.history.max_log = most;
        self
    }

    /// Answers HTTP on this address too; on the root's Unix socket alone unless told. Beyond loopback it takes a
    /// [`token_file`](Builder::token_file).
    pub fn listen(mut self, address: SocketAddr) -> Builder {
        self.api.listen = Some(address);
        self
    }

    /// A file with the secret that clients of that address have to send. A relative path starts from the working directory.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Builder {
        self.api.token_file = Some(file.into());
        self
    }

    /// Adds a route. The first that takes an item has it.
    pub fn route(mut self, route: Route) -> Builder {
        self.routes.push(route);
        self
    }

    /// Opens the root, takes up what an earlier director left in it, and begins. It is ready when this returns.
    pub fn start(self) -> Result<Director, Error> {
        let init = self.init;
        let (config, closures) = self.config()?;
        begin(config, closures, init)
    }

    /// What a configuration would say, and the closures by their routes' names.
    fn config(self) -> Result<(Config, HashMap<String, Work>), Error> {
        let Some(root) = self.root.as_ref() else {
            return Err(Error::Settings("a director needs a root: name its directory with `Builder::root`".to_owned()));
        };
        let cannot =
            |what: &str, error: std::io::Error| Error::Settings(format!("cannot tell where {what} lies: {error}"));
        let dir = std::env::current_dir().map_err(|error| cannot("the working directory", error))?;
        let located = |path: &Path| {
            if path.as_os_str().as_encoded_bytes().contains(&0) {
                return Err(Error::Settings(format!("`{}` has a NUL byte, which no path may have", shown(path))));
            }
            let path = std::path::absolute(path).map_err(|error| cannot(&format!("`{}`", shown(path)), error))?;
            Ok(place::resolve(&dir, &path))
        };
        let mut config = Config::builtin(&dir, &located(root)?);
        (config.devices, config.inbox, config.history) = (self.rules, self.inbox, self.history);
        let token_file = self.api.token_file.map(|file| located(&file)).transpose()?;
        config.api = config::Api { token_file, ..self.api };
        let mut closures = HashMap::new();
        for mut route in self.routes {
            let refused = |what: String| Error::Route { route: escape(route.route.name.as_bytes()), what };
            let publish = route.route.publish.take().map(|folder| match folder.as_os_str().is_empty() {
                true => Err(refused("`publish` is empty: name a folder, or leave it out".to_owned())),
                false => located(&folder),
            });
            route.route.publish = publish.transpose()?;
            route.check(&config.root)?;
            let rooted = |cwd: &String| rules::rooted(cwd, &dir);
            let refused = |what: String| Error::Route { route: route.route.name.clone(), what };
            let cwd = route.route.cwd.as_ref().map(rooted).transpose();
            route.route.cwd = cwd.map_err(|(label, help)| refused(format!("`cwd`: {label}: {help}")))?;
            route.route.dir.clone_from(&dir);
            closures.extend(route.work.map(|work| (route.route.name.clone(), work)));
            config.routes.push(Arc::new(route.route));
        }
        check::settings(&config)?;
        Ok((config, closures))
    }
}

fn begin(config: Config, closures: HashMap<String, Work>, init: bool) -> Result<Director, Error> {
    let (root, routes, ignore) = (config.root.clone(), config.routes.clone(), config.inbox.ignore.clone());
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
    let mut director = Director { root, routes, ignore, news, asks, stops: stop, thread: Some(thread) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    /// What is told in code is what the same words of a configuration say.
    #[test]
    fn a_builder_says_what_a_configuration_would() {
        let seconds = Duration::from_secs;
        let check = |builder: Builder, text: &str| {
            let (told, _) = builder.root("/srv/root").config().unwrap();
            let dir = std::env::current_dir().unwrap();
            let root = Overrides { root: Some("/srv/root".into()) };
            let (read, _) = Config::parse(text, None, &dir, &root).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(told, read, "{text}");
        };
        check(Builder::new(), "");
        let all = Builder::new().settle(seconds(3)).ignore(["*.bak"]).watch(Watch::Poll).poll_interval(seconds(9));
        let all = all.keep_done(seconds(86_400)).keep_failed(seconds(1)).max_log(Bytes(4096));
        let all = all.slots(2).cpu_slots(7).listen(([127, 0, 0, 1], 7878).into()).token_file("secret");
        check(
            all,
            r#"
            inbox = { settle = "3s", ignore = ["*.bak"], watch = "poll", poll_interval = "9s" }
            history = { keep_done = "1d", keep_failed = "1s", max_log = "4KiB" }
            devices = { slots = 2, cpu_slots = 7 }
            api = { listen = "127.0.0.1:7878", token_file = "secret" }
            "#,
        );
        let route = || Route::command("r", ["x"]);
        let one = |route: Route, rest: &str| {
            check(Builder::new().route(route), &format!("[[route]]\nname = \"r\"\ncommand = [\"x\"]\n{rest}"));
        };
        one(route(), "");
        one(
            route().folder("in").matching(["*.a"]).directories(),
            "folder = \"in\"\nmatch = [\"*.a\"]\nkind = \"directory\"",
        );
        one(route().files_and_directories().outputs(["a/*"]), "kind = \"any\"\noutputs = [\"a/*\"]");
        one(route().gpus(2).gpu_memory(Bytes(8 << 30)), "gpus = 2\ngpu_memory = \"8GiB\"");
        one(route().cpu().priority(-3).max_running(4), "gpus = 0\npriority = -3\nmax_running = 4");
        one(route().cpu_fallback(false).max_running(0), "cpu_fallback = false\nmax_running = 0");
        one(route().visible(crate::rules::Visible::Index), "visible = \"index\"");
        one(route().timeout(seconds(60)).kill_grace(seconds(2)), "timeout = \"1m\"\nkill_grace = \"2s\"");
        one(route().retries(5).backoff(seconds(1)), "retries = 5\nbackoff = \"1s\"");
        one(route().env("A", "{item}").cwd("there"), "env = { A = \"{item}\" }\ncwd = \"there\"");
        one(route().cwd("{out}/x"), "cwd = \"{out}/x\"");
        one(route().cwd("/srv/./x").publish("results/../made"), "cwd = \"/srv/./x\"\npublish = \"results/../made\"");
        one(
            route().settle(seconds(7)).marker(".done").manifest().min_bytes(Bytes(12)).validator(["v", "{item}"]),
            "ready = { settle = \"7s\", marker = \".done\", manifest = true, min_bytes = 12, validator = [\"v\", \"{item}\"] }",
        );
        one(
            route().resident().batch(16, seconds(2)).idle_timeout(seconds(5)).max_items(9).ready_timeout(seconds(8)),
            "mode = \"resident\"\nbatch = { max_items = 16, max_wait = \"2s\" }\n\
             resident = { idle_timeout = \"5s\", max_items = 9, ready_timeout = \"8s\" }",
        );
        one(route().split(500), "split = { lines = 500 }");
        one(route().compress(3).split(500), "split = { lines = 500, compress = \"gzip\", level = 3 }");
    }
}
