//! `[[route]]` tables -> [`Route`]s, and what can't be true of them, alone or beside each other.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::parse::{VISIBLE, optional_path, value};
use super::template::Placeholder;
use super::text::{Fault, Table};
use super::{Ready, Route, RouteKind, limits, place, resident, split, template};
use crate::item::escape;
use crate::units::Bytes;

/// Variables that each attempt gets from its lease; a route can't have its own idea of them.
const RESERVED: &[&str] = &["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"];

/// All routes of the document, in its order.
pub(super) fn all(top: &Table<'_>, dir: &Path, root: &Path) -> Vec<Route> {
    let tables = top.tables("route", called);
    let mut names: HashMap<String, Range<usize>> = HashMap::new();
    let mut routes = Vec::new();
    for table in &tables {
        let name = name(table);
        if let Some(name) = &name {
            match names.get(name.get_ref()) {
                Some(twin) => {
                    let message = format!("two routes are called `{}`", escape(name.get_ref().as_bytes()));
                    let fault = Fault::new("and again here").help("give each route its own name: jobs are told by it");
                    table.contradiction(name.span(), (twin.clone(), "first here"), message, fault);
                }
                None => drop(names.insert(name.get_ref().clone(), name.span())),
            }
        }
        routes.push(route(table, value(name, String::new()), dir, root));
    }
    routes
}

/// A route as messages call it: by its name, else by its place in the file.
fn called(place: usize, entries: &DeTable<'_>) -> String {
    match entries.get("name").and_then(|name| name.get_ref().as_str()) {
        Some(name) if !name.is_empty() => format!("route `{}`", escape(name.as_bytes())),
        _ => format!("route {}", place + 1),
    }
}

/// The header line of a route, where what is absent would stand.
fn missing(table: &Table<'_>, key: &str, help: &str) {
    let message = format!("{} is missing", table.called(key));
    table.problem(table.span.clone(), message, Fault::new(format!("this route has no `{key}`")).help(help));
}

fn name(table: &Table<'_>) -> Option<Spanned<String>> {
    if !table.has("name") {
        missing(table, "name", "write `name = \"…\"`: lists, logs and results tell jobs by it");
    }
    let name = table.text("name")?;
    let text = name.get_ref();
    let wrong = match text.as_str() {
        "" => "found nothing",
        text if text.trim() != text => "it starts or ends with a space",
        text if escape(text.as_bytes()) != text => "found a character that can't be shown",
        text if text.contains('/') => "found a `/`",
        text if text.len() > 64 => "found more than 64 bytes",
        _ => return Some(name),
    };
    table.refuse("name", &name, "a short name of printable characters", Fault::new(wrong));
    None
}

fn route(table: &Table<'_>, name: String, dir: &Path, root: &Path) -> Route {
    let default = Route::new(name, Vec::new(), dir);
    let (mode, batch, resident) = resident::read(table);
    let gpus = table.integer("gpus", limits::GPUS);
    let gpu_memory = table.size("gpu_memory", Bytes(1));
    let count = gpus.as_ref().map_or(default.gpus, |gpus| *gpus.get_ref());
    if let (0, Some(memory), Some(gpus)) = (count, &gpu_memory, &gpus) {
        let fault = Fault::new("memory of no GPU").help("leave `gpu_memory` out, or write `gpus = 1`");
        let message = format!("{} contradicts `gpus = 0`", table.called("gpu_memory"));
        table.contradiction(memory.span(), (gpus.span(), "runs on CPU slots"), message, fault);
    }
    let max_running = table.integer("max_running", 0..=1_000_000u32);
    let positive = Duration::from_millis(1)..=Duration::MAX;
    let any = Duration::ZERO..=Duration::MAX;
    let kinds = &[("file", RouteKind::File), ("directory", RouteKind::Directory), ("any", RouteKind::Any)];
    let kind = table.choice("kind", kinds);
    let backoff = table.duration("backoff", Duration::ZERO..=Route::MAX_BACKOFF);
    Route {
        folder: folder(table),
        patterns: patterns(table, "match", name_pattern),
        split: split::read(table, (mode, &batch), kind.as_ref()),
        kind: value(kind, default.kind),
        command: command(table),
        mode,
        batch,
        resident,
        env: env(table),
        cwd: cwd(table, dir),
        gpus: count,
        gpu_memory: gpu_memory.map(Spanned::into_inner),
        cpu_fallback: value(table.boolean("cpu_fallback"), default.cpu_fallback),
        visible: table.choice("visible", VISIBLE).map(Spanned::into_inner),
        priority: value(table.integer("priority", -1_000_000..=1_000_000), default.priority),
        max_running: max_running.map(Spanned::into_inner).filter(|limit| *limit > 0),
        timeout: table.duration("timeout", positive).map(Spanned::into_inner),
        kill_grace: value(table.duration("kill_grace", any), default.kill_grace),
        retries: value(table.integer("retries", 0..=100), default.retries),
        backoff: value(backoff, default.backoff),
        outputs: patterns(table, "outputs", output_pattern),
        ready: table.table("ready").map_or_else(Ready::default, |table| ready(&table)),
        publish: publish(table, dir, root),
        ..default
    }
}

fn folder(table: &Table<'_>) -> String {
    let Some(folder) = table.text("folder") else { return String::new() };
    let text = folder.get_ref();
    let trimmed = text.trim_matches('/');
    let inner = format!("write only what comes below the inbox: \"{}\"", escape(trimmed.as_bytes()));
    let fault = match text.as_str() {
        "" => return String::new(),
        _ if text.starts_with('/') => Fault::new("found an absolute path").help(inner),
        _ if text.split('/').any(|part| part == ".." || part == ".") => {
            Fault::new("found a way out of the inbox").help("an intake folder lies directly in `inbox/`")
        }
        _ if text.ends_with('/') => Fault::new("found a `/` at its end").help(inner),
        _ if text.contains('/') => Fault::new("found a folder within a folder")
            .help("intake folders lie directly in `inbox/`; write \"a-b\" for \"a/b\""),
        _ if text.starts_with('.') => Fault::new("found a hidden name").help("hidden names are ignored in the inbox"),
        _ if escape(text.as_bytes()) != *text || text.trim() != text => {
            Fault::new("found a character that can't be shown, or a space at its edge")
        }
        _ if text.len() > 255 => Fault::new("found more than 255 bytes"),
        _ => return folder.into_inner(),
    };
    table.refuse("folder", &folder, "the name of a folder in `inbox/`, or empty", fault);
    String::new()
}

fn patterns(table: &Table<'_>, key: &'static str, check: impl Fn(&Table<'_>, &str, &Spanned<String>)) -> Vec<String> {
    let patterns = table.texts(key).map(Spanned::into_inner).unwrap_or_default();
    for pattern in &patterns {
        check(table, key, pattern);
    }
    patterns.into_iter().map(Spanned::into_inner).collect()
}

fn glob(table: &Table<'_>, key: &str, pattern: &Spanned<String>) -> bool {
    let text = pattern.get_ref();
    let fault = match globset::Glob::new(text) {
        _ if text.is_empty() => Fault::new("found an empty pattern").help("\"*\" matches every name"),
        Ok(_) => return true,
        Err(error) => {
            let help = "patterns know `*`, `?`, `[a-z]`, `{a,b}`; `\\` takes the meaning from the next character";
            Fault::new(error.kind().to_string()).help(help)
        }
    };
    table.refuse(key, pattern, "a list of patterns", fault);
    false
}

/// A pattern on an item's name.
pub(super) fn name_pattern(table: &Table<'_>, key: &str, pattern: &Spanned<String>) {
    if glob(table, key, pattern) && pattern.get_ref().contains('/') {
        let fault = Fault::new("found a `/`, which no name has")
            .help("items in a folder of the inbox are matched with `folder = \"…\"`");
        table.refuse(key, pattern, "a list of patterns on names", fault);
    }
}

/// A pattern on a path in `out/`.
fn output_pattern(table: &Table<'_>, key: &str, pattern: &Spanned<String>) {
    let text = pattern.get_ref();
    if glob(table, key, pattern) && (text.starts_with('/') || text.split('/').any(|part| part == "..")) {
        let fault = Fault::new("found a way out of `out/`").help("write the path below {out}, such as \"*.json\"");
        table.refuse(key, pattern, "a list of patterns on paths in {out}", fault);
    }
}

fn command(table: &Table<'_>) -> Vec<String> {
    if !table.has("command") {
        missing(table, "command", "write `command = [\"program\", \"{item}\"]`: what runs for each item");
    }
    let must = "a list of a program and its arguments";
    let Some(command) = table.texts("command") else { return Vec::new() };
    match command.get_ref().first() {
        None => table.refuse("command", &command, must, Fault::new("found nothing to run")),
        Some(program) if program.get_ref().is_empty() => {
            table.refuse("command", program, must, Fault::new("the program's name is empty"));
        }
        Some(_) => {}
    }
    for argument in command.get_ref() {
        placeholders(table, "command", argument);
    }
    command.into_inner().into_iter().map(Spanned::into_inner).collect()
}

fn placeholders(table: &Table<'_>, key: &str, text: &Spanned<String>) {
    if let Some(mistake) = template::first_mistake(text.get_ref()) {
        let end = mistake.offset + mistake.found.len();
        let message = format!("{} holds {}: `{}`", table.called(key), mistake.what, escape(mistake.found.as_bytes()));
        let fault = Fault::new("means nothing here").help(mistake.help).within(mistake.offset..end);
        table.refuse_part(text, message, fault);
    }
}

fn env(table: &Table<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, text) in table.map("env") {
        let key = name.get_ref().as_str();
        let called = format!("env.{}", escape(key.as_bytes()));
        let refused = if key.is_empty() || key.contains(['=', '\0']) || escape(key.as_bytes()) != key {
            Some(Fault::new("no variable can be called that"))
        } else if key.starts_with("GAMDOK_") {
            Some(Fault::new("gamdok sets this one itself").help("leave it out"))
        } else if RESERVED.contains(&key) {
            let help = "leave it out: `gpus` says how many an item needs, `include` in [devices] which are used at all";
            Some(Fault::new("each attempt gets this one from its lease").help(help))
        } else {
            None
        };
        match refused {
            Some(fault) => table.problem(name.span(), format!("{} can't be set", table.called(&called)), fault),
            None => placeholders(table, &called, &text),
        }
        env.insert(name.into_inner(), text.into_inner());
    }
    env
}

fn cwd(table: &Table<'_>, dir: &Path) -> Option<String> {
    let cwd = table.text("cwd")?;
    placeholders(table, "cwd", &cwd);
    match rooted(cwd.get_ref(), dir) {
        Ok(rooted) => Some(rooted),
        Err((label, help)) => {
            table.refuse("cwd", &cwd, "a folder", Fault::new(label).help(help));
            None
        }
    }
}

/// A `cwd` made absolute, or starting with a placeholder (whose value is absolute, or the attempt fails with its words);
/// else what is wrong, and what to do.
pub(crate) fn rooted(cwd: &str, dir: &Path) -> Result<String, (&'static str, &'static str)> {
    const NOT_UTF_8: (&str, &str) = ("the configuration's folder isn't UTF-8", "write an absolute path");
    match cwd {
        "" => Err(("found nothing", "leave the key out for the configuration's folder")),
        home if home == "~" || home.starts_with("~/") => {
            Err(("`~` isn't expanded here", "write the home directory's path"))
        }
        text if text.starts_with('/') || ["{item}", "{out}"].iter().any(|start| text.starts_with(start)) => {
            Ok(text.to_owned())
        }
        text if template::is_constant(text) => {
            let plain = template::fill(text, |_| std::ffi::OsStr::new(""));
            place::resolve(dir, Path::new(&plain)).to_str().map(template::literal).ok_or(NOT_UTF_8)
        }
        text => match dir.to_str() {
            Some(dir) => Ok(format!("{}/{text}", template::literal(dir.trim_end_matches('/')))),
            None => Err(NOT_UTF_8),
        },
    }
}

fn ready(table: &Table<'_>) -> Ready {
    let marker = table.text("marker");
    if let Some(marker) = &marker {
        let help = "write what is added to the item's name, such as \".done\"";
        if let Some(label) = wrong_marker(marker.get_ref()) {
            table.refuse("marker", marker, "the end of a name", Fault::new(label).help(help));
        }
    }
    let validator = table.texts("validator").map(Spanned::into_inner).unwrap_or_default();
    if let Some(program) = validator.first().filter(|program| program.get_ref().is_empty()) {
        let fault = Fault::new("the program's name is empty");
        table.refuse("validator", program, "a list of a program and its arguments", fault);
    }
    for argument in &validator {
        placeholders(table, "validator", argument);
        if let Some(late) = known_too_late(argument.get_ref()) {
            let fault = Fault::new(format!("`{{{}}}` isn't known before the item is taken", late.as_str()));
            let must = "arguments with no placeholder but `{item}` and `{name}`";
            table.refuse("validator", argument, must, fault);
        }
    }
    Ready {
        settle: table.duration("settle", Duration::ZERO..=Duration::MAX).map(Spanned::into_inner),
        marker: marker.map(Spanned::into_inner),
        manifest: value(table.boolean("manifest"), false),
        min_bytes: value(min_bytes(table), Bytes(0)),
        validator: validator.into_iter().map(Spanned::into_inner).collect(),
    }
}

/// Why this can't be the end of a marker's name.
pub(crate) fn wrong_marker(marker: &str) -> Option<&'static str> {
    match marker {
        "" => Some("found nothing"),
        text if text.contains('/') => Some("found a `/`"),
        _ => None,
    }
}

/// A placeholder of a validator's argument that has no value before the item is taken.
pub(crate) fn known_too_late(argument: &str) -> Option<Placeholder> {
    let early = [Placeholder::Item, Placeholder::Name];
    template::placeholders(argument).find(|placeholder| !early.contains(placeholder))
}

/// The one size that is also a plain number: its name has the unit.
fn min_bytes(table: &Table<'_>) -> Option<Spanned<Bytes>> {
    match table.is_integer("min_bytes") {
        true => table.integer("min_bytes", 0..=i64::MAX).map(|n| Spanned::new(n.span(), Bytes(n.into_inner() as u64))),
        false => table.size("min_bytes", Bytes(0)),
    }
}

fn publish(table: &Table<'_>, dir: &Path, root: &Path) -> Option<std::path::PathBuf> {
    let publish = optional_path(table, "publish", dir)?;
    let Some((label, help)) = clash(publish.get_ref(), root) else { return Some(publish.into_inner()) };
    table.refuse("publish", &publish, "a folder outside gamdok's own", Fault::new(label).help(help));
    None
}

/// Why outputs can't be published there, and what comes of it.
pub(crate) fn clash(publish: &Path, root: &Path) -> Option<(String, &'static str)> {
    let own = ["inbox", "claimed", "done", "failed", ".gamdok"];
    match own.into_iter().find(|own| place::lies_in(publish, &root.join(own))) {
        Some("inbox") => Some(("found a folder in the inbox".to_owned(), "outputs would come in again as new items")),
        Some(own) => Some((format!("found a folder in `{own}/`"), "that folder is gamdok's own")),
        None if place::real(publish) == place::real(root) => {
            Some(("found the root itself".to_owned(), "outputs would lie among gamdok's own folders"))
        }
        None => None,
    }
}
