//! The configuration, checked: what the rest of the program reads. Text becomes a [`Config`] in `parse`, which answers
//! what is wrong with the line, what was found and what is expected; `watch` reads it again when it changes.

mod command;
mod error;
pub(crate) mod limits;
mod notify;
mod parse;
pub(crate) mod place;
pub(crate) mod resident;
pub(crate) mod route;
mod schema;
mod split;
mod stored;
pub mod template;
mod text;
mod warning;
pub mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use notify::{Address, Notify, Target, Topic};
pub use parse::{Overrides, Source};
pub use resident::{Batch, Resident};
pub use split::{Compress, Split};
pub use warning::Warning;

use crate::item::ItemKind;
use crate::units::Bytes;

/// The configuration for people, every key with its default and what it means; `gamdok init` writes it.
pub const ANNOTATED: &str = include_str!("../../config/gamdok.toml");

/// Everything a director needs to know, checked and resolved. Compare two to know what a reload changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Where it was read from; none for the built-in defaults.
    #[serde(default, with = "stored::optional_path")]
    pub file: Option<PathBuf>,
    /// The folder that `cwd` defaults to and relative paths start from: the file's.
    #[serde(with = "stored::path")]
    pub dir: PathBuf,
    /// Absolute.
    #[serde(with = "stored::path")]
    pub root: PathBuf,
    pub inbox: Inbox,
    pub devices: Devices,
    pub history: History,
    pub api: Api,
    /// Who is told of what happens.
    pub notify: Vec<Notify>,
    /// In the file's order: the first that matches wins. Behind `Arc`, since a job keeps the one it was claimed with.
    pub routes: Vec<std::sync::Arc<Route>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inbox {
    /// None: by file system (2 s; 15 s on network file systems; 30 s for directories made in place).
    #[serde(default, with = "stored::optional_duration")]
    pub settle: Option<Duration>,
    /// Added to the built-in temporary-name patterns.
    pub ignore: Vec<String>,
    pub watch: Watch,
    #[serde(with = "stored::duration")]
    pub poll_interval: Duration,
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox { settle: None, ignore: Vec::new(), watch: Watch::Auto, poll_interval: Duration::from_secs(5) }
    }
}

/// How the inbox is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Watch {
    /// By events, and by looks where the file system tells of none.
    Auto,
    /// By events, also on network file systems, which tell of what happens on this host alone.
    Events,
    /// By looks alone.
    Poll,
}

/// Which devices are used, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Devices {
    /// Where they come from.
    #[serde(rename = "use")]
    pub backend: Backend,
    /// Indexes or UUIDs; empty = all.
    pub include: Vec<String>,
    /// Indexes or UUIDs, of those included.
    pub exclude: Vec<String>,
    /// Workers per GPU.
    pub slots: u32,
    /// None: one per core this process may use.
    pub cpu_slots: Option<u32>,
    /// Which of the free ones an item gets.
    pub policy: Policy,
    /// How a worker's process is told its GPUs.
    pub visible: Visible,
    /// Whether a worker stays on the cores near its GPU.
    pub affinity: bool,
    /// When a GPU counts as idle.
    pub idle: Idle,
    /// What [`Backend::Sim`] makes up.
    pub sim: Sim,
}

impl Default for Devices {
    fn default() -> Devices {
        Devices {
            backend: Backend::Auto,
            include: Vec::new(),
            exclude: Vec::new(),
            slots: 1,
            cpu_slots: None,
            policy: Policy::LeastConnections,
            visible: Visible::Uuid,
            affinity: true,
            idle: Idle::default(),
            sim: Sim::default(),
        }
    }
}

/// Where devices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The GPUs of this host; on a host without any NVIDIA device, CPU slots.
    Auto,
    /// The GPUs of this host. While the driver is silent nothing starts.
    Gpu,
    /// CPU slots; the driver isn't touched.
    Cpu,
    /// Made-up GPUs, for tests.
    Sim,
}

/// Which of the free devices an item gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Fewest leases; ties: most free memory, then coolest, then lowest index.
    #[default]
    LeastConnections,
    /// Most leases that still fit: keeps whole devices free.
    Pack,
    /// The one after the last given.
    RoundRobin,
}

/// How a worker is told its GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visible {
    /// By their UUIDs: CUDA and the driver may number the same devices differently.
    Uuid,
    /// By their indexes, for frameworks that choke on UUIDs.
    Index,
}

/// When a GPU counts as idle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Idle {
    /// More than this in use is somebody's work.
    pub max_memory_used: Bytes,
    /// Percent.
    pub max_utilization: u32,
    /// The least time between the two clean sweeps that a device used by others needs.
    #[serde(with = "stored::duration")]
    pub settle: Duration,
    /// Names of processes that may be on it.
    pub ignore_processes: Vec<String>,
}

impl Default for Idle {
    fn default() -> Idle {
        Idle {
            max_memory_used: Bytes(600 << 20),
            max_utilization: 15,
            settle: Duration::from_secs(1),
            ignore_processes: vec!["Xorg".to_owned(), "gnome-shell".to_owned()],
        }
    }
}

/// Made-up GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sim {
    /// How many.
    pub gpus: u32,
    /// The memory of each.
    pub memory: Bytes,
}

impl Default for Sim {
    fn default() -> Sim {
        Sim { gpus: 4, memory: Bytes(80 << 30) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct History {
    /// None: forever.
    #[serde(default, with = "stored::optional_duration")]
    pub keep_done: Option<Duration>,
    #[serde(default, with = "stored::optional_duration")]
    pub keep_failed: Option<Duration>,
    /// Per attempt.
    pub max_log: Bytes,
}

impl Default for History {
    fn default() -> History {
        History { keep_done: None, keep_failed: None, max_log: Bytes(100 << 20) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Api {
    /// None: the Unix socket only.
    pub listen: Option<SocketAddr>,
    #[serde(default, with = "stored::optional_path")]
    pub token_file: Option<PathBuf>,
}

/// A rule that matches items and says how to process them. Serializable, since job.json carries it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub name: String,
    /// Under `inbox/`; empty for the inbox itself.
    pub folder: String,
    /// Glob patterns on the item's name; empty = every name.
    #[serde(rename = "match")]
    pub patterns: Vec<String>,
    pub kind: RouteKind,
    /// Program and arguments with their placeholders, already checked.
    pub command: Vec<String>,
    pub mode: Mode,
    /// Of a resident worker: how many items it is handed at once, and how long it lives.
    #[serde(default)]
    pub batch: Batch,
    #[serde(default)]
    pub resident: Resident,
    /// The item is a big line file that many work on at once.
    #[serde(default)]
    pub split: Option<Split>,
    pub env: BTreeMap<String, String>,
    /// Absolute, or with placeholders; none: the configuration's directory.
    pub cwd: Option<String>,
    /// The directory of the configuration it came from: the default `cwd`.
    #[serde(with = "stored::path")]
    pub dir: PathBuf,
    /// 0 = CPU slots.
    pub gpus: u32,
    pub gpu_memory: Option<Bytes>,
    pub cpu_fallback: bool,
    pub visible: Option<Visible>,
    /// Higher goes first.
    pub priority: i32,
    /// None: no limit.
    pub max_running: Option<u32>,
    #[serde(default, with = "stored::optional_duration")]
    pub timeout: Option<Duration>,
    #[serde(with = "stored::duration")]
    pub kill_grace: Duration,
    /// Counted attempts after the first.
    pub retries: u32,
    /// Before the second attempt; doubles up to [`Route::MAX_BACKOFF`].
    #[serde(with = "stored::duration")]
    pub backoff: Duration,
    /// Patterns that must exist in `out/`.
    pub outputs: Vec<String>,
    pub ready: Ready,
    /// Absolute.
    #[serde(default, with = "stored::optional_path")]
    pub publish: Option<PathBuf>,
}

impl Route {
    pub const MAX_BACKOFF: Duration = Duration::from_secs(600);

    /// Its items go to resident workers that take one after another. Those of a big line file belong to that item.
    pub fn keeps_residents(&self) -> bool {
        self.mode == Mode::Resident && self.split.is_none()
    }

    /// A route that takes every item of the inbox itself, all else by default.
    pub fn new(name: impl Into<String>, command: Vec<String>, dir: impl Into<PathBuf>) -> Route {
        Route {
            name: name.into(),
            folder: String::new(),
            patterns: Vec::new(),
            kind: RouteKind::File,
            command,
            mode: Mode::Oneshot,
            batch: Batch::default(),
            resident: Resident::default(),
            split: None,
            env: BTreeMap::new(),
            cwd: None,
            dir: dir.into(),
            gpus: 1,
            gpu_memory: None,
            cpu_fallback: true,
            visible: None,
            priority: 0,
            max_running: None,
            timeout: None,
            kill_grace: Duration::from_secs(10),
            retries: 2,
            backoff: Duration::from_secs(5),
            outputs: Vec::new(),
            ready: Ready::default(),
            publish: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    File,
    Directory,
    Any,
}

impl RouteKind {
    pub fn takes(self, kind: ItemKind) -> bool {
        match self {
            RouteKind::File => kind == ItemKind::File,
            RouteKind::Directory => kind == ItemKind::Directory,
            RouteKind::Any => true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Oneshot,
    Resident,
}

/// What must hold beside the built-in rules before an item of this route is ready; combined with AND.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Replaces all three defaults.
    #[serde(default, with = "stored::optional_duration")]
    pub settle: Option<Duration>,
    /// A suffix: `<name><marker>` must exist (inside a directory item: a file of exactly this name also counts).
    pub marker: Option<String>,
    /// `<name>.manifest.json` with sizes and SHA-256 must match.
    pub manifest: bool,
    pub min_bytes: Bytes,
    /// Exit 0 = ready, 75 = not yet, else held.
    pub validator: Vec<String>,
}
