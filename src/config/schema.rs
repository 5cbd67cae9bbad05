//! The keys there are, by table, and those that come with later work. Data only: messages list them, a test holds the
//! annotated configuration against them.

/// Every table with its keys, in the order in which people read them. A table within another is named by its path.
pub(super) const TABLES: &[(&str, &[&str])] = &[
    ("", &["root", "inbox", "devices", "history", "api", "notify", "route"]),
    ("inbox", &["settle", "ignore", "watch", "poll_interval"]),
    ("devices", &["use", "include", "exclude", "slots", "cpu_slots", "policy", "visible", "affinity", "idle", "sim"]),
    ("devices.idle", &["max_memory_used", "max_utilization", "settle", "ignore_processes"]),
    ("devices.sim", &["gpus", "memory"]),
    ("history", &["keep_done", "keep_failed", "max_log"]),
    ("api", &["listen", "token_file", "max_upload"]),
    ("notify", &["events", "url", "secret_file", "command", "routes", "timeout", "retries"]),
    (
        "route",
        &[
            "name",
            "folder",
            "match",
            "kind",
            "command",
            "mode",
            "env",
            "cwd",
            "gpus",
            "gpu_memory",
            "cpu_fallback",
            "visible",
            "priority",
            "max_running",
            "timeout",
            "kill_grace",
            "retries",
            "backoff",
            "outputs",
            "batch",
            "resident",
            "split",
            "ready",
            "publish",
        ],
    ),
    ("route.batch", &["max_items", "max_wait"]),
    ("route.resident", &["idle_timeout", "max_items", "ready_timeout"]),
    ("route.split", &["lines", "compress", "level"]),
    ("route.ready", &["settle", "marker", "manifest", "min_bytes", "validator"]),
];

/// Known words that nothing answers to yet: refused with that reason rather than ignored.
const LATER: &[(&str, &[&str])] = &[("", &["engine"])];

/// Words that other schedulers use for the same wish.
const ALIASES: &[(&str, &str, &str)] = &[
    ("inbox", "interval", "poll_interval"),
    ("devices", "backend", "use"),
    ("devices", "gpus", "include"),
    ("history", "retention", "keep_done"),
    ("route", "cmd", "command"),
    ("route", "run", "command"),
    ("route", "args", "command"),
    ("route", "pattern", "match"),
    ("route", "patterns", "match"),
    ("route", "glob", "match"),
    ("route", "files", "match"),
    ("route", "dir", "folder"),
    ("route", "memory", "gpu_memory"),
    ("route", "vram", "gpu_memory"),
    ("route", "concurrency", "max_running"),
    ("route", "environment", "env"),
    ("route", "workdir", "cwd"),
    ("route", "working_directory", "cwd"),
    ("route", "settle", "ready.settle"),
    ("route", "marker", "ready.marker"),
    ("route", "manifest", "ready.manifest"),
    ("route", "min_bytes", "ready.min_bytes"),
    ("route", "validator", "ready.validator"),
    ("notify", "on", "events"),
    ("notify", "webhook", "url"),
    ("notify", "secret", "secret_file"),
    ("", "routes", "[[route]]"),
];

/// The keys of a table.
pub(super) fn keys(table: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(name, _)| *name == table).map_or(&[], |(_, keys)| keys)
}

/// The name of a table within a table.
pub(super) fn inner(table: &str, key: &str) -> &'static str {
    let path = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
    TABLES.iter().find(|(name, _)| *name == path).map_or("", |(name, _)| name)
}

pub(super) fn is_later(table: &str, key: &str) -> bool {
    LATER.iter().any(|(name, keys)| *name == table && keys.contains(&key))
}

/// What another word for a key is called here.
pub(super) fn alias(table: &str, word: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(home, other, _)| *home == table && *other == word).map(|(_, _, key)| *key)
}

/// The one table that has this key; nothing where there are several.
pub(super) fn home(key: &str) -> Option<&'static str> {
    let mut homes = TABLES.iter().filter(|(_, keys)| keys.contains(&key)).map(|(table, _)| *table);
    let home = homes.next()?;
    homes.next().is_none().then_some(home)
}
