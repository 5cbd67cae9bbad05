//! What is valid and still unlikely to be meant. Looks at the host (programs, folders), so it is told beside the
//! configuration and never stops it.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::error::shown;
use super::template;
use super::{Backend, Config, Route, RouteKind};
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
        for (place, route) in self.routes.iter().enumerate() {
            let name = escape(route.name.as_bytes());
            let mut warn = |text: String| warnings.push(format!("route `{name}`: {text}"));
            if let Some(earlier) = self.routes[..place].iter().find(|earlier| covers(earlier, route)) {
                let earlier = escape(earlier.name.as_bytes());
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

/// Whether every item that `later` could take is taken by `earlier`.
fn covers(earlier: &Route, later: &Route) -> bool {
    let kind = earlier.kind == RouteKind::Any || earlier.kind == later.kind;
    let everything = |patterns: &[String]| patterns.is_empty() || patterns.iter().any(|p| p == "*" || p == "**");
    let names = everything(&earlier.patterns)
        || !later.patterns.is_empty() && later.patterns.iter().all(|pattern| earlier.patterns.contains(pattern));
    earlier.folder == later.folder && kind && names
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
