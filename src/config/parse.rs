//! Text -> checked [`Config`], with spans: an error shows the line, what was found and what is expected, and every
//! problem of the file at once. Keys that nothing answers to are refused, never ignored.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problem, Problems, shown};
use super::text::{Fault, Table};
use super::{
    Api, Backend, Config, ConfigError, Devices, History, Idle, Inbox, Policy, Sim, Visible, Warning, Watch, limits,
    notify, place, route,
};
use crate::units::Bytes;

/// What stands above the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `--root`, else `GAMDOK_ROOT`; relative to the working directory.
    pub root: Option<PathBuf>,
}

/// Where a configuration comes from: all that is needed to read it again.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: PathBuf,
    /// Without the file the built-in defaults hold, which have no routes.
    pub may_be_absent: bool,
    pub overrides: Overrides,
    /// `run -- COMMAND…` and the caller's working directory: one catch-all route instead of the file's.
    pub command: Option<(Vec<OsString>, PathBuf)>,
}

impl Source {
    pub fn load(&self) -> Result<(Config, Vec<Warning>), ConfigError> {
        self.load_from(File::open(&self.file), |_| Ok(()))
    }

    /// Reads what was opened as [`Source::file`]; `accept` may refuse the very text that was read.
    pub(super) fn load_from(
        &self,
        opened: io::Result<File>,
        accept: impl FnOnce(&str) -> Result<(), ConfigError>,
    ) -> Result<(Config, Vec<Warning>), ConfigError> {
        let absent = || self.file.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let config = if self.may_be_absent && opened.is_err() && absent() {
            let file = absolute(&self.file)?;
            let dir = file.parent().unwrap_or(Path::new("/"));
            let root = self.overrides.root.as_deref().map_or_else(|| Ok(dir.to_owned()), absolute)?;
            Config::builtin(dir, &root)
        } else {
            let (file, text) = text(&self.file, opened)?;
            accept(&text)?;
            Config::check_file(&file, &text, &self.overrides)?
        };
        let config = match &self.command {
            Some((argv, cwd)) => config.with_command(argv, cwd)?,
            None => config,
        };
        let warnings = config.warnings();
        Ok((config, warnings))
    }
}

impl Config {
    /// A file larger than this was meant for something else.
    const LARGEST: u64 = 4 << 20;

    /// Reads and checks a file. The root is `overrides.root`, else the file's `root` relative to the file, else the
    /// file's folder.
    pub fn read(file: &Path, overrides: &Overrides) -> Result<(Config, Vec<Warning>), ConfigError> {
        let (file, text) = text(file, File::open(file))?;
        let config = Config::check_file(&file, &text, overrides)?;
        let warnings = config.warnings();
        Ok((config, warnings))
    }

    fn check_file(file: &Path, text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        check(text, Some(file), file.parent().unwrap_or(Path::new("/")), overrides)
    }

    /// Checks a text as if it stood in `file`; relative paths start from `dir`.
    pub fn parse(
        text: &str,
        file: Option<&Path>,
        dir: &Path,
        overrides: &Overrides,
    ) -> Result<(Config, Vec<Warning>), ConfigError> {
        let config = check(text, file, dir, overrides)?;
        let warnings = config.warnings();
        Ok((config, warnings))
    }

    /// What holds where there is no file: the defaults, and no routes.
    pub fn builtin(dir: &Path, root: &Path) -> Config {
        Config {
            file: None,
            dir: dir.to_owned(),
            root: place::resolve(dir, root),
            inbox: Inbox::default(),
            devices: Devices::default(),
            history: History::default(),
            api: Api::default(),
            notify: Vec::new(),
            routes: Vec::new(),
        }
    }
}

/// The text of what was opened as `file`, and where that lies.
fn text(file: &Path, opened: io::Result<File>) -> Result<(PathBuf, String), ConfigError> {
    let file = absolute(file)?;
    let mut bytes = Vec::new();
    opened
        .and_then(|open| open.take(Config::LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(&file, &error))?;
    if bytes.len() as u64 > Config::LARGEST {
        let message = format!("`{}` is too large for a configuration (over 4 MiB)", shown(&file));
        return Err(ConfigError::plain(message, "name the configuration with `--config FILE`"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        let message = format!("`{}` isn't UTF-8: line {line} holds other bytes", shown(&file));
        ConfigError::plain(message, "save the file as UTF-8")
    })?;
    Ok((file, text))
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    let absolute = std::path::absolute(path).map_err(|error| {
        let message = format!("cannot tell where `{}` lies: {error}", shown(path));
        ConfigError::plain(message, "give an absolute path, or start from a folder that exists")
    })?;
    Ok(place::resolve(Path::new("/"), &absolute))
}

fn unreadable(file: &Path, error: &io::Error) -> ConfigError {
    let help = match error.kind() {
        io::ErrorKind::NotFound => {
            "`gamdok init` writes an annotated one; `--config FILE` names another, `--root DIR` another root"
        }
        io::ErrorKind::PermissionDenied => "let the user that gamdok runs as read it",
        io::ErrorKind::IsADirectory => "name the file, not its folder",
        _ => "look after the file system, or name another file with `--config FILE`",
    };
    ConfigError::plain(format!("cannot read the configuration `{}`: {error}", shown(file)), help)
}

fn check(text: &str, file: Option<&Path>, dir: &Path, overrides: &Overrides) -> Result<Config, ConfigError> {
    let name = file.map_or_else(|| "configuration".to_owned(), shown);
    let problems = Problems::default();
    let dir = absolute(dir)?;
    // An editor's byte order mark is no fault of the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (document, wrong) = DeTable::parse_recoverable(text);
    let mut wrong_at: Vec<_> = wrong.iter().map(|error| (error.span().unwrap_or(0..0), error.message())).collect();
    wrong_at.sort_by_key(|(at, _)| at.start);
    let mut told_to = None;
    for (at, message) in wrong_at {
        // What follows on the same line is mostly the first mistake again.
        if told_to.is_none_or(|end| end < at.start) {
            let rest = text.get(at.start..).unwrap_or_default();
            told_to = Some(at.start + rest.find('\n').unwrap_or(rest.len()));
            problems.add(syntax(message, visible(text, at)));
        }
    }
    // Half a text would only be followed by complaints about what is missing.
    let config = wrong.is_empty().then(|| config(&Table::document(text, &document, &problems), file, &dir, overrides));
    match (problems.into_error(&name, text), config) {
        (None, Some(config)) => config,
        (Some(error), _) => Err(error),
        (None, None) => Err(ConfigError::plain(format!("cannot read `{name}`"), "check that it is TOML")),
    }
}

/// What is missing at the end of the text is shown at its last character: behind it there is no line to show.
fn visible(text: &str, at: Range<usize>) -> Range<usize> {
    let end = text.trim_end().len();
    let last = text[..end].char_indices().next_back().map_or(0, |(at, _)| at);
    if at.start >= end { last..end } else { at }
}

fn syntax(message: &str, at: Range<usize>) -> Problem {
    let help = match message {
        _ if message.contains("duplicate key") => "keep one of the two",
        _ if message.contains("string values must be quoted") => "put it in quotes, such as \"2s\" or \"8GiB\"",
        _ => "the format is TOML: `key = value` lines below [table] lines",
    };
    Problem {
        at,
        message: "the file isn't valid TOML".to_owned(),
        label: crate::item::escape(message.as_bytes()),
        help: Some(help.to_owned()),
        also: None,
    }
}

const ANY: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

fn config(top: &Table<'_>, file: Option<&Path>, dir: &Path, overrides: &Overrides) -> Result<Config, ConfigError> {
    let written = path(top, "root", dir);
    let root = match &overrides.root {
        Some(root) => absolute(root)?,
        None => written.unwrap_or_else(|| dir.to_owned()),
    };
    let inbox = top.table("inbox").map_or_else(Inbox::default, |table| inbox(&table));
    let devices = top.table("devices").map_or_else(Devices::default, |table| devices(&table));
    let history = top.table("history").map_or_else(History::default, |table| history(&table));
    let api = top.table("api").map_or_else(Api::default, |table| api(&table, dir));
    let routes = route::all(top, dir, &root);
    let names: Vec<String> = routes.iter().map(|route| route.name.clone()).collect();
    Ok(Config {
        file: file.map(Path::to_owned),
        dir: dir.to_owned(),
        root,
        inbox,
        devices,
        history,
        api,
        notify: notify::all(top, dir, &names),
        routes: routes.into_iter().map(Arc::new).collect(),
    })
}

/// A path relative to `dir`; nothing for an absent, wrong or empty one, the latter noted.
pub(super) fn path(table: &Table<'_>, key: &'static str, dir: &Path) -> Option<PathBuf> {
    let text = table.text(key)?;
    match text.get_ref().as_str() {
        "" => {
            table.refuse(key, &text, "a path", Fault::new("found nothing").help("leave the key out, or write \".\""));
            None
        }
        home if home == "~" || home.starts_with("~/") => {
            let fault = Fault::new("`~` isn't expanded here").help("write the home directory's path");
            table.refuse(key, &text, "a path", fault);
            None
        }
        path => Some(place::resolve(dir, Path::new(path))),
    }
}

/// Like [`path`], where an empty text means none.
pub(super) fn optional_path(table: &Table<'_>, key: &'static str, dir: &Path) -> Option<Spanned<PathBuf>> {
    let span = table.read(key, "a path", |value| match value {
        DeValue::String(text) => Ok(text.is_empty()),
        _ => Ok(false),
    })?;
    if *span.get_ref() {
        return None;
    }
    path(table, key, dir).map(|path| Spanned::new(span.span(), path))
}

fn inbox(table: &Table<'_>) -> Inbox {
    let defaults = Inbox::default();
    let ignore = table.texts("ignore").map(Spanned::into_inner).unwrap_or_default();
    for pattern in &ignore {
        route::name_pattern(table, "ignore", pattern);
    }
    Inbox {
        settle: table.duration("settle", ANY).map(Spanned::into_inner),
        ignore: ignore.into_iter().map(Spanned::into_inner).collect(),
        watch: value(
            table.choice("watch", &[("auto", Watch::Auto), ("events", Watch::Events), ("poll", Watch::Poll)]),
            defaults.watch,
        ),
        poll_interval: value(
            table.duration("poll_interval", Duration::from_millis(100)..=Duration::from_secs(3600)),
            defaults.poll_interval,
        ),
    }
}

/// What was read, else the default.
pub(super) fn value<T>(read: Option<Spanned<T>>, default: T) -> T {
    read.map_or(default, Spanned::into_inner)
}

/// What `visible` may say, of a route and of all.
pub(super) const VISIBLE: &[(&str, Visible)] = &[("uuid", Visible::Uuid), ("index", Visible::Index)];

fn devices(table: &Table<'_>) -> Devices {
    let defaults = Devices::default();
    let backends = &[("auto", Backend::Auto), ("gpu", Backend::Gpu), ("cpu", Backend::Cpu), ("sim", Backend::Sim)];
    let policies =
        &[("least-connections", Policy::LeastConnections), ("pack", Policy::Pack), ("round-robin", Policy::RoundRobin)];
    let include = names(table, "include");
    let exclude = names(table, "exclude");
    for name in &exclude {
        if let Some(twin) = include.iter().find(|other| other.get_ref() == name.get_ref()) {
            let message = format!("device {} is both included and excluded", name.get_ref());
            let fault = Fault::new("excluded here").help("keep one of the two");
            table.contradiction(name.span(), (twin.span(), "included here"), message, fault);
        }
    }
    let cpu_slots =
        table.read("cpu_slots", &format!("\"auto\" or a whole number from 1 to {}", limits::SLOTS.end()), |value| {
            match value {
                DeValue::String(text) if text == "auto" => Ok(None),
                DeValue::Integer(number) => match number.as_str().parse::<u32>() {
                    Ok(slots) if limits::SLOTS.contains(&slots) && number.radix() == 10 => Ok(Some(slots)),
                    _ => Err(Fault::new(format!("found the number {number}"))),
                },
                DeValue::String(text) => {
                    Err(Fault::new(format!("found the text \"{}\"", crate::item::escape(text.as_bytes()))))
                }
                _ => Err(Fault::new("found neither")),
            }
        });
    Devices {
        backend: value(table.choice("use", backends), defaults.backend),
        include: include.into_iter().map(Spanned::into_inner).collect(),
        exclude: exclude.into_iter().map(Spanned::into_inner).collect(),
        slots: value(table.integer("slots", limits::SLOTS), defaults.slots),
        cpu_slots: value(cpu_slots, defaults.cpu_slots),
        policy: value(table.choice("policy", policies), defaults.policy),
        visible: value(table.choice("visible", VISIBLE), defaults.visible),
        affinity: value(table.boolean("affinity"), defaults.affinity),
        idle: table.table("idle").map_or(defaults.idle, |table| idle(&table)),
        sim: table.table("sim").map_or(defaults.sim, |table| sim(&table)),
    }
}

/// Devices by index (as a number or a text) or UUID.
fn names(table: &Table<'_>, key: &'static str) -> Vec<Spanned<String>> {
    let names = table.texts_from(key, "a list of indexes and UUIDs", |value| {
        let fault =
            |found: String| Fault::new(found).help("write 0, 1, … or \"GPU-…\"; `gamdok gpus` lists the devices");
        match value {
            DeValue::Integer(index) if index.as_str().parse::<u32>().is_ok() && index.radix() == 10 => {
                Ok(index.as_str().to_owned())
            }
            DeValue::Integer(index) => Err(fault(format!("found the number {index}"))),
            DeValue::String(text) if limits::is_device(text) => Ok(text.clone().into_owned()),
            DeValue::String(text) => {
                Err(fault(format!("\"{}\" is neither an index nor a UUID", crate::item::escape(text.as_bytes()))))
            }
            _ => Err(fault("found something else".to_owned())),
        }
    });
    names.map(Spanned::into_inner).unwrap_or_default()
}

fn idle(table: &Table<'_>) -> Idle {
    let defaults = Idle::default();
    let ignored =
        table.texts("ignore_processes").map(|names| names.into_inner().into_iter().map(Spanned::into_inner).collect());
    Idle {
        max_memory_used: value(table.size("max_memory_used", Bytes(0)), defaults.max_memory_used),
        max_utilization: value(table.integer("max_utilization", limits::UTILIZATION), defaults.max_utilization),
        settle: value(table.duration("settle", limits::IDLE_SETTLE), defaults.settle),
        ignore_processes: ignored.unwrap_or(defaults.ignore_processes),
    }
}

fn sim(table: &Table<'_>) -> Sim {
    let defaults = Sim::default();
    Sim {
        gpus: value(table.integer("gpus", limits::SIM_GPUS), defaults.gpus),
        memory: value(table.size("memory", limits::SIM_MEMORY), defaults.memory),
    }
}

fn history(table: &Table<'_>) -> History {
    let defaults = History::default();
    let keep = Duration::from_secs(1)..=Duration::MAX;
    History {
        keep_done: value(table.duration_or("keep_done", "forever", keep.clone()), defaults.keep_done),
        keep_failed: value(table.duration_or("keep_failed", "forever", keep), defaults.keep_failed),
        max_log: value(table.size("max_log", Bytes(1 << 10)), defaults.max_log),
    }
}

fn api(table: &Table<'_>, dir: &Path) -> Api {
    let must = "an address with a port, such as \"127.0.0.1:7878\", or empty";
    let listen = table.read("listen", must, |value| match value {
        DeValue::String(text) if text.is_empty() => Ok(None),
        DeValue::String(text) => text.parse::<SocketAddr>().map(Some).map_err(|_| {
            let fault = Fault::new("found no such address");
            match text.split_once(':') {
                Some(("localhost", port)) => fault.help(format!("names aren't looked up: write \"127.0.0.1:{port}\"")),
                Some(("" | "*", port)) => {
                    fault.help(format!("for every interface write \"0.0.0.0:{port}\", with a `token_file`"))
                }
                None if text.parse::<std::net::IpAddr>().is_ok() => fault.help("the port is missing"),
                _ => fault.help("empty means the Unix socket only"),
            }
        }),
        _ => Err(Fault::new("found something else")),
    });
    let token_file = optional_path(table, "token_file", dir);
    let exposed = listen.as_ref().filter(|listen| listen.get_ref().is_some_and(|address| !address.ip().is_loopback()));
    if let (Some(listen), None) = (exposed, &token_file) {
        let fault = Fault::new("others can reach this address")
            .help("add `token_file = \"…\"`, a file with a secret that clients send, or listen on 127.0.0.1");
        table.problem(listen.span(), "`listen` in [api] needs a `token_file`: the address isn't loopback", fault);
    }
    Api { listen: value(listen, None), token_file: token_file.map(Spanned::into_inner) }
}
