//! Building a director: the root, the threads, recovery; and taking it down again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crossbeam_channel::{bounded, never, unbounded};
use tracing::{info, warn};

use super::{Director, Summary};
use crate::api::view::{Counts, DirectorState, Status, View};
use crate::config::{self, Config};
use crate::devices::locks::Locks;
use crate::devices::{HostMode, Snapshot, prober};
use crate::health::{Check, What};
use crate::inbox;
use crate::ledger;
use crate::root::{Root, RootError};
use crate::spool;
use crate::state::State;
use crate::units::{Clock, Moment};
use crate::{api, worker};

/// What `gamdok run` was asked to do.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    pub warnings: Vec<config::Warning>,
    /// `run -- COMMAND`: its routes stay, whatever the file says later.
    pub command: bool,
    /// End when all that lay in the inbox at the start has ended.
    pub once: bool,
    /// Make the root if it isn't one.
    pub init: bool,
    /// Where signals arrive: one message each.
    pub stops: crossbeam_channel::Receiver<()>,
}

/// Why a director couldn't run at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
}

impl RunError {
    /// DESIGN's exit codes: 4 another director, 5 the root is unavailable.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Root(error) => error.exit_code(),
            RunError::Io { .. } => 5,
        }
    }
}

/// How many worker events may wait: a progress message is at most ten a second and worker, a report is one a slot.
const REPORTS: usize = 4096;
/// How many requests may wait for the director.
const REQUESTS: usize = 256;

/// Runs the service until it is told to stop, or with `once` until its work is done.
pub fn run(options: Options) -> Result<Summary, RunError> {
    let Options { config, warnings, command, once, init, stops } = options;
    for warning in &warnings {
        warn!(warning, "configuration");
    }
    if init {
        Root::init(&config.root)?;
    }
    let root = Arc::new(Root::open(&config.root)?);
    let _guard = root.lock()?;
    root.probe()?;

    let clock = Clock::start();
    let rules = resolved(&config.devices);
    // The devices are asked first: a driver takes its time, and recovery can go on meanwhile.
    let prober = prober::start(Arc::new(rules.clone()), clock);
    let recovered = spool::recover(&root)?;
    let ledger = ledger::start(ledger::Setup::of(&root));
    let spool = spool::start(root.clone(), config.history.clone(), clock);
    let first = prober.snapshots.recv().unwrap_or_else(|_| no_devices());
    let scanner = inbox::start(inbox::Setup {
        inbox: root.inbox(),
        sentinel: root.sentinel(),
        rules: Arc::new(config.inbox.clone()),
        routes: config.routes.clone(),
        once,
        clock,
    });
    let configured = match &config.file {
        Some(file) => config::watch::start(file.clone(), config.root.clone()),
        None => config::watch::Watcher::idle(),
    };
    let board = api::Board::new(first_view(&root, first.mode));
    let (ask, requests) = bounded(REQUESTS);
    let io = |what| move |source| RunError::Io { what, source };
    let server = api::serve(api::ServerSetup {
        root: root.clone(),
        board: board.clone(),
        requests: ask,
        listen: config.api.listen,
        token_file: config.api.token_file.clone(),
    })
    .map_err(io("open the interface"))?;
    let (events, reports) = bounded(REPORTS);
    let (inspections, inspected) = unbounded();
    let watchdog = sd_notify::watchdog_enabled().map(|period| period / 2);

    let mut director = Director {
        clock,
        command: command.then(|| config.routes.first().cloned()).flatten(),
        root: root.clone(),
        once,
        state: State::new(rules),
        snapshot: no_devices(),
        counts: inbox::Counts::default(),
        health: all_well(),
        running: HashMap::new(),
        locks: Locks::open(),
        ids: ulid::Generator::new(),
        attended: (Vec::new(), false),
        taken: Vec::new(),
        cancelling: HashSet::new(),
        retries: Vec::new(),
        claims_resume: None,
        signals: 0,
        summary: Summary::default(),
        counters: BTreeMap::new(),
        dirty: true,
        published_at: Moment::default(),
        number: 0,
        watchdog,
        watchdog_at: Moment::default(),
        events,
        inspections,
        board,
        stops,
        reports,
        inspected,
        requests,
        configured: configured.changes.clone(),
        scanner,
        prober,
        spool,
        ledger,
        config,
    };
    director.state.now = clock.now();
    director.on_snapshot(first);
    info!(
        root = %crate::item::escape(root.path().as_os_str().as_encoded_bytes()),
        mode = ?director.snapshot.mode,
        routes = director.config.routes.len(),
        recovered = recovered.jobs.len(),
        once,
        "running"
    );
    for job in recovered.jobs {
        director.adopt(job);
    }
    for ending in recovered.endings {
        director.spool.send(ending);
    }
    director.publish();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    director.run();
    Ok(director.end(server))
}

impl Director {
    /// Lets everything go in order: no new requests, what is written is written whole, then the lock.
    fn end(mut self, server: api::Server) -> Summary {
        self.state.now = self.clock.now();
        self.publish();
        self.spool.finish();
        drop(server);
        self.ledger.finish();
        info!(done = self.summary.done, failed = self.summary.failed, cancelled = self.summary.cancelled, "ended");
        self.summary
    }
}

/// The device rules with what depends on the host filled in.
pub(super) fn resolved(devices: &config::Devices) -> config::Devices {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    config::Devices { cpu_slots: Some(devices.cpu_slots.unwrap_or(cores)), ..devices.clone() }
}

fn no_devices() -> Snapshot {
    Snapshot { taken_at: Moment::default(), number: 0, mode: HostMode::Cpu, devices: Vec::new(), trouble: None }
}

fn all_well() -> BTreeMap<What, Check> {
    let parts = [What::Inbox, What::Watch, What::Spool, What::Space, What::Devices, What::Ledger, What::Config, What::LeaseTest];
    parts.into_iter().map(|what| (what, Check::ok(what))).collect()
}

fn first_view(root: &Root, mode: HostMode) -> View {
    View {
        number: 0,
        status: Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Some(std::process::id()),
            root: crate::item::escape(root.path().as_os_str().as_encoded_bytes()),
            mode,
            state: DirectorState::Running,
            uptime_s: Some(0.0),
            counts: Counts::default(),
            devices: Vec::new(),
            running: Vec::new(),
            held: Vec::new(),
            health: Vec::new(),
        },
        live: Vec::new(),
    }
}
