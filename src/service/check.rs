//! What can't be true of a route that was made in code: what the reader of a configuration refuses, and what closures
//! can't do. Each answer says what is wrong, and what to do.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::Error;
use crate::config::{
    self, Batch, Compress, Config, Mode, RouteKind, Split, limits, resident, route as rules, template,
};
use crate::item::escape;
use crate::units::Bytes;

/// Who works on its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Closure,
    Command,
}

/// The first thing that can't be.
pub(super) fn route(route: &config::Route, kind: Kind, root: &Path) -> Result<(), String> {
    named(route)?;
    counted(route)?;
    match kind {
        Kind::Closure => closure(route)?,
        Kind::Command => command(route)?,
    }
    environment(route)?;
    ready(route)?;
    match route.publish.as_deref().and_then(|publish| rules::clash(publish, root)) {
        Some((label, help)) => Err(format!("`publish`: {label}: {help}")),
        None => Ok(()),
    }
}

/// All else that a director is told.
pub(super) fn settings(config: &Config) -> Result<(), Error> {
    let refused = |what: String| Err(Error::Settings(what));
    let mut names = HashSet::new();
    if let Some(route) = config.routes.iter().find(|route| !names.insert(route.name.as_str())) {
        let what = "another route has this name: jobs are told by it".to_owned();
        return Err(Error::Route { route: route.name.clone(), what });
    }
    config.devices.check().map_err(Error::Settings)?;
    let (history, inbox) = (&config.history, &config.inbox);
    if history.max_log < Bytes(1 << 10) {
        return refused(format!("`max_log` is {}: it must be at least 1 KiB", history.max_log));
    }
    for (key, keep) in [("keep_done", history.keep_done), ("keep_failed", history.keep_failed)] {
        if keep.is_some_and(|keep| keep < Duration::from_secs(1)) {
            return refused(format!("`{key}` is less than a second: leave it out to keep everything"));
        }
    }
    if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&inbox.poll_interval) {
        return refused("`poll_interval` must be from 100 ms to an hour".to_owned());
    }
    inbox.ignore.iter().try_for_each(|pattern| name_pattern(pattern)).map_err(Error::Settings)?;
    match config.api.listen {
        Some(address) if !address.ip().is_loopback() && config.api.token_file.is_none() => refused(format!(
            "others can reach {address}: `token_file` names a file with a secret that clients send, or listen on 127.0.0.1"
        )),
        _ => Ok(()),
    }
}

fn shown(text: &str) -> String {
    escape(text.as_bytes())
}

fn named(route: &config::Route) -> Result<(), String> {
    let name = route.name.as_str();
    if name.is_empty() || name.len() > 64 || name.contains('/') || name.trim() != name || shown(name) != name {
        return Err("it needs a name of 1 to 64 printable bytes without `/` or spaces at its ends".to_owned());
    }
    let folder = route.folder.as_str();
    let is_plain = folder.trim() == folder && shown(folder) == folder;
    if folder.contains('/') || folder.starts_with('.') || folder.len() > 255 || !is_plain {
        return Err(format!("`{}` can't be a folder of the inbox: name one directly in it", shown(folder)));
    }
    route.patterns.iter().try_for_each(|pattern| name_pattern(pattern))?;
    for pattern in &route.outputs {
        readable(pattern)?;
        if pattern.starts_with('/') || pattern.split('/').any(|part| part == "..") {
            return Err(format!("the output `{}` leads out of `out/`", shown(pattern)));
        }
    }
    Ok(())
}

fn readable(pattern: &str) -> Result<(), String> {
    match globset::Glob::new(pattern) {
        _ if pattern.is_empty() => Err("an empty pattern fits nothing: `*` fits every name".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the pattern `{}` can't be read: {}", shown(pattern), error.kind())),
    }
}

/// On names, which have no `/`.
fn name_pattern(pattern: &str) -> Result<(), String> {
    readable(pattern)?;
    if pattern.contains('/') { Err(format!("the pattern `{}` fits no name", shown(pattern))) } else { Ok(()) }
}

fn counted(route: &config::Route) -> Result<(), String> {
    fn within<T: PartialOrd + std::fmt::Display>(key: &str, number: T, range: RangeInclusive<T>) -> Result<(), String> {
        if range.contains(&number) {
            return Ok(());
        }
        Err(format!("`{key}` is {number}: it must be from {} to {}", range.start(), range.end()))
    }
    within("gpus", route.gpus, limits::GPUS)?;
    within("retries", route.retries, 0..=100)?;
    within("priority", route.priority, -1_000_000..=1_000_000)?;
    within("max_running", route.max_running.unwrap_or(0), 0..=1_000_000)?;
    within("batch", route.batch.max_items, 1..=Batch::MOST)?;
    match route.gpu_memory {
        Some(Bytes(0)) => return Err("`gpu_memory` is nothing: leave it out".to_owned()),
        Some(_) if route.gpus == 0 => {
            return Err("`gpu_memory` of no GPU: leave it out, or ask for `gpus(1)`".to_owned());
        }
        _ => {}
    }
    if route.backoff > config::Route::MAX_BACKOFF {
        return Err("a `backoff` of more than ten minutes: it is the first wait, and doubles up to that".to_owned());
    }
    if route.batch.max_wait > Duration::from_secs(3600) {
        return Err("a `batch` waits for more than an hour: its items would be forgotten".to_owned());
    }
    for (key, limit) in [("timeout", route.timeout), ("ready_timeout", Some(route.resident.ready_timeout))] {
        if limit.is_some_and(|limit| limit < Duration::from_millis(1)) {
            return Err(format!("`{key}` is less than a millisecond: nothing is done in no time"));
        }
    }
    Ok(())
}

fn closure(route: &config::Route) -> Result<(), String> {
    let refused = |what: &str| Err(what.to_owned());
    if route.mode == Mode::Resident {
        return refused("a closure stays in this program anyway: `resident` is for commands");
    }
    if route.timeout.is_some() {
        return refused("a timeout can't end a closure: leave it out and look at `Job::is_stopping`, or run a command");
    }
    if route.split.is_some() {
        return refused("a closure is given the whole item: call `gamdok::split` in it, or run a command");
    }
    if route.cwd.is_some() {
        return refused("a closure has its program's folder: `cwd` is for commands");
    }
    idle(route)
}

fn command(route: &config::Route) -> Result<(), String> {
    if route.command.first().is_none_or(String::is_empty) {
        return Err("its command is empty: name a program".to_owned());
    }
    if let Some(split) = &route.split {
        lines(route, split)?;
    }
    if route.mode == Mode::Resident {
        let of_one_item =
            |text: &&String| template::placeholders(text).any(|found| resident::OF_ONE_ITEM.contains(&found));
        if let Some(text) = words(route).find(of_one_item) {
            let what = "names something of one item, and a resident process serves many: it gets them on descriptor 3";
            return Err(format!("`{}` {what}", shown(text)));
        }
        return Ok(());
    }
    idle(route)
}

/// What is said of processes that stay needs one.
fn idle(route: &config::Route) -> Result<(), String> {
    let usual = config::Resident::default();
    if route.batch != Batch::default() {
        return Err("a process, or a closure, for each item takes no `batch`: add `resident()` to a command".to_owned());
    }
    let config::Resident { idle_timeout, max_items, ready_timeout } = &route.resident;
    let key = match () {
        () if *idle_timeout != usual.idle_timeout => "idle_timeout",
        () if *max_items != usual.max_items => "max_items",
        () if *ready_timeout != usual.ready_timeout => "ready_timeout",
        () => return Ok(()),
    };
    Err(format!("`{key}` is of processes that stay: add `resident()` to a command, or leave it out"))
}

fn lines(route: &config::Route, split: &Split) -> Result<(), String> {
    if split.lines == 0 || split.lines > Split::MOST_LINES {
        let most = Split::MOST_LINES;
        return Err(format!("`split({})`: a batch has from 1 to {most} lines", split.lines));
    }
    if split.compress == Compress::Gzip && split.level > 12 {
        return Err(format!("there is no compression level {}: 0 (stored) to 12 (small)", split.level));
    }
    if route.kind == RouteKind::Directory {
        return Err("`split` cuts a file into its lines: a route of directories has none".to_owned());
    }
    if route.batch != Batch::default() {
        return Err("`batch` counts items: `split` says how many lines are handed over".to_owned());
    }
    Ok(())
}

/// What is filled in for each attempt.
fn words(route: &config::Route) -> impl Iterator<Item = &String> {
    route.command.iter().chain(route.env.values()).chain(&route.cwd)
}

fn environment(route: &config::Route) -> Result<(), String> {
    let reserved = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"];
    for key in route.env.keys() {
        if key.starts_with("GAMDOK_") || reserved.contains(&key.as_str()) {
            return Err(format!("the variable `{key}` is set for each attempt: leave it out"));
        }
        if key.is_empty() || key.contains('=') || shown(key) != *key {
            return Err(format!("no variable can be called `{}`: a name isn't empty and has no `=`", shown(key)));
        }
    }
    words(route).try_for_each(|text| filled(text))
}

/// A text with placeholders that a process can be given.
fn filled(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err(format!("`{}` has a NUL byte, which no process can be given", shown(text)));
    }
    template::check(text).map_err(|(_, what)| format!("`{}` holds {what}", shown(text)))
}

fn ready(route: &config::Route) -> Result<(), String> {
    let config::Ready { marker, validator, .. } = &route.ready;
    if let Some(marker) = marker {
        let wrong = if marker.contains('\0') { Some("found a NUL byte") } else { rules::wrong_marker(marker) };
        if let Some(what) = wrong {
            let what = format!("`{}` can't end a marker's name ({what}): write such as `.done`", shown(marker));
            return Err(what);
        }
    }
    if validator.first().is_some_and(String::is_empty) {
        return Err("its validator is empty: name a program".to_owned());
    }
    for text in validator {
        filled(text)?;
        if let Some(late) = rules::known_too_late(text) {
            return Err(format!("`{{{}}}` isn't known to a validator: an item isn't taken yet", late.as_str()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Director, Route};

    #[test]
    fn what_cannot_be_is_told_by_route() {
        let check = |route: Route, words: &str| match route.check(Path::new("/srv/root")) {
            Ok(()) => assert_eq!(words, "", "{route:?}"),
            Err(error) => assert!(!words.is_empty() && error.to_string().contains(words), "{error}"),
        };
        let closure = || Route::closure("c", |_| Ok(()));
        let command = || Route::command("r", ["true", "{item}"]);
        let stays = || Route::command("r", ["serve"]).resident();
        let second = Duration::from_secs(1);
        check(closure(), "");
        check(command().timeout(second), "");
        check(stays().timeout(second).batch(512, second), "");
        check(stays().resident(), "");
        check(command().resident(), "`{item}` names something of one item");
        check(stays().env("X", "{id}"), "`{id}` names something of one item");
        check(stays().cwd("{out}"), "`{out}` names something of one item");
        check(closure().timeout(second), "route `c`: a timeout can't end a closure");
        check(closure().resident(), "`resident` is for commands");
        check(closure().split(10), "call `gamdok::split` in it");
        check(closure().cwd("x"), "`cwd` is for commands");
        check(command().batch(2, Duration::ZERO), "takes no `batch`");
        check(closure().batch(2, Duration::ZERO), "takes no `batch`");
        check(command().idle_timeout(second), "`idle_timeout` is of processes that stay");
        check(closure().max_items(7), "`max_items` is of processes that stay");
        check(command().ready_timeout(second), "`ready_timeout` is of processes that stay");
        check(Route::closure(" ", |_| Ok(())), "it needs a name");
        check(Route::closure("a/b", |_| Ok(())), "it needs a name");
        check(Route::closure("a\0", |_| Ok(())), "it needs a name");
        check(closure().folder("a/b"), "`a/b` can't be a folder");
        check(closure().folder("a "), "`a ` can't be a folder");
        check(closure().folder("a\0"), "`a\\u{0}` can't be a folder");
        check(closure().matching(["[a"]), "the pattern `[a` can't be read");
        check(closure().matching(["a/b"]), "fits no name");
        check(closure().matching([""]), "an empty pattern");
        check(closure().outputs(["../x"]), "leads out of `out/`");
        check(closure().cpu().gpu_memory(Bytes(1)), "`gpu_memory` of no GPU");
        check(closure().gpu_memory(Bytes(0)), "`gpu_memory` is nothing");
        check(closure().backoff(Duration::from_secs(601)), "more than ten minutes");
        check(closure().env("GAMDOK_ID", "x"), "`GAMDOK_ID` is set for each attempt");
        check(closure().env("A=B", "x"), "no variable can be called `A=B`");
        check(closure().env("A", "x\0"), "`x\\u{0}` has a NUL byte");
        check(Route::command("r", [""; 0]), "its command is empty");
        check(Route::command("r", ["x", "{imte}"]), "holds an unknown placeholder");
        check(Route::command("r", ["x", "a\0"]), "`a\\u{0}` has a NUL byte");
        check(closure().gpus(u32::MAX), "`gpus` is 4294967295: it must be from 0 to 256");
        check(closure().retries(u32::MAX), "`retries` is 4294967295");
        check(closure().priority(i32::MIN), "`priority` is -2147483648");
        check(closure().max_running(u32::MAX), "`max_running` is 4294967295");
        check(stays().batch(513, Duration::ZERO), "`batch` is 513");
        check(stays().batch(0, Duration::ZERO), "`batch` is 0");
        check(stays().batch(2, Duration::MAX), "more than an hour");
        check(stays().ready_timeout(Duration::ZERO), "`ready_timeout` is less than a millisecond");
        check(command().timeout(Duration::ZERO), "`timeout` is less than a millisecond");
        check(command().split(0), "`split(0)`: a batch has from 1");
        check(command().compress(6), "`split(0)`: a batch has from 1");
        check(command().split(9).compress(13), "no compression level 13");
        check(command().split(9).directories(), "`split` cuts a file");
        check(stays().split(9).batch(2, Duration::ZERO), "`batch` counts items");
        check(closure().marker("a/b"), "can't end a marker's name (found a `/`)");
        check(closure().marker("\0"), "found a NUL byte");
        check(closure().validator([""]), "its validator is empty");
        check(closure().validator(["v", "{out}"]), "`{out}` isn't known to a validator");
        check(closure().publish("/srv/root/inbox/x"), "`publish`: found a folder in the inbox");
        check(closure().publish("/srv/root"), "`publish`: found the root itself");
    }

    #[test]
    fn what_no_director_can_be_is_told() {
        let check = |change: &dyn Fn(super::super::Builder) -> super::super::Builder, words: &str| {
            let error = change(Director::builder().root("/nonexistent/root").init()).start().unwrap_err();
            assert!(error.to_string().contains(words), "{error}, not {words}");
        };
        let nothing = |name: &str| Route::closure(name, |_| Ok(()));
        check(&|it| it.slots(0), "`slots` is 0");
        check(&|it| it.slots(u32::MAX), "`slots` is 4294967295");
        check(&|it| it.cpu_slots(0), "`cpu_slots` is 0");
        check(&|it| it.max_log(Bytes(0)), "`max_log` is 0 B");
        check(&|it| it.keep_done(Duration::ZERO), "`keep_done` is less than a second");
        check(&|it| it.keep_failed(Duration::ZERO), "`keep_failed` is less than a second");
        check(&|it| it.poll_interval(Duration::ZERO), "`poll_interval` must be from");
        check(&|it| it.ignore(["["]), "the pattern `[` can't be read");
        check(&|it| it.listen(([0, 0, 0, 0], 1).into()), "others can reach 0.0.0.0:1");
        check(&|it| it.route(nothing("a")).route(nothing("a")), "route `a`: another route has this name");
        check(&|it| it.route(nothing("a").publish("")), "`publish` is empty");
        check(&|it| it.root("a\0b"), "`a\\u{0}b` has a NUL byte");
        check(&|it| it.root(""), "cannot tell where `` lies");
        check(&|it| it.route(Route::command("a", ["x"]).cwd("~/x")), "`~` isn't expanded here");
    }
}
