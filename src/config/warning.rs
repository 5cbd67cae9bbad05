//! What is valid and still unlikely to be meant. Looks at the host (programs, folders), so it is told beside the
//! configuration and never stops it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::error::shown;
use super::template;
use super::{Backend, Config, Route, RouteKind, Target};
use crate::item::escape;

/// Something to mend that stops nobody.
pub type Warning = String;

impl Config {
    /// What to tell people beside the configuration; looks at the host as it is now.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let pruned = [("done", self.history.keep_done), ("failed", self.history.keep_failed)];
        for (folder, keep) in pruned {
            if let Some(keep) = keep {
                let keep = humantime::format_duration(keep);
                warnings.push(format!(
                    "`keep_{folder} = \"{keep}\"`: what lies in {folder}/ longer is deleted, payload included"
                ));
            }
        }
        if self.inbox.settle.is_some_and(|settle| settle.is_zero()) {
            warnings.push(unsettled("`settle` in [inbox]"));
        }
        if self.devices.backend == Backend::Sim {
            warnings.push("`use = \"sim\"` in [devices]: the GPUs are made up, nothing runs on a real one".to_owned());
        }
        if let Some(file) = &self.api.token_file {
            match std::fs::metadata(file) {
                Err(error) => warnings.push(format!("`token_file` in [api]: cannot read `{}`: {error}", shown(file))),
                Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                    warnings.push(format!("`token_file` in [api]: others can read `{}`: chmod 600 it", shown(file)));
                }
                Ok(_) => {}
            }
        }
        for (at, notify) in self.notify.iter().enumerate() {
            if let Target::Webhook { secret_file: Some(file), .. } = &notify.to {
                let trouble = match std::fs::read_to_string(file) {
                    Ok(text) if text.trim().is_empty() => Some("it is empty".to_owned()),
                    Ok(_) => None,
                    Err(error) => Some(error.to_string()),
                };
                if let Some(trouble) = trouble {
                    let (file, nth) = (shown(file), at + 1);
                    warnings.push(format!(
                        "`secret_file` in notify {nth}: `{file}`: {trouble}; nothing is sent without it"
                    ));
                }
            }
        }
        let mut above = Above::default();
        for route in &self.routes {
            let name = escape(route.name.as_bytes());
            let mut warn = |text: String| warnings.push(format!("route `{name}`: {text}"));
            if let Some(earlier) = above.cover_of(route) {
                let earlier = escape(self.routes[earlier].name.as_bytes());
                warn(format!("never matches, since route `{earlier}` above takes all of its items: move it up"));
            }
            if route.ready.settle.is_some_and(|settle| settle.is_zero()) {
                warn(unsettled("`ready.settle`"));
            }
            let validator = &route.ready.validator;
            if !validator.is_empty() && validator.iter().all(|argument| template::is_constant(argument)) {
                warn("`ready.validator` isn't told which item: add \"{item}\"".to_owned());
            }
            self.devices_for(route).into_iter().for_each(&mut warn);
            programs(route).into_iter().for_each(&mut warn);
            above.add(route);
        }
        warnings
    }

    fn devices_for(&self, route: &Route) -> Option<Warning> {
        let (gpus, sim) = (route.gpus, &self.devices.sim);
        match self.devices.backend {
            _ if gpus == 0 => None,
            Backend::Cpu if !route.cpu_fallback => {
                Some("never runs: it needs a GPU, and [devices] says `use = \"cpu\"`".to_owned())
            }
            Backend::Sim if gpus > sim.gpus => {
                Some(format!("never runs: it needs {gpus} GPUs of {} simulated", sim.gpus))
            }
            Backend::Sim if route.gpu_memory.is_some_and(|memory| memory > sim.memory) => {
                Some(format!("never runs: `gpu_memory` is more than a simulated GPU has ({})", sim.memory))
            }
            _ => None,
        }
    }
}

fn unsettled(key: &str) -> String {
    format!("{key} is zero: where open writers can't be seen, half-written items are taken")
}

/// The routes above one, by what they take: each is asked once whether another leaves it nothing, and comparing it with
/// every one above would make ten thousand routes take many seconds.
#[derive(Default)]
struct Above<'a> {
    count: usize,
    /// The first that takes every name, by folder and kind.
    everything: HashMap<(&'a str, RouteKind), usize>,
    /// All that have a pattern, in their order, by folder, kind and pattern.
    patterns: HashMap<(&'a str, RouteKind, &'a str), Vec<usize>>,
}

impl<'a> Above<'a> {
    fn add(&mut self, route: &'a Route) {
        if takes_every_name(route) {
            self.everything.entry((&route.folder, route.kind)).or_insert(self.count);
        }
        for pattern in &route.patterns {
            let places = self.patterns.entry((&route.folder, route.kind, pattern)).or_default();
            if places.last() != Some(&self.count) {
                places.push(self.count);
            }
        }
        self.count += 1;
    }

    /// The first that takes every item that `route` could take.
    fn cover_of(&self, route: &'a Route) -> Option<usize> {
        let of_kind = |kind: RouteKind| {
            let everything = self.everything.get(&(route.folder.as_str(), kind)).copied();
            everything.into_iter().chain(self.with_patterns_of(route, kind)).min()
        };
        [RouteKind::Any, route.kind].into_iter().filter_map(of_kind).min()
    }

    /// The first of this kind that has all patterns of `route`: one of those that have its rarest one.
    fn with_patterns_of(&self, route: &'a Route, kind: RouteKind) -> Option<usize> {
        let with = |pattern: &'a String| self.patterns.get(&(route.folder.as_str(), kind, pattern.as_str()));
        let lists: Vec<&Vec<usize>> = route.patterns.iter().map(with).collect::<Option<_>>()?;
        let rarest = lists.iter().min_by_key(|list| list.len())?;
        let has_all = |place: &&usize| lists.iter().all(|list| list.binary_search(place).is_ok());
        rarest.iter().find(has_all).copied()
    }
}

fn takes_every_name(route: &Route) -> bool {
    route.patterns.is_empty() || route.patterns.iter().any(|pattern| pattern == "*" || pattern == "**")
}

/// The folder and the programs that a route's attempts need, as far as they are the same for every item.
fn programs(route: &Route) -> Vec<Warning> {
    let plain = |text: &str| -> Option<OsString> {
        template::is_constant(text).then(|| template::fill(text, |_| OsStr::new("")))
    };
    let cwd = match &route.cwd {
        None => Some(route.dir.clone()),
        Some(cwd) => plain(cwd).map(PathBuf::from),
    };
    let mut warnings = Vec::new();
    if let (Some(cwd), Some(_)) = (&cwd, &route.cwd)
        && !cwd.is_dir()
    {
        warnings.push(format!("`cwd`: there is no folder `{}`", shown(cwd)));
    }
    let path = match route.env.get("PATH") {
        None => std::env::var_os("PATH"),
        Some(path) => plain(path),
    };
    let program = route.command.first().and_then(|program| plain(program));
    let validator = route.ready.validator.first().map(OsString::from);
    for (key, program) in [("command", program), ("ready.validator", validator)] {
        let Some(program) = program else { continue };
        let shown = escape(std::os::unix::ffi::OsStrExt::as_bytes(program.as_os_str()));
        if Path::new(&program).components().count() > 1 || Path::new(&program).is_absolute() {
            let found = cwd.as_ref().is_none_or(|cwd| is_program(&cwd.join(&program)));
            if !found {
                warnings.push(format!("`{key}`: `{shown}` isn't there, or can't be executed"));
            }
        } else if let Some(path) = &path
            && !std::env::split_paths(path).any(|folder| is_program(&folder.join(&program)))
        {
            warnings.push(format!("`{key}`: there is no program `{shown}` in PATH"));
        }
    }
    warnings
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
