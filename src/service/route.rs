//! Which items are taken, and what is done with them: what a `[[route]]` says in a configuration, in code.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use crate::config::{self, Mode, RouteKind, template};
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

    /// So many GPUs for each item.
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

    /// At most so many at a time.
    pub fn max_running(self, most: u32) -> Route {
        self.with(|route| route.max_running = Some(most).filter(|most| *most > 0))
    }

    /// How long an attempt may take. Only for commands: nothing can end a closure, so a route with one is refused.
    pub fn timeout(self, limit: Duration) -> Route {
        self.with(|route| route.timeout = Some(limit))
    }

    /// How often an item is tried again after a failure of its own; 2 unless told.
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

    /// A variable of the environment, for a command and for [`Job::env`]. Placeholders are filled in.
    pub fn env(self, key: impl Into<String>, value: impl Into<String>) -> Route {
        self.with(|route| drop(route.env.insert(key.into(), value.into())))
    }

    /// Keeps the command's process, which takes one item after the other on file descriptor 3, as the README tells.
    pub fn resident(self) -> Route {
        self.with(|route| route.mode = Mode::Resident)
    }

    /// The first thing that can't be.
    pub(super) fn check(&self) -> Result<(), Error> {
        let route = &self.route;
        let refused = |what: String| Err(Error::Route { route: escape(route.name.as_bytes()), what });
        let name = route.name.as_str();
        if name.is_empty()
            || name.len() > 64
            || name.contains('/')
            || name.trim() != name
            || escape(name.as_bytes()) != name
        {
            return refused("it needs a name of 1 to 64 printable bytes without `/` or spaces at its ends".to_owned());
        }
        let folder = route.folder.as_str();
        if folder.contains('/') || folder.starts_with('.') || folder.len() > 255 || escape(folder.as_bytes()) != folder
        {
            return refused(format!(
                "`{}` can't be a folder of the inbox: name one directly in it",
                escape(folder.as_bytes())
            ));
        }
        for pattern in route.patterns.iter().chain(&route.outputs) {
            if let Err(error) = globset::Glob::new(pattern) {
                return refused(format!(
                    "the pattern `{}` can't be read: {}",
                    escape(pattern.as_bytes()),
                    error.kind()
                ));
            }
        }
        if let Some(pattern) = route.patterns.iter().find(|pattern| pattern.is_empty() || pattern.contains('/')) {
            return refused(format!("the pattern `{}` fits no name", escape(pattern.as_bytes())));
        }
        let leads_out = |pattern: &&String| pattern.starts_with('/') || pattern.split('/').any(|part| part == "..");
        if let Some(pattern) = route.outputs.iter().find(leads_out) {
            return refused(format!("the output `{}` leads out of `out/`", escape(pattern.as_bytes())));
        }
        if route.gpus == 0 && route.gpu_memory.is_some() {
            return refused("`gpu_memory` of no GPU: leave it out, or ask for `gpus(1)`".to_owned());
        }
        if self.work.is_some() && route.mode == Mode::Resident {
            return refused("a closure stays in this program anyway: `resident` is for commands".to_owned());
        }
        if self.work.is_some() && route.timeout.is_some() {
            let what = "a timeout can't end a closure: leave it out and look at `Job::is_stopping`, or run a command";
            return refused(what.to_owned());
        }
        if route.backoff > config::Route::MAX_BACKOFF {
            return refused(
                "a `backoff` of more than ten minutes: it is the first wait, and doubles up to that".to_owned(),
            );
        }
        if self.work.is_none() && route.command.first().is_none_or(String::is_empty) {
            return refused("its command is empty: name a program".to_owned());
        }
        for text in route.command.iter().chain(route.env.values()) {
            if let Err((_, what)) = template::check(text) {
                return refused(format!("`{}` holds {what}", escape(text.as_bytes())));
            }
        }
        let reserved = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"];
        let taken = |key: &&String| key.starts_with("GAMDOK_") || reserved.contains(&key.as_str());
        if let Some(key) = route.env.keys().find(taken) {
            return refused(format!("the variable `{key}` is set for each attempt: leave it out"));
        }
        if route.env.keys().any(|key| key.is_empty() || key.contains(['=', '\0'])) {
            return refused("a variable's name is empty, or holds `=`".to_owned());
        }
        Ok(())
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.work.is_some() { "closure" } else { "command" };
        f.debug_struct("Route").field("name", &self.route.name).field("runs", &kind).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_told_by_route() {
        let check = |route: Route, words: &str| match route.check() {
            Ok(()) => assert_eq!(words, "", "{route:?}"),
            Err(error) => assert!(!words.is_empty() && error.to_string().contains(words), "{error}"),
        };
        let closure = || Route::closure("c", |_| Ok(()));
        let command = || Route::command("r", ["true", "{item}"]);
        check(closure(), "");
        check(command().timeout(Duration::from_secs(1)).resident(), "");
        check(closure().timeout(Duration::from_secs(1)), "route `c`: a timeout can't end a closure");
        check(closure().resident(), "`resident` is for commands");
        check(Route::closure(" ", |_| Ok(())), "it needs a name");
        check(Route::closure("a/b", |_| Ok(())), "it needs a name");
        check(closure().folder("a/b"), "`a/b` can't be a folder");
        check(closure().matching(["[a"]), "the pattern `[a` can't be read");
        check(closure().matching(["a/b"]), "fits no name");
        check(closure().outputs(["../x"]), "leads out of `out/`");
        check(closure().cpu().gpu_memory(Bytes(1)), "`gpu_memory` of no GPU");
        check(closure().backoff(Duration::from_secs(601)), "more than ten minutes");
        check(closure().env("GAMDOK_ID", "x"), "`GAMDOK_ID` is set for each attempt");
        check(closure().env("A=B", "x"), "holds `=`");
        check(Route::command("r", [""; 0]), "its command is empty");
        check(Route::command("r", ["x", "{imte}"]), "holds an unknown placeholder");
    }
}
